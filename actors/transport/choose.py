"""The transport that the settings name, and a store's way to regions of whatever kind."""

from collections.abc import Callable, Mapping
from typing import Literal

from actors.transport.base import Kind, Offer, Reach, Region, Ticket
from actors.transport.nixl import NixlReach, NixlRegion
from actors.transport.shared import SharedReach, SharedRegion
from cache.lent import Bytes
from errors import ConfigError, TransferFailed

# ``inline``: payloads go as bytes within calls.
Transport = Literal["shared", "nixl", "inline"]
REACHES: Mapping[Kind, Callable[[], Reach]] = {"shared": SharedReach, "nixl": NixlReach}


def region(transport: Transport, slots: int, slot_bytes: int) -> Region | None:
    """A generator's region, if this transport has one; raises ``ConfigError`` if it is not to be had here."""
    if transport == "inline":
        return None
    return SharedRegion(slots, slot_bytes) if transport == "shared" else NixlRegion(slots, slot_bytes)


class AnyReach:
    """``actors.transport.base.Reach`` to regions of every kind, each made when it is needed first."""

    def __init__(self) -> None:
        self._made: dict[Kind, Reach] = {}

    def pull(self, offer: Offer, into: Bytes) -> None:
        self._of(offer.ticket).pull(offer, into)

    def push(self, offer: Offer, payload: Bytes) -> None:
        self._of(offer.ticket).push(offer, payload)

    def greet(self, ticket: Ticket) -> None:
        self._of(ticket).greet(ticket)

    def sweep(self) -> None:
        for reach in self._made.values():
            reach.sweep()

    def statistics(self) -> dict[str, int]:
        found = [reach.statistics() for reach in self._made.values()]
        return {name: sum(one[name] for one in found) for name in ("regions", "attached_bytes", "graveyard_bytes")}

    def close(self) -> None:
        for reach in self._made.values():
            reach.close()
        self._made.clear()

    def _of(self, ticket: Ticket) -> Reach:
        if ticket.kind not in self._made:
            try:
                self._made[ticket.kind] = REACHES[ticket.kind]()
            except ConfigError as error:
                raise TransferFailed(f"this store cannot be reached by {ticket.kind}: {error}") from error
        return self._made[ticket.kind]

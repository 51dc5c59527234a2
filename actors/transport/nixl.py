"""NIXL with UCX: shared memory and CMA within a machine, RDMA or TCP between two. The only file that imports it.

What NIXL says is not taken for the truth: it calls a read of memory that its owner has long used for something else a
success. So every slot's head is read first, and the checksum of all that arrives is verified. A transfer which is not
over in time is never cancelled, for nobody knows what a cancelled one still writes: its buffer lies in the graveyard
until UCX says that it is over. UCX touches buffers of the store's ``NixlReach`` alone, never a record.

The owner of a region needs UCX's progress thread, which takes 0.7 of a core without anything to do; the store has none.
UCX listens on every network device unless ``UCX_NET_DEVICES`` names some.
"""

import importlib
import mmap
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from actors.transport.base import HEAD_BYTES, REVOKED, Layout, Offer, Ticket, region_bytes, verify
from cache.lent import Bytes, flat
from cache.transfer import Lease, SlotBook
from errors import ConfigError, PeerGone, TransferFailed, TransferPending

PEERS = 64  # known at most; the one that was used longest ago is let go of
BOUNCES, BOUNCE_BYTES = 4, 32 << 20  # a descriptor over 2 GiB fails; none is ever larger than a bounce buffer
PATIENCE_S = 5.0
Operation = Literal["READ", "WRITE"]


class _Agent:
    """One agent of NIXL with UCX and one stretch of registered memory."""

    def __init__(self, name: str, layout: Layout, progress: bool) -> None:
        """Raises ``ConfigError`` where NIXL is not installed."""
        try:
            nixl: Any = importlib.import_module("nixl_cu12")
            bindings: Any = importlib.import_module("nixl_cu12._bindings")
        except ImportError as error:
            raise ConfigError(
                f"service.transport is 'nixl', but NIXL cannot be imported: {error}; expected the package nixl-cu12 "
                "(the extra 'nixl'), or 'shared' or 'inline'"
            ) from error
        self.errors = tuple(getattr(bindings, e) for e in dir(bindings) if e.startswith("nixl") and e.endswith("Error"))
        self.gone = (bindings.nixlRemoteDisconnectError, bindings.nixlNotFoundError)
        self.layout, self.base = layout, int(layout.memory.ctypes.data)
        self.nixl = nixl.nixl_agent(name, nixl.nixl_agent_config(backends=[], enable_prog_thread=progress))
        self.nixl.create_backend("UCX", {"ucx_error_handling_mode": "peer"})
        self._registered = self.nixl.register_memory([(self.base, layout.memory.nbytes, 0, "")], "DRAM")

    def begin(self, operation: Operation, at: int, nbytes: int, peer: str, there: int) -> Any:
        """A transfer between ``at`` in our memory and address ``there`` of ``peer``."""
        here = self.nixl.get_xfer_descs([(self.base + at, nbytes, 0)], "DRAM")
        handle = self.nixl.initialize_xfer(
            operation, here, self.nixl.get_xfer_descs([(there, nbytes, 0)], "DRAM"), peer
        )
        self.nixl.transfer(handle)
        return handle

    def close(self) -> None:
        self.nixl.deregister_memory(self._registered)


def _memory(slots: int, slot_bytes: int) -> Layout:
    """Anonymous memory that was touched."""
    memory = flat(mmap.mmap(-1, region_bytes(slots, slot_bytes)))
    memory[:] = 0
    return Layout(memory, slots, slot_bytes)


class NixlRegion:
    """``actors.transport.base.Region`` that UCX reads and writes."""

    window_bytes = 0

    def __init__(self, slots: int, slot_bytes: int) -> None:
        """Raises ``ConfigError`` where NIXL is not installed."""
        name = f"generator-{secrets.token_hex(8)}"
        self._layout = _memory(slots, slot_bytes)
        self._agent: _Agent | None = _Agent(name, self._layout, progress=True)
        where = bytes(self._agent.nixl.get_agent_metadata())
        self.ticket = Ticket("nixl", name, where, self._agent.base, slots, slot_bytes)

    def payload(self, slot: int) -> Bytes:
        return self._layout.payload(slot)

    def announce(self, offer: Offer) -> None:
        self._layout.write_head(offer.slot, offer.head())

    def written(self, offer: Offer) -> int:
        return 0

    def say_read(self, offer: Offer, nbytes: int) -> None:
        """Nobody would see it."""

    def revoke(self, slot: int) -> None:
        self._layout.write_head(slot, REVOKED)

    def deserted(self, slot: int) -> bool | None:
        """Nobody can tell; a network card may still write for a process that has ended."""
        return None

    def close(self) -> None:
        if self._agent is not None:
            for slot in range(self.ticket.slots):
                self.revoke(slot)
            self._agent.close()
            self._agent = None


@dataclass(frozen=True)
class _Abandoned:
    """A transfer that was not over in time, and the bounce buffer that it may still touch."""

    handle: Any
    lease: Lease
    operation: Operation
    peer: str


class NixlReach:
    """``actors.transport.base.Reach`` by UCX, by way of bounce buffers that are registered once.

    Args:
        patience_s: a transfer of one bounce buffer that takes longer is given up.
        clock: seconds.
    """

    def __init__(
        self,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        bounces: int = BOUNCES,
        bounce_bytes: int = BOUNCE_BYTES,
    ) -> None:
        """Raises ``ConfigError`` where NIXL is not installed."""
        self.patience_s, self.clock = patience_s, clock
        self.layout = _memory(bounces, bounce_bytes)
        self.book = SlotBook(bounces, patience_s)
        self._agent = _Agent(f"store-{secrets.token_hex(8)}", self.layout, progress=False)
        self._peers: OrderedDict[str, str] = OrderedDict()
        self._abandoned: list[_Abandoned] = []

    def pull(self, offer: Offer, into: Bytes) -> None:
        peer, layout = self._enter(offer), self.layout
        if len(into) != offer.nbytes:
            raise TransferFailed(f"{offer.nbytes:,} bytes do not fit a buffer of {len(into):,}")
        at = _payload_address(offer)
        for begin in range(0, offer.nbytes, layout.slot_bytes):
            piece = into[begin : begin + layout.slot_bytes]

            def land(slot: int, piece: Bytes = piece) -> None:
                np.copyto(piece, layout.payload(slot)[: len(piece)])

            self._through("READ", peer, at + begin, len(piece), land=land)
        verify(into, offer.nbytes, offer.checksum)

    def push(self, offer: Offer, payload: Bytes) -> None:
        if len(payload) > offer.nbytes:
            raise TransferFailed(f"{len(payload):,} bytes do not fit a slot of {offer.nbytes:,}")
        peer, layout = self._enter(offer), self.layout
        for begin in range(0, len(payload), layout.slot_bytes):
            piece = payload[begin : begin + layout.slot_bytes]

            def load(slot: int, piece: Bytes = piece) -> None:
                np.copyto(layout.payload(slot)[: len(piece)], piece)

            self._through("WRITE", peer, _payload_address(offer) + begin, len(piece), load=load)

    def greet(self, ticket: Ticket) -> None:
        self._read_head(self._peer(ticket), ticket, 0)
        if any((one.operation, one.peer) == ("WRITE", ticket.region) for one in self._abandoned):
            raise TransferPending(f"NIXL: a push to {ticket.region} that was given up is still on its way")

    def sweep(self) -> None:
        for one in list(self._abandoned):
            if self._over(one.handle):
                self._abandoned.remove(one)
                self.book.release(one.lease)

    def statistics(self) -> dict[str, int]:
        buried = len(self._abandoned) * self.layout.slot_bytes
        return {"regions": len(self._peers), "attached_bytes": self.layout.memory.nbytes, "graveyard_bytes": buried}

    def close(self) -> None:
        for peer in list(self._peers):
            self._forget(peer)
        self._agent.close()

    def _enter(self, offer: Offer) -> str:
        """The peer, once the slot's head was read and is this offer's."""
        ticket = offer.ticket
        if not 0 <= offer.slot < ticket.slots or not 0 <= offer.nbytes <= ticket.slot_bytes:
            raise TransferFailed(f"slot {offer.slot} with {offer.nbytes:,} bytes is not one of {ticket.region}")
        peer = self._peer(ticket)
        offer.expect(self._read_head(peer, ticket, offer.slot))
        return peer

    def _read_head(self, peer: str, ticket: Ticket, slot: int) -> bytes:
        found: list[bytes] = []

        def land(bounce: int) -> None:
            found.append(self.layout.payload(bounce)[:HEAD_BYTES].tobytes())

        self._through("READ", peer, ticket.address + Layout.head_at(slot), HEAD_BYTES, land=land)
        return found[0]

    def _through(
        self,
        operation: Operation,
        peer: str,
        there: int,
        nbytes: int,
        load: Callable[[int], None] | None = None,
        land: Callable[[int], None] | None = None,
    ) -> None:
        """One transfer by way of one bounce buffer, filled by ``load`` before or emptied by ``land`` after it."""
        self.sweep()
        lease = self.book.reserve(self.clock())
        if lease is None:
            raise TransferFailed(f"all {self.layout.slots} buffers wait for transfers that are not over yet")
        try:
            if load is not None:
                load(lease.slot)
            self._move(operation, peer, lease, there, nbytes)
            if land is not None:
                land(lease.slot)
        finally:
            if self.book.use(lease) == "leased":
                self.book.release(lease)

    def _move(self, operation: Operation, peer: str, lease: Lease, there: int, nbytes: int) -> None:
        agent = self._agent
        try:
            handle = agent.begin(operation, self.layout.payload_at(lease.slot), nbytes, peer, there)
            while (state := agent.nixl.check_xfer_state(handle)) == "PROC" and self.clock() < lease.until:
                pass  # UCX moves only while it is asked
        except agent.errors as error:
            self._forget(peer)
            kind = PeerGone if isinstance(error, agent.gone) else TransferFailed
            raise kind(f"NIXL: {operation} of {nbytes:,} bytes, {peer}: {error}") from error
        if state == "PROC":
            self.book.bury(lease)
            self._abandoned.append(_Abandoned(handle, lease, operation, peer))
            kind = TransferPending if operation == "WRITE" else TransferFailed
            raise kind(f"NIXL: {operation} of {nbytes:,} bytes, {peer}: not over after {self.patience_s:g} s")
        agent.nixl.release_xfer_handle(handle)
        if state != "DONE":
            raise TransferFailed(f"NIXL: {operation} of {nbytes:,} bytes, {peer}: {state}")

    def _over(self, handle: Any) -> bool:
        """Whether a transfer that was given up is over by now, however it ended."""
        try:
            if self._agent.nixl.check_xfer_state(handle) == "PROC":
                return False
            self._agent.nixl.release_xfer_handle(handle)
        except self._agent.errors:
            return True  # UCX ends what is on its way to a peer before it says that the peer has gone
        return True

    def _peer(self, ticket: Ticket) -> str:
        if ticket.region not in self._peers:
            try:
                added = self._agent.nixl.add_remote_agent(ticket.where)
            except self._agent.errors as error:
                raise PeerGone(f"NIXL: {ticket.region} cannot be reached: {error}") from error
            self._peers[ticket.region] = added.decode()
            while len(self._peers) > PEERS:
                self._forget(next(iter(self._peers)))
        self._peers.move_to_end(ticket.region)
        return self._peers[ticket.region]

    def _forget(self, peer: str) -> None:
        if self._peers.pop(peer, None) is not None:
            try:
                self._agent.nixl.remove_remote_agent(peer)
            except self._agent.errors:
                return  # it was forgotten there already


def _payload_address(offer: Offer) -> int:
    layout = Layout(np.empty(0, np.uint8), offer.ticket.slots, offer.ticket.slot_bytes)
    return offer.ticket.address + layout.payload_at(offer.slot)

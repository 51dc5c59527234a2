"""The restore store of a node: evicted chunks and streams that are put away, in host memory outside generators."""

import secrets
from dataclasses import dataclass, field
from typing import Any

from actors.cargo import Cargo, Goods
from actors.dock import Dock
from actors.transport.base import Offer, Ticket
from actors.vault import HostVault
from cache.records import plain_record
from cache.spec import AttentionType
from cache.tiers import HostTier

WARM_BYTES = 256 << 20  # idle buffers that are kept for what comes next, at most


@dataclass(frozen=True)
class Answer:
    """What every call answers with.

    Args:
        incarnation: changes when the store has begun anew and lost all that it held.
        losses: records that had to make room so far; whoever sees it grow asks for ``holdings``.
    """

    incarnation: str
    losses: int
    result: Any = None


@dataclass
class RestoreStore:
    """``cache.tiers.HostTier`` and a vault, behind calls whose arguments and results are plain data.

    Tensors come and go as ``Cargo``: in the call, or one-sided through a slot of the caller's that the call names.

    Args:
        host_bytes: bound of the records; at it the least useful make room.
        vault_bytes: bound of the streams that are put away; at it the next is refused.
    """

    host_bytes: int
    vault_bytes: int
    incarnation: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        self.tier = HostTier(self.host_bytes)
        self.dock = Dock(min(WARM_BYTES, self.host_bytes // 8))
        self.vault = HostVault(self.vault_bytes)

    def greet(self, ticket: Ticket) -> Answer:
        """See ``Dock.greet``."""
        return self._answer(self.dock.greet(ticket))

    def keep_latents(self, session: str, chunk: int, latents: Cargo) -> Answer:
        """See ``RestoreTier.keep_latents``; raises ``TransferFailed`` and ``RecordCorrupt``."""
        self.tier.keep_latents(session, chunk, self.dock.take(latents).latents())
        return self._answer()

    def offload(self, session: str, chunk: int, type: str, payload: Cargo) -> Answer:
        """See ``RestoreTier.offload``; raises ``TransferFailed`` and ``RecordCorrupt``."""
        self.tier.offload(session, chunk, AttentionType(type), self.dock.take(payload).key_values())
        return self._answer()

    def fetch(self, session: str, chunk: int, type: str, landing: Offer | None = None) -> Answer:
        """Keys and values, put into ``landing`` if they fit; raises ``RecordLost``, ``TransferFailed``."""
        goods = Goods.of_key_values(self.tier.fetch(session, chunk, AttentionType(type)))
        return self._answer(self.dock.give(goods, landing))

    def latents(self, session: str, chunk: int, landing: Offer | None = None) -> Answer:
        """Clean latents, put into ``landing`` if they fit; raises ``RecordLost``, ``TransferFailed``."""
        return self._answer(self.dock.give(Goods.of_latents(self.tier.latents(session, chunk)), landing))

    def records(self, session: str) -> Answer:
        """Everything about a session, by chunk."""
        return self._answer({chunk: plain_record(record) for chunk, record in self.tier.records(session).items()})

    def forget(self, session: str, chunk: int) -> Answer:
        """See ``RestoreTier.forget``."""
        self.tier.forget(session, chunk)
        return self._answer()

    def fork(self, parent: str, child: str) -> Answer:
        """See ``RestoreTier.fork``."""
        self.tier.fork(parent, child)
        return self._answer()

    def close(self, session: str) -> Answer:
        """See ``RestoreTier.close``."""
        self.tier.close(session)
        return self._answer()

    def holdings(self, sessions: list[str]) -> Answer:
        """What is held of these sessions: by session and chunk, names of attention types and whether latents."""
        found = {}
        for session in sessions:
            held = ((chunk, self.tier.holds(session, chunk)) for chunk in self.tier.chunks(session))
            found[session] = {chunk: (sorted(t.value for t in one.types), one.latents) for chunk, one in held}
        return self._answer(found)

    def put(self, session: str, data: bytes) -> None:
        """See ``HostVault.put``."""
        self.vault.put(session, data)

    def take(self, session: str) -> bytes:
        """See ``HostVault.take``."""
        return self.vault.take(session)

    def drop(self, session: str) -> None:
        """See ``HostVault.drop``."""
        self.vault.drop(session)

    def statistics(self) -> dict[str, int]:
        """Bytes and counts of both."""
        tier, vault = self.tier.statistics(), self.vault.statistics()
        return {
            "bytes_held": tier.bytes_held,
            "budget_bytes": tier.budget_bytes,
            "records": tier.records,
            "dropped_key_values": tier.dropped_key_values,
            "dropped_latents": tier.dropped_latents,
            **{f"vault_{name}": value for name, value in vault.items()},
            **{f"transfer_{name}": value for name, value in self.dock.statistics().items()},
        }

    def check_integrity(self) -> None:
        """Tier and dock are as they must be."""
        self.tier.check_integrity()
        self.dock.check_integrity()

    def _answer(self, result: Any = None) -> Answer:
        return Answer(self.incarnation, self.tier.dropped_key_values + self.tier.dropped_latents, result)

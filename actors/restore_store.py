"""The restore store of a node: evicted chunks and streams that are put away, in host memory outside generators."""

import secrets
from dataclasses import dataclass, field
from typing import Any

from actors.vault import HostVault
from cache.records import Plain, parse_key_values, parse_latents, plain_key_values, plain_latents, plain_record
from cache.spec import AttentionType
from cache.tiers import HostTier


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

    Args:
        host_bytes: bound of the records; at it the least useful make room.
        vault_bytes: bound of the streams that are put away; at it the next is refused.
    """

    host_bytes: int
    vault_bytes: int
    incarnation: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        self.tier = HostTier(self.host_bytes)
        self.vault = HostVault(self.vault_bytes)

    def keep_latents(self, session: str, chunk: int, latents: Plain) -> Answer:
        """See ``RestoreTier.keep_latents``."""
        self.tier.keep_latents(session, chunk, parse_latents(latents))
        return self._answer()

    def offload(self, session: str, chunk: int, type: str, payload: Plain) -> Answer:
        """See ``RestoreTier.offload``."""
        self.tier.offload(session, chunk, AttentionType(type), parse_key_values(payload))
        return self._answer()

    def fetch(self, session: str, chunk: int, type: str) -> Answer:
        """Keys and values; raises ``RecordLost``."""
        return self._answer(plain_key_values(self.tier.fetch(session, chunk, AttentionType(type))))

    def latents(self, session: str, chunk: int) -> Answer:
        """Clean latents; raises ``RecordLost``."""
        return self._answer(plain_latents(self.tier.latents(session, chunk)))

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
        }

    def _answer(self, result: Any = None) -> Answer:
        return Answer(self.incarnation, self.tier.dropped_key_values + self.tier.dropped_latents, result)

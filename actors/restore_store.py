"""The restore store of a node: evicted chunks and streams that are put away, in host memory and on disk."""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from actors.cargo import Cargo, Goods
from actors.dock import Dock
from actors.transport.base import Offer, Ticket
from actors.vault import HostVault
from cache.records import plain_record
from cache.spec import AttentionType
from cache.tiered import TieredStore
from cache.tiered_config import TiersConfig
from errors import ServiceError

LOG = logging.getLogger("longtake.store")
LANDING_S = 20.0


METRICS = {
    "dropped": "store_dropped",
    "hits": "store_hits",
    "misses": "store_misses",
    "degraded": "store_degraded",
    "degradations": "store_degraded",
    "unerased": "store_degraded",
    "removed": "store_removed",
}
# What is counted from the first read on, so that the first failure is a change and not a new name.
HITS, MISSES, FAILED = ("host", "queue", "disk"), ("absent", "damaged", "foreign", "io"), ("unverified", "failed")
REMOVED = ("temporary", "orphan", "damaged", "cut off", "unknown")


def metric_of(name: str) -> str | None:
    """The metric that a number of ``RestoreStore.statistics`` belongs to, if one."""
    if name.startswith("transfer_failed_"):
        return "store_transfers_failed"
    return METRICS.get(name.partition("_")[0], "store_bytes" if "bytes" in name else None)


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
    """``cache.tiered.TieredStore`` and a vault, behind calls whose arguments and results are plain data.

    Tensors come and go as ``Cargo``: in the call, or one-sided through a slot of the caller's that the call names.

    Args:
        host_bytes: bound of the records; at it the least useful make room.
        vault_bytes: bound of the streams that are put away; at it the next is refused.
        tiers: what is below host memory. A thread writes to disk, where there is one.
        key: what the disk is encrypted with, or nothing.
        clock: wall time in seconds.
    """

    host_bytes: int
    vault_bytes: int
    tiers: TiersConfig = field(default_factory=TiersConfig)
    key: bytes = field(default=b"", repr=False)
    clock: Callable[[], float] = time.time
    incarnation: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        self.dock = Dock(min(WARM_BYTES, self.host_bytes // 8))
        self.tier = TieredStore(self.host_bytes, self.tiers, self.clock, self.key, LOG.warning)
        self.vault = HostVault(self.vault_bytes)
        self._writer = threading.Thread(target=self.tier.work, name="store", daemon=True)
        if self.tiers.disk:
            self._writer.start()

    def shut(self) -> None:
        """End the thread that writes, and let the disk go; what is on it stays."""
        self.tier.shut()
        if self.tiers.disk:
            self._writer.join()

    def greet(self, ticket: Ticket) -> Answer:
        """See ``Dock.greet``."""
        return self._answer(self.dock.greet(ticket))

    def keep_latents(self, session: str, chunk: int, latents: Cargo) -> Answer:
        """See ``RestoreTier.keep_latents``; raises ``TransferFailed`` and ``RecordCorrupt``."""
        self.tier.keep_latents(session, chunk, self.dock.take(latents).latents())
        return self._taken()

    def offload(self, session: str, chunk: int, type: str, payload: Cargo) -> Answer:
        """See ``RestoreTier.offload``; raises ``TransferFailed`` and ``RecordCorrupt``."""
        self.tier.offload(session, chunk, AttentionType(type), self.dock.take(payload).key_values())
        return self._taken()

    def introduce(self, session: str, owner: str, model: str) -> Answer:
        """See ``RestoreTier.introduce``."""
        self.tier.introduce(session, owner, model)
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

    def statistics(self) -> dict[str, float]:
        """Bytes and counts of both: of host memory as they are, ``disk_``, ``queued_``, ``hits_``, ``misses_``."""
        tier, vault = self.tier.statistics(), self.vault.statistics()
        hits, misses = dict.fromkeys(HITS, 0) | tier.hits, dict.fromkeys(MISSES, 0) | tier.misses
        dock = {f"failed_{what}": 0 for what in FAILED} | self.dock.statistics()
        found: dict[str, float] = {
            "bytes_held": tier.host.bytes_held,
            "budget_bytes": tier.host.budget_bytes,
            "records": tier.host.records,
            "dropped_key_values": tier.host.dropped_key_values,
            "dropped_latents": tier.host.dropped_latents,
            "dropped_refused": tier.refused,
            "dropped_expired": tier.expired,
            "queued_bytes": tier.queued_bytes,
            "degraded": float(bool(tier.degraded)),
            "degradations": tier.degradations,
            "unerased": tier.unerased,
            **{f"hits_{where}": count for where, count in hits.items()},
            **{f"misses_{reason}": count for reason, count in misses.items()},
            **{f"vault_{name}": value for name, value in vault.items()},
            **{f"transfer_{name}": value for name, value in dock.items()},
        }
        if tier.disk is not None:
            removed = dict.fromkeys(REMOVED, 0) | tier.disk.removed
            found |= {
                "disk_bytes_held": tier.disk.bytes_held,
                "disk_budget_bytes": tier.disk.budget_bytes,
                "disk_payload_bytes": tier.disk.payload_bytes,
                "disk_records": tier.disk.records,
                "dropped_disk_key_values": tier.disk.dropped_key_values,
                "dropped_disk_latents": tier.disk.dropped_latents,
                **{f"removed_{what.replace(' ', '_')}": count for what, count in removed.items()},
            }
        return found

    def _taken(self) -> Answer:
        """What was given is as safe as configured. Raises ``ServiceError`` if it cannot be made so."""
        try:
            if not self.tier.landed().result(LANDING_S):
                raise ServiceError("what was given could not be written to disk")
        except TimeoutError:
            raise ServiceError(f"what was given was not on disk within {LANDING_S:g} s") from None
        return self._answer()

    def check_integrity(self) -> None:
        """Tier and dock are as they must be."""
        self.tier.check_integrity()
        self.dock.check_integrity()

    def _answer(self, result: Any = None) -> Answer:
        return Answer(self.incarnation, self.tier.losses, result)

"""How a restore store keeps records, and what it says of itself."""

from dataclasses import dataclass
from typing import Literal

from cache.codecs import named
from cache.host_tier import TierStatistics
from cache.storage.disk_config import DiskStatistics
from cache.storage.files import Sync
from errors import ConfigError

Admission = Literal["always", "demoted", "worthy"]


@dataclass(frozen=True)
class TiersConfig:
    """Tiers below host memory, and what holds for all.

    Args:
        disk: a folder of this store's own, on NVMe; empty for host memory alone.
        disk_bytes: bound of its files.
        host_codec, disk_codec: what keys and values are packed by, see ``cache.codecs``; latents are always exact. What
            one tier has packed, the next keeps as it is.
        admission: of keys and values: ``always`` on arrival; ``demoted`` when host memory is full; ``worthy`` only
            sinks, anchors, and what was asked for twice. Sinks, anchors and what was asked for twice are written ahead
            in each case, and latents always.
        safe: what it means that a record has landed: it is in the store's ``memory``, or on ``disk``.
        sync: ``always``: what is on disk survives a power cut. ``never``: it survives the loss of any process; after a
            power cut, what is damaged is noticed and not used.
        ttl_s: a stream of which nothing was written or read for so long is erased; none to keep it.
        session_bytes, owner_bytes: quota per stream and per API key, in each tier.
        behind_bytes: what may be on its way to disk; beyond that, what is worth least is not written.
        buffer_bytes: warm buffers for reading that may lie idle.
        retry_s: how long after a failure the disk is tried again.
    """

    disk: str = ""
    disk_bytes: int = 64 << 30
    host_codec: str = "exact"
    disk_codec: str = "exact"
    admission: Admission = "demoted"
    safe: Literal["memory", "disk"] = "memory"
    sync: Sync = "never"
    ttl_s: float | None = 86_400.0
    session_bytes: int | None = None
    owner_bytes: int | None = None
    behind_bytes: int = 256 << 20
    buffer_bytes: int = 256 << 20
    retry_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("host_codec", "disk_codec"):
            named(getattr(self, name))
        for name in ("disk_bytes", "session_bytes", "owner_bytes", "behind_bytes", "buffer_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} of the restore store is {value}; expected 0 or more")
        if self.ttl_s is not None and self.ttl_s <= 0:
            raise ConfigError(f"ttl_s of the restore store is {self.ttl_s}; expected more than 0, or none")
        if self.retry_s <= 0:
            raise ConfigError(f"retry_s of the restore store is {self.retry_s}; expected more than 0")
        if self.safe == "disk" and (not self.disk or self.admission != "always"):
            raise ConfigError("safe is 'disk' in the restore store; expected a disk, and admission 'always'")

    @property
    def lossless(self) -> bool:
        """Whether every bit comes back."""
        return named(self.host_codec).lossless and named(self.disk_codec).lossless


@dataclass(frozen=True)
class TieredStatistics:
    """What a store holds and what happened since it was made.

    Args:
        hits: fetches answered from ``host``, ``queue`` (on its way to disk) and ``disk``.
        misses: fetches not answered, by reason; see ``DiskStatistics``.
        refused: payloads that the queue to the disk or the disk's bounds did not take.
        losses: records that are no longer here although nobody asked for that, and times that this may have been so.
        degraded: why there is host memory alone at present; empty if there is not.
        unerased: sessions and records that could not be removed from a disk that does not work; tried again.
    """

    host: TierStatistics
    disk: DiskStatistics | None
    queued_records: int
    queued_bytes: int
    hits: dict[str, int]
    misses: dict[str, int]
    refused: int
    losses: int
    expired: int
    degraded: str
    degradations: int
    recoveries: int
    unerased: int

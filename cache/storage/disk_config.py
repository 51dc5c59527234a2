"""How a disk tier is set up, and what it says of itself."""

from dataclasses import dataclass, field

from cache.codec import BufferCodec, Exact
from cache.storage.files import Files
from cache.storage.quotas import Quota
from cache.storage.seals import Seal, Unsealed
from errors import ConfigError


@dataclass(frozen=True)
class DiskConfig:
    """How a disk tier keeps what it is given.

    Args:
        budget_bytes: of all files, in whole blocks of 4 KiB.
        codec: of keys and values that are not packed yet.
    """

    budget_bytes: int
    codec: BufferCodec = field(default_factory=Exact)
    quota: Quota = field(default_factory=Quota)
    files: Files = field(default_factory=Files)
    seal: Seal = field(default_factory=Unsealed)

    def __post_init__(self) -> None:
        if self.budget_bytes < 0:
            raise ConfigError(f"disk tier budget_bytes is {self.budget_bytes}; expected 0 or more")


@dataclass(frozen=True)
class DiskStatistics:
    """What a disk tier holds, and what happened since it was opened.

    Args:
        payload_bytes: what the records hold as they are packed, shared contents once; ``bytes_held`` are whole blocks
            and heads.
        misses: reads that gave nothing, by reason: ``absent``, ``damaged``, ``foreign``, ``io``.
        removed: files that were found at the start and are no records, by what they were: ``temporary``, ``orphan``,
            ``damaged``, ``cut off``, ``unknown``.
    """

    bytes_held: int
    budget_bytes: int
    payload_bytes: int
    records: int
    contents: int
    hits: int
    misses: dict[str, int]
    removed: dict[str, int]
    dropped_key_values: int
    dropped_latents: int
    shared: int

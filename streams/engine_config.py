"""What an engine is made with."""

from dataclasses import dataclass, field

from cache.books import CacheConfig
from cache.spec import FORMATS, TYPES, AttentionType, PageFormat
from errors import ConfigError
from models.sampler import Schedule
from streams.durability import Durability
from streams.slack import RestoreConfig


@dataclass(frozen=True)
class EngineConfig:
    """What an engine is made with.

    Args:
        sessions: streams that fit the pool at once; opening one more raises ``PoolExhausted``.
        host_bytes: bound of the in-process restore store, for all streams together.
        first_schedule: denoising schedule of a scene's first chunk, which has no history of its own; by default as the
            others.
        durability: what of every commit is written to the restore store at once.
        restore: how chunks come back, and how long a stream may wait for them.
        impl: implementation of the tensor operations: ``torch``, or on a GPU ``triton``.
        pages: how keys and values are held in the pool: as the model computes them (``exact``), or as codes of eight
            bits with scales of their own for each chunk, ``int8`` or ``fp8``, half the bytes of 16-bit elements.
        pages_of: attention types that are held otherwise than ``pages``.
        coded_queries: whether queries become codes where they are multiplied with pages of codes, so that products are
            of eight bits: sooner on a GPU, and a little less accurate (``kernels.coded_queries``).
    """

    cache: CacheConfig = field(default_factory=CacheConfig)
    schedule: Schedule = field(default_factory=Schedule)
    first_schedule: Schedule | None = None
    sessions: int = 1
    host_bytes: int = 1 << 30
    durability: Durability = "none"
    restore: RestoreConfig = field(default_factory=RestoreConfig)
    impl: str = "torch"
    pages: PageFormat = "exact"
    pages_of: dict[AttentionType, PageFormat] = field(default_factory=dict)
    coded_queries: bool = False

    def __post_init__(self) -> None:
        for name, pages in (("pages", self.pages), *((f"pages_of.{t}", f) for t, f in self.pages_of.items())):
            if pages not in FORMATS:
                raise ConfigError(f"{name} is {pages!r}; expected one of {', '.join(FORMATS)}")
        unknown = sorted(set(self.pages_of) - set(TYPES))
        if unknown:
            raise ConfigError(f"pages_of names {', '.join(unknown)}; expected attention types: {', '.join(TYPES)}")
        if self.coded_queries and all(self.format(t) == "exact" for t in TYPES):
            raise ConfigError("coded_queries is true but all pages are exact; expected pages of int8 or fp8")
        if self.sessions < 1:
            raise ConfigError(f"sessions is {self.sessions}; expected room for at least 1 stream")

    def format(self, type: AttentionType) -> PageFormat:
        """How the pages of one attention type are held."""
        return self.pages_of.get(type, self.pages)

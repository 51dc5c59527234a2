"""How long a stream may wait for what comes back: a share of what its chunk leaves over, or as long as it takes."""

from dataclasses import dataclass, field

from cache.way_back import WayBackConfig
from errors import ConfigError

WEIGHT = 0.2  # of the newest step in the mean


@dataclass(frozen=True)
class RestoreConfig:
    """How chunks come back from the restore store.

    Args:
        share: of the time that a chunk plays longer than it takes to make, which may be spent on bringing chunks back;
            what is not back by then is encoded from latents or comes later. ``None`` for takes that nobody waits for:
            everything is loaded, and waited for as long as ``patience_s``.
        least_s: what may be spent although nothing is left over.
        patience_s: what has not come by then is given up.
        tries: how often a chunk is postponed before it is given up.
        lead: chunks before a return of a script from which on its scene is prefetched, and by how many at most a
            person's return may wait for it; 0 prefetches nothing.
        staging_bytes: host memory for what was prefetched, for all streams together.
        leaving_bytes: of what leaves a GPU for the store, which are on their way while chunks are made; in its memory
            and in pinned memory of the host.
        way_back: how it is predicted which way is sooner.
    """

    share: float | None = None
    least_s: float = 0.05
    patience_s: float = 5.0
    tries: int = 16
    lead: int = 4
    staging_bytes: int = 256 << 20
    leaving_bytes: int = 2 << 30
    way_back: WayBackConfig = field(default_factory=WayBackConfig)

    def __post_init__(self) -> None:
        if self.share is not None and not 0.0 <= self.share <= 1.0:
            raise ConfigError(f"restore.share is {self.share}; expected a part between 0 and 1, or nothing")
        for name in ("least_s", "patience_s"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"restore.{name} is {getattr(self, name)}; expected seconds, 0 or more")
        for name, least in (("tries", 1), ("lead", 0), ("staging_bytes", 0), ("leaving_bytes", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"restore.{name} is {getattr(self, name)}; expected {least} or more")


@dataclass
class Slack:
    """The allowance of one engine between two steps, which all its streams share.

    ``chunk_s``: how long a chunk plays; ``step_s``: how long a step takes, as a mean; ``used_s``: of the allowance.
    """

    config: RestoreConfig
    chunk_s: float
    step_s: float = 0.0
    used_s: float = 0.0

    def stepped(self, seconds: float) -> None:
        """A step was made, without what was waited for; the allowance is whole again."""
        self.step_s += (WEIGHT if self.step_s else 1.0) * (seconds - self.step_s)
        self.used_s = 0.0

    @property
    def hurried(self) -> bool:
        """Whether somebody waits."""
        return self.config.share is not None

    @property
    def within_s(self) -> float:
        """What may be spent now."""
        if self.config.share is None:
            return self.config.patience_s
        left = self.config.share * (self.chunk_s - self.step_s) - self.used_s
        return max(left, self.config.least_s)

    def use(self, seconds: float) -> None:
        """So much was spent."""
        self.used_s += seconds

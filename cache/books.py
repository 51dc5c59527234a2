"""The books of one session: what every ledger holds, where it stands, what is known about it. No decisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cache.decisions import DecisionLog
from cache.drift import DriftConfig, Rung
from cache.keep_set import Budgets, Role
from cache.ledger import Ledger
from cache.plan import Eviction
from cache.positions import PositionConfig, PositionMap
from cache.scenes import SceneBook, SceneConfig
from cache.spec import TYPES, AttentionSpec, AttentionType, Modality
from errors import ConfigError, IntegrityError


@dataclass(frozen=True)
class CacheConfig:
    """Everything that a cache manager decides by."""

    positions: PositionConfig = field(default_factory=PositionConfig)
    scenes: SceneConfig = field(default_factory=SceneConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    mass_decay: float = 0.95
    log_capacity: int = 4096

    def __post_init__(self) -> None:
        if not 0.0 <= self.mass_decay <= 1.0:
            raise ConfigError(f"mass_decay is {self.mass_decay}; expected a factor between 0 and 1")
        if self.log_capacity < 1:
            raise ConfigError(f"log_capacity is {self.log_capacity}; expected room for at least 1 decision")


@dataclass(frozen=True)
class TypeStatistics:
    """What one ledger holds now."""

    chunks: int
    bytes_held: int
    bytes_by_role: Mapping[Role, int]


@dataclass(frozen=True)
class CacheStatistics:
    """What one session's cache holds now, by attention type, and where it stands on the time axis."""

    next_chunk: int
    epoch: int
    farthest_distance: int
    rung: Rung
    types: Mapping[AttentionType, TypeStatistics]

    @property
    def bytes_held(self) -> int:
        """Bytes of all four ledgers."""
        return sum(t.bytes_held for t in self.types.values())


@dataclass
class Mass:
    """Decayed attention mass of a chunk and the decayed number of commits that could see it."""

    total: float = 0.0
    exposure: float = 0.0


class Books:
    """State of one session's cache, in plain Python. Mutated by its manager and its planner only."""

    def __init__(
        self, session: str, specs: Mapping[AttentionType, AttentionSpec], budgets: Budgets, config: CacheConfig
    ) -> None:
        self.session = session
        self.config = config
        self.ledgers = {t: Ledger(specs[t], budgets[t]) for t in TYPES}
        self.positions = PositionMap(config.positions)
        self.scenes = SceneBook(config.scenes)
        self.log = DecisionLog(config.log_capacity)
        self.next_chunk = 0
        self.drift_scores: dict[int, float] = {}
        self.mass: dict[int, Mass] = {}
        self.stored: set[int] = set()
        self.lost: set[tuple[AttentionType, int]] = set()
        self.waiting: set[tuple[AttentionType, int]] = set()  # postponed: not asked for until they are welcome

    def kept(self) -> list[int]:
        """Chunks held by any attention type, in media order."""
        return sorted(set().union(*(ledger.entries.keys() for ledger in self.ledgers.values())))

    def subject_chunks(self) -> set[int]:
        """Chunks that the subject anchor was harvested from."""
        return {ledger.subject.chunk for ledger in self.ledgers.values() if ledger.subject is not None}

    def evict(self, types: Sequence[AttentionType], chunk: int, offload: bool) -> list[Eviction]:
        """Strike ``chunk`` off the ledgers of ``types`` that hold it."""
        evictions = []
        for t in types:
            if chunk in self.ledgers[t].entries:
                entry = self.ledgers[t].evict(chunk)
                evictions.append(Eviction(t, chunk, entry.place, entry.slot, offload, entry.role))
        return evictions

    def weigh(self, mass: Mapping[AttentionType, Mapping[int, float]]) -> None:
        """Add one commit's shares of attention; a share counts in units of an even split over what was visible."""
        decay = self.config.mass_decay
        sums: dict[int, float] = {}
        seen_by: dict[int, int] = {}
        for shares in mass.values():
            visible = len(shares)
            for chunk, share in shares.items():
                sums[chunk] = sums.get(chunk, 0.0) + share * visible
                seen_by[chunk] = seen_by.get(chunk, 0) + 1
        for chunk, lift in sums.items():
            entry = self.mass.get(chunk)
            if entry is None:
                entry = self.mass[chunk] = Mass()
            entry.total = decay * entry.total + lift / seen_by[chunk]
            entry.exposure = decay * entry.exposure + 1.0

    def statistics(self, rung: Rung) -> CacheStatistics:
        """A frozen summary of what is held."""
        types = {}
        for t, ledger in self.ledgers.items():
            by_role = {role: ledger.spec.maximum_bytes(n) for role, n in ledger.by_role().items()}
            types[t] = TypeStatistics(len(ledger.entries), ledger.bytes_held(), by_role)
        return CacheStatistics(self.next_chunk, self.positions.epoch, self.positions.reach, rung, types)

    def scores(self) -> dict[str, Any]:
        """Drift and attention scores of the held chunks, and what the store holds or lost, as plain data."""
        return {
            "drift": dict(self.drift_scores),
            "mass": {c: [m.total, m.exposure] for c, m in self.mass.items()},
            "stored": sorted(self.stored),
            "lost": sorted([t.value, c] for t, c in self.lost),
            "waiting": sorted([t.value, c] for t, c in self.waiting),
        }

    def load_scores(self, plain: Mapping[str, Any]) -> None:
        """Take over what ``scores`` gave."""
        self.drift_scores = dict(plain["drift"])
        self.mass = {c: Mass(*m) for c, m in plain["mass"].items()}
        self.stored = set(plain["stored"])
        self.lost = {(AttentionType(t), c) for t, c in plain["lost"]}
        self.waiting = {(AttentionType(t), c) for t, c in plain["waiting"]}

    def check_integrity(self, in_progress: bool) -> None:
        """Raise ``IntegrityError`` if an invariant of the books does not hold."""
        self.positions.check_integrity()
        kept = self.kept()
        if kept != sorted(self.positions.slots):
            raise IntegrityError(f"positions know {sorted(self.positions.slots)}, ledgers {kept}")
        audio = [set(self.ledgers[t].entries) for t in TYPES if t.keyed_by is Modality.AUDIO]
        for t, ledger in self.ledgers.items():
            ledger.check_integrity()
            for chunk, entry in ledger.entries.items():
                if entry.slot != self.positions.slots[chunk]:
                    raise IntegrityError(f"{t}: chunk {chunk} encoded for {entry.slot}, read at {self.positions.slots}")
            if ledger.subject is not None and ledger.subject.slot != self.positions.subject:
                raise IntegrityError(f"{t}: subject anchor encoded for {ledger.subject.slot}")
            if t.keyed_by is Modality.VIDEO and any(set(ledger.entries) - a for a in audio):
                raise IntegrityError(f"{t}: keeps {sorted(ledger.entries)}, which audio has forgotten")
            if (ledger.staged is not None) != in_progress:
                raise IntegrityError(f"{t}: staged place {ledger.staged} without a transaction")
        held = {(t, c) for t, c in self.waiting if c in self.ledgers[t].entries}
        if held:
            raise IntegrityError(f"{sorted(held)} are held and waited for")
        missing = set(self.drift_scores) - set(kept) - ({self.next_chunk} if in_progress else set())
        if missing or set(self.mass) - set(kept):
            raise IntegrityError(f"scores of forgotten chunks: {missing or set(self.mass) - set(kept)}")

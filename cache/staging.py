"""What comes back from a restore store before it is needed, or later than it was: a bounded area in front of the store.

Whoever brings chunks back asks here. What was prefetched is here already or on its way; what was not is asked for then.
Whatever changes or forgets a record goes through here too, so that nothing stale is ever given out. Each fetch tells
the ``WayBack`` how long it took.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from cache.spec import AttentionType
from cache.tiers import HERE, Held, KeyValues, LandedKeyValues, Latents, Record, RestoreTier, Room
from cache.way_back import WayBack
from errors import ConfigError, IntegrityError, RecordLost

Key = tuple[str, int, AttentionType | None]  # session, chunk, and type; ``None``: its latents


@dataclass(eq=False)
class Parcel:
    """Something on its way, or here. ``ahead``: bytes that were on their way from the same tier before it.

    ``asked``: whether a plan has asked for it; until then it may be dropped, for nobody counts on it.
    """

    key: Key
    answer: "Future[Any]"
    tier: str
    nbytes: int
    ahead: int
    begun: float
    asked: bool = False

    @property
    def here(self) -> bool:
        """Whether it has come, whole."""
        return self.answer.done() and self.answer.exception() is None


@dataclass(frozen=True)
class StagingStatistics:
    """What is staged, and what became of it since the area was made.

    Args:
        hits: parcels that were here when a plan asked; ``late``: that were on their way still.
        misses: that a plan had to ask for itself, of another tier than this process' own memory.
        refused: that were not prefetched for want of room; ``dropped``: prefetched, and not asked for.
    """

    bytes_held: int
    budget_bytes: int
    parcels: int
    hits: int
    late: int
    misses: int
    refused: int
    dropped: int


@dataclass
class Counts:
    """See ``StagingStatistics``."""

    hits: int = 0
    late: int = 0
    misses: int = 0
    refused: int = 0
    dropped: int = 0


@dataclass
class Staging(RestoreTier):
    """A restore tier with an area in front of it for at most ``budget_bytes`` that nobody has asked for yet.

    At the bound nothing more is prefetched. What plans ask for is bounded by the keep-sets, and leaves less room.

    Args:
        bytes_of: size of a chunk's keys and values by attention type; under ``None``, of its latents.
        patience_s: what has not come by then will not come.
    """

    tier: RestoreTier
    bytes_of: Mapping[AttentionType | None, int]
    budget_bytes: int
    patience_s: float
    way_back: WayBack
    clock: Callable[[], float]
    counts: Counts = field(default_factory=Counts)
    _parcels: dict[Key, Parcel] = field(default_factory=dict)
    _adrift: list[Parcel] = field(default_factory=list)  # dropped, and still on their way
    _arrived: deque[tuple[Parcel, float]] = field(default_factory=deque)  # filled by other threads

    def __post_init__(self) -> None:
        if self.budget_bytes < 0:
            raise ConfigError(f"staging_bytes is {self.budget_bytes}; expected 0 or more")

    # -- what comes back

    def begin_fetch(
        self, session: str, chunk: int, type: AttentionType, into: Room | None = None
    ) -> "Future[KeyValues]":
        return self._asked((session, chunk, type), into)

    def begin_latents(self, session: str, chunk: int) -> "Future[Latents]":
        return self._asked((session, chunk, None))

    def prefetch(self, session: str, keys: Sequence[tuple[int, AttentionType | None]]) -> None:
        """Begin to fetch, most wanted first, what lies elsewhere and is neither here nor on its way; ``None``: latents.

        What does not fit is left out and counted.
        """
        self.settle()
        for chunk, kind in keys:
            key = (session, chunk, kind)
            if key in self._parcels or self.tier.where(session, chunk) == HERE:
                continue
            if self.bytes_held + self.bytes_of[kind] > self.budget_bytes:
                self.counts.refused += 1
            else:
                self._begin(key)

    def release(self, session: str, chunk: int) -> None:
        """What there was of ``chunk`` has been used, or is not wanted any more."""
        for key in [k for k in self._parcels if k[:2] == (session, chunk)]:
            self._drop(key)

    def drop_landed(self, session: str, chunk: int) -> None:
        """What has landed in pages of ``chunk`` is lost with these, and must be fetched again."""
        for key, parcel in list(self._parcels.items()):
            if key[:2] == (session, chunk) and parcel.here and isinstance(parcel.answer.result(), LandedKeyValues):
                self._drop(key)

    def expire(self, session: str) -> None:
        """Drop what was prefetched for ``session`` and never asked for."""
        for key in [k for k, p in self._parcels.items() if k[0] == session and not p.asked]:
            self.counts.dropped += 1
            self._drop(key)

    def coming(self, session: str, chunk: int) -> list[Parcel]:
        """What there is of ``chunk``, here or on its way."""
        return [p for k, p in self._parcels.items() if k[:2] == (session, chunk)]

    def to_come(self, session: str, chunk: int, kinds: Iterable[AttentionType | None]) -> int:
        """Bytes of ``chunk`` that are not here yet."""
        parcels = {k: self._parcels.get((session, chunk, k)) for k in kinds}
        return sum(self.bytes_of[k] for k, p in parcels.items() if p is None or not p.here)

    def ahead(self, tier: str) -> int:
        """Bytes on their way from ``tier``."""
        self.settle()
        return sum(p.nbytes for p in self._all() if p.tier == tier and not p.answer.done())

    def settle(self) -> None:
        """Take note of what has come since, and stop waiting for what never will."""
        while self._arrived:
            parcel, when = self._arrived.popleft()
            if parcel.here:
                self.way_back.loaded(parcel.tier, parcel.nbytes + parcel.ahead, when - parcel.begun)
        now = self.clock()
        for key in [k for k, p in self._parcels.items() if not p.asked and self._hopeless(p, now)]:
            del self._parcels[key]
        self._adrift = [p for p in self._adrift if not p.answer.done() and now - p.begun <= self.patience_s]

    def _hopeless(self, parcel: Parcel, now: float) -> bool:
        return not parcel.here and (parcel.answer.done() or now - parcel.begun > self.patience_s)

    # -- a restore tier like any other

    def holds(self, session: str, chunk: int) -> Held:
        return self.tier.holds(session, chunk)

    def where(self, session: str, chunk: int) -> str:
        return self.tier.where(session, chunk)

    def offload(self, session: str, chunk: int, type: AttentionType, payload: KeyValues) -> None:
        self._drop((session, chunk, type))
        self.tier.offload(session, chunk, type, payload)

    def keep_latents(self, session: str, chunk: int, latents: Latents) -> None:
        self._drop((session, chunk, None))
        self.tier.keep_latents(session, chunk, latents)

    def fetch(self, session: str, chunk: int, type: AttentionType, into: Room | None = None) -> KeyValues:
        return self.tier.fetch(session, chunk, type, into)

    def latents(self, session: str, chunk: int) -> Latents:
        return self.tier.latents(session, chunk)

    def records(self, session: str) -> dict[int, Record]:
        return self.tier.records(session)

    def forget(self, session: str, chunk: int) -> None:
        self.release(session, chunk)
        self.tier.forget(session, chunk)

    def fork(self, parent: str, child: str) -> None:
        self.tier.fork(parent, child)

    def adopt(self, parent: str, child: str) -> None:
        self.tier.adopt(parent, child)

    def introduce(self, session: str, owner: str, model: str) -> None:
        self.tier.introduce(session, owner, model)

    def close(self, session: str) -> None:
        self.let_go(session)
        self.tier.close(session)

    def let_go(self, session: str) -> None:
        """Drop what is here of ``session``; its records stay in the store."""
        for key in [k for k in self._parcels if k[0] == session]:
            self._drop(key)

    def landed(self) -> "Future[bool]":
        return self.tier.landed()

    # -- inside

    @property
    def bytes_held(self) -> int:
        """Bytes of all that is here or on its way."""
        return sum(parcel.nbytes for parcel in self._all())

    def statistics(self) -> StagingStatistics:
        """A frozen summary."""
        c = self.counts
        outcomes = (c.hits, c.late, c.misses, c.refused, c.dropped)
        return StagingStatistics(self.bytes_held, self.budget_bytes, len(self._parcels), *outcomes)

    def check_integrity(self) -> None:
        """What nobody has asked for is within the budget."""
        unasked = sum(p.nbytes for p in self._all() if not p.asked)
        if unasked > self.budget_bytes:
            raise IntegrityError(f"{unasked:,} bytes are prefetched; expected at most {self.budget_bytes:,}")

    def _all(self) -> list[Parcel]:
        return [*self._parcels.values(), *self._adrift]

    def _asked(self, key: Key, into: Room | None = None) -> "Future[Any]":
        self.settle()
        parcel = self._parcels.get(key)
        if parcel is None:
            parcel = self._begin(key, into)
            self.counts.misses += parcel.tier != HERE
        elif not parcel.asked:
            self.counts.hits += parcel.answer.done()
            self.counts.late += not parcel.answer.done()
        parcel.asked = True
        return parcel.answer

    def _begin(self, key: Key, into: Room | None = None) -> Parcel:
        session, chunk, kind = key
        tier = self.tier.where(session, chunk)
        ahead, begun = self.ahead(tier), self.clock()
        answer: Future[Any]
        if kind is None:
            answer = self.tier.begin_latents(session, chunk)
        else:
            answer = self.tier.begin_fetch(session, chunk, kind, into)
        parcel = self._parcels[key] = Parcel(key, answer, tier, self.bytes_of[kind], ahead, begun)
        answer.add_done_callback(lambda _: self._arrived.append((parcel, self.clock())))
        return parcel

    def _drop(self, key: Key) -> None:
        parcel = self._parcels.pop(key, None)
        if parcel is not None and not parcel.answer.done():
            self._adrift.append(parcel)


def of(answer: "Future[Any]") -> Any | None:
    """What a future gave, or ``None`` if it is not done or the record is lost."""
    if not answer.done() or isinstance(answer.exception(), RecordLost):
        return None
    return answer.result()

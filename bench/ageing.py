"""Streams that grow old: timed chunk by chunk, their bytes counted, and compared with streams just begun."""

import statistics
from dataclasses import dataclass, field

from bench.common import Laps, progress
from cache.books import CacheConfig
from cache.drift import DriftConfig
from cache.host_tier import HostTier
from cache.keep_set import Budgets, RoleBudget
from cache.policies import Policy, SceneMemory, SlidingWindow
from cache.positions import PositionConfig
from models.backbone import Backbone, random_transformer
from models.sampler import Schedule
from models.shapes import ChunkGeometry
from streams.engine import Engine
from streams.engine_config import EngineConfig
from streams.stream import Stream

UNBOUNDED = "no eviction"
SUB_WINDOW = 50
CUT_AT, RETURN_AT = 30, 36  # fills the restored role early
WARM_UP = 100
TRAINED_SECONDS = 20_000  # so that a stream that forgets nothing finds position slots
# Random weights have no steady statistics: the ladder would be climbed, and the keep-set would shrink.
DRIFT = DriftConfig(reference_threshold=1e9, raise_threshold=2e9)


@dataclass(frozen=True)
class Held:
    """Bytes that one stream holds: pages of the pool, retained and stored records, and its whole snapshot."""

    pages: int
    latents: int
    store: int
    snapshot: int


@dataclass
class Run:
    """One stream and its times; ``chunks`` is where it is to stop."""

    name: str
    engine: Engine
    tier: HostTier
    chunks: int
    laps: Laps = field(default_factory=Laps)
    pages: list[int] = field(default_factory=list)
    held: dict[int, Held] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stream = Stream.open(self.engine, "a prompt")

    def step(self) -> None:
        """One chunk, timed."""
        index = self.stream.session.manager.next_chunk
        if index == CUT_AT:
            self.stream.cut("elsewhere", "another prompt")
        if index == RETURN_AT:
            self.stream.return_to("opening")
        with self.laps.lap("chunk"):
            self.stream.next()
        self.pages.append(self.stream.statistics().bytes_held)

    def mark(self) -> None:
        """Count every byte held now."""
        session = self.stream.session
        latents = sum(x.nbytes for x in session.retained.values())
        store = self.tier.statistics().bytes_held
        self.held[len(self.pages)] = Held(self.pages[-1], latents, store, len(self.stream.snapshot()))

    @property
    def ms(self) -> list[float]:
        """Time of every chunk."""
        return self.laps.ms["chunk"]

    def least_median(self, begin: int, end: int) -> float:
        """Least median over sub-windows of [begin, end): what the machine gives when nobody else uses it."""
        starts = range(begin, end - SUB_WINDOW + 1, SUB_WINDOW)
        return min(statistics.median(self.ms[i : i + SUB_WINDOW]) for i in starts)


def begun(name: str, backbone: Backbone, policy: Policy, slots: int, steps: int, chunks: int) -> Run:
    """A stream in an engine of its own, with room for a second one so that an old and a new can be compared."""
    cache = CacheConfig(positions=PositionConfig(slots), drift=DRIFT)
    config = EngineConfig(cache=cache, schedule=Schedule.even(steps), sessions=2)
    tier = HostTier(config.host_bytes)
    return Run(name, Engine(backbone, policy, config, tier=tier), tier, chunks)


@dataclass(frozen=True)
class Size:
    """How far to go. ``window``: chunks of the early and the late window, and of the comparison of old and new.

    The stream that forgets nothing stops at ``unbounded_chunks``, or when a chunk takes ``hurts`` times what its early
    ones took.
    """

    chunks: int
    window: int
    unbounded_chunks: int
    hurts: float
    marks: tuple[int, ...]
    epochs: tuple[int, ...]


FULL = Size(5000, 500, 2000, 4.0, (100, 1000, 5000), (1, 10, 50, 200))
QUICK = Size(400, 100, 300, 4.0, (100, 200, 400), (1, 10))


def runs(size: Size, steps: int) -> list[Run]:
    """The bounded streams, then the one that forgets nothing, all on one backbone."""
    transformer = random_transformer(
        num_layers=1, pos_embed_max_pos=TRAINED_SECONDS, audio_pos_embed_max_pos=TRAINED_SECONDS
    )
    backbone = Backbone(transformer, ChunkGeometry.of_model(transformer.config, 2, 32, 32, 25))
    everything = Budgets.uniform(RoleBudget(0, 0, 0, 0, recent=size.unbounded_chunks))
    policies: list[tuple[str, Policy, int, int]] = [
        ("SceneMemory", SceneMemory(Budgets()), 31, size.chunks),
        ("SlidingWindow", SlidingWindow.of(Budgets()), 31, size.chunks),
        (UNBOUNDED, SlidingWindow(everything), size.unbounded_chunks + 1, size.unbounded_chunks),
    ]
    return [begun(name, backbone, policy, slots, steps, chunks) for name, policy, slots, chunks in policies]


def play(everyone: list[Run], size: Size) -> None:
    """The bounded streams chunk by chunk in turns; then the one that forgets nothing, which would be in their way."""
    *bounded, unbounded = everyone
    with progress() as bar:
        for _ in bar.track(range(size.chunks), description="streams that evict"):
            for run in bounded:
                step(run, size)
        for _ in bar.track(range(unbounded.chunks), description=UNBOUNDED):
            step(unbounded, size)
            if hurting(unbounded, size):
                break
    if len(unbounded.pages) not in unbounded.held:
        unbounded.mark()


def step(run: Run, size: Size) -> None:
    """One chunk, and the count of bytes where one is due."""
    run.step()
    if len(run.pages) in size.marks:
        run.mark()


def hurting(run: Run, size: Size) -> bool:
    """Whether four sub-windows in a row took ``hurts`` times as long as the first after warm-up."""
    end = len(run.pages)
    if end < WARM_UP + 5 * SUB_WINDOW:
        return False
    return run.least_median(end - 4 * SUB_WINDOW, end) > size.hurts * run.least_median(WARM_UP, WARM_UP + SUB_WINDOW)


def old_and_new(run: Run, pairs: int) -> tuple[float, float]:
    """Median ms of a chunk of the old stream and of one just begun, chunk by chunk in turns on the same machine."""
    new = Run(run.name, run.engine, run.tier, WARM_UP + pairs)
    for _ in range(WARM_UP):
        new.step()
    for pair in range(pairs):
        first, second = (run, new) if pair % 2 else (new, run)
        first.step()
        second.step()
    new.stream.close()
    return statistics.median(run.ms[-pairs:]), statistics.median(new.ms[-pairs:])


@dataclass(frozen=True)
class Times:
    """Of one stream, in milliseconds per chunk. ``old_ms`` and ``new_ms`` were measured in turns, at one time."""

    chunks: int
    early_ms: float
    late_ms: float
    early_least_ms: float
    late_least_ms: float
    old_ms: float | None
    new_ms: float | None


def times(run: Run, size: Size) -> Times:
    """Early and late windows; old against new where the stream goes on."""
    chunks = len(run.pages)
    window = min(size.window, (chunks - WARM_UP) // 2)
    early, late = (WARM_UP, WARM_UP + window), (chunks - window, chunks)
    old_ms, new_ms = old_and_new(run, size.window) if run.name != UNBOUNDED else (None, None)
    early_ms, late_ms = (statistics.median(run.ms[begin:end]) for begin, end in (early, late))
    return Times(chunks, early_ms, late_ms, run.least_median(*early), run.least_median(*late), old_ms, new_ms)

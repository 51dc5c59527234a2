"""Many long sessions take turns in a pool that holds a third of them: what is kept of a session that must make room?

Each turn is a chunk or a few, round robin, so that whoever's turn it is has always been put away. ``rebuilt`` keeps
books and clean latents, and encodes the whole keep-set again. ``paused`` keeps a snapshot, sealed and checked.
``stored`` keeps keys and values in the restore store with every commit, and loads them. Time to the first chunk is from
asking for the turn, so it has in it what making room costs. Wall time is of all turns.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bench.common import Options, Report, kept, label, options, parser, progress
from bench.takes import Role
from cache.state import Plain, dump
from settings import build_engine, load
from streams.durability import Durability, Footing
from streams.engine import Engine
from streams.recovery import forget_lost, recover
from streams.stream import Stream

TIMES_WALL, TIMES_FIRST = 1.96, 2.09  # published by a vendor of KV offload for agent sessions with long prefixes
SHARE = 3  # sessions for each place in the pool
STORE_BYTES, MB = 8 << 30, 1e6


@dataclass(frozen=True)
class Size:
    """How many sessions, how long they are before the first turn, and how many turns each takes."""

    places: int
    before: int
    turns: int
    chunks: tuple[int, ...]


@dataclass
class Away:
    """A session that was put away."""

    snapshot: bytes = b""
    books: Plain | None = None
    footing: Footing | None = None


class Ways:
    """How sessions leave the pool and come back."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def pause(self, stream: Stream) -> Away:
        """As bytes."""
        return Away(stream.pause())

    def resume(self, away: Away) -> Stream:
        """From bytes."""
        return Stream.resume(self.engine, away.snapshot)

    def let_go(self, stream: Stream) -> Away:
        """Its records stay in the store."""
        away = Away(books=dump(stream.session.manager), footing=Footing.of(stream.session))
        self.engine.let_go(stream.session)
        return away

    def recover(self, away: Away) -> Stream:
        """From books and records."""
        assert away.books is not None
        assert away.footing is not None
        stream = Stream(self.engine, recover(self.engine, away.books, away.footing))
        forget_lost(self.engine, away.footing.stream)
        return stream


WAYS: dict[str, Durability] = {"rebuilt": "latents", "paused": "none", "stored": "kv"}


def take_turns(way: str, size: Size, chunks: int) -> dict[str, Any]:
    """Wall seconds of all turns, seconds to each first chunk, and of that what coming back took."""
    settings = load(environ={"LONGTAKE_ENGINE__SESSIONS": str(size.places)})
    config = replace(settings.engine, durability=WAYS[way], host_bytes=STORE_BYTES)
    engine = build_engine(replace(settings, engine=config))
    ways = Ways(engine)
    leave: Callable[[Stream], Away] = ways.pause if way == "paused" else ways.let_go
    come: Callable[[Away], Stream] = ways.resume if way == "paused" else ways.recover
    away: dict[int, Away] = {}
    on: dict[int, Stream] = {}
    sessions, first, back, wall = size.places * SHARE, [], [], 0.0
    with progress() as bar:
        task = bar.add_task(f"{way}, {chunks} a turn", total=sessions * (1 + size.turns))
        for seed in range(sessions):
            if len(on) == size.places:
                oldest = next(iter(on))
                away[oldest] = leave(on.pop(oldest))
            on[seed] = Stream.open(engine, Role.draw(seed).caption, seed)
            on[seed].take(size.before)
            bar.advance(task)
        for turn in range(sessions * size.turns):
            who, begun = turn % sessions, time.perf_counter()
            oldest = next(iter(on))
            away[oldest] = leave(on.pop(oldest))
            coming = time.perf_counter()
            on[who] = come(away.pop(who))
            back.append(time.perf_counter() - coming)
            on[who].next()
            first.append(time.perf_counter() - begun)
            on[who].take(chunks - 1)
            wall += time.perf_counter() - begun
            bar.advance(task)
    engine.check_integrity()
    store = engine.tier.statistics().bytes_held  # type: ignore[attr-defined]  # a host tier, as none was given
    held = store + sum(len(one.snapshot) for one in away.values())
    return {"wall": wall, "first": first, "back": back, "bytes": held / sessions}


def main() -> None:
    """Run every way and turn length, print, and leave JSON and plot."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--places", type=int, default=4, help="sessions that the pool holds (default: 4)")
    given = arguments.parse_args()
    shared = options(given)
    size = Size(1, 14, 1, (1,)) if shared.quick else Size(given.places, 60, 4, (1, 2, 4))
    runs = {
        (chunks, way): kept(
            shared.work, f"{way} {chunks}", [way, asdict(size), chunks], partial(take_turns, way, size, chunks)
        )
        for chunks in size.chunks
        for way in WAYS
    }
    report_on(shared, size, runs)


def report_on(shared: Options, size: Size, runs: dict[tuple[int, str], dict[str, Any]]) -> None:
    """Table and goals: of the shortest turn, which is what the published figures are of."""
    report = Report("turns", "What is kept of a session that makes room?", shared, asdict(size))
    rows: list[list[object]] = []
    for (chunks, way), run in runs.items():
        base = runs[chunks, "rebuilt"]
        wall, first = base["wall"] / run["wall"], np.median(base["first"]) / np.median(run["first"])
        times = [1e3 * float(np.median(run[what])) for what in ("back", "first")]
        p99 = 1e3 * float(np.percentile(run["first"], 99))
        cells = [f"{run['wall']:.2f}", *(f"{t:.1f}" for t in times), f"{p99:.1f}", f"{run['bytes'] / MB:.1f}"]
        rows.append([f"{way}, {chunks} a turn", *cells, f"{wall:.2f}", f"{first:.2f}"])
        if chunks == min(size.chunks) and way == "stored":
            report.goal(f"wall time, {chunks} a turn: {TIMES_WALL} times less than rebuilding", f"{wall:.2f} x",
                        wall >= TIMES_WALL)  # fmt: skip
            report.goal(f"first chunk, {chunks} a turn: {TIMES_FIRST} times sooner", f"{first:.2f} x",
                        first >= TIMES_FIRST)  # fmt: skip
    columns = ["way", "wall s", "back ms", "first chunk ms", "p99", "MB a session", "wall, times", "first, times"]
    report.table(f"{size.places * SHARE} sessions, {size.places} places; against rebuilt", columns, rows)
    report.figures["runs"] = {f"{way}, {chunks}": run for (chunks, way), run in runs.items()}
    report.finish(plot(runs))


def plot(runs: dict[tuple[int, str], dict[str, Any]]) -> Figure:
    """Time to the first chunk by way and turn length."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    names = [f"{way}\n{chunks} a turn" for chunks, way in runs]
    axes.boxplot([[1e3 * s for s in run["first"]] for run in runs.values()], tick_labels=names)
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", labelsize=7)
    label(axes, "From asking for a turn to its first chunk", "what is kept", "ms")
    return figure


if __name__ == "__main__":
    main()

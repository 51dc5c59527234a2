"""Does a return make a chunk late? Latency of chunks around returns against all others, by store and by prefetch.

One take of the shipped model goes to and fro between two scenes by a script, so that every few chunks some leave the
cache and some come back. Latency is all that happens between two chunks: direction, fetch, and the step. Chunks are
made one after the other without a pause, so that a prefetch has less time than in a stream that is played. ``around``
are the chunk of a return and the two that follow. ``waited for`` is the store as it would be used without a deadline.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from actors.remote_tier import RemoteTier
from bench.common import Laps, Options, Report, kept, label, options, parser, progress
from bench.slow_stores import StoreProcess, Throttled
from cache.host_tier import HostTier
from cache.tiers import RestoreTier
from settings import build_engine, load
from streams.director import Director, Script, Shot
from streams.engine import Engine
from streams.stream import Stream

PROMPTS = ("a red ball bouncing in a blue room", "a green box bouncing in a red room")
STAY, AROUND = 8, 3  # chunks in a scene, and chunks that count as around its return
STORE_BYTES = 1 << 30
GOAL = 1.1


@dataclass(frozen=True)
class Case:
    """One store, used in one way."""

    name: str
    store: str
    lead: int
    share: float | None


CASES = tuple(
    Case(f"{store}, {way}", store, lead, share)
    for store in ("this process", "another process", "50 MB/s")
    for way, lead, share in (("prefetched", 4, 0.5), ("not prefetched", 0, 0.5), ("waited for", 0, None))
    if store == "50 MB/s" or share is not None
)


@dataclass
class Found:
    """Latencies in milliseconds, chunks that took longer than they play, and what came back how."""

    ms: dict[str, list[float]]
    late: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    staging: dict[str, int] = field(default_factory=dict)


def store_of(case: Case) -> tuple[RestoreTier, Callable[[], None]]:
    """A store, and how to end it."""
    if case.store == "this process":
        return HostTier(STORE_BYTES), lambda: None
    if case.store == "50 MB/s":
        slow = Throttled(STORE_BYTES)
        return slow, slow.shut
    process = StoreProcess(STORE_BYTES)
    return RemoteTier(process.call), process.shut


def engine_of(case: Case, tier: RestoreTier) -> Engine:
    """The shipped model with this store before it."""
    settings = load(environ={})
    restore = replace(settings.engine.restore, lead=case.lead, share=case.share)
    engine = build_engine(replace(settings, engine=replace(settings.engine, restore=restore)))
    engine.tier = engine.staging.tier = tier
    return engine


def to_and_fro(case: Case, returns: int) -> dict[str, Any]:
    """One take; as plain data of ``Found``."""
    tier, shut = store_of(case)
    engine = engine_of(case, tier)
    seconds = engine.backbone.geometry.seconds
    stay = float(STAY * seconds)
    shots = [Shot(stay, f"scene {i}", prompt) for i, prompt in enumerate(PROMPTS)]
    shots += [Shot(stay, return_to=f"scene {i % 2}") for i in range(returns)]
    director = Director(Script(tuple(shots)), seconds)
    stream = Stream.open(engine, PROMPTS[0], seed=1, scene="scene 0")
    laps, found = Laps(), Found({})
    first_return = director.borders[len(PROMPTS)]
    with progress() as bar:
        task = bar.add_task(case.name, total=director.total)
        for index in range(director.total):
            since = index - max(b for b in director.borders if b <= index)
            kind = "around" if since < AROUND else "steady"
            with laps.lap(kind if index >= first_return else "warm-up"):
                director.before(index, stream)
                stream.next()
            newest = laps.ms[kind if index >= first_return else "warm-up"][-1]
            found.late += index >= first_return and newest > float(seconds) * 1e3
            bar.advance(task)
    engine.check_integrity()
    found.ms = {kind: laps.ms[kind] for kind in ("around", "steady")}
    for (_, verdict), count in engine.fetcher.restored.verdicts.items():
        found.verdicts[verdict] = found.verdicts.get(verdict, 0) + count
    counts = engine.staging.statistics()
    found.staging = {"hits": counts.hits, "late": counts.late, "misses": counts.misses}
    stream.close()
    shut()
    return vars(found)


def main() -> None:
    """Run every case, print, and leave JSON and plot."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--returns", type=int, default=60, help="returns of each take (default: 60)")
    given = arguments.parse_args()
    shared = options(given)
    returns = 3 if shared.quick else given.returns
    runs = {
        case.name: Found(**kept(shared.work, case.name, [vars(case), returns], partial(to_and_fro, case, returns)))
        for case in CASES
    }
    report_on(shared, returns, runs)


def report_on(shared: Options, returns: int, runs: dict[str, Found]) -> None:
    """Table and goals."""
    report = Report("returns", "Does a return make a chunk late?", shared, {"returns": returns, "stay": STAY})
    rows = []
    for name, found in runs.items():
        steady, around = (np.array(found.ms[kind]) for kind in ("steady", "around"))
        median, p99 = float(np.median(steady)), float(np.percentile(around, 99))
        steady_p99 = float(np.percentile(steady, 99))
        came = ", ".join(f"{verdict} {count}" for verdict, count in sorted(found.verdicts.items()))
        cells = [f"{x:.1f}" for x in (median, steady_p99, float(np.median(around)), p99)]
        rows.append([name, *cells, f"{p99 / median:.2f}", found.late, came])
        if name.endswith(" prefetched") and not name.endswith("not prefetched"):
            report.goal(f"{name}: p99 around returns within {GOAL} of the median", f"{p99 / median:.2f} x",
                        p99 <= GOAL * median)  # fmt: skip
        if not name.endswith("waited for"):
            report.goal(f"{name}: no chunk takes longer than it plays", f"{found.late} did", not found.late)
    columns = ["store", "steady p50", "p99", "around p50", "p99", "p99 / steady p50", "late", "chunks that came back"]
    report.table("Milliseconds from chunk to chunk", columns, rows)
    report.figures["runs"] = {name: vars(found) for name, found in runs.items()}
    report.notes.append("p99 of steady chunks is what this machine does to chunks that nothing comes back for")
    report.finish(plot(runs))


def plot(runs: dict[str, Found]) -> Figure:
    """All latencies, case by case."""
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for i, found in enumerate(runs.values()):
        for offset, kind, colour in ((-0.15, "steady", "tab:grey"), (0.15, "around", "tab:red")):
            ms = found.ms[kind]
            axes.scatter(np.full(len(ms), i + offset), ms, s=6, color=colour, label=kind if not i else None)
    axes.set_xticks(range(len(runs)), [name.replace(", ", "\n") for name in runs], fontsize=8)
    axes.set_ylim(bottom=0)
    axes.legend()
    label(axes, "Chunks around returns and all others", "store and use", "ms from chunk to chunk")
    return figure


if __name__ == "__main__":
    main()

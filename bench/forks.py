"""Forks of one take against copies of it: bytes held, and the time to the first chunk of all of them.

A take of the model that ships has a past: two scenes and a return, with keys and values in the store. Then there are N
more of it with other seeds: as forks, which share pages and records until they write; as copies, each resumed from a
snapshot; and as takes that were made anew, which is what one pays without either. Every N chunks that come next are
one batch. Bytes are counted when the N are there, and after each has gone on for a while.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bench.common import Options, Report, kept, label, megabytes, options, parser, progress
from cache.host_tier import HostTier
from settings import build_engine, load
from streams.engine import Engine
from streams.stream import Stream

PROMPT, OTHER = "a red ball bouncing in a blue room", "a black ring bouncing in a yellow room"
COUNTS = (1, 4, 15)
WAYS = ("forks", "copies", "made anew")


def engine(most: int, threads: int) -> Engine:
    """Room for a take and ``most`` more; keys and values of every chunk are written to the store."""
    settings = load(environ={"LONGTAKE_THREADS": str(threads)})
    return build_engine(replace(settings, engine=replace(settings.engine, sessions=most + 1, durability="kv")))


def past(made: Engine, chunks: int, seed: int = 0) -> Stream:
    """A take with a past of so many chunks."""
    stream = Stream.open(made, PROMPT, seed)
    stream.take(chunks // 2)
    stream.cut("elsewhere", OTHER)
    stream.take(chunks // 4)
    stream.return_to("opening")
    stream.take(chunks - chunks // 2 - chunks // 4)
    return stream


def held(made: Engine) -> tuple[int, int]:
    """Bytes of pages that are in use, and of records in the store; what is shared is counted once."""
    assert isinstance(made.tier, HostTier)
    return sum(made.pool.statistics().held_bytes.values()), made.tier.bytes_held


def ways(made: Engine, parent: Stream, chunks: int) -> dict[str, Callable[[int], list[Stream]]]:
    """How there come to be N more of a take."""
    snapshot = parent.snapshot()

    def copies(count: int) -> list[Stream]:
        found = [Stream.resume(made, snapshot) for _ in range(count)]
        for seed, stream in enumerate(found):
            stream.session.seed = 1 + seed
        return found

    return {
        "forks": lambda count: [parent.fork(1 + seed) for seed in range(count)],
        "copies": copies,
        "made anew": lambda count: [past(made, chunks, 1 + seed) for seed in range(count)],
    }


def measured(made: Engine, parent: Stream, make: Callable[[int], list[Stream]], count: int, on: int) -> dict[str, Any]:
    """Bytes beyond those of the parent, and seconds; nothing is left."""
    before = held(made)
    began = time.perf_counter()
    streams = make(count)
    there = time.perf_counter() - began
    at_first = held(made)
    made.step([stream.session for stream in streams])
    first = time.perf_counter() - began
    for _ in range(on - 1):
        made.step([stream.session for stream in streams])
    later = held(made)
    made.check_integrity()
    for stream in streams:
        stream.close()
    assert held(made) == before, "something was left"
    return {
        "seconds until they are there": there,
        "seconds to the first chunk": first,
        "pool bytes": at_first[0] - before[0],
        "store bytes": at_first[1] - before[1],
        "pool bytes later": later[0] - before[0],
        "store bytes later": later[1] - before[1],
    }


def run(shared: Options, counts: Sequence[int], chunks: int, on: int, repeats: int) -> dict[str, dict[str, Any]]:
    """By way and count, the run with the median time to the first chunk."""
    made = engine(max(counts), shared.threads)
    parent = past(made, chunks)
    measured(made, parent, ways(made, parent, chunks)["forks"], 1, 1)  # warms up what is made at its first use
    found: dict[str, dict[str, Any]] = {way: {} for way in WAYS}
    with progress() as bar:
        task = bar.add_task("forks", total=len(counts) * len(WAYS))
        for count in counts:
            for way, make in ways(made, parent, chunks).items():
                times = 1 if way == "made anew" else repeats
                runs = [measured(made, parent, make, count, on) for _ in range(times)]
                found[way][str(count)] = sorted(runs, key=lambda r: float(r["seconds to the first chunk"]))[times // 2]
                bar.advance(task)
    found["parent"] = dict(zip(("pool bytes", "store bytes"), held(made), strict=True))
    return found


def plot(report: Report) -> Figure:
    """Bytes and seconds over N."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for way in WAYS:
        runs = report.figures["runs"][way]
        counts = [int(count) for count in runs]
        bytes_held = [(r["pool bytes"] + r["store bytes"]) / 1e6 for r in runs.values()]
        panels[0].plot(counts, bytes_held, "o-", label=way)
        panels[1].plot(counts, [r["seconds to the first chunk"] for r in runs.values()], "o-", label=way)
    panels[0].set_yscale("symlog", linthresh=1)
    panels[1].set_yscale("log")
    label(panels[0], "Bytes held beyond the take itself, pool and store", "more of the take", "MB")
    label(panels[1], "Until each has made its first chunk", "more of the take", "seconds")
    panels[0].legend()
    return figure


def main() -> None:
    """Run all, print, and leave JSON and plot."""
    shared = options(parser(__doc__ or "").parse_args())
    counts, chunks, on, repeats = ((1, 4), 12, 3, 1) if shared.quick else (COUNTS, 40, 24, 5)
    configuration = {
        "chunks of the past": chunks,
        "chunks that each goes on": on,
        "repeats": repeats,
        "durability": "kv",
    }
    report = Report("forks", "Forks of one take", shared, configuration)
    found = kept(shared.work, "forks", configuration, lambda: run(shared, counts, chunks, on, repeats))
    report.figures["runs"] = found
    rows = [
        [f"{count} {way}", megabytes(r["pool bytes"]), megabytes(r["store bytes"]), megabytes(r["pool bytes later"]),
         megabytes(r["store bytes later"]), f"{r['seconds until they are there']:.3f}",
         f"{r['seconds to the first chunk']:.3f}"]
        for count in map(str, counts) for way in WAYS for r in (found[way][count],)
    ]  # fmt: skip
    columns = [
        "",
        "pool MB",
        "store MB",
        f"pool MB, {on} chunks on",
        "store MB then",
        "s until there",
        "s to first chunk",
    ]
    report.table("Beyond the take itself", columns, rows)
    whole = found["parent"]
    report.notes.append(
        f"the take itself holds {megabytes(whole['pool bytes'])} MB of pages and {megabytes(whole['store bytes'])} MB "
        "of records"
    )
    most = str(max(counts))
    nothing = found["forks"][most]["pool bytes"] + found["forks"][most]["store bytes"]
    report.goal(f"{most} forks hold nothing of their own before they write", f"{megabytes(nothing)} MB", nothing == 0)
    fork, copy = (found[way][most]["seconds until they are there"] for way in ("forks", "copies"))
    report.goal(f"{most} forks are there sooner than copies", f"{fork:.3f} s, {copy:.3f} s", fork < copy)
    report.finish(plot(report))


if __name__ == "__main__":
    main()

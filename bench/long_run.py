"""Does the cost of a chunk stay flat? Time and bytes against the index of the chunk, with a small random model.

Two keep-sets that evict run for thousands of chunks; a stream that forgets nothing runs beside them as far as it
gets. A second part measures what many epochs of relocation do to stored keys.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.ageing import FULL, QUICK, SUB_WINDOW, UNBOUNDED, WARM_UP, Run, Size, Times, play, runs, times
from bench.common import Options, Report, label, options, parser, progress
from bench.rounding import LAYOUTS, MEMORIES, Rounding, rounding

FLAT = 0.05


def add_times(report: Report, measured: Mapping[str, Times]) -> None:
    """Times and their goals."""
    rows = []
    for name, t in measured.items():
        within, least = t.late_ms / t.early_ms, t.late_least_ms / t.early_least_ms
        cells = [f"{t.early_ms:.2f}", f"{t.late_ms:.2f}", f"{within:.3f}"]
        cells += [f"{t.early_least_ms:.2f}", f"{t.late_least_ms:.2f}", f"{least:.3f}"]
        if t.old_ms is None or t.new_ms is None:
            rows.append([name, t.chunks, *cells, "-", "-", "-"])
            continue
        paired = t.old_ms / t.new_ms
        rows.append([name, t.chunks, *cells, f"{t.old_ms:.2f}", f"{t.new_ms:.2f}", f"{paired:.3f}"])
        age = f"a chunk of a stream {t.chunks} chunks old within {FLAT:.0%} of one of a new stream, in turns"
        report.goal(f"{name}: {age}", f"{paired - 1:+.1%}", abs(paired - 1) <= FLAT)
        promise = f"{name}: last window within {FLAT:.0%} of the first, least medians of {SUB_WINDOW} chunks"
        report.goal(promise, f"{least - 1:+.1%}", abs(least - 1) <= FLAT)
    columns = ["ms per chunk", "chunks", "early", "late", "ratio", "early least", "late least", "ratio"]
    report.table("Time of a chunk by age of the stream", [*columns, "old", "new", "old/new"], rows)
    report.figures["times"] = {name: asdict(t) for name, t in measured.items()}


def add_bytes(report: Report, everyone: list[Run]) -> None:
    """Bytes, positions and their goals."""
    rows, positions = [], []
    for run in everyone:
        for chunk, held in run.held.items():
            rows.append([run.name, chunk, *(f"{x:,}" for x in (held.pages, held.latents, held.store, held.snapshot))])
        now, map_ = run.stream.statistics(), run.stream.session.manager.positions
        positions.append(
            [run.name, now.next_chunk, map_.next_slot, now.epoch, now.farthest_distance, map_.config.slots]
        )
        if run.name == UNBOUNDED:
            continue
        least, most = min(run.pages[WARM_UP:]), max(run.pages[WARM_UP:])
        report.goal(
            f"{run.name}: bytes in pages constant after {WARM_UP} chunks", f"{least:,} to {most:,}", least == most
        )
        latents = [held.latents + held.store for held in run.held.values()]
        report.goal(
            f"{run.name}: bytes of latents and store equal at all marks after {WARM_UP} chunks",
            " / ".join(f"{x:,}" for x in latents),
            len(set(latents[1:])) == 1,
        )
    columns = ["bytes held", "after chunks", "pages", "latents", "restore store", "snapshot, with log"]
    report.table("Bytes held by one stream", columns, rows)
    columns = ["positions", "chunks", "next slot", "epoch", "farthest distance", "slots in range"]
    report.table("Distance from the chunk in progress to the farthest kept chunk", columns, positions)
    report.figures["bytes"] = {run.name: {chunk: asdict(held) for chunk, held in run.held.items()} for run in everyone}
    report.figures["positions"] = [dict(zip(columns, row, strict=True)) for row in positions]


def add_rounding(report: Report, size: Size) -> list[Rounding]:
    """Errors of relocated keys at the marks; all epochs measured are returned for the plot."""
    grid = {round(x) for x in np.geomspace(1, max(size.epochs), 15)} | set(size.epochs)
    found: list[Rounding] = []
    with progress() as bar:
        for layout in bar.track(LAYOUTS, description="rounding"):
            for memory in MEMORIES:
                found += rounding(layout, memory, grid)
    rows = []
    for r in found:
        if r.epochs in size.epochs:
            cells = [r.dtype, r.memory, r.epochs, r.moves, f"{r.error:.2e}", f"{r.from_origin:.2e}", f"{r.once:.2e}"]
            rows.append([r.layout, *cells])
    columns = ["layout", "type", "memory", "epochs", "moves", "in place", "from the origin (Longtake)", "storing once"]
    report.table(
        "Relative RMS error of the sink's keys after many relocations, against keys encoded at the last position",
        columns,
        rows,
    )
    report.figures["rounding"] = [asdict(r) for r in found]
    return found


def traces(run: Run) -> dict[str, list[float]]:
    """Median time and newest bytes of every ``SUB_WINDOW`` chunks."""
    ends = range(SUB_WINDOW, len(run.pages) + 1, SUB_WINDOW)
    return {
        "chunk": [float(end) for end in ends],
        "ms": [statistics.median(run.ms[end - SUB_WINDOW : end]) for end in ends],
        "page_bytes": [float(run.pages[end - 1]) for end in ends],
    }


def plotted(found: Mapping[str, Mapping[str, Sequence[float]]], rounded: Sequence[Rounding]) -> Figure:
    """Time and bytes against the index of the chunk, and errors against epochs."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 4.5), constrained_layout=True)
    for name, trace in found.items():
        left.plot(trace["chunk"], trace["ms"], label=name)
        middle.plot(trace["chunk"], np.array(trace["page_bytes"]) / 1e6, label=name)
    left.set_ylim(bottom=0)
    middle.set_yscale("log")
    for axes in (left, middle):
        axes.legend(fontsize=8)
    label(left, f"Time of a chunk (medians of {SUB_WINDOW})", "index of the chunk", "ms per chunk")
    label(middle, "Keys and values held", "index of the chunk", "MB")
    _plot_errors(right, rounded)
    return figure


def _plot_errors(axes: Axes, rounded: Sequence[Rounding]) -> None:
    for memory, colour in zip(MEMORIES, ("tab:blue", "tab:green"), strict=True):
        own = [r for r in rounded if (r.dtype, r.memory, r.layout) == ("bfloat16", memory, "split")]
        epochs = [r.epochs for r in own]
        axes.loglog(epochs, [r.error for r in own], "-", color=colour, label=f"{memory}, in place")
        axes.loglog(
            epochs, [r.from_origin for r in own], ":", color=colour, label=f"{memory}, from the origin (Longtake)"
        )
    once = next(r.once for r in rounded if r.dtype == "bfloat16")
    axes.axhline(once, color="grey", linestyle="--", label="storing once in bfloat16")
    axes.set_ylim(1e-4, 1e1)  # room for the legend
    axes.legend(fontsize=7, ncols=2, loc="upper center")
    label(
        axes,
        "Keys of the sink in bfloat16, relocated against encoded directly",
        "epochs of 17 (pinned) or 31 (following) chunks",
        "relative RMS error",
    )


def run(shared: Options, size: Size, steps: int) -> None:
    """Grow streams old, then rotate keys."""
    configuration = {"denoising steps": steps, **asdict(size)}
    report = Report("long_run", "Cost of a chunk against the age of the stream", shared, configuration)
    everyone = runs(size, steps)
    play(everyone, size)
    add_bytes(report, everyone)
    found = {run.name: traces(run) for run in everyone}
    report.figures["traces"] = found
    add_times(report, {run.name: times(run, size) for run in everyone})
    rounded = add_rounding(report, size)
    report.notes += notes(everyone, size)
    report.finish(plotted(found, rounded))


def notes(everyone: Sequence[Run], size: Size) -> list[str]:
    """What a reader of the figures needs."""
    unbounded = next(run for run in everyone if run.name == UNBOUNDED)
    return [
        "1 layer, 2 video and 16 audio tokens a chunk, random weights: what is measured is what the cache adds.",
        f"early: {size.window} chunks after {WARM_UP} of warm-up; late: the last; least: the least median of their "
        f"sub-windows of {SUB_WINDOW} chunks, since others use the machine too. old/new is measured in turns, chunk by "
        "chunk, which no change of the machine's speed can bias; it is the figure to trust.",
        f"{UNBOUNDED} stopped after {len(unbounded.held) and max(unbounded.held)} chunks (limit: "
        f"{size.unbounded_chunks} chunks or {size.hurts:.0f} times its early time).",
        "The drift ladder is out of reach: random weights have no steady statistics, and the keep-set would shrink.",
        "Relocated keys: LTX-2's width 4096 and rates; moves are those of the sink under the default keep-set. A third "
        "of the pairs of video turns with time, and within it the error is √3 times as large.",
    ]


def main() -> None:
    """The command line."""
    made = parser(__doc__ or "")
    made.add_argument("--steps", type=int, default=1, help="denoising steps before the clean pass (default: 1)")
    arguments = made.parse_args()
    shared = options(arguments)
    run(shared, QUICK if shared.quick else FULL, arguments.steps)


if __name__ == "__main__":
    main()

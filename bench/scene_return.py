"""Does a scene come back as it was? The room that no caption tells, after 1, 5 and 20 minutes elsewhere.

Every seed shows a scene for half a minute. Then one fork of its stream stays, and others cut to a second scene and
return after a while. Not restored is the same manager, cut to the same caption as to a scene it has never shown. The
error is the mean absolute difference between the median frame before leaving and after returning, pixels in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bench.common import Report, kept, label, options, parser, progress
from bench.looking import median_room
from bench.quality import interval
from bench.takes import Contender, Crowd, Role, chunks_in, contenders
from models.decoders import StreamDecoder
from streams.making import Chunk
from streams.stream import Stream

HOME, LOOK = 48, 20  # chunks: half a minute at home, 13 s looked at
BETTER, AS_GOOD = 5.0, 1.2


@dataclass
class Visit:
    """One stream: where it is in its journey, and the chunks of the window that is being looked at."""

    stream: Stream
    seed: int
    away_minutes: float | None  # None: it stays
    until: int = 0
    window: list[Chunk] = field(default_factory=list)


def rooms(crowd: Crowd, chunks: Sequence[Chunk]) -> torch.Tensor:
    """The median frame of consecutive chunks."""
    decoder = StreamDecoder(crowd.studio.codecs)
    return median_room(torch.cat([decoder.push(c.video, c.audio).frames for c in chunks]))


def journey(
    contender: Contender, seeds: Sequence[int], away: Sequence[float], restored: bool
) -> dict[str, list[float]]:
    """Errors over seeds, by ``away 5`` and, if ``restored``, for staying as long, ``stayed 5``."""
    roles = [Role.draw(seed) for seed in seeds]
    crowd = Crowd(contender, roles, seeds, sessions=len(seeds) * (1 + len(away)))
    engine = crowd.studio.engine
    for _ in crowd.skip(HOME - LOOK):
        pass
    made = [crowd.step() for _ in range(LOOK)]
    before = [rooms(crowd, column) for column in zip(*made, strict=True)]
    visits = [Visit(stream, i, None) for i, stream in enumerate(crowd.streams)] if restored else []
    for minutes in away:
        for i, seed in enumerate(seeds):
            stream = crowd.streams[i].fork()
            stream.cut("elsewhere", Role.draw(seed, 1).caption, keep_subject=False)
            visits.append(Visit(stream, i, minutes, HOME + chunks_in(minutes)))
    errors: dict[str, list[float]] = {}
    total = chunks_in(max(away)) + LOOK
    with progress() as bar:
        task = bar.add_task("restored" if restored else "not restored", total=total)
        for _ in range(total):
            for visit in visits:
                if visit.until and visit.stream.session.manager.next_chunk == visit.until:
                    if restored:
                        visit.stream.return_to("opening")
                    else:
                        visit.stream.cut("again", roles[visit.seed].caption, keep_subject=False)
            chunks = engine.step([visit.stream.session for visit in visits])
            for visit, chunk in zip(list(visits), chunks, strict=True):
                visit.window = [*visit.window, chunk][-LOOK:]
                for minutes in away:
                    done = chunk.index + 1 == HOME + chunks_in(minutes) + LOOK
                    if done and visit.away_minutes in (None, minutes):
                        name = f"{'stayed' if visit.away_minutes is None else 'away'} {minutes:g}"
                        error = (rooms(crowd, visit.window) - before[visit.seed]).abs().mean()
                        errors.setdefault(name, []).append(float(error))
                        if visit.away_minutes is not None:
                            visit.stream.close()
                            visits.remove(visit)
            bar.advance(task)
    return errors


def main() -> None:
    """Run with and without restoring, print, and leave JSON and plot."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--seeds", type=int, default=5, help="streams (default: 5)")
    given = arguments.parse_args()
    shared = options(given)
    seeds, away = (range(2), (0.25,)) if shared.quick else (range(given.seeds), (1.0, 5.0, 20.0))
    full = next(c for c in contenders() if c.name == "full manager")
    what = [asdict(full), list(seeds), list(away)]
    runs = {
        name: kept(shared.work, name, what, partial(journey, full, seeds, away, name == "restored"))
        for name in ("restored", "not restored")
    }
    report = Report("scene_return", "Does a scene come back as it was?", shared, {"seeds": list(seeds), "away": away})
    report.figures["errors"] = runs
    rows = []
    for minutes in away:
        back, lost = (runs[name][f"away {minutes:g}"] for name in ("restored", "not restored"))
        stayed = runs["restored"][f"stayed {minutes:g}"]
        cells = [f"{mean:.4f} ± {half:.4f}" for mean, half in map(interval, (back, lost, stayed))]
        better, as_good = np.mean(lost) / np.mean(back), np.mean(back) / np.mean(stayed)
        rows.append([f"{minutes:g} min", *cells, f"{better:.1f}", f"{as_good:.2f}"])
        report.goal(f"{minutes:g} min: {BETTER:g} times smaller than not restored", f"{better:.1f} x", better >= BETTER)
        report.goal(f"{minutes:g} min: within {AS_GOOD} of never having left", f"{as_good:.2f} x", as_good <= AS_GOOD)
    columns = ["away", "restored", "not restored", "never left", "not restored / restored", "restored / never left"]
    report.table("Error of the room, mean over seeds ± 95 %", columns, rows)
    report.finish(plot(away, runs))


def plot(away: Sequence[float], runs: dict[str, dict[str, list[float]]]) -> Figure:
    """Errors by minutes away."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    lines = {
        "not restored": ("not restored", "away"),
        "restored": ("restored", "away"),
        "never left": ("restored", "stayed"),
    }
    for i, (name, (run, kind)) in enumerate(lines.items()):
        means, halves = zip(*(interval(runs[run][f"{kind} {m:g}"]) for m in away), strict=True)
        places = np.arange(len(away)) + 0.06 * (i - 1)
        axes.errorbar(places, means, np.nan_to_num(halves), marker="o", capsize=3, label=name)
    axes.set_xticks(range(len(away)), [f"{m:g}" for m in away])
    axes.set_ylim(bottom=0)
    axes.legend()
    label(axes, "Error of the room on return", "minutes elsewhere", "mean absolute difference")
    return figure


if __name__ == "__main__":
    main()

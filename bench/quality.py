"""Does a take stay what it was? Forty-five minutes of the toy model under five memories, five seeds each.

Room, subject, sound and synchrony are read back by the truth of the world (``bench.looking``) over whole minutes, and
compared with the first. Hours on two cores; finished contenders are kept in ``--work`` and not run anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bench.common import Options, Report, kept, label, options, parser, progress
from bench.takes import WINDOW, Contender, Crowd, Reading, Role, chunks_in, contenders

MINUTES = (1, 2, 5, 10, 15, 20, 25, 30, 35, 40, 45)
WITHIN = 0.05
# Name, how it is shown, and whether it is a share of 1 in itself or compared with the first minute as a ratio.
METRICS = {
    "room": "room, mean |difference| to minute 1",
    "colour_shift": "colour of the room, |shift| of its mean",
    "channels": "channel means, RMS shift in spreads",
    "spreads": "channel spreads, RMS log ratio",
    "found": "subject found",
    "colour": "subject's colour right",
    "shape": "subject's shape right",
    "level": "sound level, ratio to minute 1",
    "pitch": "pitch, cents off",
    "synchrony": "bounce and note, F1",
}


def figures(first: Reading, now: Reading) -> dict[str, float]:
    """What one window shows, where it must be against the first minute of the same stream."""
    spread = first.std["video"]
    shift = (now.mean["video"] - first.mean["video"]) / spread
    ratio = np.log(now.std["video"] / spread)
    window, before = now.window, first.window
    return {
        "room": float(np.abs(window.room - before.room).mean()),
        "colour_shift": float(np.abs(window.room.mean((0, 1)) - before.room.mean((0, 1))).mean()),
        "channels": float(np.sqrt((shift**2).mean())),
        "spreads": float(np.sqrt((ratio**2).mean())),
        "found": window.found,
        "colour": window.colour,
        "shape": window.shape,
        "level": 10 ** ((window.level_db - before.level_db) / 20),
        "pitch": window.pitch_cents,
        "synchrony": window.synchrony,
        "drift": now.drift,
    }


def play(contender: Contender, seeds: Sequence[int], minutes: Sequence[int]) -> list[list[dict[str, float]]]:
    """Figures by minute and seed; minute 1 is what all others are compared with."""
    crowd = Crowd(contender, [Role.draw(seed) for seed in seeds], seeds)
    found = []
    first: list[Reading] = []
    done = 0
    with progress() as bar:
        task = bar.add_task(contender.name, total=chunks_in(minutes[-1]))
        for minute in minutes:
            for _ in crowd.skip(max(0, chunks_in(minute) - WINDOW - done)):
                bar.advance(task)
            readings = crowd.read()
            bar.advance(task, WINDOW)
            done = chunks_in(minute)
            first = first or readings
            found.append([figures(a, b) for a, b in zip(first, readings, strict=True)])
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % interval of the mean (Student's t), over seeds; NaN where nothing could be read."""
    seen = np.array([v for v in values if np.isfinite(v)])
    if len(seen) < 2:
        return (float(seen.mean()) if len(seen) else float("nan")), float("nan")
    student = {2: 12.7, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}.get(len(seen), 2.0)
    return float(seen.mean()), float(student * seen.std(ddof=1) / np.sqrt(len(seen)))


def change(name: str, late: Sequence[float], early: Sequence[float]) -> float:
    """How far a metric has moved, as a share: shares by their difference, ratios by their distance from 1."""
    pairs = [(a, b) for a, b in zip(late, early, strict=True) if np.isfinite(a) and np.isfinite(b)]
    if not pairs:
        return float("nan")
    if name in ("found", "colour", "shape", "synchrony"):
        return abs(float(np.mean([a for a, _ in pairs])) / max(1e-9, float(np.mean([b for _, b in pairs]))) - 1)
    if name == "level":
        return abs(float(np.mean([a for a, _ in pairs])) - 1)
    if name == "pitch":
        return 2 ** (float(np.mean([a - b for a, b in pairs])) / 1200) - 1
    return float(np.mean([a for a, _ in pairs]))


Runs = Mapping[str, list[list[dict[str, float]]]]


def tables(report: Report, minutes: Sequence[int], runs: Runs) -> None:
    """Last minute against the first, per metric and contender; the goals."""
    rows = []
    for name, shown in METRICS.items():
        cells = []
        for measured in runs.values():
            early, late = ([seed[name] for seed in measured[i]] for i in (0, -1))
            (a, _), (b, half) = interval(early), interval(late)
            cells.append(f"{a:.3g} → {b:.3g} ± {half:.2g}")
        rows.append([shown, *cells])
    report.table(f"Minute {minutes[0]} → minute {minutes[-1]}, mean over seeds ± 95 %", ["", *runs], rows)
    full = runs.get("full manager")
    if full is None:
        return
    for name, shown in METRICS.items():
        moved = change(name, [s[name] for s in full[-1]], [s[name] for s in full[0]])
        report.goal(f"full manager, {shown}: within {WITHIN:.0%} of minute 1", f"{moved:.1%}", moved <= WITHIN)
    if "window only" in runs:
        ratio = np.mean([s["room"] for s in runs["window only"][-1]]) / np.mean([s["room"] for s in full[-1]])
        report.goal("window only is measurably worse (room, at least twice)", f"{ratio:.1f} x", bool(ratio >= 2))


def plot(minutes: Sequence[int], runs: Runs) -> Figure:
    """One panel per metric, one line per contender, bands for the interval over seeds."""
    figure, axes = plt.subplots(2, 5, figsize=(22, 8), layout="constrained")
    for ax, (name, shown) in zip(axes.flat, METRICS.items(), strict=True):
        for contender, measured in runs.items():
            means, halves = zip(*(interval([s[name] for s in seeds]) for seeds in measured), strict=True)
            low, high = np.array(means) - np.nan_to_num(halves), np.array(means) + np.nan_to_num(halves)
            ax.plot(minutes, means, label=contender, marker=".", linewidth=1.2)
            ax.fill_between(minutes, low, high, alpha=0.12, linewidth=0)
        label(ax, shown, "minute", "")
    axes.flat[0].legend(fontsize=8)
    return figure


def measure(
    chosen: Sequence[Contender], seeds: Sequence[int], minutes: Sequence[int], work: Path | None
) -> dict[str, list[list[dict[str, float]]]]:
    """Every contender's figures; finished ones are read from ``work``."""
    runs = {}
    for contender in chosen:
        what = [asdict(contender), list(seeds), list(minutes)]
        runs[contender.name] = kept(work, contender.name, what, partial(play, contender, seeds, minutes))
    return runs


def main() -> None:
    """Run every contender, print, and leave JSON and plot."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--seeds", type=int, default=5, help="streams per contender (default: 5)")
    arguments.add_argument("--minutes", type=int, default=45, help="length of the takes (default: 45)")
    arguments.add_argument("--only", action="append", help="contenders to run (default: all)")
    given = arguments.parse_args()
    shared: Options = options(given)
    minutes = [m for m in MINUTES if m <= (2 if shared.quick else given.minutes)]
    seeds = range(2 if shared.quick else given.seeds)
    chosen = [c for c in contenders() if not given.only or c.name in given.only]
    runs = measure(chosen, seeds, minutes, shared.work)
    report = configured(shared, chosen, seeds, minutes)
    report.figures["runs"] = runs
    tables(report, minutes, runs)
    report.finish(plot(minutes, runs))


def configured(shared: Options, chosen: Sequence[Contender], seeds: Sequence[int], minutes: Sequence[int]) -> Report:
    """An empty report that says what is run."""
    configuration: dict[str, Any] = {
        "seeds": list(seeds),
        "minutes": list(minutes),
        "window": f"{WINDOW} chunks",
        "contenders": {c.name: f"{c.policy}, {c.budget.chunks} chunks" for c in chosen},
    }
    report = Report("quality", "Does a take stay what it was?", shared, configuration)
    report.notes.append("shape, colour and bounces are read back by the world's own shapes, without a learned judge")
    return report


if __name__ == "__main__":
    main()

"""Fixed placement against the rules of ``scaling``, on bursty traces: the slowest chunk, GPU hours, misses, moves.

A simulation of up to 64 GPUs, chunk by chunk, that runs the code which the session directory runs. It is
deterministic: nothing of the machine that it runs on is in its figures. What a step, a move and a start cost is in
``Costs``, with where each number is from; ``--costs FILE.json`` gives others. Fixed placement is a cluster of as many
GPUs as the peak of the trace needs, known by hindsight and evenly spread, whose sessions stay where they came: to the
GPU with the fewest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bench.cluster_costs import AWAY_MOVE_S, CHUNK_BYTES, STORE_BYTES_S, Costs, measured
from bench.cluster_run import WARM_S, Outcome, provisioned, run
from bench.cluster_state import GPUS, TREND_S, Contender
from bench.cluster_trace import Shape, Trace, draw
from bench.common import Report, label, options, parser, progress
from scaling.rules import Balance, Fleet, Rules

WORST, COST = 0.375, 0.372  # TurboServe, arXiv 2606.19271, on its own traces
PEAK_BUSY = 0.8  # of a chunk's time, for the fixed cluster at the peak
SEEDS = (1, 2, 3)
BURSTS = (1.0, 2.0, 4.0, 8.0, 12.0)
BUSY = (0.45, 0.5, 0.55, 0.6, 0.65)
FIXED = (0.5, 0.65, 0.8, 0.95)
STARTS = (5.0, 30.0, 60.0)
OURS, NO_MOVES = "ours", "ours, no moves"
FIXED_NAME = "fixed, fewest"

NOTES = [
    f"the fixed cluster has the GPUs with which a step at the peak takes {PEAK_BUSY:.0%} of a chunk's time if load "
    "is spread evenly; that is known by hindsight, while the rules know nothing of what is to come",
    "what makes the difference: GPUs that are off between bursts pay for more of them in bursts; sessions that rest "
    "and wake, and whose sizes differ, make fixed GPUs uneven",
    "the slowest chunk is the slowest step that a chunk was in; a session that moves stands still besides: that is "
    "in the longest wait and in the late chunks",
    "were load even: the slowest step if load had been spread evenly over the GPUs that were there, at every moment, "
    "against fixed placement: what no placement and no move can do better, with as many GPUs as early",
]


def rules(costs: Costs, busy: float = 0.55) -> Rules:
    """The rules of the comparison: more room than by default, since what starts when a burst has begun comes late.

    Growth is looked ahead as far as a start takes and as late as growth is seen. GPUs are given up quickly, and many
    sessions may be on their way at once, each from and to GPUs of its own: they hardly stand still.
    """
    fleet = Fleet(busy=busy, calm=0.97 * busy, start_s=costs.start_s + TREND_S, out_s=2.0, in_s=5.0)
    return Rules(4, GPUS, Balance(costs.move_s, gain=0.2, settle_s=10.0, moves=16), fleet)


def contenders(trace: Trace, costs: Costs) -> list[Contender]:
    """All of the comparison."""
    count = provisioned(trace, costs, PEAK_BUSY)
    return [
        Contender("fixed, hash", count, "hash"),
        Contender(FIXED_NAME, count, "sessions"),
        Contender("fixed, least load", count, "load"),
        Contender("as many GPUs, placed by rules", rules=replace(rules(costs), least=count, most=count), moves=False),
        Contender("as many GPUs, moves too", rules=replace(rules(costs), least=count, most=count)),
        Contender(NO_MOVES, rules=rules(costs), moves=False),
        Contender(OURS, rules=rules(costs)),
    ]


Job = tuple[Trace, Costs, Contender, float, int]


def runs(jobs: Sequence[Job]) -> Iterator[Outcome]:
    """Every run, in their order, in as many processes as there are cores; the same whatever their number."""
    with Pool() as pool:
        yield from pool.imap(one, jobs)


def one(job: Job) -> Outcome:
    """One run."""
    return run(*job)


def mean(outcomes: Sequence[Outcome], name: str) -> float:
    """Of a figure over seeds."""
    return float(np.mean([getattr(outcome, name) for outcome in outcomes]))


def change(ours: Sequence[Outcome], theirs: Sequence[Outcome], name: str) -> float:
    """Of a figure, by how much ours is more, seed by seed; the mean."""
    return float(np.mean([getattr(a, name) / getattr(b, name) - 1 for a, b in zip(ours, theirs, strict=True)]))


def mean_change(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> float:
    """The least that the slowest chunk could be with ours' GPUs at every moment, against what theirs is."""
    return float(np.mean([a.even_s / b.worst_s - 1 for a, b in zip(ours, theirs, strict=True)]))


def compare(report: Report, shape: Shape, costs: Costs, seeds: Sequence[int]) -> dict[str, list[Outcome]]:
    """All contenders on all seeds, and the goals."""
    found: dict[str, list[Outcome]] = {}
    traces = {seed: draw(shape, costs.away_s, seed) for seed in seeds}
    sessions = [len(trace.cost) for trace in traces.values()]
    jobs = [(t, costs, who, shape.seconds, seed) for seed, t in traces.items() for who in contenders(t, costs)]
    for (_, _, who, _, _), outcome in zip(jobs, runs(jobs), strict=True):
        found.setdefault(who.name, []).append(outcome)
    base = found[FIXED_NAME]
    rows = [
        [
            name,
            f"{1e3 * mean(o, 'worst_s'):.0f}",
            f"{mean_change(o, base):+.1%}",
            f"{change(o, base, 'worst_s'):+.1%}",
            " / ".join(f"{1e3 * q:.0f}" for q in np.mean([one.p99_s for one in o], 0)),
            f"{mean(o, 'misses'):.3%}",
            f"{mean(o, 'gpu_hours'):.1f}",
            f"{change(o, base, 'gpu_hours'):+.1%}",
            f"{mean(o, 'peak'):.0f}",
            f"{mean(o, 'moves'):.0f}",
            f"{1e3 * mean(o, 'longest_s'):.0f}",
        ]
        for name, o in found.items()
    ]
    columns = [
        "",
        "slowest, ms",
        "were load even",
        "change",
        "p99 median / p95",
        "late",
        "GPU h",
        "change",
        "peak",
        "moves",
        "longest wait",
    ]
    count = f"{np.mean(sessions):,.0f} sessions in {shape.seconds / 3600:g} h"
    report.table(f"{count}, means of {len(seeds)} seeds; changes against {FIXED_NAME}", columns, rows)
    report.figures["sessions"] = sessions
    report.figures["compared"] = {name: [asdict(one) for one in o] for name, o in found.items()}
    ours = found[OURS]
    slow, dear = change(ours, base, "worst_s"), change(ours, base, "gpu_hours")
    report.figures["were load even"] = {name: mean_change(o, base) for name, o in found.items()}
    report.goal(f"slowest chunk at least {WORST:.1%} less than with fixed placement", f"{slow:+.1%}", slow <= -WORST)
    report.goal(f"GPU cost at least {COST:.1%} less than with fixed placement", f"{dear:+.1%}", dear <= -COST)
    return found


def sweeps(report: Report, shape: Shape, costs: Costs, quick: bool) -> None:
    """Where it pays and where it does not: bursts, the time that a GPU takes to start, the model, idle phases."""
    cases: list[tuple[str, Shape, Costs]] = [
        *((f"bursts of {b:g} times", shape.burstier(b), costs) for b in BURSTS),
        *((f"a GPU starts in {s:g} s", shape, replace(costs, start_s=s)) for s in STARTS),
        ("0.34 s a chunk alone", replace(shape, calm_rate=shape.calm_rate / 3), replace(costs, solo_s=0.34)),
        ("put away after 60 s", shape, replace(costs, away_s=60.0)),
        ("put away and fetched, 1.5 s", shape, replace(costs, copy_s=0.0, copy_step_s=0.0, move_s=AWAY_MOVE_S)),
        ("copied as fast as measured here", shape, replace(costs, copy_step_s=CHUNK_BYTES / STORE_BYTES_S)),
        ("moves cost nothing", shape, replace(costs, copy_s=0.0, copy_step_s=0.0, move_s=1e-3)),
        ("nobody ever rests", replace(shape, active_s=1e9, calm_rate=shape.calm_rate / 2), costs),
    ]
    rows, figures = [], dict[str, dict[str, Any]]()
    cases = cases[:: 4 if quick else 1]
    jobs = [
        (trace, cost, who, case.seconds, SEEDS[0])
        for _, case, cost in cases
        for trace in (draw(case, cost.away_s, SEEDS[0]),)
        for who in contenders(trace, cost)
        if who.name in (FIXED_NAME, NO_MOVES, OURS)
    ]
    done = runs(jobs)
    with progress() as bar:
        for name, _, _ in bar.track(cases, description="sweeps"):
            fixed, placed, ours = next(done), next(done), next(done)
            slow, dear = ours.worst_s / fixed.worst_s - 1, ours.gpu_hours / fixed.gpu_hours - 1
            figures[name] = {
                "worst": slow,
                "cost": dear,
                "fixed": _few(fixed),
                "no moves": _few(placed),
                OURS: _few(ours),
            }
            times = (f"{1e3 * one.worst_s:.0f}" for one in (fixed, placed, ours))
            hours = (f"{one.gpu_hours:.1f}" for one in (fixed, placed, ours))
            late = (f"{one.misses:.3%}" for one in (fixed, ours))
            rows.append([name, *times, f"{slow:+.1%}", *hours, f"{dear:+.1%}", *late])
    columns = ["", "slowest: fixed, ms", "no moves", "ours", "change", "GPU h: fixed", "no moves", "ours", "change"]
    report.table("Other traces and costs, one seed each", [*columns, "late: fixed", "ours"], rows)
    report.figures["sweeps"] = figures


def _few(outcome: Outcome) -> dict[str, Any]:
    return {name: value for name, value in asdict(outcome).items() if name != "series"}


def trade(report: Report, shape: Shape, costs: Costs, quick: bool) -> None:
    """How slow the slowest chunk is for how many GPU hours, by fixed clusters and by rules of several tempers."""
    trace = draw(shape, costs.away_s, SEEDS[0])
    found: dict[str, list[tuple[float, float, float]]] = {"fixed": [], OURS: [], NO_MOVES: []}
    points: list[tuple[str, float, Contender]] = [
        ("fixed", share, Contender("", provisioned(trace, costs, share), "sessions"))
        for share in FIXED[:: 3 if quick else 1]
    ]
    points += [
        (name, busy, Contender("", rules=rules(costs, busy), moves=name == OURS))
        for busy in BUSY[:: 4 if quick else 1]
        for name in (OURS, NO_MOVES)
    ]
    outcomes = runs([(trace, costs, who, shape.seconds, 0) for _, _, who in points])
    for (name, share, _), o in zip(points, outcomes, strict=True):
        found[name].append((share, o.gpu_hours, o.worst_s))
    report.figures["trade"] = found


def plot(report: Report) -> Figure:
    """GPUs over time, what is to be had for what, and burstiness."""
    figure, (over, trades, bursts) = plt.subplots(1, 3, figsize=(16, 4.5), layout="constrained")
    for name in (FIXED_NAME, OURS):
        series = report.figures["compared"][name][0]["series"]
        over.plot([on for on, _ in series], label=f"{name}: GPUs")
    over.legend()
    over.axvspan(0, WARM_S / 60, color="grey", alpha=0.15)
    label(over, "GPUs, first seed", "minutes", "GPUs that are on")
    for name, points in report.figures["trade"].items():
        trades.plot([p[1] for p in points], [1e3 * p[2] for p in points], marker="o", label=name)
    trades.axhline(640, color="grey", linestyle="--", label="a chunk's own time")
    trades.legend()
    label(trades, "What is to be had for what", "GPU hours", "slowest chunk, ms")
    swept: dict[str, Any] = {n: f for n, f in report.figures["sweeps"].items() if n.startswith("bursts")}
    times = [float(name.split()[2]) for name in swept]
    for key, said in (("worst", "slowest chunk"), ("cost", "GPU cost")):
        bursts.plot(times, [100 * f[key] for f in swept.values()], marker="o", label=said)
    bursts.axhline(0, color="grey")
    bursts.legend()
    label(bursts, "Ours against fixed placement", "how many times as many come in a burst", "%")
    return figure


def main() -> None:
    """Run all, print, and leave JSON and plot."""
    made = parser(__doc__ or "")
    made.add_argument("--costs", type=Path, help="JSON with fields of Costs that replace the ones here")
    arguments = made.parse_args()
    shared, costs, shape = options(arguments), measured(arguments.costs), Shape()
    if shared.quick:
        shape = replace(shape, seconds=1500.0)
    seeds = SEEDS[:1] if shared.quick else SEEDS
    configuration = {"trace": asdict(shape), "rules": asdict(rules(costs)), "seeds": seeds}
    report = Report("cluster_sim", "Placement and scaling against fixed placement, simulated", shared, configuration)
    report.figures["costs"] = costs.plain()
    compare(report, shape, costs, seeds)
    sweeps(report, shape, costs, shared.quick)
    trade(report, shape, costs, shared.quick)
    rows = [[name, f"{getattr(costs, name):.3g}", said] for name, said in costs.sources.items()]
    report.table("Costs", ["", "value", "source"], rows)
    report.notes += NOTES
    report.finish(plot(report))


if __name__ == "__main__":
    main()

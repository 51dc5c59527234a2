"""One trace through one cluster, chunk by chunk, and what became of it."""

from dataclasses import dataclass

import numpy as np

from bench.cluster_costs import Costs
from bench.cluster_state import GPUS, OFF, Cluster, Contender
from bench.cluster_trace import ARRIVE, END, REST, WAKE, Trace
from scaling.fleet import needed
from scaling.snapshot import Generator, Session, Snapshot

WARM_S = 600.0  # not counted: nobody is there at the beginning
EVERY = 4  # chunks between two decisions: 2.6 s
BINS, BIN_S = 200, 0.02


@dataclass(frozen=True)
class Outcome:
    """What became of a trace, after ``WARM_S``.

    Args:
        worst_s: the slowest step that a chunk was in.
        even_s: what it would have been at least, had load been spread evenly over the GPUs that were there at every
            moment: no placement and no move can do better with these.
        longest_s: the longest wait for a chunk, standing still in a move included.
        p99_s: of every session the 99th percentile of its chunks; of these the median, and the 95th percentile.
        misses: share of chunks that came after their viewers had run dry.
        gpu_hours: of all GPUs that were on, starting and draining included; ``peak`` of them at once.
        moves: of sessions; ``standing_s``: how long sessions that generate stood still in moves, together.
        waits: chunks' times that sessions waited for a place.
        series: every minute: GPUs on, and the slowest step since the one before.
    """

    worst_s: float
    even_s: float
    longest_s: float
    p99_s: tuple[float, float]
    misses: float
    gpu_hours: float
    peak: int
    moves: int
    standing_s: float
    waits: int
    series: list[tuple[int, float]]


def run(trace: Trace, costs: Costs, who: Contender, seconds: float, seed: int = 0) -> Outcome:
    """Every chunk of a trace of so many seconds."""
    cluster = Cluster(trace, costs, who, seed)
    hist = np.zeros((len(trace.cost), BINS), np.int32)
    worst, even, longest, due, late, waits, hours = 0.0, 0.0, 0.0, 0, 0, 0, []
    series: list[tuple[int, float]] = []
    event, minute = 0, 0.0
    for number in range(int(seconds / costs.chunk_s)):
        now = number * costs.chunk_s
        while event < len(trace.when) and trace.when[event] <= now:
            cluster.happen(int(trace.what[event]), int(trace.who[event]))
            event += 1
        cluster.settle(now)
        if number % EVERY == 0:
            cluster.steer(now)
        chunks = cluster.chunk(now)
        minute = max(minute, float(chunks.step.max()))
        if now >= WARM_S:
            hist[chunks.made, np.minimum((chunks.took / BIN_S).astype(int), BINS - 1)] += 1
            worst, longest = max(worst, float(chunks.step.max())), max(longest, float(chunks.waited.max(initial=0.0)))
            even = max(even, costs.base_s + float(cluster.cost[chunks.made].sum()) / cluster.count)
            due, late, waits = due + chunks.due, late + chunks.late, waits + len(cluster.waiting)
            hours.append(int((cluster.state != OFF).sum()))
        if number % 94 == 0:  # a minute
            series.append((int((cluster.state != OFF).sum()), minute))
            minute = 0.0
    gpu_hours = sum(hours) * costs.chunk_s / 3600
    return Outcome(
        worst,
        even,
        longest,
        _p99(hist),
        late / due,
        gpu_hours,
        max(hours),
        cluster.moves,
        cluster.standing_s,
        waits,
        series,
    )


def _p99(hist: np.ndarray) -> tuple[float, float]:
    """Of every session's 99th percentile the median and the 95th percentile, to the bin's upper end."""
    chunks = hist.sum(1)
    seen = hist[chunks > 0]
    at = (seen.cumsum(1) >= 0.99 * chunks[chunks > 0, None]).argmax(1)
    return tuple(float(q) for q in np.percentile((at + 1) * BIN_S, (50, 95)))  # type: ignore[return-value]


def provisioned(trace: Trace, costs: Costs, busy: float) -> int:
    """GPUs with which the highest load of a trace, evenly spread, takes ``busy`` of a chunk's time: by hindsight."""
    active: set[int] = set()
    load = peak = 0.0
    at_peak: list[int] = []
    for when, what, who in zip(trace.when, trace.what, trace.who, strict=True):
        if what in (ARRIVE, WAKE):
            active.add(int(who))
            load += trace.cost[who]
        elif what in (REST, END) and int(who) in active:
            active.discard(int(who))
            load -= trace.cost[who]
        if when >= WARM_S and load > peak:
            peak, at_peak = load, list(active)
    sessions = tuple(Session(str(who), float(trace.cost[who]) * costs.each_s) for who in at_peak)
    one = Generator("any", costs.places, costs.base_s)
    return min(GPUS, needed(Snapshot(costs.chunk_s, (one,), sessions), busy, 1.0, 0.0))

"""Sessions that come in bursts, stay for very different times, and are watched and left alone by turns."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

ARRIVE, WAKE, REST, AWAY, END = range(5)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """What a trace is drawn from.

    Args:
        seconds: its length.
        calm_rate: sessions a second that come while it is calm; ``burst`` times as many in a burst.
        calm_s, burst_s: mean length of calm and of bursts (a Markov-modulated Poisson process with two states).
        least_s, most_s, tail: session lengths, a Pareto distribution with this exponent, cut off.
        active_s, idle_s: mean length of the phases in which a session generates, and in which it does not.
        sizes, keep: what a session costs against one of 512 × 768 with the default keep-set: resolution, with how
            likely each is, and the range of what its keep-set makes of it.
    """

    seconds: float = 7200.0
    calm_rate: float = 0.25
    burst: float = 8.0
    calm_s: float = 1200.0
    burst_s: float = 240.0
    least_s: float = 60.0
    most_s: float = 3600.0
    tail: float = 1.3
    active_s: float = 45.0
    idle_s: float = 45.0
    sizes: tuple[tuple[float, float], ...] = ((0.6, 0.5), (1.0, 0.35), (1.9, 0.15))
    keep: tuple[float, float] = (0.8, 1.2)

    @property
    def mean_rate(self) -> float:
        """Sessions a second over both states."""
        return self.calm_rate * (self.calm_s + self.burst * self.burst_s) / (self.calm_s + self.burst_s)

    def burstier(self, burst: float) -> "Shape":
        """The same number of sessions on average, in sharper or softer bursts."""
        made = replace(self, burst=burst)
        return replace(made, calm_rate=self.calm_rate * self.mean_rate / made.mean_rate)


@dataclass(frozen=True)
class Trace:
    """Sessions by number: what each costs; and all that happens, in order: when, what, to whom."""

    cost: Floats
    when: Floats
    what: NDArray[np.int64]
    who: NDArray[np.int64]


def draw(shape: Shape, away_s: float, seed: int) -> Trace:
    """A trace; the same seed gives the same one, and the same sessions whatever is decided about them."""
    rng = np.random.default_rng(seed)
    arrivals = _arrivals(shape, rng)
    lengths = np.minimum(shape.most_s, shape.least_s * (1 + rng.pareto(shape.tail, len(arrivals))))
    factors, likely = zip(*shape.sizes, strict=True)
    cost = rng.choice(factors, len(arrivals), p=likely) * rng.uniform(*shape.keep, len(arrivals))
    events: list[tuple[float, int, int]] = []
    for who, (begin, length) in enumerate(zip(arrivals, lengths, strict=True)):
        events += _life(shape, rng, float(begin), float(begin + length), who, away_s)
    events.sort()
    when, what, who_ = (np.array(column) for column in zip(*events, strict=True))
    return Trace(cost, when.astype(float), what.astype(np.int64), who_.astype(np.int64))


def _arrivals(shape: Shape, rng: np.random.Generator) -> Floats:
    """Times at which sessions come: Poisson within each state, which lasts exponentially long."""
    found, now, burst = [], 0.0, False
    while now < shape.seconds:
        lasts = rng.exponential(shape.burst_s if burst else shape.calm_s)
        end = min(now + lasts, shape.seconds)
        rate = shape.calm_rate * (shape.burst if burst else 1.0)
        found.append(rng.uniform(now, end, rng.poisson(rate * (end - now))))
        now, burst = end, not burst
    return np.sort(np.concatenate(found))


def _life(
    shape: Shape, rng: np.random.Generator, begin: float, end: float, who: int, away_s: float
) -> list[tuple[float, int, int]]:
    """A session's events: it comes and generates, rests, is put away if it rests for long, wakes, ..., and ends."""
    events, now = [(begin, ARRIVE, who)], begin
    while True:
        now += rng.exponential(shape.active_s)
        if now >= end:
            break
        events.append((now, REST, who))
        rested, now = now, now + rng.exponential(shape.idle_s)
        if rested + away_s < min(now, end):
            events.append((rested + away_s, AWAY, who))
        if now >= end:
            break
        events.append((now, WAKE, who))
    return [*events, (end, END, who)]

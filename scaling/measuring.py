"""What a generator's steps take and how load grows, as they are observed; state without a clock of its own."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

NEWEST = 0.2  # share of a new observation in what is believed
SIZES = 64  # batch sizes that are told apart


@dataclass
class StepTimes:
    """Seconds of a step by the sessions in it, and the line through them."""

    by_size: dict[int, float] = field(default_factory=dict)

    def observe(self, sessions: int, seconds: float) -> None:
        """One step."""
        size = min(sessions, SIZES)
        before = self.by_size.get(size, seconds)
        self.by_size[size] = before + NEWEST * (seconds - before)

    def line(self) -> tuple[float, float]:
        """What a step takes whoever is in it, and what each session adds; (0, 0) while nothing was observed."""
        return fitted(self.by_size)


def fitted(by_size: Mapping[int, float]) -> tuple[float, float]:
    """The line through seconds by size; with one size only, all of it is the sessions'."""
    if not by_size:
        return 0.0, 0.0
    mean_n = sum(by_size) / len(by_size)
    mean_s = sum(by_size.values()) / len(by_size)
    spread = sum((n - mean_n) ** 2 for n in by_size)
    each = mean_s / mean_n
    if spread > 0:
        each = sum((n - mean_n) * (s - mean_s) for n, s in by_size.items()) / spread
    if each <= 0 or mean_s - each * mean_n < 0:  # noise: a session costs something, and nobody costs nothing
        return 0.0, mean_s / mean_n
    return mean_s - each * mean_n, each


@dataclass
class Trend:
    """How fast a quantity grows, over about ``over_s`` seconds."""

    over_s: float
    rate: float = 0.0
    _last: tuple[float, float] | None = None

    def observe(self, now: float, value: float) -> float:
        """The quantity at a time; returns its growth per second."""
        if self._last is not None and now > self._last[0]:
            since = now - self._last[0]
            share = 1 - math.exp(-since / self.over_s)
            self.rate += share * ((value - self._last[1]) / since - self.rate)
        if self._last is None or now > self._last[0]:
            self._last = now, value
        return self.rate


@dataclass
class Least:
    """The least of what was observed in the last ``over_s`` to twice that; infinite if nothing was."""

    over_s: float
    _since: float = -math.inf
    _now: float = math.inf
    _before: float = math.inf

    def observe(self, now: float, value: float) -> None:
        """One observation."""
        self._turn(now)
        self._now = min(self._now, value)

    def value(self, now: float) -> float:
        """The least."""
        self._turn(now)
        return min(self._now, self._before)

    def _turn(self, now: float) -> None:
        if now - self._since >= self.over_s:
            self._before = self._now if now - self._since < 2 * self.over_s else math.inf
            self._since, self._now = now, math.inf

"""Two ways back for a chunk: its keys and values are loaded, or they are computed anew from its clean latents.

Which one is sooner depends on where the chunk lies, on what is on its way already, on the model and on the machine, so
it is predicted from what was measured a moment ago, and from first guesses until something was. Seconds and bytes come
in from whoever measures them: nothing here knows the time.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from errors import ConfigError, IntegrityError

LEAST = 1e-12  # no estimate is less, be it of seconds or of seconds a byte: a clock may not have moved
TIERS = 16  # tiers whose speed is remembered at most; the one that was longest not asked is guessed anew
Way = Literal["load", "rebuild"]


@dataclass(frozen=True)
class WayBackConfig:
    """How predictions are made. The numbers are our own design; bandwidths are those of ``docs/decisions/0014``.

    Args:
        weight: of a new measurement against all before it.
        stretch: how many times its prediction a measurement counts at most, and what part of it at least: a thread that
            was put to sleep once is not a trend.
        fade: how far an estimate goes back to its first guess whenever its way is not taken, or a way that was slow
            once would never be tried again.
        margin: how many times sooner a rebuild must be: what is loaded is exact.
        latency_s: first guess of what a fetch takes before its first byte.
        bytes_s: first guesses of bandwidth by tier.
        elsewhere_bytes_s: of a tier that is not named.
        unpack_bytes_s: first guess of the speed of decoding and writing to the pool.
        encode_s: first guess for encoding a chunk; a pass of the model corrects it before the first is encoded.
    """

    weight: float = 0.2
    stretch: float = 4.0
    fade: float = 0.02
    margin: float = 1.25
    latency_s: float = 0.001
    bytes_s: Mapping[str, float] = field(default_factory=lambda: {"host": 10e9, "disk": 2e9})
    elsewhere_bytes_s: float = 1e9
    unpack_bytes_s: float = 5e9
    encode_s: float = 0.1

    def __post_init__(self) -> None:
        for name in ("weight", "fade"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"way_back.{name} is {getattr(self, name)}; expected a factor between 0 and 1")
        for name in ("stretch", "margin"):
            if getattr(self, name) < 1.0:
                raise ConfigError(f"way_back.{name} is {getattr(self, name)}; expected 1 or more")
        speeds = {f"bytes_s of {tier}": speed for tier, speed in self.bytes_s.items()}
        names = ("latency_s", "elsewhere_bytes_s", "unpack_bytes_s", "encode_s")
        for name, value in (speeds | {name: getattr(self, name) for name in names}).items():
            if not 0.0 < value < float("inf"):
                raise ConfigError(f"way_back.{name} is {value}; expected more than 0")


@dataclass
class Estimate:
    """An exponentially weighted mean that begins as a guess."""

    guess: float
    config: WayBackConfig
    value: float = 0.0
    measured: int = 0

    def __post_init__(self) -> None:
        self.value = self.guess

    def learn(self, sample: float) -> None:
        """Take a measurement, held within ``stretch`` of what is believed."""
        bounded = min(max(sample, self.value / self.config.stretch), self.value * self.config.stretch)
        self.value = max(LEAST, self.value + self.config.weight * (bounded - self.value))
        self.measured += 1

    def fade(self) -> None:
        """Go a little back to the guess."""
        self.value += self.config.fade * (self.guess - self.value)

    def suppose(self, guess: float) -> None:
        """A better guess; believed as long as nothing was measured."""
        self.guess = max(LEAST, guess)
        if not self.measured:
            self.value = self.guess


@dataclass
class Line:
    """How long a fetch from one tier takes: a latency, and seconds a byte."""

    latency_s: Estimate
    byte_s: Estimate

    def seconds(self, nbytes: int) -> float:
        """For so many bytes, those ahead of them included."""
        return self.latency_s.value + nbytes * self.byte_s.value

    def learn(self, nbytes: int, seconds: float) -> None:
        """A fetch took so long; what it tells is told of the larger part of its prediction."""
        transfer = nbytes * self.byte_s.value
        if transfer < self.latency_s.value:
            self.latency_s.learn(max(0.0, seconds - transfer))
        else:
            self.byte_s.learn(max(0.0, seconds - self.latency_s.value) / nbytes)

    def fade(self) -> None:
        """Go a little back to the guesses."""
        self.latency_s.fade()
        self.byte_s.fade()


@dataclass(frozen=True)
class Prospect:
    """What is known of a chunk that could come back.

    Args:
        nbytes: of keys, values and latents that are still to come; what was prefetched does not count.
        unpack_bytes: of keys and values that are to be written to the pool.
        ahead_bytes: on their way from the same tier already.
        ahead_chunks: to be encoded before it.
        latents: whether it could be rebuilt.
    """

    chunk: int
    tier: str
    nbytes: int
    unpack_bytes: int
    ahead_bytes: int = 0
    ahead_chunks: int = 0
    latents: bool = True


@dataclass(frozen=True)
class Choice:
    """The way that was chosen, and both predictions; ``rebuild_s`` is ``None`` where there are no latents."""

    chunk: int
    tier: str
    way: Way
    load_s: float
    rebuild_s: float | None

    @property
    def predicted_s(self) -> float:
        """Of the way that was chosen."""
        return self.rebuild_s if self.way == "rebuild" and self.rebuild_s is not None else self.load_s

    def __str__(self) -> str:
        other = "nothing to rebuild from" if self.rebuild_s is None else f"rebuild {self.rebuild_s * 1e3:.1f} ms"
        return f"{self.way}: load from {self.tier} {self.load_s * 1e3:.1f} ms, {other}"


@dataclass(frozen=True)
class WayBackStatistics:
    """What is believed now: by tier [seconds of latency, bytes a second], and of unpacking and encoding."""

    tiers: dict[str, tuple[float, float]]
    unpack_bytes_s: float
    encode_s: float
    chosen: dict[Way, int]


class WayBack:
    """Predictions for one engine. Mutated by what is measured, and by ``choose``, which fades the way not taken."""

    def __init__(self, config: WayBackConfig | None = None) -> None:
        self.config = config or WayBackConfig()
        self.lines: OrderedDict[str, Line] = OrderedDict()
        self.unpack_byte_s = Estimate(1 / self.config.unpack_bytes_s, self.config)
        self.encode_s = Estimate(self.config.encode_s, self.config)
        self.chosen: dict[Way, int] = {"load": 0, "rebuild": 0}

    # -- what was measured

    def loaded(self, tier: str, nbytes: int, seconds: float) -> None:
        """A fetch was answered; ``nbytes``: its own and those that were on their way before it."""
        self._line(tier).learn(max(1, nbytes), seconds)

    def unpacked(self, nbytes: int, seconds: float) -> None:
        """Keys and values were decoded and written to the pool."""
        self.unpack_byte_s.learn(seconds / max(1, nbytes))

    def encoded(self, seconds: float) -> None:
        """One chunk was encoded from its latents."""
        self.encode_s.learn(seconds)

    def passed(self, seconds: float) -> None:
        """A pass of the model took so long, for one chunk: encoding is such a pass."""
        self.encode_s.suppose(seconds)

    # -- what is to be expected

    def load_s(self, prospect: Prospect) -> float:
        """Seconds until keys and values are in the pool."""
        coming = 0.0
        if prospect.nbytes:
            coming = self._line(prospect.tier).seconds(prospect.nbytes + prospect.ahead_bytes)
        return coming + prospect.unpack_bytes * self.unpack_byte_s.value

    def rebuild_s(self, chunks: int) -> float:
        """Seconds until so many chunks are encoded, one after the other."""
        return chunks * self.encode_s.value

    def fits(self, seconds: float) -> int:
        """How many chunks can be encoded in so many seconds; one that ends an eighth too late still fits."""
        return int(max(0.0, seconds) / self.encode_s.value + 0.125)

    def choose(self, prospect: Prospect) -> Choice:
        """The way that is predicted sooner; loading, which is exact, where a rebuild is not clearly sooner."""
        load = self.load_s(prospect)
        rebuild = self.rebuild_s(1 + prospect.ahead_chunks) if prospect.latents else None
        way: Way = "rebuild" if rebuild is not None and rebuild * self.config.margin < load else "load"
        self.chosen[way] += 1
        if way == "rebuild":
            self._line(prospect.tier).fade()
        else:
            self.encode_s.fade()
        return Choice(prospect.chunk, prospect.tier, way, load, rebuild)

    def statistics(self) -> WayBackStatistics:
        """A frozen summary."""
        tiers = {tier: (line.latency_s.value, 1 / line.byte_s.value) for tier, line in self.lines.items()}
        return WayBackStatistics(tiers, 1 / self.unpack_byte_s.value, self.encode_s.value, dict(self.chosen))

    def check_integrity(self) -> None:
        """Raise ``IntegrityError`` if a prediction is no time, or more is remembered than may be."""
        estimates = [self.unpack_byte_s, self.encode_s]
        for line in self.lines.values():
            estimates += [line.latency_s, line.byte_s]
        if len(self.lines) > TIERS or not all(0.0 < e.value < float("inf") for e in estimates):
            raise IntegrityError(f"{len(self.lines)} tiers of {TIERS}, estimates {[e.value for e in estimates]}")

    def _line(self, tier: str) -> Line:
        line = self.lines.pop(tier, None)
        if line is None:
            speed = self.config.bytes_s.get(tier, self.config.elsewhere_bytes_s)
            line = Line(Estimate(self.config.latency_s, self.config), Estimate(1 / speed, self.config))
        self.lines[tier] = line
        if len(self.lines) > TIERS:
            self.lines.popitem(last=False)
        return line

"""Drift control: what the copy written back to the cache is corrected towards, and what is done if that fails.

AdaStat (MaineCoon, arXiv 2606.17800, section 4.2) blends the per-channel statistics of the copy towards the scene's
reference, x̂ = x + s·(σ*·(x−μ)/σ + μ* − x). This module decides (μ*, σ*) and s from statistics alone; the tensor
operation is ``kernels.adastat``. The published latent is never touched. Thresholds, rates and the drift score are our
own design.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from cache.spec import Modality
from errors import ConfigError

Vector = NDArray[np.float64]
# What a scene's chunks are assumed to differ from each other at the least, in the units of ``Reference.shift``.
LEAST_USUAL = 0.1


class Rung(IntEnum):
    """The forward-repair ladder, one rung at a time; a rung includes those below it."""

    NONE = 0
    STRONGER_CORRECTION = 1
    REFRESH_SUBJECT = 2
    DROP_DRIFTED_RECENT = 3
    REESTABLISH_SCENE = 4


@dataclass(frozen=True)
class DriftConfig:
    """AdaStat and the repair ladder.

    A drift score of 1 is what the chunks differ by that a scene's reference is learned from: a bounce more or less
    changes the statistics of sound far more than all drift changes those of the picture. On true scenes of the toy
    world the median is 0.9, and 1 chunk in 100 is above 2.3.

    Args:
        strength: blend ``s`` per modality, in [0, 1]; 0 turns the correction off, and so does leaving a modality out.
            Lower for audio.
        strong: blend per modality from the first rung on.
        warmup_chunks: uncorrected chunks from which a scene's reference is learned.
        ema_rate: how far one low-drift chunk moves the reference, in [0, 1].
        reference_threshold: drift score up to which a chunk moves the reference and may become an anchor.
        raise_threshold: drift score from which the ladder is climbed.
        lower_threshold: drift score below which it is descended.
        patience: consecutive chunks beyond a threshold before a rung is changed.
    """

    strength: Mapping[str, float] = field(default_factory=lambda: {"video": 0.5, "audio": 0.25})
    strong: Mapping[str, float] = field(default_factory=lambda: {"video": 0.8, "audio": 0.5})
    warmup_chunks: int = 8
    ema_rate: float = 0.02
    reference_threshold: float = 1.5
    raise_threshold: float = 2.5
    lower_threshold: float = 1.5
    patience: int = 4

    def __post_init__(self) -> None:
        for name in ("strength", "strong"):
            for modality, value in getattr(self, name).items():
                if modality not in tuple(Modality):
                    raise ConfigError(f"drift {name} names {modality!r}; expected {' or '.join(Modality)}")
                if not 0.0 <= value <= 1.0:
                    raise ConfigError(f"drift {name}[{modality}] is {value}; expected a blend between 0 and 1")
        if not 0.0 <= self.ema_rate <= 1.0:
            raise ConfigError(f"drift ema_rate is {self.ema_rate}; expected a rate between 0 and 1")
        if self.warmup_chunks < 1 or self.patience < 1:
            raise ConfigError("drift warmup_chunks and patience; expected at least 1 chunk each")
        if not self.lower_threshold < self.raise_threshold:
            raise ConfigError(
                f"drift lower_threshold is {self.lower_threshold} and raise_threshold {self.raise_threshold}; "
                "expected lower_threshold < raise_threshold, or the ladder would swing"
            )


@dataclass(frozen=True)
class ChannelStatistics:
    """Per-channel mean and standard deviation of one modality of one chunk, both of shape [channels], float64."""

    mean: Vector
    std: Vector


@dataclass
class Reference:
    """The statistics of a scene as it began, in one modality; moves only by ``learn`` and ``follow``.

    ``usual``: the mean shift of the chunks that it was learned from, each against those before it.
    """

    mean: Vector
    std: Vector
    chunks: int
    usual: float = 0.0

    @classmethod
    def first(cls, seen: ChannelStatistics) -> "Reference":
        """The reference after the first uncorrected chunk."""
        return cls(seen.mean.copy(), seen.std.copy(), 1)

    def learn(self, seen: ChannelStatistics) -> None:
        """Average one more uncorrected chunk in."""
        self.usual += (self.shift(seen) - self.usual) / self.chunks
        self.chunks += 1
        self.mean = self.mean + (seen.mean - self.mean) / self.chunks
        self.std = self.std + (seen.std - self.std) / self.chunks

    def follow(self, seen: ChannelStatistics, rate: float) -> None:
        """Move slowly towards a chunk that hardly drifted."""
        self.mean = self.mean + rate * (seen.mean - self.mean)
        self.std = self.std + rate * (seen.std - self.std)

    def score(self, seen: ChannelStatistics) -> float:
        """Drift: the shift of a chunk, in units of what is usual in this scene; 0 while nothing is known of that."""
        return self.shift(seen) / max(LEAST_USUAL, self.usual) if self.chunks > 1 else 0.0

    def shift(self, seen: ChannelStatistics) -> float:
        """Root mean square over channels of the shift of means in units of σ* and of the log ratio of spreads."""
        floor = max(1e-6, 1e-3 * float(self.std.mean()))
        spread = np.maximum(self.std, floor)
        shift = (seen.mean - self.mean) / spread
        ratio = np.log(np.maximum(seen.std, floor) / spread)
        return float(np.sqrt(np.mean(shift**2 + ratio**2)))


@dataclass(frozen=True)
class Correction:
    """What AdaStat blends towards: μ* and σ* of shape [channels] and the strength s in (0, 1]."""

    mean: Vector
    std: Vector
    strength: float


@dataclass(frozen=True)
class DriftVerdict:
    """What was decided for one chunk: its drift score, the corrections by modality, the rung, and why it changed."""

    score: float
    corrections: Mapping[str, Correction]
    rung: Rung
    changed: str = ""


@dataclass
class DriftControl:
    """The ladder of one stream; references belong to the scenes. Mutated by ``judge`` and ``restart`` only."""

    config: DriftConfig
    rung: Rung = Rung.NONE
    above: int = 0
    below: int = 0
    hold: bool = True

    def restart(self) -> None:
        """A cut, a return or a prompt switch comes: the next chunk is not corrected, and the ladder is left."""
        self.rung, self.above, self.below, self.hold = Rung.NONE, 0, 0, True

    def judge(self, reference: dict[str, Reference], seen: Mapping[str, ChannelStatistics]) -> DriftVerdict:
        """Decide the correction of the chunk whose *published* statistics are ``seen``; moves reference and rung.

        ``reference`` is the current scene's and is updated in place. Nothing is corrected in the chunk of a cut or
        prompt switch (a stale reference fights the new scene) nor while the reference is being learned.
        """
        held, self.hold = self.hold, False
        fresh = {m for m in seen if m not in reference}
        score = max((reference[m].score(seen[m]) for m in seen if m not in fresh), default=0.0)
        learning = any(m in fresh or reference[m].chunks < self.config.warmup_chunks for m in seen)
        if learning:
            for modality, statistics in seen.items():
                if modality in fresh:
                    reference[modality] = Reference.first(statistics)
                else:
                    reference[modality].learn(statistics)
            return DriftVerdict(score, {}, self.rung)
        if held:
            return DriftVerdict(score, {}, self.rung)
        changed = self._climb(score)
        strength = self.config.strong if self.rung >= Rung.STRONGER_CORRECTION else self.config.strength
        corrections = {
            m: Correction(reference[m].mean, reference[m].std, strength[m]) for m in seen if strength.get(m, 0.0) > 0.0
        }
        if score <= self.config.reference_threshold:
            for modality, statistics in seen.items():
                reference[modality].follow(statistics, self.config.ema_rate)
        return DriftVerdict(score, corrections, self.rung, changed)

    def _climb(self, score: float) -> str:
        config = self.config
        self.above = self.above + 1 if score >= config.raise_threshold else 0
        self.below = self.below + 1 if score < config.lower_threshold else 0
        before = self.rung
        if self.above >= config.patience and self.rung < Rung.REESTABLISH_SCENE:
            self.rung, self.above = Rung(self.rung + 1), 0
        elif self.below >= config.patience and self.rung > Rung.NONE:
            self.rung, self.below = Rung(self.rung - 1), 0
        if self.rung == before:
            return ""
        return f"drift {score:.3f}: {before.name.lower()} to {self.rung.name.lower()}"

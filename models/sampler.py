"""The few-step sampler of causal flow-matching checkpoints, and noise that depends on (seed, chunk) alone."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from cache.spec import Modality
from errors import ConfigError

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Schedule:
    """Noise levels of the denoising passes, from 1 downwards; the last pass ends at 0.

    Args:
        sigmas: strictly decreasing, beginning with 1; each costs one pass.
        shift: bends every level u to s·u / (1 + (s−1)·u) as released checkpoints do; with s > 1 more of them are noisy.
        step: ``renoise`` predicts the clean chunk and noises it afresh for the next level (consistency-distilled
            checkpoints); ``euler`` follows the velocity without new noise.
        context_sigma: noise level at which a committed chunk is encoded; 0 is the clean pass.
    """

    sigmas: tuple[float, ...] = (1.0, 0.9375, 0.8333, 0.625)
    step: Literal["renoise", "euler"] = "renoise"
    context_sigma: float = 0.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))
        if not self.sigmas or self.sigmas[0] != 1.0 or self.sigmas[-1] <= 0.0 or not falling:
            raise ConfigError(f"sigmas are {self.sigmas}; expected strictly decreasing levels from 1.0, all above 0")
        if not 0.0 <= self.context_sigma < 1.0:
            raise ConfigError(f"context_sigma is {self.context_sigma}; expected 0 (clean) or a level below 1")

        if self.shift <= 0:
            raise ConfigError(f"shift is {self.shift}; expected a number above 0, 1 for no shift")

    @classmethod
    def even(cls, steps: int, shift: float = 1.0) -> "Schedule":
        """``steps`` levels at even distances, then shifted."""
        if steps < 1:
            raise ConfigError(f"steps is {steps}; expected at least one step")
        return cls(tuple(1 - i / steps for i in range(steps)), shift=shift)

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise level of each pass, after the shift."""
        return tuple(self.shift * u / (1 + (self.shift - 1) * u) for u in self.sigmas)


def noise(seed: int, chunk: int, draw: int, modality: Modality, tokens: int, channels: int) -> torch.Tensor:
    """Standard normal [tokens, channels], float32 on the CPU, a function of its arguments alone.

    The same on every machine and device, in every batch, after every resume.
    """
    name = f"{seed}/{chunk}/{draw}/{modality}".encode()
    value = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
    return torch.randn(tokens, channels, generator=torch.Generator().manual_seed(value))


def denoise(schedule: Schedule, velocity: Callable[[Pair, float], Pair], draw: Callable[[int], Pair]) -> Pair:
    """Clean video and audio latents from noise.

    Args:
        velocity: the model, v = ε − x₀ at x = (1−σ)·x₀ + σ·ε, for both modalities at once.
        draw: fresh noise by the number of the pass.
    """
    x = draw(0)
    following: Sequence[float] = (*schedule.levels[1:], 0.0)
    for i, (sigma, after) in enumerate(zip(schedule.levels, following, strict=True)):
        v = velocity(x, sigma)
        if schedule.step == "euler" or after == 0.0:
            x = (x[0] + (after - sigma) * v[0], x[1] + (after - sigma) * v[1])
            continue
        fresh = draw(i + 1)
        clean = (x[0] - sigma * v[0], x[1] - sigma * v[1])
        x = ((1 - after) * clean[0] + after * fresh[0], (1 - after) * clean[1] + after * fresh[1])
    return x

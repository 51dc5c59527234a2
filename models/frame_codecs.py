"""Decoders of frames: each frame alone, or video that is compressed in time."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pixel_shuffle

from errors import CheckpointError, ConfigError
from models.codec import check_held


@dataclass(frozen=True, eq=False)
class FoldedFrames:
    """diffusers' ``AutoencoderKL`` on single frames, which may see fold × fold pixels as channels.

    Nothing is held back and nothing decoded twice: a frame does not depend on its neighbours. (How many are decoded at
    once changes the last bits: of the shipped model's values, one in 80,000 by one level of 255.) On a CPU that has it,
    bfloat16 takes half the time, 5.3 against 11 ms for a frame of 128 × 128, and moves values by two levels at most
    (58 dB); ``channels_last`` made no difference.

    Raises:
        CheckpointError: the autoencoder's channels are not 3 · fold².
    """

    vae: Any = field(repr=False)
    height: int
    width: int
    past: int = field(default=0, init=False)
    ahead: int = field(default=0, init=False)
    fade: int = field(default=0, init=False)
    ratio: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        channels = self.vae.config.out_channels
        if channels != 3 * self.fold**2:
            raise CheckpointError(f"the frame decoder has {channels} channels; expected 3 · fold² (3, 12, 27, 48, …)")

    @property
    def fold(self) -> int:
        """Pixels per side that are channels of one."""
        return math.isqrt(self.vae.config.out_channels // 3)

    @property
    def scale(self) -> int:
        """Pixels per latent, per side."""
        return self.fold << (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (int(self.vae.config.latent_channels), self.height, self.width)

    @property
    def output(self) -> torch.Tensor:
        return torch.empty(0, self.height * self.scale, self.width * self.scale, 3, dtype=torch.uint8)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        config = self.vae.config
        z = latents.transpose(0, 1) / config.scaling_factor
        if config.shift_factor is not None:
            z = z + config.shift_factor
        folded = self.vae.decode(z.to(self.vae.device, self.vae.dtype), return_dict=False)[0]
        return _eight_bits(pixel_shuffle(folded.float(), self.fold))


@dataclass(frozen=True, eq=False)
class CausalVideo:
    """diffusers' ``AutoencoderKLLTX2Video``: the first latent frame of a stream gives one frame, every other ``ratio``.

    Released checkpoints have a decoder that looks ahead (``decoder_causal`` false). Error of the frames at a border,
    relative to their spread, against decoding everything at once, for random weights at the released depth (5 blocks
    per level), which spread wider in time than trained ones:

    | latent frames | 1 | 2 | 4 | 6 | 8 | 12 | 16 |
    |---|---|---|---|---|---|---|---|
    | looks ahead: ``past`` | 0.40 | 0.18 | 0.05 | 0.009 | 0.001 | 7e-6 | |
    | looks ahead: ``ahead`` | 0.30 | 0.18 | 0.05 | 0.011 | 0.002 | 6e-6 | |
    | causal: ``past`` | 0.91 | 0.76 | 0.57 | 0.42 | 0.27 | 0.08 | 0.009 |

    What is held back is seen later (0.32 s per latent frame at 25 fps), and every step of context costs as much as a
    new one; hence the defaults, and ``fade`` for what they leave.

    Raises:
        ConfigError: no context, without which the frames after the first cannot be had.
    """

    vae: Any = field(repr=False)
    height: int
    width: int
    past: int = 4
    ahead: int = 2
    fade: int = 8

    def __post_init__(self) -> None:
        if self.past < 1:
            raise ConfigError(f"past is {self.past}; expected at least 1, a window's first latent gives one frame only")
        check_held(self)

    @classmethod
    def of(cls, vae: Any, height: int, width: int) -> "CausalVideo":
        """With the defaults for this decoder: a causal one needs nothing held back, but more of the past."""
        if vae.config.decoder_causal:
            return cls(vae, height, width, past=8, ahead=0, fade=0)
        return cls(vae, height, width, fade=int(vae.temporal_compression_ratio))

    @property
    def ratio(self) -> int:
        return int(self.vae.temporal_compression_ratio)

    @property
    def scale(self) -> int:
        """Pixels per latent, per side."""
        return int(self.vae.spatial_compression_ratio)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (int(self.vae.config.latent_channels), self.height, self.width)

    @property
    def output(self) -> torch.Tensor:
        return torch.empty(0, self.height * self.scale, self.width * self.scale, 3, dtype=torch.uint8)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.vae
        mean, std = (x.to(latents)[:, None, None, None] for x in (vae.latents_mean, vae.latents_std))
        z = latents * std / vae.config.scaling_factor + mean
        # The pipeline's defaults: decoded at timestep 0, to which it adds no noise.
        timestep = torch.zeros(1).to(vae.device, vae.dtype) if vae.config.timestep_conditioning else None
        frames = vae.decode(z[None].to(vae.device, vae.dtype), timestep, return_dict=False)[0][0]
        return _eight_bits(frames.float().transpose(0, 1))


def _eight_bits(frames: torch.Tensor) -> torch.Tensor:
    """[n, 3, height, width] in [−1, 1] to uint8 [n, height, width, 3]."""
    return ((frames / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

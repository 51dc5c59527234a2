"""Decoders of sound: waveform codecs, and mel spectrograms with a vocoder."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from errors import CheckpointError, ConfigError
from models.codec import check_held

MEL_FRAMES = 4  # mel frames per audio latent in the LTX-2 family, written into the library's decoder as well


@dataclass(frozen=True, eq=False)
class FoldedSound:
    """diffusers' ``AutoencoderOobleck``, mono, which sees its ``audio_channels`` neighbouring samples as channels.

    Largest error at a border for the shipped codec (peaks of 0.39, latents of 20 ms), against decoding everything at
    once; the step of 16-bit sound is 3e-5:

    | latents | 0 | 2 | 4 | 6 | 7 | 8 | 9 |
    |---|---|---|---|---|---|---|---|
    | ``past`` | 0.10 | 0.016 | 1e-3 | 4e-4 | 1e-4 | 4e-7 | 0 |
    | ``ahead`` | 0.07 | 0.010 | 1e-3 | 4e-4 | 4e-5 | 2e-7 | 0 |

    Raises:
        CheckpointError: odd strides, with which the library's decoder loses samples.
    """

    codec: Any = field(repr=False)
    past: int = 9
    ahead: int = 7
    fade: int = 80

    def __post_init__(self) -> None:
        strides = self.codec.config.downsampling_ratios
        if any(stride % 2 for stride in strides):
            raise CheckpointError(f"the sound codec's downsampling_ratios are {strides}; expected even ones")
        check_held(self)

    @classmethod
    def of(cls, codec: Any) -> "FoldedSound":
        """With the defaults: 5 ms of fading."""
        return cls(codec, fade=int(codec.config.sampling_rate) // 200)

    @property
    def sample_rate(self) -> int:
        return int(self.codec.config.sampling_rate)

    @property
    def channels(self) -> int:
        return 1

    @property
    def ratio(self) -> int:
        return int(self.codec.hop_length * self.codec.config.audio_channels)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (int(self.codec.config.decoder_input_channels), 1)

    @property
    def output(self) -> torch.Tensor:
        return torch.empty(0, 1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        z = latents.squeeze(2)[None].to(self.codec.device, self.codec.dtype)
        folded: torch.Tensor = self.codec.decode(z, return_dict=False)[0]
        return folded.float().transpose(1, 2).reshape(-1, 1).clamp(-1, 1)


@dataclass(frozen=True, eq=False)
class MelSound:
    """diffusers' ``AutoencoderKLLTX2Audio`` to mel frames and its vocoder to samples.

    The autoencoder is causal and reaches far back, the vocoder looks both ways. Error at a border (root mean square of
    one latent, 40 ms, relative to the sound's spread) for random weights at the released depth:

    | latents | 1 | 2 | 3 | 4 | 8 | 16 | 24 | 32 |
    |---|---|---|---|---|---|---|---|---|
    | ``past`` | 0.24 | 0.24 | 0.21 | 0.22 | 0.13 | 0.007 | 3e-5 | 3e-7 |
    | ``ahead`` | 0.04 | 0.004 | 1e-4 | 3e-7 | | | | |

    The first latent of a stream gives one mel frame, every other four.

    Raises:
        CheckpointError: the autoencoder is not causal, or the two do not fit each other.
        ConfigError: no context, without which the samples after the first latent cannot be had.
    """

    vae: Any = field(repr=False)
    vocoder: Any = field(repr=False)
    past: int = 24
    ahead: int = 4
    fade: int = 120

    def __post_init__(self) -> None:
        config, into = self.vae.config, self.vocoder.config.in_channels
        if config.causality_axis != "height":
            raise CheckpointError(
                f"the audio autoencoder's causality_axis is {config.causality_axis!r}; expected 'height'"
            )
        if config.mel_bins is None or config.output_channels * config.mel_bins != into:
            raise CheckpointError(
                f"the vocoder reads {into} channels but the audio autoencoder gives {config.output_channels} × "
                f"{config.mel_bins} mel bins; take both from one checkpoint"
            )
        normalised, width = len(self.vae.latents_mean), math.prod(self.latent_shape)
        if normalised != width:
            raise CheckpointError(
                f"the audio autoencoder normalises {normalised} channels but its latents have {width}"
            )
        if self.past < 1:
            raise ConfigError(
                f"past is {self.past}; expected at least 1, a window's first latent gives one mel frame only"
            )
        check_held(self)

    @classmethod
    def of(cls, vae: Any, vocoder: Any) -> "MelSound":
        """With the defaults: 5 ms of fading."""
        return cls(vae, vocoder, fade=int(vocoder.config.output_sampling_rate) // 200)

    @property
    def sample_rate(self) -> int:
        return int(self.vocoder.config.output_sampling_rate)

    @property
    def channels(self) -> int:
        extended = hasattr(self.vocoder, "bwe_generator")
        return int(self.vocoder.config.bwe_out_channels if extended else self.vocoder.config.out_channels)

    @property
    def ratio(self) -> int:
        config = self.vocoder.config
        if not hasattr(self.vocoder, "bwe_generator"):
            return MEL_FRAMES * int(self.vocoder.total_upsample_factor)
        samples = MEL_FRAMES * int(self.vocoder.vocoder.total_upsample_factor)
        return samples * int(config.output_sampling_rate) // int(config.input_sampling_rate)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        config = self.vae.config
        return (int(config.latent_channels), int(config.mel_bins) // int(self.vae.mel_compression_ratio))

    @property
    def output(self) -> torch.Tensor:
        return torch.empty(0, self.channels)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        # Normalised per channel and bin, as tokens are: [channels, steps, bins] against statistics of channels · bins.
        mean, std = (x.to(latents).view(len(latents), 1, -1) for x in (self.vae.latents_mean, self.vae.latents_std))
        z = (latents * std + mean)[None].to(self.vae.device, self.vae.dtype)
        waveform: torch.Tensor = self.vocoder(self.vae.decode(z, return_dict=False)[0])[0]
        return waveform.float().T.clamp(-1, 1)

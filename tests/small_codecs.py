"""Small random decoders and text encoders of the real classes, in memory and in diffusers' layout."""

import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, AutoencoderOobleck
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE

from models.decoders import Codecs
from models.frame_codecs import CausalVideo, FoldedFrames
from models.shapes import ChunkGeometry
from models.sound_codecs import FoldedSound, MelSound

# 2 frames in 0.16 s and 8 latents of 20 ms; 8 frames in 0.32 s and 8 latents of 40 ms.
TOY = ChunkGeometry(2, 2, 4, 8, Fraction(25, 2), 1, 8, Fraction(1, 50), audio_scale=1, patch=2, patch_t=2)
RELEASED = ChunkGeometry(1, 2, 3, 8, Fraction(25), 8, 32, Fraction(1, 25))
TOY_CONFIG = {"in_channels": 4 * 8, "audio_in_channels": 6}
RELEASED_CONFIG = {"in_channels": 8, "audio_in_channels": 16}


def seeded(make: Callable[[], Any]) -> Any:
    """What ``make`` builds, with the same random weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make().eval().requires_grad_(False)


@cache
def frames_vae() -> Any:
    """Frames, 4 × 4 pixels as channels, 8 × smaller per side into 4 channels."""
    return seeded(
        lambda: AutoencoderKL(
            in_channels=48,
            out_channels=48,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.5,
        )
    )


@cache
def waveform_codec() -> Any:
    """Sound at 8 kHz, 4 samples as channels, 160 × shorter into 6 channels; reaches 9 latents to both sides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return seeded(
            lambda: AutoencoderOobleck(8, [4, 10], [1, 2], 8, 6, audio_channels=4, sampling_rate=8000),
        )


@cache
def video_vae(causal: bool = False, timestep_conditioning: bool = False) -> Any:
    """Video, 8 × 32 × 32 into 8 channels; reaches 7 latent frames to both sides, or twice as far back."""
    vae = seeded(
        lambda: AutoencoderKLLTX2Video(
            latent_channels=8,
            block_out_channels=(8,) * 4,
            layers_per_block=(1,) * 5,
            decoder_block_out_channels=(8, 16, 32),
            decoder_layers_per_block=(1,) * 4,
            decoder_causal=causal,
            timestep_conditioning=timestep_conditioning,
            scaling_factor=0.7,
            spatial_compression_ratio=32,
            temporal_compression_ratio=8,
        )
    )
    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 2, 8))
    return vae


@cache
def mel_vae() -> Any:
    """Mel spectrograms of 16 bins to 4 channels of 4 bins, 4 × shorter."""
    vae = seeded(
        lambda: AutoencoderKLLTX2Audio(
            base_channels=16, latent_channels=4, ch_mult=(1, 1, 2), num_res_blocks=1, mel_bins=16
        )
    )
    vae.latents_mean.copy_(torch.linspace(-1, 1, 16))
    vae.latents_std.copy_(torch.linspace(0.5, 1.5, 16))
    return vae


@cache
def vocoder() -> Any:
    """Stereo at 800 Hz, 8 samples per mel frame."""
    return seeded(
        lambda: LTX2Vocoder(
            in_channels=32,
            hidden_channels=16,
            upsample_kernel_sizes=[8, 4],
            upsample_factors=[4, 2],
            output_sampling_rate=800,
        )
    )


@cache
def wide_vocoder() -> Any:
    """The same, extended to 1,600 Hz."""
    upsampling = {"upsample_kernel_sizes": [8, 4], "upsample_factors": [4, 2], "hidden_channels": 16, "in_channels": 32}
    found = seeded(
        lambda: LTX2VocoderWithBWE(
            **upsampling,
            **{f"bwe_{name}": value for name, value in upsampling.items()},
            filter_length=16,
            hop_length=4,
            window_length=16,
            num_mel_channels=16,
            input_sampling_rate=800,
            output_sampling_rate=1600,
        )
    )
    generator = torch.Generator().manual_seed(1)
    for buffer in (found.mel_stft.mel_basis, found.mel_stft.stft_fn.forward_basis):
        buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.1)
    return found


def toy(**sound: int) -> Codecs:
    """Frames one by one, and a waveform codec."""
    codec = waveform_codec()
    return Codecs(
        TOY, FoldedFrames(frames_vae(), 2, 4), FoldedSound(codec, **sound) if sound else FoldedSound.of(codec)
    )


def released(causal: bool = False, wide: bool = False, past: int = 7, ahead: int = 7) -> Codecs:
    """Video and mel, with as much of the past and the future as these small decoders see."""
    video = video_vae(causal)
    frames = CausalVideo(video, 2, 3, 14, 0, 0) if causal else CausalVideo(video, 2, 3, past, ahead)
    return Codecs(RELEASED, frames, MelSound(mel_vae(), wide_vocoder() if wide else vocoder(), 24, 5, 4))


def save(folder: Path, **components: Any) -> str:
    """Write components in diffusers' layout."""
    for name, component in components.items():
        component.save_pretrained(folder / name)
    return str(folder)


def tokens(
    codecs: Codecs, frames: int, steps: int, seed: int = 0, smoothness: float = 0.9
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents that change smoothly, as tokens, of ``frames`` latent frames and ``steps`` audio latents."""
    g = codecs.geometry
    channels, height, width = codecs.frames.latent_shape
    per_frame = (height // g.patch) * (width // g.patch)
    video = _smooth((frames // g.patch_t, per_frame, channels * g.patch**2 * g.patch_t), seed, smoothness)
    channels, bins = codecs.sound.latent_shape
    return video.flatten(0, 1), _smooth((steps, channels * bins), seed + 1, smoothness)


def _smooth(shape: tuple[int, ...], seed: int, smoothness: float) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for i in range(1, shape[0]):
        x[i] = smoothness * x[i - 1] + (1 - smoothness**2) ** 0.5 * x[i]
    return x

"""The two codecs of the toy model: frames to latents, waveforms to latents. Both are diffusers' classes.

Frames: ``AutoencoderKL``, each frame alone, 16 × smaller per side into 16 channels. Sound: ``AutoencoderOobleck``, a
waveform codec, 320 × shorter into 32 channels. Both see neighbours as channels (4 × 4 pixels, 8 samples), which costs
a CPU a fraction of working at full resolution. The codec of sound is trained on the world's sounds and as much on
tones, chirps and noise that the world does not have, so that it is a codec and not a synthesiser of this world's notes.
"""

import random
import warnings
from functools import lru_cache
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderOobleck
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from training.world import SAMPLE_RATE, Scene, chunk_times

FRAME_CHANNELS, FRAME_FOLD = 16, 4
SOUND_CHANNELS, SOUND_HOP, SOUND_FOLD = 32, 320, 8
LATENT_NOISE = 0.1


def frame_autoencoder() -> Any:
    """A new frame autoencoder, 2.7 M parameters. (Without its normalisation it hardly learned in the same time.)"""
    return AutoencoderKL(
        in_channels=3 * FRAME_FOLD**2,
        out_channels=3 * FRAME_FOLD**2,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=FRAME_CHANNELS,
        scaling_factor=1.0,
    )


def sound_codec() -> Any:
    """A new waveform codec, 0.9 M parameters."""
    with warnings.catch_warnings():  # the class uses a weight norm that torch has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        return AutoencoderOobleck(
            encoder_hidden_size=2 * SOUND_CHANNELS,
            downsampling_ratios=[4, 10],
            channel_multiples=[1, 2],
            decoder_channels=64,
            decoder_input_channels=SOUND_CHANNELS,
            audio_channels=SOUND_FOLD,
            sampling_rate=SAMPLE_RATE,
        )


def plain_weights(model: torch.nn.Module) -> None:
    """Take the weight norm off, which optimisers of matrices cannot see through."""
    for module in model.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)


def normed_weights(model: Any) -> Any:
    """The weights of ``model`` without weight norm in a new codec with it, as the class stores them."""
    made = sound_codec()
    state = model.state_dict()
    for name in [n for n in made.state_dict() if n.endswith("weight_g")]:
        weight = state.pop(name.removesuffix("_g"))
        state[name] = weight.flatten(1).norm(dim=1).view(-1, 1, 1)
        state[name.removesuffix("_g") + "_v"] = weight
    made.load_state_dict(state)
    return made


def fold(sound: torch.Tensor) -> torch.Tensor:
    """[batch, samples] to [batch, SOUND_FOLD, samples / SOUND_FOLD], neighbouring samples as channels."""
    folded: torch.Tensor = sound.unflatten(1, (-1, SOUND_FOLD))
    return folded.transpose(1, 2)


def unfold(folded: torch.Tensor) -> torch.Tensor:
    """Undo ``fold``."""
    return folded.transpose(1, 2).flatten(1)


def unit_scale(latent: torch.Tensor) -> torch.Tensor:
    """Penalty that brings every channel of [batch, channels, ...] to mean 0 and spread 1."""
    flat = latent.float().transpose(0, 1).flatten(1)
    return flat.mean(1).square().mean() + (flat.std(1) - 1).square().mean()


@lru_cache(maxsize=4096)
def _scene(seed: int, number: int) -> Scene:
    return Scene.draw(random.Random(f"{seed}/codec/{number}"))


class FrameLoss:
    """Reconstruction of random frames; pixels at the subject count more, or it stays a blob."""

    def __init__(self, model: Any, seed: int, batch: int = 16, subject_weight: float = 4.0) -> None:
        self.model, self.seed, self.batch, self.subject_weight = model, seed, batch, subject_weight

    def sample(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames [batch, 3, side, side] in [−1, 1] and the subject's coverage [batch, 1, side, side]."""
        rng = random.Random(f"{self.seed}/frames/{step}")
        frames, masks = [], []
        for _ in range(self.batch // 2):
            scene = _scene(self.seed, rng.randrange(4096))
            times = torch.tensor([rng.uniform(0, 600), rng.uniform(0, 600)])
            frames.append(scene.frames(times))
            masks.append(scene.coverage(times))
        return torch.cat(frames) * 2 - 1, torch.cat(masks)[:, None]

    def __call__(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        frames, masks = self.sample(step)
        pixels = pixel_unshuffle(frames, FRAME_FOLD).contiguous(memory_format=torch.channels_last)
        latent = self.model.encode(pixels).latent_dist.mean
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(step))
        decoded = pixel_shuffle(self.model.decode(latent + LATENT_NOISE * noise).sample.float(), FRAME_FOLD)
        error = decoded - frames
        near = torch.nn.functional.max_pool2d(masks, 9, 1, 4)
        weight = 1 + self.subject_weight * near
        value = (weight * (error.abs() + 2 * error.square())).mean()
        for axis in (2, 3):  # edges
            value = value + 0.5 * (weight.narrow(axis, 1, 127) * error.diff(dim=axis).abs()).mean()
        scale = unit_scale(latent)
        with torch.no_grad():
            square = error.square() / 4
            figures = {
                "psnr": float(-10 * square.mean().log10()),
                "subject": float(-10 * ((square * near).sum() / near.sum() / 3).log10()),
                "scale": float(scale),
            }
        return value + 0.05 * scale, figures


def spectral_distance(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Distance of magnitude spectra of [batch, samples] at three resolutions, linear and logarithmic."""
    total = torch.zeros(())
    for size in (128, 512, 2048):
        window = torch.hann_window(size)
        a, b = (
            torch.stft(x, size, size // 4, window=window, return_complex=True).abs() / size**0.5 for x in (made, wanted)
        )
        total = total + (a - b).abs().mean() + 0.1 * ((a + 1e-3).log() - (b + 1e-3).log()).abs().mean()
    return total


def other_sound(rng: random.Random, count: int) -> torch.Tensor:
    """A sound that the world does not have: tones, chirps and coloured noise, [count]."""
    time = torch.arange(count) / SAMPLE_RATE
    sound = torch.zeros(count)
    for _ in range(rng.randint(1, 4)):
        begin, end = 60 * 2 ** rng.uniform(0, 6), 60 * 2 ** rng.uniform(0, 6)
        if rng.random() < 0.7:
            end = begin
        turn = begin * time + (end - begin) * time**2 * SAMPLE_RATE / (2 * count) + rng.random()
        level = 0.25 * 10 ** rng.uniform(-1, 0)
        start, decay = rng.uniform(-0.3, 0.6), 10 ** rng.uniform(-1.5, 1)
        since = time - start
        sound += (
            level
            * torch.where(since >= 0, (since / 0.004).clamp(0, 1) * torch.exp(-since / decay), 0.0)
            * (torch.sin(2 * torch.pi * turn))
        )
    if rng.random() < 0.5:
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        spectrum = torch.fft.rfft(torch.randn(count, generator=generator))
        tilt = torch.arange(1, len(spectrum) + 1) ** -rng.uniform(0.2, 1.2)
        hiss = torch.fft.irfft(spectrum * tilt, n=count)
        sound += 0.1 * 10 ** rng.uniform(-1, 0) * hiss / hiss.std()
    return sound.clamp(-1, 1)


class SoundLoss:
    """Reconstruction of random sounds, half of them not of this world."""

    def __init__(self, model: Any, seed: int, batch: int = 12, frames: int = 20) -> None:
        self.model, self.seed, self.batch, self.count = model, seed, batch, frames * SOUND_HOP

    def sample(self, step: int) -> torch.Tensor:
        """Sounds [batch, samples]."""
        rng = random.Random(f"{self.seed}/sounds/{step}")
        sounds = []
        for i in range(self.batch):
            if i % 2 == 0:
                sounds.append(other_sound(rng, self.count))
            else:
                scene = _scene(self.seed, rng.randrange(4096))
                sounds.append(scene.sound(rng.randrange(40_000) * SOUND_HOP, self.count))
        return torch.stack(sounds)

    def __call__(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        sounds = self.sample(step)
        latent = self.model.encode(fold(sounds)).latent_dist.mean
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(step))
        decoded = unfold(self.model.decode(latent + LATENT_NOISE * noise).sample.float())
        error = (decoded - sounds).square().mean(1)
        scale = unit_scale(latent)
        value = 8 * (decoded - sounds).abs().mean() + spectral_distance(decoded, sounds) + 0.05 * scale
        with torch.no_grad():
            snr = 10 * ((sounds.square().mean(1) + 1e-6) / (error + 1e-6)).log10()
            world = torch.arange(self.batch) % 2 == 1
            figures = {"world": float(snr[world].mean()), "other": float(snr[~world].mean()), "scale": float(scale)}
        return value, figures


def frames_at(scene: Scene, chunk: int) -> torch.Tensor:
    """The frames of a chunk in the codec's range [−1, 1]."""
    return scene.frames(chunk_times(chunk)) * 2 - 1

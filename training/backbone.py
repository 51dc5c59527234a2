"""The toy transformer and its loss: flow matching over clips, with noise on the context and self-resampling."""

import random
from collections.abc import Callable
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel

from cache.spec import Modality
from models.prompt import Prompt
from models.rope import tables
from models.shapes import ChunkGeometry
from training.clips import AUDIO_PATCH_T, CLEAN, MEMORY, PATCH, PATCH_T, RUN, Batch, Clips, draw
from training.codecs import FRAME_CHANNELS, SOUND_CHANNELS, SOUND_HOP
from training.teacher import install, text_batch, token_masks
from training.world import CHUNK_FRAMES, FPS, SAMPLE_RATE, SIDE

TEXT_CHANNELS = 384
SHIFT, PURE_NOISE = 3.0, 0.1


def toy_transformer(layers: int = 4) -> Any:
    """A new transformer of the LTX-2 family, 7.6 M parameters."""
    return LTX2VideoTransformer3DModel(
        in_channels=FRAME_CHANNELS * PATCH**2 * PATCH_T,
        out_channels=FRAME_CHANNELS * PATCH**2 * PATCH_T,
        patch_size=PATCH,
        patch_size_t=PATCH_T,
        num_attention_heads=4,
        attention_head_dim=64,
        cross_attention_dim=256,
        vae_scale_factors=(1, 16, 16),
        base_height=SIDE,
        base_width=SIDE,
        audio_in_channels=SOUND_CHANNELS * AUDIO_PATCH_T,
        audio_out_channels=SOUND_CHANNELS * AUDIO_PATCH_T,
        audio_patch_size_t=AUDIO_PATCH_T,
        audio_num_attention_heads=4,
        audio_attention_head_dim=32,
        audio_cross_attention_dim=128,
        audio_scale_factor=1,
        audio_sampling_rate=SAMPLE_RATE,
        audio_hop_length=SOUND_HOP,
        num_layers=layers,
        caption_channels=TEXT_CHANNELS,
        rope_type="split",
    )


def toy_geometry(transformer: Any) -> ChunkGeometry:
    """The geometry of the toy model's chunks."""
    return ChunkGeometry.of_model(transformer.config, CHUNK_FRAMES, SIDE, SIDE, FPS)


class ClipLoss:
    """The loss of a batch of clips.

    Args:
        resample_from: step from which the clean chunks of half the runs are replaced by what the model itself makes of
            them, so that the history in training looks like the history at inference.
        context_noise: largest spread of the noise on clean chunks.
    """

    def __init__(
        self,
        transformer: Any,
        clips: Clips,
        encode: Callable[[str], Prompt],
        seed: int,
        batch: int,
        resample_from: int,
        context_noise: float = 0.15,
        device: str = "cpu",
    ) -> None:
        self.transformer, self.clips, self.encode = transformer, clips, encode
        self.seed, self.batch = seed, batch
        self.resample_from, self.context_noise, self.device = resample_from, context_noise, device
        self.geometry = toy_geometry(transformer)
        self.ropes = tables(transformer.config, self.geometry, torch.device(device))
        self.scope = install(transformer, self.ropes)
        self.prompts: dict[str, Prompt] = {}

    def __call__(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        batch = draw(self.clips, self.seed, step, self.batch)
        self._look(batch)
        rng = random.Random(f"{self.seed}/noise/{step}")
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        clean = {Modality.VIDEO: batch.video, Modality.AUDIO: batch.audio}
        context = {m: self._disturbed(x[:, :CLEAN], generator) for m, x in clean.items()}
        if step >= self.resample_from and rng.random() < 0.6:
            self._resample(batch, context, clean, rng, generator)
        levels = self._levels(generator)
        made = self._predict(batch, context, clean, levels, generator)
        total = torch.zeros((), device=self.device)
        figures = {}
        for m, weight in self._weights(batch).items():
            t = levels[:, :, None, None]
            error = (made[m] - clean[m][:, MEMORY:]).square().mean(-1, keepdim=True)
            value = (weight * error / (t**2 + 0.2)).mean()
            total = total + value * (1.0 if m is Modality.VIDEO else 0.5)
            figures[m.value] = float(value.detach())
            figures[f"{m.value}_pure"] = float(error.detach()[levels == 1.0].mean())
        return total, figures

    def _look(self, batch: Batch) -> None:
        """Set angles, masks and text of the batch."""
        rows = torch.cat([batch.slots[:, :CLEAN], batch.slots[:, MEMORY:]], dim=1).flatten().tolist()
        scope = self.scope
        scope.clips = len(batch.slots)
        scope.angles = {kind: rope.at(rows, [False] * len(rows)) for kind, rope in self.ropes.items()}
        masks = token_masks(batch, self.geometry.video_tokens, self.geometry.audio_tokens)
        scope.masks = {t: mask.to(self.device) for t, mask in masks.items()}
        for text in batch.captions:
            if text not in self.prompts:
                self.prompts[text] = self.encode(text)
        self.text, mask = text_batch([self.prompts[text] for text in batch.captions], batch.caption)
        self.text, scope.text = self.text.to(self.device), mask.to(self.device)

    def _disturbed(self, clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        spread = self.context_noise * torch.rand(len(clean), 1, 1, 1, generator=generator)
        spread = spread * (torch.rand(len(clean), 1, 1, 1, generator=generator) < 0.7)
        return clean + spread * torch.randn(clean.shape, generator=generator)

    def _levels(self, generator: torch.Generator) -> torch.Tensor:
        """Noise levels [clips, RUN]."""
        u = torch.rand(self.batch, RUN, generator=generator)
        levels = SHIFT * u / (1 + (SHIFT - 1) * u)
        return torch.where(torch.rand(self.batch, RUN, generator=generator) < PURE_NOISE, 1.0, levels)

    def _predict(
        self,
        batch: Batch,
        context: dict[Modality, torch.Tensor],
        clean: dict[Modality, torch.Tensor],
        levels: torch.Tensor,
        generator: torch.Generator,
    ) -> dict[Modality, torch.Tensor]:
        """Predicted clean chunks of the run, [clips, RUN, tokens, channels]."""
        t = levels[:, :, None, None]
        noisy, rows = {}, {}
        for m, x in clean.items():
            target = x[:, MEMORY:]
            noisy[m] = (1 - t) * target + t * torch.randn(target.shape, generator=generator)
            rows[m] = torch.cat([context[m], noisy[m]], dim=1).flatten(0, 1).to(self.device)
        times = torch.cat([torch.zeros(len(levels), CLEAN), levels], dim=1).flatten().to(self.device)
        velocity = self.transformer(
            rows[Modality.VIDEO],
            rows[Modality.AUDIO],
            self.text,
            self.text,
            times * self.transformer.config.timestep_scale_multiplier,
            sigma=times,
            video_coords=torch.zeros(len(times), 3, 1, device=self.device),
            audio_coords=torch.zeros(len(times), 1, 1, device=self.device),
            return_dict=False,
        )
        made = {}
        for m, v in zip((Modality.VIDEO, Modality.AUDIO), velocity, strict=True):
            made[m] = noisy[m] - t * v.float().unflatten(0, (len(levels), -1))[:, CLEAN:].to(noisy[m].device)
        return made

    @torch.no_grad()
    def _resample(
        self,
        batch: Batch,
        context: dict[Modality, torch.Tensor],
        clean: dict[Modality, torch.Tensor],
        rng: random.Random,
        generator: torch.Generator,
    ) -> None:
        """Replace the clean chunks of the run by the model's own, from a noise level drawn per batch."""
        low = rng.uniform(0.3, 1.0)
        levels = torch.full((self.batch, RUN), low)
        made = self._predict(batch, context, clean, levels, generator)
        for m, x in made.items():
            context[m] = torch.cat([context[m][:, :MEMORY], x[:, :-1]], dim=1)

    def _weights(self, batch: Batch) -> dict[Modality, torch.Tensor]:
        """Weight of each token, [clips, RUN, tokens, 1]: what moves and what sounds counts more."""
        moving = (batch.subject[:, MEMORY:] * 8).clamp(max=1)
        audio = batch.audio[:, MEMORY:]
        unlike = (audio - audio.flatten(1, 2).median(1).values[:, None, None]).square().mean(-1).clamp(max=1)
        return {Modality.VIDEO: (1 + 10 * moving)[..., None], Modality.AUDIO: (1 + 3 * unlike)[..., None]}

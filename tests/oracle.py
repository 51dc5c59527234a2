"""The slower truth: diffusers' own model with its own rotary module and attention, told what to see.

``Masked`` runs a whole history in one pass of the unmodified model with explicit masks. ``Replay`` keeps every key and
value ever computed, unrotated, and rotates all of them again, by the library's code, for every chunk; it never evicts,
never moves and never reuses memory, so it shares no idea with the cache that it checks. Coordinates are float64, which
makes the library compute its angles in float64.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx2 import apply_interleaved_rotary_emb, apply_split_rotary_emb

from cache.spec import AttentionType, Modality
from models.prompt import Prompt
from models.sampler import Pair
from models.shapes import ChunkGeometry

MODULES = {
    AttentionType.VIDEO_SELF: "attn1",
    AttentionType.AUDIO_SELF: "audio_attn1",
    AttentionType.AUDIO_TO_VIDEO: "audio_to_video_attn",
    AttentionType.VIDEO_TO_AUDIO: "video_to_audio_attn",
}
Visible = Mapping[AttentionType, Sequence[tuple[int, int, list[int] | None]]]


def coordinates(geometry: ChunkGeometry, modality: Modality, slot: int, lead: bool) -> torch.Tensor:
    """Midpoints [axes, tokens] of a chunk at ``slot``."""
    coords = geometry.coordinates(modality, lead)
    coords[0] += slot * float(geometry.seconds)
    return coords


def angles_as_float32(transformer: Any) -> None:
    """Round the library's float64 cosines, as its kernels mix badly with float64; the angles stay exact."""
    for rope in (
        transformer.rope,
        transformer.audio_rope,
        transformer.cross_attn_rope,
        transformer.cross_attn_audio_rope,
    ):
        rope.register_forward_hook(lambda module, args, output: tuple(x.float() for x in output))


@torch.no_grad()
def call(transformer: Any, prompt: Prompt, x: Pair, timesteps: Pair, sigma: float, coords: Pair) -> Pair:
    """The library's forward with text, per-token timesteps [tokens] and coordinates, for one row."""
    scale = transformer.config.timestep_scale_multiplier
    level = torch.tensor([sigma * scale])
    return transformer(
        x[0],
        x[1],
        prompt.video[None],
        prompt.audio[None],
        timesteps[0][None] * scale,
        timesteps[1][None] * scale,
        sigma=level,
        video_coords=coords[0][None],
        audio_coords=coords[1][None],
        return_dict=False,
    )


class Masked:
    """One pass over clean and noisy copies of a history; ``sees(type, query chunk, key chunk)`` is the mask."""

    def __init__(self, transformer: Any, geometry: ChunkGeometry) -> None:
        self.transformer, self.geometry = transformer, geometry
        self.masks: dict[AttentionType, torch.Tensor] = {}
        angles_as_float32(transformer)
        for block in transformer.transformer_blocks:
            for t, name in MODULES.items():
                getattr(block, name).register_forward_pre_hook(self._mask(t), with_kwargs=True)

    def _mask(self, t: AttentionType) -> Callable[..., Any]:
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": self.masks[t]})

    def run(
        self,
        prompt: Prompt,
        clean: Sequence[Pair],
        noisy: Sequence[Pair],
        sigma: float,
        sees: Callable[[AttentionType, int, int], bool],
    ) -> list[Pair]:
        """Velocities [1, tokens, channels] of every clean chunk, then of every noisy one (they see clean ones only)."""
        chunks, n = [*clean, *noisy], len(clean)
        index = [i if i < n else i - n for i in range(len(chunks))]
        for t in AttentionType:
            queries, keys = (self.geometry.tokens(m) for m in (t.queried_by, t.keyed_by))
            allowed = torch.tensor(
                [
                    [j == i or (j < n and index[j] < index[i] and sees(t, index[i], j)) for j in range(len(chunks))]
                    for i in range(len(chunks))
                ]
            )
            allowed = allowed.repeat_interleave(queries, 0).repeat_interleave(keys, 1)
            self.masks[t] = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))[None]
        x = tuple(torch.cat([chunk[i] for chunk in chunks], dim=1) for i in range(2))
        levels = [0.0] * n + [sigma] * len(noisy)
        timesteps, coords = [], []
        for m in Modality:
            timesteps.append(torch.tensor(levels).repeat_interleave(self.geometry.tokens(m)))
            coords.append(torch.cat([coordinates(self.geometry, m, i, i == 0) for i in index], dim=1))
        video, audio = call(self.transformer, prompt, x, tuple(timesteps), sigma, tuple(coords))
        split = zip(
            video.split(self.geometry.video_tokens, dim=1), audio.split(self.geometry.audio_tokens, dim=1), strict=True
        )
        return list(split)


@dataclass
class Replay:
    """A stream without a cache manager: all history dense, rotated anew for every chunk."""

    transformer: Any
    geometry: ChunkGeometry
    history: dict[tuple[AttentionType, int, int], Pair] = field(default_factory=dict)
    visible: Visible = field(default_factory=dict)
    store_as: int | None = None
    mass: dict[AttentionType, dict[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        angles_as_float32(self.transformer)
        for layer, block in enumerate(self.transformer.transformer_blocks):
            for t, name in MODULES.items():
                getattr(block, name).set_processor(_ReplayAttention(self, t, layer))

    def run(
        self, prompt: Prompt, x: Pair, sigma: float, slot: int, lead: bool, visible: Visible, store_as: int | None
    ) -> Pair:
        """Velocity of one chunk [1, tokens, channels]; its keys and values join the history as ``store_as``."""
        self.visible, self.store_as, self.mass = visible, store_as, {}
        timesteps = tuple(torch.full((self.geometry.tokens(m),), sigma) for m in Modality)
        coords = tuple(coordinates(self.geometry, m, slot, lead) for m in Modality)
        return call(self.transformer, prompt, x, timesteps, sigma, coords)

    def key_angles(self, t: AttentionType, slot: int, lead: bool) -> Pair:
        """The library's cosines and sines for the keys of a chunk at ``slot``."""
        model = self.transformer
        coords = coordinates(self.geometry, t.keyed_by, slot, lead)[None]
        rope = {
            AttentionType.VIDEO_SELF: model.rope,
            AttentionType.AUDIO_SELF: model.audio_rope,
            AttentionType.AUDIO_TO_VIDEO: model.cross_attn_audio_rope,
            AttentionType.VIDEO_TO_AUDIO: model.cross_attn_rope,
        }[t]
        return rope(coords if t is AttentionType.VIDEO_SELF else coords[:, 0:1])


class _ReplayAttention:
    """Dense attention over the rotated history and the current chunk."""

    def __init__(self, replay: Replay, t: AttentionType, layer: int) -> None:
        self.replay, self.type, self.layer = replay, t, layer

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        query_rotary_emb: Pair | None = None,
        key_rotary_emb: Pair | None = None,
        perturbation_mask: torch.Tensor | None = None,
        all_perturbed: bool | None = None,
    ) -> torch.Tensor:
        replay, t = self.replay, self.type
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rotate = apply_interleaved_rotary_emb if attn.rope_type == "interleaved" else apply_split_rotary_emb
        query = rotate(attn.norm_q(attn.to_q(hidden_states)), query_rotary_emb)
        own = (attn.norm_k(attn.to_k(source)), attn.to_v(source))
        if replay.store_as is not None:
            replay.history[t, self.layer, replay.store_as] = own
        keys = [rotate(own[0], key_rotary_emb or query_rotary_emb)]
        values, owners = [own[1]], [replay.store_as]
        for chunk, slot, tokens in replay.visible[t]:
            key, value = replay.history[t, self.layer, chunk]
            key = rotate(key, replay.key_angles(t, slot, chunk == 0))
            keys.append(key if tokens is None else key[:, tokens])
            values.append(value if tokens is None else value[:, tokens])
            owners.append(chunk)
        out = self._attend(attn, query, keys, values, owners)
        if attn.to_gate_logits is not None:
            out = out * 2.0 * torch.sigmoid(attn.to_gate_logits(hidden_states)).unsqueeze(-1)
        return attn.to_out[0](out.flatten(2))

    def _attend(self, attn: Any, query: torch.Tensor, keys: Any, values: Any, owners: Any) -> torch.Tensor:
        q, k, v = (
            x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (query, torch.cat(keys, 1), torch.cat(values, 1))
        )
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        shares = [w.sum(-1).mean().item() for w in weights.split([x.shape[1] for x in keys], dim=-1)]
        booked = self.replay.mass.setdefault(self.type, {})
        for owner, share in zip(owners, shares, strict=True):
            booked[owner] = booked.get(owner, 0.0) + share / len(self.replay.transformer.transformer_blocks)
        return (weights @ v).transpose(1, 2)

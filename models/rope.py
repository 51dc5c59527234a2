"""Angles of the LTX-2 rotary embedding, taken in float64 and reduced, so that the time axis never runs out.

The library computes angles in float32 from coordinates inside the trained range; here a chunk's angles are those at
slot 0 plus slot × seconds × rate modulo 2π. Rates are the library's (rounded to float32, as trained).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from cache.spec import AttentionType, Modality
from kernels.rotary import RotaryLayout
from models.shapes import ChunkGeometry

Kind = Literal["video", "audio", "cross_video", "cross_audio"]
QUERY_KIND: dict[AttentionType, Kind] = {
    AttentionType.VIDEO_SELF: "video",
    AttentionType.AUDIO_SELF: "audio",
    AttentionType.AUDIO_TO_VIDEO: "cross_video",
    AttentionType.VIDEO_TO_AUDIO: "cross_audio",
}
KEY_KIND: dict[AttentionType, Kind] = {
    AttentionType.VIDEO_SELF: "video",
    AttentionType.AUDIO_SELF: "audio",
    AttentionType.AUDIO_TO_VIDEO: "cross_audio",
    AttentionType.VIDEO_TO_AUDIO: "cross_video",
}
TURN = 2 * math.pi


@dataclass(frozen=True)
class RopeTable:
    """Angles of one kind of token.

    Args:
        rate: [pairs] radians per second of media time; 0 for spatial and padded pairs.
        base: [2, tokens, pairs] angles of a chunk at slot 0: of a stream's first chunk, and of any other.
        seconds: duration of a slot.
    """

    rate: torch.Tensor
    base: torch.Tensor
    seconds: float
    layout: RotaryLayout

    def at(self, slots: Sequence[int], lead: Sequence[bool]) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [rows, tokens, pairs], float32, of chunks at ``slots``; ``lead``: a stream's first chunk."""
        angles = torch.stack(
            [self.base[int(not first)] + self._turn(slot) for slot, first in zip(slots, lead, strict=True)]
        )
        return angles.cos().float(), angles.sin().float()

    def delta(self, from_slot: int, to_slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [pairs], float32, of the rotation that brings keys from one slot to another."""
        angles = self._turn(to_slot - from_slot)
        return angles.cos().float(), angles.sin().float()

    def _turn(self, slots: int) -> torch.Tensor:
        return torch.remainder(self.rate * (slots * self.seconds), TURN)


def tables(config: Any, geometry: ChunkGeometry, device: torch.device) -> dict[Kind, RopeTable]:
    """The four tables of a transformer with ``config`` for chunks of ``geometry``."""
    video_dim = config.num_attention_heads * config.attention_head_dim
    audio_dim = config.audio_num_attention_heads * config.audio_attention_head_dim
    cross_dim = config.audio_cross_attention_dim
    cross_seconds = max(config.pos_embed_max_pos, config.audio_pos_embed_max_pos)
    space = (config.base_height, config.base_width)
    video_heads, audio_heads = config.num_attention_heads, config.audio_num_attention_heads
    built: dict[Kind, RopeTable] = {}
    for kind, modality, dim, spans, heads in (
        ("video", Modality.VIDEO, video_dim, (config.pos_embed_max_pos, *space), video_heads),
        ("audio", Modality.AUDIO, audio_dim, (config.audio_pos_embed_max_pos,), audio_heads),
        ("cross_video", Modality.VIDEO, cross_dim, (cross_seconds,), video_heads),
        ("cross_audio", Modality.AUDIO, cross_dim, (cross_seconds,), audio_heads),
    ):
        layout = RotaryLayout(config.rope_type, heads)
        built[kind] = _table(geometry, modality, dim, spans, layout, config, device)  # type: ignore[index]
    return built


def _table(
    geometry: ChunkGeometry,
    modality: Modality,
    dim: int,
    spans: tuple[float, ...],
    layout: RotaryLayout,
    config: Any,
    device: torch.device,
) -> RopeTable:
    """After the padded pairs at the front, pair p belongs to axis p mod axes and frequency p // axes."""
    axes = len(spans)
    count = dim // (2 * axes)
    exact = torch.float64 if config.rope_double_precision else torch.float32
    steps = torch.linspace(0.0, 1.0, count, dtype=exact)
    frequencies = (torch.pow(config.rope_theta, steps) * torch.pi / 2.0).float().double()
    padding = dim // 2 - axes * count
    rate = torch.zeros(dim // 2, dtype=torch.float64)
    rate[padding::axes] = frequencies * 2 / spans[0]
    base = []
    for lead in (True, False):
        grid = geometry.coordinates(modality, lead)[:axes] / torch.tensor(spans, dtype=torch.float64)[:, None]
        angles = (2 * grid - 1).T[:, None, :] * frequencies[None, :, None]
        base.append(torch.nn.functional.pad(angles.flatten(1), (padding, 0)))
    return RopeTable(
        rate.to(device), torch.remainder(torch.stack(base), TURN).to(device), float(geometry.seconds), layout
    )

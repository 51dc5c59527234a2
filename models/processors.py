"""Attention processors: how the cache enters diffusers' unmodified LTX-2 transformer, through the library's own door.

Every pass through the model is over ``Rows``: where each chunk stands on the time axis, which pages it reads, and which
page its own keys and values go to. Rotary angles handed down by the library are ignored for ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from cache.pool import Pool
from cache.spec import TYPES, AttentionType, Modality
from kernels.attention import BlockTable, Own
from kernels.ops import Ops
from kernels.quantised import KeyPages, ValuePages
from kernels.rotary import RotaryLayout
from models.pages import layer_pages
from models.prompt import Prompt
from models.rope import KEY_KIND, QUERY_KIND, Kind
from models.text_cache import LayerKeyValues, TextEntry

Angles = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Rows:
    """A batch of chunks, one per row: where each stands, what it reads, and where its own keys and values go.

    Args:
        angles: cos and sin [rows, tokens, pairs] by kind of token, from ``Backbone.angles``.
        reads: pages each row attends to, its own among them, by attention type.
        writes: page each row's keys and values are written to, by attention type.
        prompts: the prompt of each row.
        keeps: whether this pass's keys and values are to stay in those pages. Exact pages are written in every pass, as
            that is where they are read; codes only where they stay, and the chunk reads itself exactly.
    """

    pool: Pool
    ops: Ops
    angles: Mapping[Kind, Angles]
    reads: Mapping[AttentionType, Sequence[BlockTable]]
    writes: Mapping[AttentionType, Sequence[int]]
    prompts: Sequence[Prompt]
    keeps: bool = True


@dataclass
class Pass:
    """One forward pass over ``rows``, with the text keys and values of each row at this noise level.

    ``mass``, if not ``None``, is filled with each page's share of attention summed over layers, by type and row.
    """

    rows: Rows
    text: Sequence[TextEntry]
    mass: dict[AttentionType, list[torch.Tensor]] | None = None

    def add_mass(self, type: AttentionType, shares: list[torch.Tensor]) -> None:
        """Add one layer's shares per row."""
        if self.mass is None:
            return
        before = self.mass.get(type)
        self.mass[type] = shares if before is None else [a + b for a, b in zip(before, shares, strict=True)]


@dataclass
class TextCapture:
    """A pass that only computes text keys and values; attention returns nothing and costs nothing."""

    layers: dict[Modality, list[LayerKeyValues]] = field(default_factory=lambda: {m: [] for m in Modality})


@dataclass
class Door:
    """What the processors of one model look through; ``current`` is set for the time of a pass."""

    layouts: Mapping[Kind, RotaryLayout]
    current: Pass | TextCapture | None = None

    def require(self) -> Pass | TextCapture:
        """The pass in progress."""
        if self.current is None:
            raise RuntimeError(
                "the transformer was called outside of Backbone.forward; its attention has no cache then"
            )
        return self.current


class CachedAttention:
    """Self- or cross-modal attention of the current chunk over its session's keep-set and itself."""

    def __init__(self, type: AttentionType, layer: int, door: Door) -> None:
        self.type, self.layer, self.door = type, layer, door

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        query_rotary_emb: Angles | None = None,
        key_rotary_emb: Angles | None = None,
        perturbation_mask: torch.Tensor | None = None,
        all_perturbed: bool | None = None,
    ) -> torch.Tensor:
        """Write the current keys and values into their page, attend over the row's pages."""
        current = self.door.require()
        if isinstance(current, TextCapture):
            return torch.zeros_like(hidden_states)
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows, layouts = current.rows, self.door.layouts
        pages = layer_pages(rows.pool, self.type, self.layer)
        query_kind = QUERY_KIND[self.type]
        own = self._write(attn, rows, source, pages)
        query = attn.norm_q(attn.to_q(hidden_states))
        query = rows.ops.rotate(query, *rows.angles[query_kind], layouts[query_kind])
        tables = rows.reads[self.type]
        if current.mass is None:
            return project(attn, hidden_states, rows.ops.attend(query, *pages, tables, attn.heads, own))
        attended, shares = rows.ops.attend_and_mass(query, *pages, tables, attn.heads, own)
        current.add_mass(self.type, shares)
        return project(attn, hidden_states, attended)

    def _write(self, attn: Any, rows: Rows, source: torch.Tensor, pages: tuple[KeyPages, ValuePages]) -> Own | None:
        """The chunk's own keys and values to where they are read, and to where they stay."""
        key_kind, writes = KEY_KIND[self.type], rows.writes[self.type]
        key, value = attn.to_k(source), attn.to_v(source)
        finish = (attn.norm_k.weight, attn.norm_k.eps, *rows.angles[key_kind], self.door.layouts[key_kind])
        own = None
        if self.type in rows.pool.ends:
            own = Own(torch.empty_like(key), torch.empty_like(value), tuple(writes))
            rows.ops.write(key, value, *finish, own.keys, own.values, range(len(writes)))
        if own is None or rows.keeps:
            rows.ops.write(key, value, *finish, *pages, writes)
        return own


class TextAttention:
    """Cross-attention to the prompt's cached keys and values."""

    def __init__(self, modality: Modality, layer: int, door: Door) -> None:
        self.modality, self.layer, self.door = modality, layer, door

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        query_rotary_emb: Angles | None = None,
        key_rotary_emb: Angles | None = None,
    ) -> torch.Tensor:
        """Compute and keep the prompt's keys and values in a capture; attend to them in a pass."""
        current = self.door.require()
        if isinstance(current, TextCapture):
            assert encoder_hidden_states is not None
            keys = attn.norm_k(attn.to_k(encoder_hidden_states))[0]
            current.layers[self.modality].append((keys, attn.to_v(encoder_hidden_states)[0]))
            return torch.zeros_like(hidden_states)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        rows = []
        for row, entry in zip(query, current.text, strict=True):
            keys, values = (
                x.unflatten(-1, (attn.heads, -1)).transpose(0, 1) for x in entry.layers[self.modality][self.layer]
            )
            rows.append(scaled_dot_product_attention(row[None], keys[None], values[None])[0])
        return project(attn, hidden_states, torch.stack(rows).transpose(1, 2).flatten(2))


def project(attn: Any, hidden_states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Gate per head where the model does, then the output projection; ``hidden_states`` are the layer's input."""
    if attn.to_gate_logits is not None:
        # Factor 2: zero logits mean an open gate (LTX-2.3).
        gates = 2.0 * torch.sigmoid(attn.to_gate_logits(hidden_states))
        attended = (attended.unflatten(-1, (attn.heads, -1)) * gates.unsqueeze(-1)).flatten(2)
    projected: torch.Tensor = attn.to_out[1](attn.to_out[0](attended.to(hidden_states.dtype)))
    return projected


def install(transformer: Any, door: Door) -> None:
    """Set the processors of every block of an LTX-2 transformer."""
    modules = {
        AttentionType.VIDEO_SELF: "attn1",
        AttentionType.AUDIO_SELF: "audio_attn1",
        AttentionType.AUDIO_TO_VIDEO: "audio_to_video_attn",
        AttentionType.VIDEO_TO_AUDIO: "video_to_audio_attn",
    }
    for layer, block in enumerate(transformer.transformer_blocks):
        for t in TYPES:
            getattr(block, modules[t]).set_processor(CachedAttention(t, layer, door))
        block.attn2.set_processor(TextAttention(Modality.VIDEO, layer, door))
        block.audio_attn2.set_processor(TextAttention(Modality.AUDIO, layer, door))

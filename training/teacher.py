"""Clean-context teacher forcing: every chunk of a clip is trained in one pass, over the keep-set layout of the cache.

Rows of the pass are chunks, as at inference: for each clip the clean memory chunks, the clean chunks of the run, and
the noisy chunks of the run. Attention joins the rows of a clip under a mask; everything else treats rows alone.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from cache.spec import TYPES, AttentionType, Modality
from kernels.rotary import RotaryLayout, rotate
from models.processors import Angles, project
from models.prompt import Prompt
from models.rope import KEY_KIND, QUERY_KIND, Kind, RopeTable
from training.clips import CLEAN, MEMORY, RUN, Batch

ROWS, TEXT_TOKENS = CLEAN + RUN, 20
QUERIES = {
    AttentionType.VIDEO_SELF: Modality.VIDEO,
    AttentionType.AUDIO_SELF: Modality.AUDIO,
    AttentionType.AUDIO_TO_VIDEO: Modality.VIDEO,
    AttentionType.VIDEO_TO_AUDIO: Modality.AUDIO,
}


@dataclass
class Scope:
    """What the attention of a pass looks through: angles, masks by type, and the mask of the text."""

    layouts: dict[Kind, RotaryLayout]
    angles: dict[Kind, Angles] = field(default_factory=dict)
    masks: dict[AttentionType, torch.Tensor] = field(default_factory=dict)
    text: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    clips: int = 0


class ClipAttention:
    """Self- or cross-modal attention among the rows of a clip."""

    def __init__(self, type: AttentionType, scope: Scope) -> None:
        self.type, self.scope = type, scope

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        query_rotary_emb: Angles | None = None,
        key_rotary_emb: Angles | None = None,
    ) -> torch.Tensor:
        scope = self.scope
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        kinds = QUERY_KIND[self.type], KEY_KIND[self.type]
        query, key = (
            rotate(norm(linear(x)), *scope.angles[kind], scope.layouts[kind])
            for norm, linear, x, kind in (
                (attn.norm_q, attn.to_q, hidden_states, kinds[0]),
                (attn.norm_k, attn.to_k, source, kinds[1]),
            )
        )
        value = attn.to_v(source)
        joined = [x.unflatten(0, (scope.clips, -1)).flatten(1, 2) for x in (query.to(value), key.to(value), value)]
        seen = _attend(attn.heads, joined, scope.masks[self.type])
        rows = seen.unflatten(1, (ROWS, -1)).flatten(0, 1)
        return project(attn, hidden_states, rows)


class TextAttention:
    """Cross-attention of each row to its own caption."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        query_rotary_emb: Angles | None = None,
        key_rotary_emb: Angles | None = None,
    ) -> torch.Tensor:
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(encoder_hidden_states))
        value = attn.to_v(encoder_hidden_states)
        seen = _attend(attn.heads, [query.to(value), key.to(value), value], self.scope.text.to(value.dtype))
        return project(attn, hidden_states, seen)


def _attend(heads: int, joined: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in joined)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


def install(transformer: Any, ropes: dict[Kind, RopeTable]) -> Scope:
    """Set the training processors of every block; a ``Backbone`` made later replaces them."""
    scope = Scope({kind: rope.layout for kind, rope in ropes.items()})
    for block in transformer.transformer_blocks:
        block.attn1.set_processor(ClipAttention(AttentionType.VIDEO_SELF, scope))
        block.audio_attn1.set_processor(ClipAttention(AttentionType.AUDIO_SELF, scope))
        block.audio_to_video_attn.set_processor(ClipAttention(AttentionType.AUDIO_TO_VIDEO, scope))
        block.video_to_audio_attn.set_processor(ClipAttention(AttentionType.VIDEO_TO_AUDIO, scope))
        block.attn2.set_processor(TextAttention(scope))
        block.audio_attn2.set_processor(TextAttention(scope))
    return scope


def row_mask(batch: Batch) -> torch.Tensor:
    """Which row looks at which, [clips, ROWS, ROWS]; clean chunks of a run look at what their noisy twins look at."""
    clips = len(batch.slots)
    mask = torch.zeros(clips, ROWS, ROWS, dtype=torch.bool)
    mask[:, :MEMORY, :MEMORY] = batch.knows
    mask[:, MEMORY:CLEAN, :CLEAN] = batch.sees[:, :-1]
    mask[:, CLEAN:, :CLEAN] = batch.sees
    diagonal = torch.arange(ROWS)
    mask[:, diagonal, diagonal] = True
    return mask


def token_masks(batch: Batch, video_tokens: int, audio_tokens: int) -> dict[AttentionType, torch.Tensor]:
    """Additive masks [clips, 1, queries, keys] by attention type, bfloat16; an anchor shows its subject only."""
    rows = row_mask(batch)
    tokens = {Modality.VIDEO: video_tokens, Modality.AUDIO: audio_tokens}
    hidden = torch.zeros(len(batch.slots), ROWS, video_tokens, dtype=torch.bool)
    hidden[:, 0] = batch.anchor[:, None] & (batch.subject[:, 0] < 0.02)
    visible = rows.clone()
    visible[batch.anchor, :, 0] = False
    visible[batch.anchor, 0, 0] = True
    masks = {}
    for t in TYPES:
        video = t.keyed_by is Modality.VIDEO
        by_row = rows if video else visible
        keys = by_row[:, :, :, None].expand(-1, -1, -1, tokens[t.keyed_by])
        if video:
            own = torch.zeros(ROWS, 1, 1, dtype=torch.bool)
            own[0] = True  # the anchor's own pass is that of a whole chunk
            keys = keys & ~(hidden[:, None] & ~own)
        seen = keys.flatten(2).repeat_interleave(tokens[QUERIES[t]], dim=1)[:, None]
        masks[t] = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(~seen, float("-inf"))
    return masks


def text_batch(prompts: list[Prompt], caption: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [clips·ROWS, tokens, channels] of each row's caption, and the additive mask of padding."""
    longest = TEXT_TOKENS
    texts = torch.stack([pad(p.video.float(), (0, 0, 0, longest - len(p.video))) for p in prompts])
    mask = torch.zeros(len(prompts), longest)
    for row, prompt in enumerate(prompts):
        mask[row, len(prompt.video) :] = float("-inf")
    rows = torch.cat([caption[:, :CLEAN], caption[:, MEMORY:]], dim=1).flatten()
    return texts[rows], mask[rows][:, None, None]

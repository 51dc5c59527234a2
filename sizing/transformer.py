"""The shape of a transformer of the LTX-2 family: its parameters, and its operations per pass, from its config alone.

The layers are those of diffusers' ``LTX2VideoTransformer3DModel``. A multiplication and an addition are two operations,
as torch's ``FlopCounterMode`` counts; what is done element by element is not counted, as it is limited by memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cache.spec import TYPES, AttentionSpec, AttentionType, Modality
from errors import ConfigError

FEED_FORWARD = 4  # times wider than the model, in diffusers' FeedForward
TIMESTEP_CHANNELS = 256  # of the sinusoidal embedding before the adaptive norms


@dataclass(frozen=True)
class Transformer:
    """What counts of a config: fields are named as there, with the library's defaults where a config may lack one."""

    in_channels: int
    out_channels: int
    num_attention_heads: int
    attention_head_dim: int
    cross_attention_dim: int
    audio_in_channels: int
    audio_out_channels: int
    audio_num_attention_heads: int
    audio_attention_head_dim: int
    audio_cross_attention_dim: int
    num_layers: int
    caption_channels: int
    gated_attn: bool = False
    audio_gated_attn: bool = False
    cross_attn_mod: bool = False
    audio_cross_attn_mod: bool = False
    attention_bias: bool = True
    attention_out_bias: bool = True
    ff_bias: bool = True
    audio_ff_bias: bool = True
    norm_elementwise_affine: bool = False
    use_prompt_embeddings: bool = True
    use_prompt_adaln_single: bool = True
    use_keyframes_abs_pos_embedding: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], origin: str) -> "Transformer":
        """From a transformer's ``config.json``. Raises ``ConfigError`` naming ``origin`` and what is missing."""
        known = {f.name: config[f.name] for f in fields(cls) if f.name in config}
        try:
            return cls(**known)
        except TypeError as error:
            raise ConfigError(
                f"{origin} is no configuration of the LTX-2 family: {error}; expected the config.json of an "
                "LTX2VideoTransformer3DModel"
            ) from None

    def width(self, modality: Modality) -> int:
        """Channels of a token inside the blocks."""
        if modality is Modality.VIDEO:
            return self.num_attention_heads * self.attention_head_dim
        return self.audio_num_attention_heads * self.audio_attention_head_dim

    @property
    def text_by_level(self) -> bool:
        """Whether keys and values of a prompt depend on the noise level (LTX-2.3)."""
        return (self.cross_attn_mod or self.audio_cross_attn_mod) and self.use_prompt_adaln_single

    def specs(self, tokens: Mapping[Modality, int], element_bytes: int) -> dict[AttentionType, AttentionSpec]:
        """Sizes of a chunk in the cache, of so many tokens; as ``Backbone.specs`` gives them."""
        video, audio = self.width(Modality.VIDEO), self.width(Modality.AUDIO)
        return {
            t: AttentionSpec(
                t, self.num_layers, tokens[t.keyed_by], video if t is AttentionType.VIDEO_SELF else audio, element_bytes
            )
            for t in TYPES
        }

    # -- what it weighs

    def parameters(self) -> int:
        """Parameters of all layers."""
        return self.num_layers * self._block_parameters() + self._outer_parameters()

    def _block_parameters(self) -> int:
        video, audio = self.width(Modality.VIDEO), self.width(Modality.AUDIO)
        mixed = (
            self._attention_parameters(video, video, video, self.num_attention_heads, self.gated_attn)
            + self._attention_parameters(audio, audio, audio, self.audio_num_attention_heads, self.audio_gated_attn)
            + self._attention_parameters(
                video, self.cross_attention_dim, video, self.num_attention_heads, self.gated_attn
            )
            + self._attention_parameters(
                audio, self.audio_cross_attention_dim, audio, self.audio_num_attention_heads, self.audio_gated_attn
            )
            + self._attention_parameters(video, audio, audio, self.audio_num_attention_heads, self.gated_attn)
            + self._attention_parameters(audio, video, audio, self.audio_num_attention_heads, self.audio_gated_attn)
        )
        forward = sum(
            _linear(width, FEED_FORWARD * width, bias) + _linear(FEED_FORWARD * width, width, bias)
            for width, bias in ((video, self.ff_bias), (audio, self.audio_ff_bias))
        )
        norms = 4 * (video + audio) if self.norm_elementwise_affine else 0
        tables = (9 if self.cross_attn_mod else 6) * video + (9 if self.audio_cross_attn_mod else 6) * audio
        tables += 5 * (video + audio)
        if self.cross_attn_mod or self.audio_cross_attn_mod:
            tables += 2 * (video + audio)
        return mixed + forward + norms + tables

    def _attention_parameters(self, queries: int, keys: int, inner: int, heads: int, gated: bool) -> int:
        bias = self.attention_bias
        found = _linear(queries, inner, bias) + 2 * _linear(keys, inner, bias)
        found += _linear(inner, queries, self.attention_out_bias)
        found += 2 * inner  # norms of queries and keys, across heads
        return found + (_linear(queries, heads, True) if gated else 0)

    def _outer_parameters(self) -> int:
        video, audio = self.width(Modality.VIDEO), self.width(Modality.AUDIO)
        found = _linear(self.in_channels, video, True) + _linear(self.audio_in_channels, audio, True)
        found += _linear(video, self.out_channels, True) + _linear(audio, self.audio_out_channels, True)
        found += 2 * (video + audio)
        if self.use_keyframes_abs_pos_embedding:
            found += video
        if self.use_prompt_embeddings:
            found += sum(_linear(self.caption_channels, w, True) + _linear(w, w, True) for w in (video, audio))
        return found + sum(
            _linear(TIMESTEP_CHANNELS, width, True) + _linear(width, width, True) + _linear(width, n * width, True)
            for width, n in self._modulations()
        )

    def _modulations(self) -> list[tuple[int, int]]:
        """The adaptive norms: width, and how many vectors each gives."""
        video, audio = self.width(Modality.VIDEO), self.width(Modality.AUDIO)
        found = [(video, 9 if self.cross_attn_mod else 6), (audio, 9 if self.audio_cross_attn_mod else 6)]
        found += [(video, 4), (audio, 4), (video, 1), (audio, 1)]
        if self.text_by_level:
            found += [(video, 2), (audio, 2)]
        return found

    # -- what it does

    def pass_operations(
        self, tokens: Mapping[Modality, int], read: Mapping[AttentionType, int], text: int
    ) -> tuple[int, int]:
        """Operations of one pass over one chunk: of its matrices, and of its attention.

        Args:
            tokens: of the chunk.
            read: tokens that each attention type attends to, the chunk's own among them.
            text: tokens of the prompt, whose keys and values are in their cache.
        """
        return self._matrix_operations(tokens), self._attention_operations(tokens, read, text)

    def _matrix_operations(self, tokens: Mapping[Modality, int]) -> int:
        video, audio = self.width(Modality.VIDEO), self.width(Modality.AUDIO)
        v, a = tokens[Modality.VIDEO], tokens[Modality.AUDIO]
        per_video = 4 * video * video + 2 * video * video  # own attention; queries and output of that to the text
        per_video += 2 * video * audio + 2 * video * audio  # queries and output to the sound; keys and values for it
        per_video += 2 * FEED_FORWARD * video * video
        per_audio = 4 * audio * audio + 2 * audio * audio + 2 * audio * audio + 2 * audio * audio
        per_audio += 2 * FEED_FORWARD * audio * audio
        if self.gated_attn:
            per_video += video * (2 * self.num_attention_heads + self.audio_num_attention_heads)
        if self.audio_gated_attn:
            per_audio += audio * 3 * self.audio_num_attention_heads
        inside = self.num_layers * (v * per_video + a * per_audio)
        ends = v * video * (self.in_channels + self.out_channels)
        ends += a * audio * (self.audio_in_channels + self.audio_out_channels)
        once = sum(w * (TIMESTEP_CHANNELS + w + n * w) for w, n in self._modulations())
        if self.use_prompt_embeddings:  # of one token that nobody reads: the text comes out of its cache
            once += sum(self.caption_channels * w + w * w for w in (video, audio))
        return 2 * (inside + ends + once)

    def _attention_operations(
        self, tokens: Mapping[Modality, int], read: Mapping[AttentionType, int], text: int
    ) -> int:
        video, audio = self.width(Modality.VIDEO), self.width(Modality.AUDIO)
        found = sum(tokens[t.queried_by] * read[t] * (video if t is AttentionType.VIDEO_SELF else audio) for t in TYPES)
        found += text * (tokens[Modality.VIDEO] * video + tokens[Modality.AUDIO] * audio)
        return 4 * self.num_layers * found  # 2 for queries by keys, 2 for weights by values

    def text_bytes(self, text: int, element_bytes: int) -> int:
        """Keys and values of one prompt at one noise level, of both modalities."""
        width = self.width(Modality.VIDEO) + self.width(Modality.AUDIO)
        return 2 * self.num_layers * text * width * element_bytes


def _linear(inputs: int, outputs: int, bias: bool) -> int:
    return inputs * outputs + (outputs if bias else 0)

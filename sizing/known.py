"""Models that can be planned for without having their weights: their configurations, as diffusers converts them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sizing.figures import Figure, assumed, computed, sheet
from sizing.question import TEXT_ENCODER

# The defaults of diffusers' LTX2VideoTransformer3DModel, which are those of LTX-2.
_LTX_2: Mapping[str, Any] = {
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "patch_size_t": 1,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "cross_attention_dim": 4096,
    "vae_scale_factors": (8, 32, 32),
    "pos_embed_max_pos": 20,
    "audio_in_channels": 128,
    "audio_out_channels": 128,
    "audio_patch_size": 1,
    "audio_patch_size_t": 1,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 2048,
    "audio_scale_factor": 4,
    "audio_sampling_rate": 16000,
    "audio_hop_length": 160,
    "num_layers": 48,
    "caption_channels": 3840,
    "causal_offset": 1,
}
# As diffusers' conversion script has it for version 2.3.
_LTX_2_3 = {
    **_LTX_2,
    "gated_attn": True,
    "audio_gated_attn": True,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
}
# MaineCoon's unit of 0.64 s at the size that the design is made for.
_GEOMETRY = {"frames": 2, "height": 512, "width": 768, "fps": 25.0}
# Gemma 3 technical report, table 1: 12B has 1,012 M of embeddings, 10,759 M else and 417 M for pictures; bfloat16.
_GEMMA = sheet(2 * (1012e6 + 10759e6 + 417e6), "Gemma 3 12B, technical report")


@dataclass(frozen=True)
class Known:
    """``hub``: where the weights are. ``others``: bytes of what else a generator has on its device."""

    hub: str
    config: Mapping[str, Any]
    geometry: Mapping[str, Any]
    others: Mapping[str, Figure]


KNOWN: Mapping[str, Known] = {
    "ltx-2": Known(
        "Lightricks/LTX-2",
        _LTX_2,
        _GEOMETRY,
        {
            TEXT_ENCODER: _GEMMA,
            # Parameters of diffusers' classes by their defaults; frames and connectors in bfloat16, sound in float32.
            "text connectors": computed(2 * 1_431_475_200),
            "frame decoder": computed(2 * 1_222_479_601),
            "sound decoder": computed(4 * (53_248_146 + 55_592_802)),
        },
    ),
    "ltx-2.3": Known(
        "Lightricks/LTX-2.3-Diffusers",
        _LTX_2_3,
        _GEOMETRY,
        {
            TEXT_ENCODER: _GEMMA,
            "text connectors": assumed(6e9, "eight layers of 4,096 and of 2,048 and their projections"),
            "frame decoder": assumed(2.5e9, "as LTX-2"),
            "sound decoder": assumed(0.5e9, "as LTX-2"),
        },
    ),
}


def known_model(source: str) -> Known | None:
    """The model of this name or hub id, if it is known."""
    return KNOWN.get(source.lower()) or next((k for k in KNOWN.values() if k.hub == source), None)

"""A transformer of LTX-2's size with random weights, of as many layers as fit the memory that is free."""

import argparse
import os
from dataclasses import replace
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel

from cache.policies import SceneMemory
from cache.spec import TYPES, Modality
from models.backbone import Backbone
from models.shapes import ChunkGeometry
from sizing.known import KNOWN
from sizing.transformer import Transformer

SPARE = 0.2  # of the memory that is free, for activations and what is packed
QUICK = {
    "num_attention_heads": 4, "attention_head_dim": 16, "cross_attention_dim": 64, "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 8, "audio_cross_attention_dim": 32, "caption_channels": 24, "num_layers": 4,
    "in_channels": 16, "out_channels": 16, "audio_in_channels": 8, "audio_out_channels": 8,
}  # fmt: skip


def transformer_of(given: argparse.Namespace) -> dict[str, Any]:
    """The transformer's arguments, all layers."""
    config = dict(KNOWN[given.model].config)
    return {**config, **QUICK} if given.quick else config


def fitting(config: dict[str, Any], given: argparse.Namespace, policy: SceneMemory) -> int:
    """How many layers fit the memory that is free, weights and pages of all sessions."""
    if given.layers is not None:
        return int(given.layers)
    if given.device == "cuda":
        free, _ = torch.cuda.mem_get_info()
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    shape, chunk = Transformer.of(config, given.model), geometry(config, given)
    one, two = (2 * replace(shape, num_layers=n).parameters() for n in (1, 2))
    specs = replace(shape, num_layers=1).specs({m: chunk.tokens(m) for m in Modality}, 2)
    specs = {t: spec.held_as(given.pages) for t, spec in specs.items()}
    pages = given.sessions * sum(policy.budgets[t].places * specs[t].bytes_per_chunk for t in TYPES)
    fit = ((1 - SPARE) * free - (one - (two - one))) // (two - one + pages)
    return max(1, min(int(config["num_layers"]), int(fit)))


def geometry(config: Any, given: argparse.Namespace) -> ChunkGeometry:
    """Of a chunk; of the smallest there is, to be tried."""
    height, width = (64, 96) if given.quick else (512, 768)
    return ChunkGeometry.of_model(config, frames=given.frames, height=height, width=width, fps=25)


def random_model(config: dict[str, Any], device: torch.device, given: argparse.Namespace) -> Backbone:
    """In bfloat16 from the beginning: in float32 half as many layers would fit."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            transformer = LTX2VideoTransformer3DModel(**config)
    finally:
        torch.set_default_dtype(before)
    return Backbone(transformer, geometry(transformer.config, given))

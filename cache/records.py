"""Tensors and records as plain data, for what crosses processes and for snapshots."""

from typing import Any

import torch

from cache.keep_set import Role
from cache.spec import AttentionType
from cache.tiers import KeyValues, Latents, Record

Plain = list[Any]


def plain_tensor(tensor: torch.Tensor) -> Plain:
    """Type, shape and bytes of a tensor."""
    raw = tensor.detach().cpu().contiguous()
    return [str(raw.dtype).removeprefix("torch."), list(raw.shape), raw.view(torch.uint8).numpy().tobytes()]


def parse_tensor(plain: Plain) -> torch.Tensor:
    """The tensor that ``plain_tensor`` was given; raises ``ValueError`` for a type that is none."""
    name, shape, data = plain
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no tensor type")
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def plain_latents(latents: Latents) -> Plain:
    """Clean latents of a chunk, the key of its prompt, and its scene."""
    return [plain_tensor(latents.video), plain_tensor(latents.audio), latents.prompt, latents.scene]


def parse_latents(plain: Plain) -> Latents:
    """What ``plain_latents`` was given."""
    video, audio, prompt, scene = plain
    return Latents(parse_tensor(video), parse_tensor(audio), prompt, scene)


def plain_key_values(payload: KeyValues) -> Plain:
    """Keys and values of a chunk, its slot, its role, when it was written, and the format of codes, if it is codes."""
    codes = [] if payload.pages == "exact" else [payload.pages]
    return [plain_tensor(payload.tensor), payload.slot, payload.role.value, payload.written, *codes]


def parse_key_values(plain: Plain) -> KeyValues:
    """What ``plain_key_values`` was given."""
    tensor, slot, role, written, *codes = plain
    return KeyValues(parse_tensor(tensor), slot, Role(role), written, *codes)


def plain_record(record: Record) -> Plain:
    """All that a store has of a chunk."""
    return [
        None if record.latents is None else plain_latents(record.latents),
        [[t.value, plain_key_values(payload)] for t, payload in sorted(record.key_values.items())],
    ]


def parse_record(plain: Plain) -> Record:
    """What ``plain_record`` was given."""
    latents, key_values = plain
    return Record(
        None if latents is None else parse_latents(latents),
        {AttentionType(t): parse_key_values(payload) for t, payload in key_values},
    )

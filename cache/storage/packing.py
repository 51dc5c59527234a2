"""Payloads of records as bytes and as what a label must say of them, and back."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cache.codec import BufferCodec, Bytes, nbytes, raw
from cache.envelope import Kind
from cache.keep_set import Role
from cache.spec import TYPES, AttentionType
from cache.tiers import KeyValues, Latents, PackedKeyValues
from errors import RecordCorrupt

LATENTS: Kind = "latents"
KINDS: tuple[Kind, ...] = (LATENTS, *(t.value for t in TYPES))
Payload = KeyValues | Latents


@dataclass(frozen=True)
class Parcel:
    """A payload as it is written.

    Args:
        worth: what has to make room first: 0 restored and recent chunks, 1 anchors, 2 sinks, 3 latents.
        plain: what ``unparcel`` needs beside the bytes.
    """

    data: Bytes
    codec: str
    scene: str
    worth: int
    plain: dict[str, Any]


def kind_of(type: AttentionType | None) -> Kind:
    """The kind of keys and values of ``type``, or of latents."""
    return LATENTS if type is None else KINDS[1 + TYPES.index(type)]


def parcel(payload: Payload, codec: BufferCodec) -> Parcel:
    """Keys and values packed by ``codec`` unless they are packed already; latents as they are."""
    if isinstance(payload, Latents):
        return _parcel_latents(payload)
    packed = PackedKeyValues.of(payload, codec)
    name, dtype, shape = "exact", packed.tensor.dtype, tuple(packed.tensor.shape)
    if isinstance(packed, PackedKeyValues):
        name, dtype, shape = packed.codec, packed.dtype, packed.shape
    plain = {"slot": packed.slot, "role": packed.role.value, "written": packed.written, "form": _form(dtype, shape)}
    if packed.pages != "exact":
        plain["codes"] = packed.pages
    return Parcel(raw(packed.tensor), name, "", worth(packed), plain)


def worth(payload: Payload) -> int:
    """See ``Parcel``."""
    if isinstance(payload, Latents):
        return 3
    return {Role.SCENE_ANCHOR: 1, Role.SCENE_SINK: 2, Role.SUBJECT_ANCHOR: 2}.get(payload.role, 0)


def unparcel(kind: Kind, codec: str, scene: str, plain: dict[str, Any], data: Bytes) -> Payload:
    """What ``parcel`` was given, over ``data`` without copying; packed, if a codec packed it.

    Raises:
        RecordCorrupt: the bytes are not what the label says.
    """
    try:
        if kind == LATENTS:
            video, audio = (_parse_form(form) for form in plain["forms"])
            at = nbytes(*video)
            return Latents(_tensor(data[:at], *video), _tensor(data[at:], *audio), plain["prompt"], scene)
        dtype, shape = _parse_form(plain["form"])
        slot, role, written = plain["slot"], Role(plain["role"]), plain["written"]
        if codec == "exact":
            pages = plain.get("codes", "exact")  # exact pages do not say so
            return KeyValues(_tensor(data, dtype, shape), slot, role, written, pages)
        return PackedKeyValues(torch.from_numpy(data), slot, role, written, codec=codec, dtype=dtype, shape=shape)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordCorrupt(f"the label of a {kind} record does not describe its payload: {error!r}") from error


def _parcel_latents(latents: Latents) -> Parcel:
    video, audio = raw(latents.video), raw(latents.audio)
    forms = [_form(x.dtype, tuple(x.shape)) for x in (latents.video, latents.audio)]
    plain = {"prompt": latents.prompt, "forms": forms}
    return Parcel(np.concatenate((video, audio)), "exact", latents.scene, worth(latents), plain)


def _form(dtype: torch.dtype, shape: tuple[int, ...]) -> list[Any]:
    return [str(dtype).removeprefix("torch."), list(shape)]


def _parse_form(form: list[Any]) -> tuple[torch.dtype, tuple[int, ...]]:
    name, shape = form
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no tensor type")
    return dtype, tuple(shape)


def _tensor(data: Bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if len(data) != nbytes(dtype, shape):
        raise RecordCorrupt(f"a payload has {len(data):,} bytes; expected {nbytes(dtype, shape):,} for {list(shape)}")
    if not len(data):
        return torch.empty(shape, dtype=dtype)
    if data.ctypes.data % dtype.itemsize:
        data = data.copy()
    return torch.from_numpy(data).view(dtype).reshape(shape)

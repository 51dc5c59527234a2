"""Gather chunks out of the pool into a contiguous buffer, and back; plain-torch reference.

A packed chunk may be checked by two sums over its words of four bytes: every single changed word changes them, and so
does an exchange of two. Both wrap at 2⁶⁴; order does not matter to them, so that many programs may add.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from kernels.quantised import QuantisedKeys, QuantisedValues, quantise_keys, quantise_values

WORD_BYTES = 4
ALIGNED_BYTES = 16


@dataclass(frozen=True)
class Codes:
    """A packed chunk [layers, tokens, W] as codes of eight bits."""

    keys: QuantisedKeys
    values: QuantisedValues


def to_bytes(codes: QuantisedKeys | QuantisedValues) -> torch.Tensor:
    """Codes of all layers and what they are multiples of, contiguous [layers, bytes of a layer], uint8."""
    ends = (codes.scale, codes.zero) if isinstance(codes, QuantisedKeys) else (codes.scale,)
    return torch.cat([x.contiguous().view(torch.uint8).flatten(1) for x in (*ends, codes.codes)], 1)


def keys_from_bytes(data: torch.Tensor, tokens: int, width: int, dtype: torch.dtype) -> QuantisedKeys:
    """What ``to_bytes`` was given, as a copy; raises ``ValueError`` for too few or too many bytes."""
    scale, zero, codes = _cut(data, (4 * width, 4 * width, tokens * width))
    shaped = codes.view(dtype).view(-1, tokens, width)
    return QuantisedKeys(shaped, scale.view(torch.float32), zero.view(torch.float32))


def values_from_bytes(data: torch.Tensor, tokens: int, width: int, dtype: torch.dtype) -> QuantisedValues:
    """What ``to_bytes`` was given, as a copy; raises ``ValueError`` for too few or too many bytes."""
    scale, codes = _cut(data, (4 * tokens, tokens * width))
    return QuantisedValues(codes.view(dtype).view(-1, tokens, width), scale.view(torch.float32))


def _cut(data: torch.Tensor, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    if data.dim() != 2 or data.dtype != torch.uint8 or data.shape[1] != sum(sizes):
        raise ValueError(f"codes are {tuple(data.shape)} {data.dtype}; expected {sum(sizes)} bytes a layer, uint8")
    # Copies: a view of another type needs an aligned beginning.
    return [part.clone(memory_format=torch.contiguous_format) for part in data.split(sizes, 1)]


def pack(storage: torch.Tensor, page: int) -> torch.Tensor:
    """A contiguous copy [layers, 2, tokens, W] of page ``page`` of ``storage`` [layers, 2, pages, tokens, W]."""
    return storage[:, :, page].clone(memory_format=torch.contiguous_format)


def unpack(storage: torch.Tensor, page: int, packed: torch.Tensor) -> None:
    """Write a packed chunk into page ``page`` of ``storage``, in place."""
    require_fit(storage, page, packed)
    storage[:, :, page].copy_(packed)


def pack_all(storages: Sequence[torch.Tensor], pages: Sequence[int]) -> list[torch.Tensor]:
    """One page of each of ``storages``, one after the other in a single buffer, so that one transfer takes them all."""
    parts = staging(storages)
    for storage, page, part in zip(storages, pages, parts, strict=True):
        part.copy_(storage[:, :, page])
    return parts


def staging(storages: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Room for one page of each, [layers, 2, tokens, W]: views of one buffer, each from a multiple of 16 bytes on."""
    sizes = [storage[:, :, 0].nbytes for storage in storages]
    starts = [0, *accumulate(-(-size // ALIGNED_BYTES) * ALIGNED_BYTES for size in sizes)]
    buffer = torch.empty(starts[-1], dtype=torch.uint8, device=storages[0].device)
    return [
        buffer[start : start + size].view(storage.dtype).view(storage[:, :, 0].shape)
        for start, size, storage in zip(starts, sizes, storages, strict=False)
    ]


def pack_checked(storage: torch.Tensor, page: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``pack`` returns, and its ``checksum``."""
    packed = pack(storage, page)
    return packed, checksum(packed)


def unpack_checked(storage: torch.Tensor, page: int, packed: torch.Tensor) -> torch.Tensor:
    """Do as ``unpack``, and return the ``checksum`` of what was read."""
    unpack(storage, page, packed)
    return checksum(packed)


def pack_codes(storage: torch.Tensor, page: int, dtype: torch.dtype) -> Codes:
    """Page ``page`` of ``storage`` as codes of ``dtype``."""
    keys, values = storage[:, 0, page], storage[:, 1, page]
    return Codes(quantise_keys(keys, dtype), quantise_values(values, dtype))


def unpack_codes(storage: torch.Tensor, page: int, packed: Codes) -> None:
    """Write what ``packed`` stands for into page ``page`` of ``storage``, in place."""
    storage[:, 0, page].copy_(packed.keys.read(storage.dtype))
    storage[:, 1, page].copy_(packed.values.read(storage.dtype))


def checksum(packed: torch.Tensor) -> torch.Tensor:
    """Two sums [2], int64: of all words, and of all words times their place from 1; raises on a broken last word."""
    if packed[0, 0].nbytes % WORD_BYTES:
        raise ValueError(f"{packed[0, 0].nbytes} bytes a plane; expected a multiple of {WORD_BYTES} for a checksum")
    words = packed.contiguous().flatten().view(torch.int32).long()
    places = torch.arange(1, len(words) + 1, device=words.device)
    return torch.stack((words.sum(), (words * places).sum()))


def require_fit(storage: torch.Tensor, page: int, packed: torch.Tensor) -> None:
    """Raise ``ValueError`` unless ``packed`` has the shape and type of a page."""
    if packed.shape != storage[:, :, page].shape or packed.dtype != storage.dtype:
        raise ValueError(
            f"packed chunk is {tuple(packed.shape)} {packed.dtype}, "
            f"a page is {tuple(storage[:, :, page].shape)} {storage.dtype}"
        )

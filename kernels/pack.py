"""Chunks out of the pool into a contiguous buffer, and back; plain-torch reference."""

import torch

from kernels.quantised import QuantisedKeys, QuantisedValues


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


def require_fit(storage: torch.Tensor, page: int, packed: torch.Tensor) -> None:
    """Raise ``ValueError`` unless ``packed`` has the shape and type of a page."""
    if packed.shape != storage[:, :, page].shape or packed.dtype != storage.dtype:
        raise ValueError(
            f"packed chunk is {tuple(packed.shape)} {packed.dtype}, "
            f"a page is {tuple(storage[:, :, page].shape)} {storage.dtype}"
        )

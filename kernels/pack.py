"""Gather one chunk of one attention type out of the pool into a contiguous buffer, and back; plain-torch reference."""

import torch


def pack(storage: torch.Tensor, page: int) -> torch.Tensor:
    """A contiguous copy [layers, 2, tokens, W] of page ``page`` of ``storage`` [layers, 2, pages, tokens, W]."""
    return storage[:, :, page].clone(memory_format=torch.contiguous_format)


def unpack(storage: torch.Tensor, page: int, packed: torch.Tensor) -> None:
    """Write a packed chunk into page ``page`` of ``storage``, in place."""
    if packed.shape != storage[:, :, page].shape or packed.dtype != storage.dtype:
        raise ValueError(
            f"packed chunk is {tuple(packed.shape)} {packed.dtype}, "
            f"a page is {tuple(storage[:, :, page].shape)} {storage.dtype}"
        )
    storage[:, :, page].copy_(packed)

"""How keys and values are packed for the restore store. A codec is chosen per tier; the exact one is the reference."""

from typing import Protocol

import torch


class Codec(Protocol):
    """Turns a tensor of keys and values [layers, 2, tokens, width] into bytes and back; latents are always exact."""

    name: str

    def encode(self, tensor: torch.Tensor) -> bytes:
        """Bytes of a CPU tensor, contiguous or not."""
        ...

    def decode(self, data: bytes | memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A fresh tensor. Raises ``RecordCorrupt`` if the bytes are not of such a tensor."""
        ...

"""How keys and values are packed for the restore store. A codec is chosen per tier; the exact one is the reference.

``Codec`` is what a tier needs; ``BufferCodec`` adds what lets it reuse warm buffers. ``Exact`` is here, the others are
in ``cache.codecs`` and are made by name there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from errors import RecordCorrupt

Bytes = NDArray[np.uint8]
Buffer = bytes | bytearray | memoryview


class Codec(Protocol):
    """Turns a tensor of keys and values [layers, 2, tokens, width] into bytes and back; latents are always exact."""

    @property
    def name(self) -> str:
        """What a label says, and a setting."""
        ...

    def encode(self, tensor: torch.Tensor) -> bytes:
        """Bytes of a CPU tensor, contiguous or not."""
        ...

    def decode(self, data: bytes | memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A fresh tensor. Raises ``RecordCorrupt`` if the bytes are not of such a tensor."""
        ...


class BufferCodec(Codec, Protocol):
    """A codec that also works in memory that is there already: fresh pages cost eight times a copy into warm ones."""

    @property
    def lossless(self) -> bool:
        """Whether every bit comes back."""
        ...

    def bound(self, dtype: torch.dtype, shape: Sequence[int]) -> int:
        """Most bytes that a tensor of this type and shape may become, whatever is in it."""
        ...

    def encode_into(self, tensor: torch.Tensor, buffer: Buffer) -> int:
        """Write the bytes of a CPU tensor to the beginning of ``buffer``; returns how many.

        Raises:
            ValueError: the buffer is shorter than ``bound`` or read-only, or the tensor is not one for this codec;
                nothing was written.
        """
        ...

    def decode_into(self, data: Buffer, out: torch.Tensor) -> None:
        """Overwrite ``out``, a CPU tensor, contiguous or not, such as a page of the pool.

        Raises:
            RecordCorrupt: the bytes are not of such a tensor; ``out`` may be half overwritten then.
        """
        ...


@dataclass(frozen=True)
class Packing:
    """What one tensor became, scales, tables and heads included.

    Args:
        rungs: how many matrices (the keys or the values of one layer) were packed how, by name.
    """

    elements: int
    nominal_bytes: int
    held_bytes: int
    rungs: Mapping[str, int]

    @property
    def ratio(self) -> float:
        """How many times smaller it became."""
        return self.nominal_bytes / self.held_bytes if self.held_bytes else 1.0

    @property
    def bits_per_element(self) -> float:
        """Bits held per element, which is never the width that a codec is named after."""
        return 8 * self.held_bytes / self.elements if self.elements else 0.0


@dataclass(frozen=True)
class Exact:
    """The bytes of the tensor as they are: any type, any shape, any bit pattern."""

    name: str = "exact"
    lossless: bool = True

    def bound(self, dtype: torch.dtype, shape: Sequence[int]) -> int:
        return math.prod(shape) * dtype.itemsize

    def encode(self, tensor: torch.Tensor) -> bytes:
        return raw(in_host_memory(tensor)).tobytes()

    def encode_into(self, tensor: torch.Tensor, buffer: Buffer) -> int:
        room = writable(buffer, self.bound(tensor.dtype, tensor.shape))
        room[: tensor.nbytes] = raw(in_host_memory(tensor))
        return tensor.nbytes

    def decode(self, data: Buffer, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
        self._check(data, dtype, shape)
        out = torch.empty(tuple(shape), dtype=dtype)
        self.decode_into(data, out)
        return out

    def decode_into(self, data: Buffer, out: torch.Tensor) -> None:
        self._check(data, out.dtype, out.shape)
        fill(out, readable(data))

    def _check(self, data: Buffer, dtype: torch.dtype, shape: Sequence[int]) -> None:
        found, expected = len(readable(data)), nbytes(dtype, shape)
        if found != expected:
            raise RecordCorrupt(
                f"the payload has {found:,} bytes; expected {expected:,} for {list(shape)} of {dtype}, as they are"
            )


def nbytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    """Bytes of a tensor of this shape; raises ``RecordCorrupt`` for a shape that none can have."""
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise RecordCorrupt(f"a payload is said to have the shape {list(shape)}; expected whole numbers of 0 or more")
    return math.prod(shape) * dtype.itemsize


def in_host_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, without its history; raises ``ValueError`` if it is on another device."""
    if tensor.device.type != "cpu":
        raise ValueError(f"the tensor is on {tensor.device}; expected one in host memory, bring it there first")
    return tensor.detach()


def raw(tensor: torch.Tensor) -> Bytes:
    """The bytes of a CPU tensor in the order of its elements [nbytes]; copied only if it is not contiguous."""
    flat: Bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat


def fill(out: torch.Tensor, data: Bytes) -> None:
    """Overwrite a CPU tensor, contiguous or not, by as many bytes as it has."""
    if out.is_contiguous():
        raw(out)[:] = data
    else:
        whole = torch.empty(out.shape, dtype=out.dtype)
        raw(whole)[:] = data
        out.copy_(whole)


def readable(data: Buffer) -> Bytes:
    """The bytes of a buffer, without copying; never written to."""
    return np.frombuffer(data, dtype=np.uint8)


def writable(buffer: Buffer, least: int) -> Bytes:
    """The bytes of a buffer that is written to; raises ``ValueError`` if they are fewer than ``least`` or read-only."""
    room = readable(buffer)
    if len(room) < least or not room.flags.writeable:
        kind = "" if room.flags.writeable else " and is read-only"
        raise ValueError(f"the buffer has {len(room):,} bytes{kind}; expected {least:,} or more that can be written")
    return room

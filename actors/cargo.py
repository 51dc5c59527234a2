"""What a call between generator and store carries of tensors: what they are, and their bytes or where these are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
import xxhash

from actors.transport.base import Offer, verify
from cache.keep_set import Role
from cache.lent import Bytes
from cache.records import Plain
from cache.tiers import KeyValues, LandedKeyValues, Latents
from errors import RecordCorrupt

Layout = list[tuple[str, list[int]]]
ALIGNMENT = 64


@dataclass(frozen=True)
class Cargo:
    """Tensors on their way.

    Args:
        layout: type and shape of each; their bytes lie one behind the other, each from a multiple of 64.
        rest: what else belongs to them.
        checksum: xxh3-128 of all bytes, made where the tensors were and verified wherever they arrive.
        where: the bytes, or the slot that has them.
    """

    layout: Layout
    rest: Plain
    nbytes: int
    checksum: bytes
    where: bytes | Offer


@dataclass(frozen=True)
class Goods:
    """Tensors that are to be sent, and what goes with them; ``landed_bytes``: they are in the room that there was."""

    tensors: Sequence[torch.Tensor]
    rest: Plain
    landed_bytes: int = 0

    @classmethod
    def of_key_values(cls, payload: KeyValues) -> "Goods":
        """Keys and values of a chunk."""
        return cls([payload.tensor], [payload.slot, payload.role.value, payload.written, payload.pages])

    @classmethod
    def of_latents(cls, latents: Latents) -> "Goods":
        """Clean latents of a chunk."""
        return cls([latents.video, latents.audio], [latents.prompt, latents.scene])

    def key_values(self) -> KeyValues:
        """What ``of_key_values`` was given."""
        slot, role, written, pages = self.rest
        if self.landed_bytes:
            return LandedKeyValues(torch.empty(0), slot, Role(role), written, pages, landed_bytes=self.landed_bytes)
        return KeyValues(self.tensors[0], slot, Role(role), written, pages)

    def latents(self) -> Latents:
        """What ``of_latents`` was given."""
        return Latents(self.tensors[0], self.tensors[1], *self.rest)

    @property
    def layout(self) -> Layout:
        """Type and shape of each tensor."""
        return [(str(t.dtype).removeprefix("torch."), list(t.shape)) for t in self.tensors]

    @property
    def nbytes(self) -> int:
        """Bytes of all, with what is between them."""
        return sum(padded(t.nbytes) for t in self.tensors)

    def checksum(self) -> bytes:
        """Of all bytes, from where they are now."""
        state = xxhash.xxh3_128()
        for raw in self._raw():
            state.update(raw.data)
            state.update(bytes(padded(len(raw)) - len(raw)))
        return state.digest()

    def write(self, memory: Bytes) -> None:
        """Copy all bytes to the beginning of ``memory``."""
        at = 0
        for raw in self._raw():
            np.copyto(memory[at : at + len(raw)], raw)
            memory[at + len(raw) : at + padded(len(raw))] = 0
            at += padded(len(raw))

    def to_bytes(self) -> bytes:
        """All bytes, copied."""
        return b"".join(raw.tobytes().ljust(padded(len(raw)), b"\0") for raw in self._raw())

    def _raw(self) -> Iterator[Bytes]:
        for tensor in self.tensors:
            yield tensor.detach().cpu().contiguous().view(torch.uint8).numpy().reshape(-1)


def unpacked(cargo: Cargo, memory: Bytes) -> Goods:
    """The tensors of ``cargo``, which view ``memory``, verified.

    Raises:
        RecordCorrupt: these are not the bytes that were sent, or not what their layout says.
    """
    verify(memory, cargo.nbytes, cargo.checksum)
    return viewed(cargo, memory)


def viewed(cargo: Cargo, memory: Bytes) -> Goods:
    """As ``unpacked``, where ``memory`` was verified on its way."""
    sizes = [_dtype(name).itemsize * prod(shape) for name, shape in cargo.layout]
    if sum(map(padded, sizes)) != cargo.nbytes:
        raise RecordCorrupt(f"tensors {cargo.layout} do not have {cargo.nbytes:,} bytes")
    whole, at, tensors = torch.from_numpy(memory), 0, []
    for size, (name, shape) in zip(sizes, cargo.layout, strict=True):
        tensors.append(whole[at : at + size].view(_dtype(name)).reshape(shape))
        at += padded(size)
    return Goods(tensors, cargo.rest)


def unpacked_inline(cargo: Cargo, data: bytes) -> Goods:
    """The tensors of ``cargo``, whose bytes came with the call; raises ``RecordCorrupt``."""
    return unpacked(cargo, np.frombuffer(bytearray(data), np.uint8))


def padded(nbytes: int) -> int:
    """Bytes of a tensor with what is between it and the next."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise RecordCorrupt(f"{name!r} is no tensor type")
    return found

"""Tensors by what is in them: byte-equal ones are held once, whoever brought them."""

from dataclasses import dataclass, field

import numpy as np
import torch
import xxhash

from cache.codec import raw
from errors import IntegrityError

Digest = tuple[bytes, int, str, tuple[int, ...]]


@dataclass
class _Content:
    tensor: torch.Tensor
    digest: Digest
    holders: int


@dataclass
class Contents:
    """Reference counts of tensors, found again by xxh3-128 and then compared byte by byte: a hash is not trusted.

    Tensors must be in host memory and must not be written while they are held. Of pinned memory, which is for what is
    on its way, a copy is held.
    """

    bytes_held: int = 0
    _held: dict[int, _Content] = field(default_factory=dict)
    _by_digest: dict[Digest, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, tensor: torch.Tensor) -> torch.Tensor:
        """Hold the tensor, or the equal one that is held already; returns the one that is. ``release`` must follow."""
        known = self._held.get(id(tensor))
        if known is None:
            digest = digest_of(tensor)
            known = self._held.get(self._by_digest.get(digest, -1))
            if known is None or not np.array_equal(raw(known.tensor), raw(tensor)):
                tensor = tensor.clone() if tensor.is_pinned() else tensor
                known = self._held[id(tensor)] = _Content(tensor, digest, 0)
                self._by_digest.setdefault(digest, id(tensor))
                self.bytes_held += tensor.nbytes
        known.holders += 1
        return known.tensor

    def release(self, tensor: torch.Tensor) -> None:
        """Undo one ``hold``, with the tensor that it returned."""
        known = self._held[id(tensor)]
        known.holders -= 1
        if not known.holders:
            del self._held[id(tensor)]
            if self._by_digest.get(known.digest) == id(tensor):
                del self._by_digest[known.digest]
            self.bytes_held -= tensor.nbytes

    def check_integrity(self, holders: dict[int, int]) -> None:
        """Raises ``IntegrityError`` unless exactly ``holders`` (by ``id`` of tensor) are held, and counted right."""
        if {key: content.holders for key, content in self._held.items()} != holders:
            raise IntegrityError(f"{len(self._held)} contents are held; expected {len(holders)}, each as often as used")
        counted = sum(content.tensor.nbytes for content in self._held.values())
        if counted != self.bytes_held:
            raise IntegrityError(f"contents count {self.bytes_held:,} bytes, hold {counted:,}")


def digest_of(tensor: torch.Tensor) -> Digest:
    """What equal tensors have in common: hash, bytes, type and shape."""
    return xxhash.xxh3_128_digest(raw(tensor).data), tensor.nbytes, str(tensor.dtype), tuple(tensor.shape)

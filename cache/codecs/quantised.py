"""Lossy: codes of four or eight bits between the ends of a group of elements; keys by channel, values by token.

Keys have channels that are loud and off centre for all tokens of a chunk, values do not. So a group is ``group`` tokens
of one channel of the keys, from its smallest to its largest element where the numbers have a zero point, and ``group``
channels of one token of the values, as far above zero as below, so that zero stays zero. The ends are each chunk's own
and are kept in its own type: they come back as they were, and what was packed before is packed to the same again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cache.codec import Bytes, raw
from cache.codecs.numbers import Numbers, Scratch
from cache.codecs.rungs import KEYS, Side, require
from errors import RecordCorrupt

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2)
SMALLEST = 2.0**-126  # of a scale: its inverse is finite
LARGEST = torch.finfo(torch.float32).max / 2  # of an element: what is shifted by as much again is finite


@dataclass(frozen=True)
class Quantised:
    """A matrix in ``numbers``, in groups; the last group may be smaller.

    The bytes are one block after the other, each of ``group`` tokens: ends of its groups, codes.
    """

    numbers: Numbers
    lossless: bool = False

    @property
    def name(self) -> str:
        return self.numbers.name

    @property
    def code(self) -> int:
        return self.numbers.code

    def nbytes(self, dtype: torch.dtype, tokens: int, width: int, side: Side, group: int) -> int:
        """Bytes of such a matrix, ends of the groups included."""
        groups = -(-tokens // group) * width if side == KEYS else tokens * -(-width // group)
        blocks, rest = divmod(tokens, group)
        codes = blocks * self.numbers.nbytes(group * width) + self.numbers.nbytes(rest * width)
        return groups * self._ends_kept(side) * dtype.itemsize + codes

    def write(self, matrix: torch.Tensor, side: Side, room: Bytes, group: int) -> int | None:
        if matrix.dtype not in DTYPES:
            return None
        tokens, width = matrix.shape
        size = self.nbytes(matrix.dtype, tokens, width, side, group)
        if size >= matrix.nbytes:
            return None
        scratch = Scratch(min(tokens, group) * width)
        at = 0
        for block in matrix.split(group):
            units = scratch.floats[: block.numel()].view(block.shape).copy_(block)
            for part, axis in _parts(units, side, group):
                low, high = part.amin(axis, keepdim=True), part.amax(axis, keepdim=True)
                peak = torch.maximum(high, -low)
                if not bool((peak <= LARGEST).all()):  # nor is what is no number
                    return None
                ends = [low, high] if self._ends_kept(side) == 2 else [peak]
                scale, zero = self._grid(ends)
                if zero is not None:
                    part.sub_(zero)
                part.mul_(scale.reciprocal())
                for end in ends:
                    at = _write(end.to(matrix.dtype), room, at)
            length = self.numbers.nbytes(block.numel())
            self.numbers.write(units.reshape(-1), room[at : at + length], scratch)
            at += length
        return size

    def read(self, data: Bytes, side: Side, out: torch.Tensor, group: int) -> None:
        tokens, width = out.shape
        if out.dtype not in DTYPES or not out.numel():
            raise RecordCorrupt(f"a matrix {[tokens, width]} of {out.dtype} cannot have been packed as {self.name}")
        require(len(data), self.nbytes(out.dtype, tokens, width, side, group), self.name)
        scratch = Scratch(min(tokens, group) * width)
        at = 0
        for block in out.split(group):
            units = scratch.floats[: block.numel()].view(block.shape)
            grids = []
            for part, axis in _parts(units, side, group):
                shape = [1 if i == axis else n for i, n in enumerate(part.shape)]
                ends = [torch.empty(shape, dtype=out.dtype) for _ in range(self._ends_kept(side))]
                for end in ends:
                    at = _read(end, data, at)
                grids.append((part, *self._grid([end.float() for end in ends])))
            length = self.numbers.nbytes(block.numel())
            self.numbers.read(data[at : at + length], units.reshape(-1), scratch)
            at += length
            for part, scale, zero in grids:
                part.mul_(scale)
                if zero is not None:
                    part.add_(zero)
            block.copy_(units)

    def _ends_kept(self, side: Side) -> int:
        """Both where there is a zero point, else how far the group is from zero."""
        return 2 if side == KEYS and self.numbers.steps else 1

    def _grid(self, ends: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scale of the codes and what code 0 stands for, float32, from the ends of groups."""
        if len(ends) == 2:
            low, high = ends
            return ((high - low) / self.numbers.steps).clamp_(min=SMALLEST), low
        scale = (ends[0] / self.numbers.largest).clamp_(min=SMALLEST)
        return scale, scale * -self.numbers.middle if self.numbers.middle else None


def _parts(units: torch.Tensor, side: Side, group: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Views of a block [tokens, width] whose groups lie along one axis, and that axis; the last may be narrower."""
    if side == KEYS:
        yield units, 0
        return
    width = units.shape[1]
    whole = width - width % group
    if whole:
        yield units[:, :whole].unflatten(1, (-1, group)), 2
    if whole < width:
        yield units[:, whole:].unflatten(1, (1, -1)), 2


def _write(ends: torch.Tensor, room: Bytes, at: int) -> int:
    room[at : at + ends.nbytes] = raw(ends)
    return at + ends.nbytes


def _read(ends: torch.Tensor, data: Bytes, at: int) -> int:
    np.copyto(raw(ends), data[at : at + ends.nbytes])
    return at + ends.nbytes

"""Lossy: codes of four or eight bits with a scale per group; keys by channel, values by token.

Keys have channels that are loud and off centre for all tokens of a chunk, values do not: so a group is ``group`` tokens
of one channel of the keys, with a zero point where the numbers have one, and ``group`` channels of one token of the
values, without one, so that zero stays zero. Scales are each chunk's own, bfloat16, and rounded up, so that nothing
saturates; the zero point is the group's smallest element in its own type.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cache.codec import Bytes, raw
from cache.codecs.numbers import Numbers, Scratch
from cache.codecs.rungs import KEYS, Side, require

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2)
SMALLEST = 2.0**-126  # of a scale: its inverse is finite
LARGEST = torch.finfo(torch.float32).max / 2  # of an element: what is shifted by as much again is finite

Grid = tuple[torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True)
class Quantised:
    """A matrix in ``numbers``, in groups; the last group may be smaller.

    The bytes are one block after the other, each of ``group`` tokens: scales, zero points if any, codes.
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
        """Bytes of such a matrix, scales and zero points included."""
        if side == KEYS:
            scales = -(-tokens // group) * width
            zeros = scales * dtype.itemsize if self.numbers.steps else 0
        else:
            scales, zeros = tokens * -(-width // group), 0
        blocks, rest = divmod(tokens, group)
        codes = blocks * self.numbers.nbytes(group * width) + self.numbers.nbytes(rest * width)
        return 2 * scales + zeros + codes

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
                grid = self._grid(part, axis, side, matrix.dtype)
                if grid is None:
                    return None
                at = _write_grid(grid, side, matrix.dtype, room, at)
                _to_units(part, grid)
            length = self.numbers.nbytes(block.numel())
            self.numbers.write(units.reshape(-1), room[at : at + length], scratch)
            at += length
        return size

    def read(self, data: Bytes, side: Side, out: torch.Tensor, group: int) -> None:
        tokens, width = out.shape
        require(len(data), self.nbytes(out.dtype, tokens, width, side, group), self.name)
        scratch = Scratch(min(tokens, group) * width)
        at = 0
        for block in out.split(group):
            units = scratch.floats[: block.numel()].view(block.shape)
            grids = []
            for part, axis in _parts(units, side, group):
                grid, at = self._read_grid(part, axis, side, out.dtype, data, at)
                grids.append((part, grid))
            length = self.numbers.nbytes(block.numel())
            self.numbers.read(data[at : at + length], units.reshape(-1), scratch)
            at += length
            for part, (scale, zero) in grids:
                part.mul_(scale)
                if zero is not None:
                    part.add_(zero)
            block.copy_(units)

    def _grid(self, part: torch.Tensor, axis: int, side: Side, dtype: torch.dtype) -> Grid | None:
        """Scale and zero of each group; ``None`` if an element is not finite, or so large that a step more were not."""
        low, high = part.amin(axis, keepdim=True), part.amax(axis, keepdim=True)
        peak = torch.maximum(high, -low)
        zero_point = side == KEYS and self.numbers.steps
        span = (high - low) / self.numbers.steps if zero_point else peak / self.numbers.largest
        scale = _rounded_up(span.clamp_(min=SMALLEST))
        limit = min(LARGEST, torch.finfo(dtype).max)
        if not bool((peak + scale <= limit).all()):
            return None
        return scale, low if zero_point else self._middle(scale)

    def _middle(self, scale: torch.Tensor) -> torch.Tensor | None:
        """What code 0 stands for where zero is in the middle."""
        return scale * -self.numbers.middle if self.numbers.middle else None

    def _read_grid(
        self, part: torch.Tensor, axis: int, side: Side, dtype: torch.dtype, data: Bytes, at: int
    ) -> tuple[Grid, int]:
        shape = [1 if i == axis else n for i, n in enumerate(part.shape)]
        scale, at = _read(data, at, torch.bfloat16, shape)
        if side == KEYS and self.numbers.steps:
            zero, at = _read(data, at, dtype, shape)
            return (scale, zero), at
        return (scale, self._middle(scale)), at


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


def _to_units(part: torch.Tensor, grid: Grid) -> None:
    scale, zero = grid
    if zero is not None:
        part.sub_(zero)
    part.mul_(scale.reciprocal())


def _rounded_up(positive: torch.Tensor) -> torch.Tensor:
    """The next number of bfloat16, as float32: by the bits, which are ordered as positive numbers are."""
    return (positive.view(torch.int32) + 0xFFFF).bitwise_and_(~0xFFFF).view(torch.float32)


def _write_grid(grid: Grid, side: Side, dtype: torch.dtype, room: Bytes, at: int) -> int:
    scale, zero = grid
    stored = [scale.to(torch.bfloat16)]
    if side == KEYS and zero is not None:
        stored.append(zero.to(dtype))
    for tensor in stored:
        room[at : at + tensor.nbytes] = raw(tensor)
        at += tensor.nbytes
    return at


def _read(data: Bytes, at: int, dtype: torch.dtype, shape: list[int]) -> tuple[torch.Tensor, int]:
    stored = torch.empty(shape, dtype=dtype)
    np.copyto(raw(stored), data[at : at + stored.nbytes])
    return stored.float(), at + stored.nbytes

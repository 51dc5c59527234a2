"""The numbers that a code of four or eight bits stands for: integers with a step, or eight-bit floats."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cache.codec import Bytes


@dataclass(frozen=True)
class Scratch:
    """Room for one block, used again for every other, so that the work stays in the core's own cache."""

    count: int
    floats: torch.Tensor = field(init=False)
    codes: Bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "floats", torch.empty(self.count))
        object.__setattr__(self, "codes", np.empty(self.count, np.uint8))


class Numbers(Protocol):
    """Codes for multiples of a scale.

    Args:
        largest: largest multiple where zero is in the middle.
        steps: multiples from the smallest to the largest code where a zero point says what the smallest stands for; 0
            if these numbers have no zero point.
        middle: code of zero where there is no zero point.
    """

    @property
    def name(self) -> str: ...
    @property
    def code(self) -> int: ...
    @property
    def largest(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def middle(self) -> int: ...

    def nbytes(self, count: int) -> int:
        """Bytes of ``count`` codes."""
        ...

    def write(self, units: torch.Tensor, out: Bytes, scratch: Scratch) -> None:
        """Round multiples [count], float32, that lie in range, to codes; ``units`` may be overwritten."""
        ...

    def read(self, codes: Bytes, units: torch.Tensor, scratch: Scratch) -> None:
        """Multiples [count], float32, of codes; ``scratch`` gives the room, ``units`` may be its floats."""
        ...


@dataclass(frozen=True)
class Integers:
    """Whole multiples, 0 to 255 in a byte, or 0 to 15 and two to a byte.

    Of ``n`` codes of four bits, the first half (rounded up) lies in the low halves of the bytes and the rest in the
    high ones, so that both are read and written in long runs.
    """

    bits: int

    @property
    def name(self) -> str:
        return f"int{self.bits}"

    @property
    def code(self) -> int:
        return self.bits

    @property
    def steps(self) -> int:
        return (1 << self.bits) - 1

    @property
    def largest(self) -> float:
        return float(self.middle)

    @property
    def middle(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def nbytes(self, count: int) -> int:
        return (count * self.bits + 7) // 8

    def write(self, units: torch.Tensor, out: Bytes, scratch: Scratch) -> None:
        rounded = units.round_().numpy()
        if self.bits == 8:
            np.copyto(out, rounded, casting="unsafe")
            return
        codes = scratch.codes[: len(rounded)]
        np.copyto(codes, rounded, casting="unsafe")
        low, high = codes[: len(out)], codes[len(out) :]
        np.left_shift(high, 4, out=high)
        out[:] = low
        np.bitwise_or(out[: len(high)], high, out=out[: len(high)])

    def read(self, codes: Bytes, units: torch.Tensor, scratch: Scratch) -> None:
        if self.bits == 4:
            unpacked = scratch.codes[: len(units)]
            np.bitwise_and(codes, 15, out=unpacked[: len(codes)])
            np.right_shift(codes[: len(units) - len(codes)], 4, out=unpacked[len(codes) :])
            codes = unpacked
        np.copyto(units.numpy(), codes)


@dataclass(frozen=True)
class Float8:
    """Eight-bit floats, e4m3: four bits of exponent and three of mantissa, from 2⁻⁹ to 448, zero and no infinity."""

    name: str = "fp8"
    code: int = 9
    largest: float = 448.0
    steps: int = 0
    middle: int = 0

    def nbytes(self, count: int) -> int:
        return count

    def write(self, units: torch.Tensor, out: Bytes, scratch: Scratch) -> None:
        out[:] = units.to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    def read(self, codes: Bytes, units: torch.Tensor, scratch: Scratch) -> None:
        # e4m3 moved to the exponent of float16 is the value times 2⁻⁸, subnormal numbers included: torch's own
        # conversion takes ten times as long.
        halves: NDArray[np.int16] = codes.view(np.int8).astype(np.int16)
        halves <<= 7
        halves &= ~0x4000
        units.copy_(torch.from_numpy(halves).view(torch.float16)).mul_(256.0)

"""What a rung of the ladder of codecs is: one way to pack one matrix, the keys or the values of one layer."""

from typing import Literal, Protocol

import torch

from cache.codec import Bytes, fill, raw
from errors import RecordCorrupt

Side = Literal[0, 1]
KEYS: Side = 0
VALUES: Side = 1


class Rung(Protocol):
    """Packs one matrix [tokens, width], in memory that is given. ``group``: elements that share a scale, if any do."""

    @property
    def name(self) -> str:
        """What settings and statistics call it."""
        ...

    @property
    def code(self) -> int:
        """What stands in the bytes for this rung; never used for another."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether every bit comes back."""
        ...

    def write(self, matrix: torch.Tensor, side: Side, room: Bytes, group: int) -> int | None:
        """Write at most ``matrix.nbytes`` bytes; returns how many, ``None`` if it cannot be done or does not pay."""
        ...

    def read(self, data: Bytes, side: Side, out: torch.Tensor, group: int) -> None:
        """Overwrite ``out`` [tokens, width] by what was written.

        Raises:
            RecordCorrupt: the bytes are not of such a matrix.
        """
        ...


class Raw:
    """The bytes as they are: the last rung, on which everything stands."""

    name = "exact"
    code = 0
    lossless = True

    def write(self, matrix: torch.Tensor, side: Side, room: Bytes, group: int) -> int:
        room[: matrix.nbytes] = raw(matrix)
        return matrix.nbytes

    def read(self, data: Bytes, side: Side, out: torch.Tensor, group: int) -> None:
        require(len(data), out.nbytes, self.name)
        fill(out, data)


def require(found: int, expected: int, name: str) -> None:
    """Raise ``RecordCorrupt`` unless a matrix has as many bytes as it must."""
    if found != expected:
        raise RecordCorrupt(f"a matrix packed as {name} has {found:,} bytes; expected {expected:,}")

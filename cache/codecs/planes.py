"""Lossless: the first bytes of all elements, then the second bytes, and so on, each plane by zstd.

Exponents repeat and mantissas do not, so that laid out as they are keys and values hardly compress (1.0 to 1.3 times)
and apart they do (1.4 to 1.5 times in bfloat16). What does not get smaller is kept as it is.
"""

from dataclasses import dataclass

import numpy as np
import torch
import zstandard

from cache.codec import Bytes, fill, raw
from cache.codecs.rungs import Side
from errors import ConfigError, RecordCorrupt

PIECE = 1 << 17  # elements: a plane of them stays in the core's own cache, and bounds what one answer of zstd may be
LENGTH = np.dtype("<u4")


@dataclass(frozen=True)
class Planes:
    """Byte planes; ``level`` is zstd's, 1 to 19, and matters for writing only.

    The bytes are a table of lengths [pieces, planes], then the pieces' planes. At level 1 zstd gets a table of 64
    entries for matches: there are hardly any in exponents, and with its usual size it takes twice as long both ways to
    find some that make the result larger.
    """

    level: int = 1
    name: str = "planes"
    code: int = 1
    lossless: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.level <= 19:
            raise ConfigError(f"the level of planes is {self.level}; expected 1 (fastest) to 19 (smallest)")

    def write(self, matrix: torch.Tensor, side: Side, room: Bytes, group: int) -> int | None:
        elements = raw(matrix).reshape(-1, matrix.element_size())
        lengths = np.zeros(_table(matrix), LENGTH)
        compressor = zstandard.ZstdCompressor(compression_params=self._parameters())
        at = lengths.nbytes
        for i in range(lengths.shape[0]):
            piece = elements[i * PIECE : (i + 1) * PIECE]
            for plane in range(lengths.shape[1]):
                plain = np.ascontiguousarray(piece[:, plane])
                packed = np.frombuffer(compressor.compress(plain.data), np.uint8)
                kept = packed if len(packed) < len(plain) else plain
                if at + len(kept) >= matrix.nbytes:
                    return None
                room[at : at + len(kept)] = kept
                lengths[i, plane] = len(kept)
                at += len(kept)
        if at >= matrix.nbytes:
            return None
        room[: lengths.nbytes] = lengths.view(np.uint8).reshape(-1)
        return at

    def read(self, data: Bytes, side: Side, out: torch.Tensor, group: int) -> None:
        table = _table(out)
        at = table[0] * table[1] * LENGTH.itemsize
        if len(data) < at:
            raise RecordCorrupt(f"a matrix packed as planes has {len(data):,} bytes; expected a table of {at:,} first")
        lengths = np.frombuffer(data[:at].tobytes(), LENGTH).reshape(table).tolist()
        found, expected = len(data), at + sum(map(sum, lengths))
        if found != expected:
            raise RecordCorrupt(f"a matrix packed as planes has {found:,} bytes; its table says {expected:,}")
        whole = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype)
        elements = raw(whole).reshape(-1, out.element_size())
        decompressor = zstandard.ZstdDecompressor()
        for i, of_piece in enumerate(lengths):
            piece = elements[i * PIECE : (i + 1) * PIECE]
            for plane, length in enumerate(of_piece):
                piece[:, plane] = _plain(decompressor, data[at : at + length], len(piece))
                at += length
        if whole is not out:
            fill(out, raw(whole))

    def _parameters(self) -> zstandard.ZstdCompressionParameters:
        smaller = {"hash_log": 6} if self.level == 1 else {}
        return zstandard.ZstdCompressionParameters.from_level(self.level, source_size=PIECE, **smaller)


def _table(matrix: torch.Tensor) -> tuple[int, int]:
    """Pieces and planes."""
    return -(-matrix.numel() // PIECE), matrix.element_size()


def _plain(decompressor: zstandard.ZstdDecompressor, packed: Bytes, count: int) -> Bytes:
    """The ``count`` bytes of one plane of a piece; zstd is believed no number that was not checked first."""
    if len(packed) == count:
        return packed
    try:
        said = zstandard.frame_content_size(packed.data)
        if said != count:
            raise RecordCorrupt(f"a plane says that it has {said:,} bytes; expected {count:,}")
        plain = np.frombuffer(decompressor.decompress(packed.data, allow_extra_data=False), np.uint8)
    except zstandard.ZstdError as error:
        raise RecordCorrupt(f"a plane of {len(packed):,} bytes cannot be decompressed: {error}") from error
    if len(plain) != count:
        raise RecordCorrupt(f"a plane has {len(plain):,} bytes; expected {count:,}")
    return plain

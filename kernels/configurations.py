"""The tile sizes that ship: chosen by shape alone, from this table, never by the environment or by trying.

None was measured yet. They are what fits an ``sm_90`` multiprocessor (64 K registers, 227 KiB of shared memory) by the
compiler's report, which ``python -m bench.kernels`` prints; on a GPU the same command times them.
"""

from dataclasses import dataclass

import torch

from kernels.quantised import LARGEST


@dataclass(frozen=True)
class AttentionTiles:
    """Queries and keys of a tile, warps, and tiles of keys and values in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


# By largest head dimension, then by largest number of queries of a row (``None``: any more than that).
_HALF: dict[int, dict[int | None, AttentionTiles]] = {
    64: {32: AttentionTiles(32, 64, 4, 3), None: AttentionTiles(128, 64, 4, 3)},
    128: {None: AttentionTiles(128, 128, 8, 2)},
}
# Codes are converted on their way to shared memory, or queries turned to codes at each page, which takes registers.
_CODES: dict[int, dict[int | None, AttentionTiles]] = {
    64: {32: AttentionTiles(32, 64, 4, 3), None: AttentionTiles(128, 64, 8, 3)},
    128: {None: AttentionTiles(128, 128, 8, 2)},
}
# An integer takes a register of its own before it is a number; queries that become codes spare keys that.
_INTEGERS: dict[int, dict[int | None, AttentionTiles]] = {**_CODES, 128: {None: AttentionTiles(128, 64, 8, 3)}}
# float32 is for tests and small models: products are exact (no tf32), on the ordinary units.
_SINGLE: dict[int, dict[int | None, AttentionTiles]] = {
    64: {None: AttentionTiles(32, 32, 4, 2)},
    128: {None: AttentionTiles(16, 32, 4, 2)},
}
LARGEST_HEAD = max(_HALF)
# Multiprocessors to keep busy where the device does not say.
PROCESSORS = 132


def attention_tiles(
    head: int, queries: int, dtype: torch.dtype, stored: torch.dtype, coded: bool = False
) -> AttentionTiles:
    """The tiles for heads of ``head`` elements and ``queries`` queries a row.

    ``dtype``: their type; ``stored``: that of what pages hold; ``coded``: queries become codes as the keys are.
    """
    if dtype == torch.float32:
        table = _SINGLE
    elif stored == torch.int8 and not coded:
        table = _INTEGERS
    else:
        table = _CODES if stored in LARGEST else _HALF
    by_queries = table[min(limit for limit in table if head <= limit)]
    return next(tiles for limit, tiles in by_queries.items() if limit is None or queries <= limit)


def splits(programs: int, pages: int, processors: int) -> int:
    """Into how many parts the pages of a row are split, so that ``programs`` tiles of queries fill the device twice."""
    return max(1, min(pages, -(-2 * processors // programs)))


# Tokens of a tile of one head in the kernels that stream, and in those that look for the ends of channels.
STREAM_TOKENS = 32
CHANNEL_TOKENS = 64
# Pairs of channels of a program that looks for their ends: 32 bytes of 16-bit numbers, the least that memory moves.
CHANNEL_PAIRS = 16
# Words of 4 bytes that a program of pack and unpack copies.
PACK_WORDS = 4096
# Channels and tokens of a tile of AdaStat.
STATISTICS_CHANNELS = 16
STATISTICS_TOKENS = 128

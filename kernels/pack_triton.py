"""One chunk of all layers into a contiguous buffer and back, as words or as codes, summed on the way; Triton."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.configurations import PACK_WORDS
from kernels.launch import Launch, require, require_pages
from kernels.pack import WORD_BYTES, Codes, require_fit, staging
from kernels.quantised import QuantisedKeys, QuantisedValues
from kernels.quantised_triton import blocks_of, prepare_keys, prepare_reading, prepare_values
from kernels.rotary_triton import prepare as prepare_rotation


@triton.jit
def _copy(source, target, sums, words, source_plane, target_plane, block: tl.constexpr):
    plane = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * block + tl.arange(0, block)
    real = at < words
    x = tl.load(source + plane * source_plane + at, mask=real, other=0)
    tl.store(target + plane * target_plane + at, x, mask=real)
    if sums is not None:
        wide = x.to(tl.int64)
        place = plane * words + at + 1
        program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tl.store(sums + program * 2, tl.sum(wide, 0))
        tl.store(sums + program * 2 + 1, tl.sum(wide * place, 0))


@dataclass(frozen=True)
class Copy:
    """A launch that copies, and the sums of its programs [programs, 2], int64, if any were wanted."""

    launch: Launch
    sums: torch.Tensor | None

    def run(self) -> torch.Tensor | None:
        """Queue it; the checksum [2], on the device, if it was wanted."""
        self.launch.run()
        return None if self.sums is None else self.sums.sum(0)


def pack(storage: torch.Tensor, page: int) -> torch.Tensor:
    """As ``kernels.pack.pack``."""
    packed = _staging(storage)
    prepare(storage, page, packed, out_of_pool=True).run()
    return packed


def unpack(storage: torch.Tensor, page: int, packed: torch.Tensor) -> None:
    """As ``kernels.pack.unpack``."""
    prepare(storage, page, packed, out_of_pool=False).run()


def pack_checked(storage: torch.Tensor, page: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``kernels.pack.pack_checked``, without reading anything twice."""
    packed = _staging(storage)
    sums = prepare(storage, page, packed, out_of_pool=True, checked=True).run()
    assert sums is not None
    return packed, sums


def unpack_checked(storage: torch.Tensor, page: int, packed: torch.Tensor) -> torch.Tensor:
    """As ``kernels.pack.unpack_checked``, without reading anything twice."""
    sums = prepare(storage, page, packed, out_of_pool=False, checked=True).run()
    assert sums is not None
    return sums


def pack_codes(storage: torch.Tensor, page: int, dtype: torch.dtype) -> Codes:
    """As ``kernels.pack.pack_codes``."""
    _check(storage, page)
    layers, _, _, tokens, width = storage.shape
    codes = torch.empty(2, layers, tokens, width, dtype=dtype, device=storage.device)
    ends = torch.empty(2, layers, width, device=storage.device)
    keys = QuantisedKeys(codes[0], ends[0], ends[1])
    values = QuantisedValues(codes[1], torch.empty(layers, tokens, device=storage.device))
    for launch in prepare_codes(storage, page, Codes(keys, values)):
        launch.run()
    return Codes(keys, values)


def unpack_codes(storage: torch.Tensor, page: int, packed: Codes) -> None:
    """As ``kernels.pack.unpack_codes``."""
    _check(storage, page)
    for launch in prepare_reading_codes(storage, page, packed):
        launch.run()


def prepare_codes(storage: torch.Tensor, page: int, packed: Codes) -> list[Launch]:
    """The launches that fill ``packed`` from a page."""
    planes, blocks = range(storage.shape[0]), blocks_of(storage.shape[-1])
    return [
        prepare_keys(storage[:, 0, page], packed.keys, planes, blocks),
        prepare_values(storage[:, 1, page], packed.values, planes),
    ]


def prepare_reading_codes(storage: torch.Tensor, page: int, packed: Codes) -> list[Launch]:
    """The launches that fill a page from ``packed``: keys turned by nothing, and values."""
    pairs = storage.shape[-1] // 2
    ones, zeros = torch.ones(pairs, device=storage.device), torch.zeros(pairs, device=storage.device)
    return [
        prepare_rotation(packed.keys, storage[:, 0, page], ones, zeros, blocks_of(storage.shape[-1])),
        prepare_reading(packed.values, storage[:, 1, page]),
    ]


def prepare(storage: torch.Tensor, page: int, packed: torch.Tensor, out_of_pool: bool, checked: bool = False) -> Copy:
    """Copy page ``page`` of ``storage`` to ``packed``, or back.

    Raises:
        ValueError: a shape, type, stride or page number with which the kernel would touch what it must not.
    """
    _check(storage, page)
    require_fit(storage, page, packed)
    require(packed.is_contiguous(), f"packed chunk has strides {packed.stride()}; expected it contiguous")
    plane_bytes = packed[0, 0].nbytes
    require(not checked or plane_bytes % WORD_BYTES == 0, f"{plane_bytes} bytes a plane; expected whole words")
    word = torch.int32 if plane_bytes % WORD_BYTES == 0 else torch.int16 if plane_bytes % 2 == 0 else torch.int8
    pool = storage.flatten(3).view(word).flatten(0, 1)[:, page]
    staging = packed.view(-1).view(word).view(pool.shape)
    planes, words = pool.shape
    source, target = (pool, staging) if out_of_pool else (staging, pool)
    grid = (-(-words // PACK_WORDS), planes)
    sums = torch.empty(grid[0] * planes, 2, dtype=torch.int64, device=storage.device) if checked else None
    arguments = {
        "source": source,
        "target": target,
        "sums": sums,
        "words": words,
        "source_plane": source.stride(0),
        "target_plane": target.stride(0),
        "block": PACK_WORDS,
    }
    return Copy(Launch(_copy, grid, arguments, warps=8), sums)


def pack_all(storages: Sequence[torch.Tensor], pages: Sequence[int]) -> list[torch.Tensor]:
    """As ``kernels.pack.pack_all``."""
    parts = staging(storages)
    for storage, page, part in zip(storages, pages, parts, strict=True):
        prepare(storage, page, part, out_of_pool=True).run()
    return parts


def _staging(storage: torch.Tensor) -> torch.Tensor:
    require(storage.dim() == 5, f"storage has shape {tuple(storage.shape)}; expected 5 dimensions")
    layers, two, _, tokens, width = storage.shape
    return torch.empty(layers, two, tokens, width, dtype=storage.dtype, device=storage.device)


def _check(storage: torch.Tensor, page: int) -> None:
    require(storage.dim() == 5, f"storage has shape {tuple(storage.shape)}; expected 5 dimensions")
    require(storage.is_contiguous(), f"storage has strides {storage.stride()}; expected it contiguous")
    require_pages([page], storage.shape[2])

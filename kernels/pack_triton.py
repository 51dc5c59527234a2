"""One chunk of all layers into a contiguous buffer and back, as words; Triton."""

import torch
import triton
import triton.language as tl

from kernels.configurations import PACK_WORDS
from kernels.launch import Launch, require, require_pages
from kernels.pack import require_fit


@triton.jit
def _copy(source, target, words, source_plane, target_plane, block: tl.constexpr):
    plane = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * block + tl.arange(0, block)
    real = at < words
    x = tl.load(source + plane * source_plane + at, mask=real, other=0)
    tl.store(target + plane * target_plane + at, x, mask=real)


def pack(storage: torch.Tensor, page: int) -> torch.Tensor:
    """As ``kernels.pack.pack``."""
    packed = _staging(storage)
    prepare(storage, page, packed, out_of_pool=True).run()
    return packed


def unpack(storage: torch.Tensor, page: int, packed: torch.Tensor) -> None:
    """As ``kernels.pack.unpack``."""
    prepare(storage, page, packed, out_of_pool=False).run()


def prepare(storage: torch.Tensor, page: int, packed: torch.Tensor, out_of_pool: bool) -> Launch:
    """Copy page ``page`` of ``storage`` to ``packed``, or back.

    Raises:
        ValueError: a shape, type, stride or page number with which the kernel would touch what it must not.
    """
    _check(storage, page)
    require_fit(storage, page, packed)
    require(packed.is_contiguous(), f"packed chunk has strides {packed.stride()}; expected it contiguous")
    plane_bytes = packed[0, 0].nbytes
    word = torch.int32 if plane_bytes % 4 == 0 else torch.int16 if plane_bytes % 2 == 0 else torch.int8
    pool = storage.flatten(3).view(word).flatten(0, 1)[:, page]
    staging = packed.view(-1).view(word).view(pool.shape)
    planes, words = pool.shape
    source, target = (pool, staging) if out_of_pool else (staging, pool)
    arguments = {
        "source": source,
        "target": target,
        "words": words,
        "source_plane": source.stride(0),
        "target_plane": target.stride(0),
        "block": PACK_WORDS,
    }
    return Launch(_copy, (-(-words // PACK_WORDS), planes), arguments, warps=8)


def _staging(storage: torch.Tensor) -> torch.Tensor:
    require(storage.dim() == 5, f"storage has shape {tuple(storage.shape)}; expected 5 dimensions")
    layers, two, _, tokens, width = storage.shape
    return torch.empty(layers, two, tokens, width, dtype=storage.dtype, device=storage.device)


def _check(storage: torch.Tensor, page: int) -> None:
    require(storage.dim() == 5, f"storage has shape {tuple(storage.shape)}; expected 5 dimensions")
    require(storage.is_contiguous(), f"storage has strides {storage.stride()}; expected it contiguous")
    require_pages([page], storage.shape[2])

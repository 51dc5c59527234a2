"""Keys to codes by channel and values to codes by token, normalised and rotated on the way if asked to; Triton.

The ends of a channel are known only when all its tokens were seen, so the keys are read twice. A program reads the same
74 kB both times (1,152 tokens of 32 channels), the second time from the cache.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.configurations import CHANNEL_PAIRS, CHANNEL_TOKENS
from kernels.copies import on_device
from kernels.launch import Launch, power_of_two, require, require_pages, require_rows
from kernels.pairs import load_angles, load_pairs, store_pairs, turn
from kernels.quantised import LARGEST, SMALLEST, QuantisedKeys, QuantisedValues
from kernels.rotary import RotaryLayout

SOURCES = (torch.bfloat16, torch.float16, torch.float32)


@triton.jit
def encode(units, largest: tl.constexpr, whole: tl.constexpr):
    """Multiples of a scale as the numbers that codes can be, to nearest, halves to even: converting them is exact."""
    units = tl.minimum(tl.maximum(units, -largest), largest)
    # From 1.5 · 2²³ on, float32 has no fractions.
    if whole:
        return (units + 12582912.0) - 12582912.0
    # e4m3 has three bits behind the leading one, which is 2⁻⁶ at the least; powers of two by their exponents alone.
    leading = tl.maximum(units.to(tl.int32, bitcast=True) & 0x7F800000, 0x3C800000)
    quantum = (leading - 0x01800000).to(tl.float32, bitcast=True)
    quanta = (0x7F000000 - (leading - 0x01800000)).to(tl.float32, bitcast=True)
    return ((units * quanta + 12582912.0) - 12582912.0) * quantum


@triton.jit
def _finished(
    at,
    weight_at,
    inverse,
    cos,
    sin,
    angle,
    begin,
    real,
    half: tl.constexpr,
    tile: tl.constexpr,
    interleaved: tl.constexpr,
):
    """Pairs of keys as they are to be stored, float32: loaded, normalised, rotated."""
    first, second = load_pairs(at, begin, real, half, tile, interleaved)
    first = first.to(tl.float32)
    second = second.to(tl.float32)
    if inverse is not None:
        first *= inverse
        second *= inverse
        if weight_at is not None:
            weight_1, weight_2 = load_pairs(weight_at, begin, real, half, tile, interleaved)
            first *= weight_1.to(tl.float32)
            second *= weight_2.to(tl.float32)
        c, s = load_angles(cos, sin, angle, begin, real, half, tile)
        first, second = turn(first, second, c, s)
    return first, second


@triton.jit
def _keys(
    source,
    weight,
    inverse,
    cos,
    sin,
    codes,
    scale,
    zero,
    pages,
    tokens,
    source_plane,
    source_token,
    code_page,
    code_token,
    heads: tl.constexpr,
    half: tl.constexpr,
    pair_tile: tl.constexpr,
    block_t: tl.constexpr,
    interleaved: tl.constexpr,
    largest: tl.constexpr,
    smallest: tl.constexpr,
    whole: tl.constexpr,
):
    begin = tl.program_id(0) * pair_tile
    head = tl.program_id(1)
    plane = tl.program_id(2).to(tl.int64)
    page = tl.load(pages + plane).to(tl.int64)
    block = head * (2 * half)
    low_1 = tl.full([pair_tile], float("inf"), tl.float32)
    low_2 = tl.full([pair_tile], float("inf"), tl.float32)
    high_1 = tl.full([pair_tile], float("-inf"), tl.float32)
    high_2 = tl.full([pair_tile], float("-inf"), tl.float32)
    weight_at = None if weight is None else weight + block + tl.zeros([block_t, 1], tl.int32)
    for start in range(0, tokens, block_t):
        t_at = (start + tl.arange(0, block_t))[:, None]
        real = t_at < tokens
        norm = None if inverse is None else tl.load(inverse + plane * tokens + t_at, mask=real, other=0.0)
        at = source + plane * source_plane + t_at * source_token + block
        angle = (plane * tokens + t_at) * (heads * half) + head * half
        first, second = _finished(at, weight_at, norm, cos, sin, angle, begin, real, half, pair_tile, interleaved)
        low_1 = tl.minimum(low_1, tl.min(tl.where(real, first, float("inf")), 0))
        low_2 = tl.minimum(low_2, tl.min(tl.where(real, second, float("inf")), 0))
        high_1 = tl.maximum(high_1, tl.max(tl.where(real, first, float("-inf")), 0))
        high_2 = tl.maximum(high_2, tl.max(tl.where(real, second, float("-inf")), 0))
    zero_1 = (low_1 * 0.5 + high_1 * 0.5)[None, :]
    zero_2 = (low_2 * 0.5 + high_2 * 0.5)[None, :]
    step_1 = tl.maximum((high_1 * 0.5 - low_1 * 0.5) / largest, smallest)[None, :]
    step_2 = tl.maximum((high_2 * 0.5 - low_2 * 0.5) / largest, smallest)[None, :]
    ends = page * (heads * 2 * half) + block + tl.zeros([1, 1], tl.int32)
    here = ends >= 0
    store_pairs(scale + ends, step_1, step_2, begin, here, half, pair_tile, interleaved)
    store_pairs(zero + ends, zero_1, zero_2, begin, here, half, pair_tile, interleaved)
    for start in range(0, tokens, block_t):
        t_at = (start + tl.arange(0, block_t))[:, None]
        real = t_at < tokens
        norm = None if inverse is None else tl.load(inverse + plane * tokens + t_at, mask=real, other=0.0)
        at = source + plane * source_plane + t_at * source_token + block
        angle = (plane * tokens + t_at) * (heads * half) + head * half
        first, second = _finished(at, weight_at, norm, cos, sin, angle, begin, real, half, pair_tile, interleaved)
        # Beyond the last token there is nothing, which a channel that is even divides by next to nothing.
        first = encode(tl.where(real, first - zero_1, 0.0) / step_1, largest, whole)
        second = encode(tl.where(real, second - zero_2, 0.0) / step_2, largest, whole)
        to_ptr = codes + page * code_page + t_at * code_token + block
        store_pairs(to_ptr, first, second, begin, real, half, pair_tile, interleaved)


@triton.jit
def _values(
    source,
    keys,
    inverse,
    codes,
    scale,
    pages,
    tokens,
    eps,
    source_plane,
    source_token,
    keys_plane,
    keys_token,
    code_page,
    code_token,
    width: tl.constexpr,
    width_tile: tl.constexpr,
    largest: tl.constexpr,
    smallest: tl.constexpr,
    whole: tl.constexpr,
):
    token = tl.program_id(0)
    plane = tl.program_id(1).to(tl.int64)
    page = tl.load(pages + plane).to(tl.int64)
    channel = tl.arange(0, width_tile)
    real = channel < width
    x = tl.load(source + plane * source_plane + token * source_token + channel, mask=real, other=0.0).to(tl.float32)
    step = tl.maximum(tl.max(tl.abs(x), 0) / largest, smallest)
    tl.store(scale + page * tokens + token, step)
    units = encode(x / step, largest, whole)
    tl.store(codes + page * code_page + token * code_token + channel, units.to(codes.dtype.element_ty), mask=real)
    if keys is not None:
        k = tl.load(keys + plane * keys_plane + token * keys_token + channel, mask=real, other=0.0).to(tl.float32)
        tl.store(inverse + plane * tokens + token, 1.0 / tl.sqrt(tl.sum(k * k, 0) / width + eps))


@triton.jit
def _read_values(
    codes,
    scale,
    target,
    tokens,
    code_plane,
    code_token,
    target_plane,
    target_token,
    width: tl.constexpr,
    width_tile: tl.constexpr,
):
    token = tl.program_id(0)
    plane = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, width_tile)
    real = channel < width
    x = tl.load(codes + plane * code_plane + token * code_token + channel, mask=real, other=0.0).to(tl.float32)
    x *= tl.load(scale + plane * tokens + token)
    to_ptr = target + plane * target_plane + token * target_token + channel
    tl.store(to_ptr, x.to(target.dtype.element_ty), mask=real)


def prepare_keys(
    source: torch.Tensor,
    target: QuantisedKeys,
    pages: Sequence[int],
    layout: RotaryLayout,
    finish: Mapping[str, torch.Tensor | None] | None = None,
) -> Launch:
    """Codes of ``source`` [planes, tokens, W] into pages ``pages`` of ``target``.

    ``finish``: ``weight``, ``inverse``, ``cos`` and ``sin`` of a norm and a rotation that come first.
    """
    planes, tokens, width = _check(source, target.codes, pages)
    for name, ends in (("scale", target.scale), ("zero", target.zero)):
        _check_ends(name, ends, (target.codes.shape[0], width))
    half = width // (2 * layout.heads)
    require(width == 2 * half * layout.heads, f"width {width} does not divide into pairs of {layout.heads} heads")
    tile = min(CHANNEL_PAIRS, power_of_two(half))
    arguments = {
        "source": source,
        **(finish or {"weight": None, "inverse": None, "cos": None, "sin": None}),
        "codes": target.codes,
        "scale": target.scale,
        "zero": target.zero,
        "pages": on_device((tuple(pages),), source.device),
        "tokens": tokens,
        "source_plane": source.stride(0),
        "source_token": source.stride(1),
        "code_page": target.codes.stride(0),
        "code_token": target.codes.stride(1),
        "heads": layout.heads,
        "half": half,
        "pair_tile": tile,
        "block_t": CHANNEL_TOKENS,
        "interleaved": layout.kind == "interleaved",
        **numbers(target.codes.dtype),
    }
    return Launch(_keys, (-(-half // tile), layout.heads, planes), arguments)


def prepare_values(
    source: torch.Tensor,
    target: QuantisedValues,
    pages: Sequence[int],
    keys: torch.Tensor | None = None,
    inverse: torch.Tensor | None = None,
    eps: float = 0.0,
) -> Launch:
    """Codes of ``source`` [planes, tokens, W] into pages ``pages`` of ``target``.

    With ``keys``, of the same shape, ``inverse`` [planes, tokens] gets 1 / √(mean of their squares + ``eps``).
    """
    planes, tokens, width = _check(source, target.codes, pages)
    _check_ends("scale", target.scale, (target.codes.shape[0], tokens))
    arguments = {
        "source": source,
        "keys": keys,
        "inverse": inverse,
        "codes": target.codes,
        "scale": target.scale,
        "pages": on_device((tuple(pages),), source.device),
        "tokens": tokens,
        "eps": float(eps),
        "source_plane": source.stride(0),
        "source_token": source.stride(1),
        "keys_plane": 0 if keys is None else keys.stride(0),
        "keys_token": 0 if keys is None else keys.stride(1),
        "code_page": target.codes.stride(0),
        "code_token": target.codes.stride(1),
        "width": width,
        "width_tile": power_of_two(width),
        **numbers(target.codes.dtype),
    }
    return Launch(_values, (tokens, planes), arguments)


def prepare_reading(source: QuantisedValues, target: torch.Tensor) -> Launch:
    """What ``source`` [planes, tokens, W] stands for, into ``target`` of that shape."""
    planes, tokens, width = _check(target, source.codes, range(source.codes.shape[0]))
    require(source.codes.shape == target.shape, f"codes {tuple(source.codes.shape)} for {tuple(target.shape)}")
    _check_ends("scale", source.scale, (planes, tokens))
    arguments = {
        "codes": source.codes,
        "scale": source.scale,
        "target": target,
        "tokens": tokens,
        "code_plane": source.codes.stride(0),
        "code_token": source.codes.stride(1),
        "target_plane": target.stride(0),
        "target_token": target.stride(1),
        "width": width,
        "width_tile": power_of_two(width),
    }
    return Launch(_read_values, (tokens, planes), arguments)


def blocks_of(width: int) -> RotaryLayout:
    """A token cut into the fewest equal blocks of 128 elements at the most: what the kernels of keys take in one go."""
    require(width % 2 == 0, f"width is {width}; expected an even one")
    pairs = width // 2
    return RotaryLayout("interleaved", next(n for n in range(1, pairs + 1) if pairs % n == 0 and pairs // n <= 64))


def numbers(dtype: torch.dtype) -> dict[str, Any]:
    """What the kernels must know of codes of type ``dtype``."""
    require(dtype in LARGEST, f"codes are {dtype}; expected one of {', '.join(map(str, LARGEST))}")
    return {"largest": LARGEST[dtype], "smallest": SMALLEST, "whole": dtype == torch.int8}


def _check(source: torch.Tensor, codes: torch.Tensor, pages: Sequence[int]) -> tuple[int, int, int]:
    require_rows("source", source, 3)
    require_rows("codes", codes, 3)
    planes, tokens, width = source.shape
    require(source.dtype in SOURCES, f"source is {source.dtype}; expected one of {', '.join(map(str, SOURCES))}")
    require(codes.shape[1:] == source.shape[1:], f"source is {tuple(source.shape)} but pages {tuple(codes.shape)}")
    require(len(pages) == planes, f"{len(pages)} pages for {planes} planes; expected one each")
    require(len(set(pages)) == len(pages), f"pages {list(pages)} name one twice")
    require_pages(pages, codes.shape[0])
    return planes, tokens, width


def _check_ends(name: str, ends: torch.Tensor, shape: tuple[int, ...]) -> None:
    fits = ends.shape == shape and ends.dtype == torch.float32 and ends.is_contiguous()
    require(fits, f"{name} is {tuple(ends.shape)} {ends.dtype}; expected {shape} float32, contiguous")

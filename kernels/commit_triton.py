"""Keys and values of a chunk into its page, normalised over all heads and rotated, in one pass over memory; Triton.

A program has one token with all its heads, because the norm is over all of them. Pages of codes take two launches: the
scale of a channel needs all tokens.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels.copies import on_device
from kernels.launch import Launch, by_form, power_of_two, require, require_pages, require_rows
from kernels.pairs import load_angles, load_pairs, store_pairs, turn
from kernels.quantised import KeyPages, QuantisedKeys, QuantisedValues, ValuePages
from kernels.quantised_triton import blocks_of, prepare_keys, prepare_values
from kernels.rotary import RotaryLayout

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@triton.jit
def _write(
    key,
    value,
    weight,
    cos,
    sin,
    key_pages,
    value_pages,
    pages,
    tokens,
    eps,
    key_row,
    key_token,
    value_row,
    value_token,
    key_page,
    value_page,
    heads: tl.constexpr,
    head_tile: tl.constexpr,
    half: tl.constexpr,
    half_tile: tl.constexpr,
    interleaved: tl.constexpr,
):
    token = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    page = tl.load(pages + row).to(tl.int64)
    width = heads * 2 * half
    head = tl.arange(0, head_tile)[:, None]
    real = head < heads
    block = head * (2 * half)
    from_ptr = key + row * key_row + token * key_token + block
    first, second = load_pairs(from_ptr, 0, real, half, half_tile, interleaved)
    v_ptr = value + row * value_row + token * value_token + block
    value_1, value_2 = load_pairs(v_ptr, 0, real, half, half_tile, interleaved)
    first = first.to(tl.float32)
    second = second.to(tl.float32)
    square = tl.sum(tl.sum(first * first + second * second, 1), 0) / width
    inverse = 1.0 / tl.sqrt(square + eps)
    first *= inverse
    second *= inverse
    if weight is not None:
        weight_1, weight_2 = load_pairs(weight + block, 0, real, half, half_tile, interleaved)
        first *= weight_1.to(tl.float32)
        second *= weight_2.to(tl.float32)
    angle = (row * tokens + token) * (heads * half) + head * half
    c, s = load_angles(cos, sin, angle, 0, real, half, half_tile)
    first, second = turn(first, second, c, s)
    k_ptr = key_pages + page * key_page + token * width + block
    store_pairs(k_ptr, first, second, 0, real, half, half_tile, interleaved)
    v_ptr = value_pages + page * value_page + token * width + block
    store_pairs(v_ptr, value_1, value_2, 0, real, half, half_tile, interleaved)


def write(
    key: torch.Tensor,
    value: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    layout: RotaryLayout,
    key_pages: KeyPages,
    value_pages: ValuePages,
    pages: Sequence[int],
) -> None:
    """As ``kernels.commit.write``."""
    for launch in prepare(key, value, weight, eps, cos, sin, layout, key_pages, value_pages, pages):
        launch.run()


def store_keys(keys: torch.Tensor, pages: KeyPages, page: int) -> None:
    """As ``kernels.commit.store_keys``."""
    if isinstance(pages, QuantisedKeys):
        prepare_keys(keys[None], pages, [page], blocks_of(keys.shape[-1])).run()
    else:
        pages[page].copy_(keys)


def prepare(
    key: torch.Tensor,
    value: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    layout: RotaryLayout,
    key_pages: KeyPages,
    value_pages: ValuePages,
    pages: Sequence[int],
) -> list[Launch]:
    """The launches that write the chunk, in order.

    Raises:
        ValueError: a shape, type, stride or page number with which a kernel would write what it must not.
    """
    if isinstance(key_pages, QuantisedKeys) and isinstance(value_pages, QuantisedValues):
        _check(key, value, weight, cos, sin, layout)
        inverse = torch.empty(key.shape[:2], device=key.device)
        finish = {"weight": weight, "inverse": inverse, "cos": cos, "sin": sin}
        return [
            prepare_values(value, value_pages, pages, key, inverse, eps),
            prepare_keys(key, key_pages, pages, layout, finish),
        ]
    if not (isinstance(key_pages, torch.Tensor) and isinstance(value_pages, torch.Tensor)):
        raise ValueError("keys or values are codes, but not both; expected both or neither")
    launch = _plain(key, value, weight, eps, cos, sin, layout, key_pages, value_pages, tuple(pages))
    stored = {"key_pages": key_pages, "value_pages": value_pages}
    return [launch.of(key=key, value=value, weight=weight, cos=cos, sin=sin, **stored)]


@by_form
def _plain(
    key: torch.Tensor,
    value: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    layout: RotaryLayout,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    pages: tuple[int, ...],
) -> Launch:
    """The launch for pages of elements, without its tensors."""
    _check(key, value, weight, cos, sin, layout)
    rows, tokens, width = key.shape
    for name, stored in (("key_pages", key_pages), ("value_pages", value_pages)):
        require_rows(name, stored, 3)
        require(stored.dtype == key.dtype, f"{name} is {stored.dtype}; expected {key.dtype}, as the key is")
        require(stored.shape[1:] == (tokens, width), f"{name} is {tuple(stored.shape)}; a chunk is {(tokens, width)}")
        require(stored.stride(1) == width, f"{name} has strides {stored.stride()}; expected tokens {width} apart")
        require_pages(pages, stored.shape[0])
    require(len(pages) == rows and len(set(pages)) == rows, f"pages {list(pages)} for {rows} rows; expected one each")
    half = width // (2 * layout.heads)
    arguments = {
        "pages": on_device((pages,), key.device),
        "tokens": tokens,
        "eps": float(eps),
        "key_row": key.stride(0),
        "key_token": key.stride(1),
        "value_row": value.stride(0),
        "value_token": value.stride(1),
        "key_page": key_pages.stride(0),
        "value_page": value_pages.stride(0),
        "heads": layout.heads,
        "head_tile": power_of_two(layout.heads),
        "half": half,
        "half_tile": power_of_two(half),
        "interleaved": layout.kind == "interleaved",
    }
    return Launch(_write, (tokens, rows), arguments)


def _check(
    key: torch.Tensor,
    value: torch.Tensor,
    weight: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    layout: RotaryLayout,
) -> None:
    require_rows("key", key, 3)
    require_rows("value", value, 3)
    rows, tokens, width = key.shape
    require(key.dtype in DTYPES, f"key is {key.dtype}; expected one of {', '.join(map(str, DTYPES))}")
    require(
        value.shape == key.shape and value.dtype == key.dtype,
        f"key is {tuple(key.shape)} {key.dtype} but value {tuple(value.shape)} {value.dtype}",
    )
    require(width % (2 * layout.heads) == 0, f"width {width} does not divide into pairs of {layout.heads} heads")
    if weight is not None:
        fits = weight.shape == (width,) and weight.is_contiguous()
        require(fits, f"weight is {tuple(weight.shape)}; expected ({width},), contiguous")
    for name, angle in (("cos", cos), ("sin", sin)):
        expected = (rows, tokens, width // 2)
        fits = angle.shape == expected and angle.dtype == torch.float32 and angle.is_contiguous()
        require(fits, f"{name} is {tuple(angle.shape)} {angle.dtype}; expected {expected} float32, contiguous")

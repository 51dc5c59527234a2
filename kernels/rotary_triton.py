"""Rotation of queries, of stored keys in place, and of codes as they are restored; Triton, one pass over memory."""

import torch
import triton
import triton.language as tl

from kernels.configurations import LARGEST_HEAD, STREAM_TOKENS
from kernels.launch import Launch, by_form, power_of_two, require, require_rows
from kernels.pairs import load_angles, load_pairs, store_pairs, turn
from kernels.quantised import LARGEST, QuantisedKeys
from kernels.rotary import RotaryLayout

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@triton.jit
def _rotate(
    source,
    target,
    cos,
    sin,
    scale,
    zero,
    tokens,
    source_plane,
    source_token,
    target_plane,
    target_token,
    angle_plane,
    angle_token,
    heads: tl.constexpr,
    half: tl.constexpr,
    half_tile: tl.constexpr,
    block_t: tl.constexpr,
    interleaved: tl.constexpr,
):
    head = tl.program_id(1)
    plane = tl.program_id(2).to(tl.int64)
    t_at = (tl.program_id(0) * block_t + tl.arange(0, block_t))[:, None]
    real = t_at < tokens
    block = head * (2 * half)
    from_ptr = source + plane * source_plane + t_at * source_token + block
    first, second = load_pairs(from_ptr, 0, real, half, half_tile, interleaved)
    if scale is not None:
        # One row of "blocks": the ends of the channels of this head.
        channel = plane * (heads * 2 * half) + block + tl.zeros([1, 1], tl.int32)
        here = channel >= 0
        step_1, step_2 = load_pairs(scale + channel, 0, here, half, half_tile, interleaved)
        zero_1, zero_2 = load_pairs(zero + channel, 0, here, half, half_tile, interleaved)
        first = first.to(tl.float32) * step_1 + zero_1
        second = second.to(tl.float32) * step_2 + zero_2
    angle = plane * angle_plane + t_at * angle_token + head * half
    c, s = load_angles(cos, sin, angle, 0, real, half, half_tile)
    first, second = turn(first, second, c, s)
    to_ptr = target + plane * target_plane + t_at * target_token + block
    store_pairs(to_ptr, first, second, 0, real, half, half_tile, interleaved)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: RotaryLayout) -> torch.Tensor:
    """As ``kernels.rotary.rotate``."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    prepare(x, out, cos, sin, layout).run()
    return out


def relocate(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: RotaryLayout) -> None:
    """As ``kernels.relocate.relocate``; every element is read and written once."""
    prepare(keys, keys, cos, sin, layout).run()


def restore(
    codes: QuantisedKeys, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: RotaryLayout
) -> None:
    """As ``kernels.relocate.restore``."""
    prepare(codes, keys, cos, sin, layout).run()


def prepare(
    source: torch.Tensor | QuantisedKeys,
    target: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    layout: RotaryLayout,
) -> Launch:
    """Rotate ``source`` [..., tokens, W] into ``target`` of that shape, which may be the same memory.

    Raises:
        ValueError: a shape, type or stride that the kernel cannot take.
    """
    codes = source if isinstance(source, torch.Tensor) else source.codes
    scale, zero = (None, None) if isinstance(source, torch.Tensor) else (source.scale, source.zero)
    read, written, one, other = (
        _planes(name, x) for name, x in (("keys", codes), ("target", target), ("cos", cos), ("sin", sin))
    )
    require(codes.shape == target.shape, f"source is {tuple(codes.shape)} but target {tuple(target.shape)}")
    launch = _launch(read, written, one, other, scale, zero, layout)
    return launch.of(source=read, target=written, cos=one, sin=other, scale=scale, zero=zero)


@by_form
def _launch(
    read: torch.Tensor,
    written: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    scale: torch.Tensor | None,
    zero: torch.Tensor | None,
    layout: RotaryLayout,
) -> Launch:
    """The launch for planes of this form, without its tensors."""
    for name, x in (("keys", read), ("target", written), ("cos", cos), ("sin", sin)):
        require_rows(name, x, 3)
    planes, tokens, width = read.shape
    require(width % (2 * layout.heads) == 0, f"width {width} does not divide into pairs of {layout.heads} heads")
    require(
        width <= LARGEST_HEAD * layout.heads, f"heads have {width // layout.heads} elements; at most {LARGEST_HEAD}"
    )
    require(written.dtype in DTYPES, f"keys are {written.dtype}; expected one of {', '.join(map(str, DTYPES))}")
    _check_ends(read, scale, zero)
    expected = (width // 2,)
    for angle in (cos, sin):
        fits = angle.shape[0] in (1, planes) and angle.shape[1] in (1, tokens) and angle.shape[2:] == expected
        require(fits, f"angles are {tuple(angle.shape)}; expected {expected} or as many as of keys {tuple(read.shape)}")
        require(angle.dtype == torch.float32, f"angles are {angle.dtype}; expected float32")
    require(cos.stride() == sin.stride(), "cos and sin lie differently in memory")
    half = width // (2 * layout.heads)
    arguments = {
        "tokens": tokens,
        "source_plane": read.stride(0),
        "source_token": read.stride(1),
        "target_plane": written.stride(0),
        "target_token": written.stride(1),
        "angle_plane": cos.stride(0) if cos.shape[0] > 1 else 0,
        "angle_token": cos.stride(1) if cos.shape[1] > 1 else 0,
        "heads": layout.heads,
        "half": half,
        "half_tile": power_of_two(half),
        "block_t": STREAM_TOKENS,
        "interleaved": layout.kind == "interleaved",
    }
    return Launch(_rotate, (-(-tokens // STREAM_TOKENS), layout.heads, planes), arguments)


def _check_ends(read: torch.Tensor, scale: torch.Tensor | None, zero: torch.Tensor | None) -> None:
    """Codes [planes, tokens, W] have a scale and a zero for each channel of each plane, and nothing else has."""
    types = DTYPES if scale is None else tuple(LARGEST)
    what = "keys" if scale is None else "codes"
    require(read.dtype in types, f"{what} are {read.dtype}; expected one of {', '.join(map(str, types))}")
    for name, ends in (("scale", scale), ("zero", zero)):
        if ends is not None:
            expected = read.shape[0] * read.shape[2]
            fits = ends.numel() == expected and ends.dtype == torch.float32 and ends.is_contiguous()
            require(fits, f"{name} is {tuple(ends.shape)} {ends.dtype}; expected {expected} float32, contiguous")


def _planes(name: str, x: torch.Tensor) -> torch.Tensor:
    """``x`` as [planes, tokens, W] without copying."""
    while x.dim() < 3:
        x = x.unsqueeze(0)
    try:
        x = x.view(-1, *x.shape[-2:]) if x.dim() > 3 else x
    except RuntimeError:
        raise ValueError(f"{name} has strides {x.stride()}; expected the outer dimensions to be one") from None
    return x

"""AdaStat of a batch of sessions, each towards its own reference; Triton.

A program has some channels of one row and reads their tokens three times, the second and third time from the cache:
mean, then squares about that mean (stable for any offset), then the blend. Sums are float64, as the reference's are: a
chunk has so few latents (0.6 MB at 768 tokens) that the launch costs more than the arithmetic.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.adastat import Corrected, reference_floor
from kernels.configurations import STATISTICS_CHANNELS, STATISTICS_TOKENS
from kernels.launch import Launch, require, require_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def _adastat(
    x,
    out,
    mean,
    std,
    distance,
    to_mean,
    to_std,
    strength,
    floor,
    tokens,
    channels,
    x_row,
    x_token,
    block_c: tl.constexpr,
    block_t: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    c_at = tl.program_id(0) * block_c + tl.arange(0, block_c)
    real_c = c_at < channels
    from_ptr = x + row * x_row + c_at[None, :]
    total = tl.zeros([block_c], tl.float64)
    for start in range(0, tokens, block_t):
        t_at = start + tl.arange(0, block_t)
        real = (t_at < tokens)[:, None] & real_c[None, :]
        part = tl.load(from_ptr + t_at[:, None] * x_token, mask=real, other=0.0).to(tl.float32)
        total += tl.sum(part.to(tl.float64), 0)
    own_mean = total / tokens
    squares = tl.zeros([block_c], tl.float64)
    for start in range(0, tokens, block_t):
        t_at = start + tl.arange(0, block_t)
        real = (t_at < tokens)[:, None] & real_c[None, :]
        part = tl.load(from_ptr + t_at[:, None] * x_token, mask=real, other=0.0).to(tl.float32)
        centred = tl.where(real, part.to(tl.float64) - own_mean[None, :], 0.0)
        squares += tl.sum(centred * centred, 0)
    own_std = tl.sqrt(squares / tokens)
    at = row * channels + c_at
    tl.store(mean + at, own_mean, mask=real_c)
    tl.store(std + at, own_std, mask=real_c)
    if out is not None:
        s = tl.load(strength + row)
        least = tl.load(floor + row)
        ref_mean = tl.load(to_mean + at, mask=real_c, other=0.0)
        ref_std = tl.load(to_std + at, mask=real_c, other=1.0)
        spread = tl.maximum(ref_std, least)
        shift = (own_mean - ref_mean) / spread
        ratio = tl.log(tl.maximum(own_std, least) / spread)
        tl.store(distance + at, shift * shift + ratio * ratio, mask=real_c)
        scale = tl.where(own_std > 0, ref_std / tl.where(own_std > 0, own_std, 1.0), 0.0)
        centre = own_mean + s * (ref_mean - own_mean)
        gain = 1.0 - s + s * scale
        for start in range(0, tokens, block_t):
            t_at = start + tl.arange(0, block_t)
            real = (t_at < tokens)[:, None] & real_c[None, :]
            stored = tl.load(from_ptr + t_at[:, None] * x_token, mask=real, other=0.0)
            wide = stored.to(tl.float32).to(tl.float64)
            blended = centre[None, :] + (wide - own_mean[None, :]) * gain[None, :]
            # Through float32 twice rounded: float64 has no way to the small types of its own.
            narrow = blended.to(tl.float32).to(out.dtype.element_ty)
            to_ptr = out + (row * tokens + t_at[:, None]) * channels + c_at[None, :]
            tl.store(to_ptr, tl.where(s == 0, stored, narrow), mask=real)


def channel_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``kernels.adastat.channel_statistics``."""
    rows = x.reshape(-1, *x.shape[-2:])
    launch = prepare(rows, None)
    launch.run()
    mean, std = (launch.arguments[name].view(*x.shape[:-2], x.shape[-1]) for name in ("mean", "std"))
    return mean, std


def correct(
    x: torch.Tensor, reference_mean: torch.Tensor, reference_std: torch.Tensor, strength: torch.Tensor
) -> Corrected:
    """As ``kernels.adastat.correct``; the host waits for nothing."""
    launch = prepare(x, (reference_mean, reference_std, strength))
    launch.run()
    done = launch.arguments
    return Corrected(done["out"], done["mean"], done["std"], done["distance"].mean(-1).sqrt())


def prepare(x: torch.Tensor, towards: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None) -> Launch:
    """Statistics of ``x`` [rows, tokens, channels] and, ``towards`` means, spreads and strengths, its correction.

    Raises:
        ValueError: a shape, type or stride that the kernel cannot take.
    """
    require_rows("x", x, 3)
    rows, tokens, channels = x.shape
    require(tokens > 0, f"x has shape {tuple(x.shape)}; expected one or more tokens")
    require(x.dtype in DTYPES, f"x is {x.dtype}; expected one of {', '.join(map(str, DTYPES))}")
    found = torch.empty(3, rows, channels, dtype=torch.float64, device=x.device)
    arguments = {
        "x": x,
        "mean": found[0],
        "std": found[1],
        "distance": found[2],
        **_towards(x, towards),
        "tokens": tokens,
        "channels": channels,
        "x_row": x.stride(0),
        "x_token": x.stride(1),
        "block_c": STATISTICS_CHANNELS,
        "block_t": STATISTICS_TOKENS,
    }
    return Launch(_adastat, (-(-channels // STATISTICS_CHANNELS), rows), arguments)


def _towards(x: torch.Tensor, towards: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None) -> dict[str, Any]:
    if towards is None:
        return dict.fromkeys(("out", "to_mean", "to_std", "strength", "floor"))
    rows, _, channels = x.shape
    names = ("reference_mean", "reference_std", "strength")
    for name, given, shape in zip(names, towards, ((rows, channels), (rows, channels), (rows,)), strict=True):
        fits = given.shape == shape and given.dtype == torch.float64 and given.is_contiguous()
        require(fits, f"{name} is {tuple(given.shape)} {given.dtype}; expected {shape} float64, contiguous")
    mean, std, strength = towards
    return {
        "out": torch.empty_like(x, memory_format=torch.contiguous_format),
        "to_mean": mean,
        "to_std": std,
        "strength": strength,
        "floor": reference_floor(std),
    }

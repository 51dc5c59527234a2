"""Keys and values as codecs meet them: every type, odd sizes, and the distributions that break careless ones."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2)
WIDE = FLOATS[:3]
TOKENS = (1, 2, 7, 8, 16, 63, 64, 65, 100, 130)
WIDTHS = (1, 3, 16, 63, 64, 65, 100, 130)
KINDS = ("normal", "outliers", "off centre", "constant", "zeros", "tiny", "huge", "heavy", "bits")


@dataclass(frozen=True)
class Drawn:
    """One tensor and what it is, for the message of a failing test."""

    kind: str
    tensor: torch.Tensor


def of_kind(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A tensor [layers, 2, tokens, width] of a distribution; finite unless ``kind`` is "bits"."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "bits":
        count = 1
        for side in shape:
            count *= side
        raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
        return raw.view(dtype).view(shape)
    x = torch.randn(shape, generator=generator)
    largest = torch.finfo(dtype).max
    if kind == "outliers":
        x[..., :: max(1, shape[-1] // 3)] *= 100
    elif kind == "off centre":
        x = x * 0.01 + torch.randn(shape[-1], generator=generator) * 5
    elif kind == "constant":
        x = x[..., :1, :].expand(shape).clone()
    elif kind == "zeros":
        x[..., ::2] = 0
        x[0] = -0.0
    elif kind == "tiny":
        x = x * torch.finfo(dtype).smallest_normal
    elif kind == "huge":
        x = x.clamp(-2, 2) * (largest / 2)
    elif kind == "heavy":
        x = x / torch.randn(shape, generator=generator).abs().clamp(min=1e-3)
    return x.clamp(-largest, largest).to(dtype)


@st.composite
def key_values(
    draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = FLOATS, kinds: tuple[str, ...] = KINDS, least: int = 1
) -> Drawn:
    """Keys and values of some layers, contiguous or a view of something larger, of ``least`` tokens or more."""
    tokens = draw(st.sampled_from([n for n in TOKENS if n >= least]))
    shape = (draw(st.integers(1, 2)), 2, tokens, draw(st.sampled_from(WIDTHS)))
    kind, dtype, seed = draw(st.sampled_from(kinds)), draw(st.sampled_from(dtypes)), draw(st.integers(0, 9))
    tensor = of_kind(kind, shape, dtype, seed)
    if draw(st.booleans()):
        tensor = strided(tensor)
    return Drawn(kind, tensor)


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same elements as a view of a page among others, as they lie in the pool."""
    pages = torch.zeros(*tensor.shape[:2], 3, *tensor.shape[2:], dtype=tensor.dtype)
    pages[:, :, 1] = tensor
    return pages[:, :, 1]


def bits(tensor: torch.Tensor) -> bytes:
    """Every bit of a tensor, for comparing what ``==`` would not."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()

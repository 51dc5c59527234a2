"""Pages in codes of eight bits: keys by channel of a page, values by token; plain-torch reference.

Keys have channels that are loud and off centre for all tokens of a chunk, so each has a scale and a zero point of its
own; values have loud tokens, and zero stays zero (KIVI, arXiv 2402.02750, who also find keys by channel, values by
token).
"""

from dataclasses import dataclass

import torch

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
SMALLEST = 2.0**-126  # of a scale: its inverse is finite


@dataclass(frozen=True)
class QuantisedKeys:
    """``codes`` [..., tokens, W] int8 or float8_e4m3fn; ``scale`` and ``zero`` [..., W] float32 by channel."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """What the codes stand for: code × scale + zero."""
        return (self.codes.float() * self.scale.unsqueeze(-2) + self.zero.unsqueeze(-2)).to(dtype)


@dataclass(frozen=True)
class QuantisedValues:
    """``codes`` [..., tokens, W] int8 or float8_e4m3fn; ``scale`` [..., tokens] float32 by token."""

    codes: torch.Tensor
    scale: torch.Tensor

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """What the codes stand for: code × scale."""
        return (self.codes.float() * self.scale.unsqueeze(-1)).to(dtype)


KeyPages = torch.Tensor | QuantisedKeys
ValuePages = torch.Tensor | QuantisedValues


def quantise_keys(x: torch.Tensor, dtype: torch.dtype) -> QuantisedKeys:
    """Codes of ``x`` [..., tokens, W]; half a step of error at the most for int8, 1/16 of the code for fp8."""
    x = x.float()
    low, high = x.amin(-2), x.amax(-2)
    zero = low * 0.5 + high * 0.5
    scale = ((high * 0.5 - low * 0.5) / LARGEST[dtype]).clamp(min=SMALLEST)
    return QuantisedKeys(to_codes((x - zero.unsqueeze(-2)) / scale.unsqueeze(-2), dtype), scale, zero)


def quantise_values(x: torch.Tensor, dtype: torch.dtype) -> QuantisedValues:
    """Codes of ``x`` [..., tokens, W]."""
    x = x.float()
    scale = (x.abs().amax(-1) / LARGEST[dtype]).clamp(min=SMALLEST)
    return QuantisedValues(to_codes(x / scale.unsqueeze(-1), dtype), scale)


def empty_keys(pages: int, tokens: int, width: int, dtype: torch.dtype, device: torch.device | str) -> QuantisedKeys:
    """Pages whose contents are undefined until written."""
    ends = torch.empty(2, pages, width, device=device)
    return QuantisedKeys(torch.empty(pages, tokens, width, dtype=dtype, device=device), ends[0], ends[1])


def empty_values(
    pages: int, tokens: int, width: int, dtype: torch.dtype, device: torch.device | str
) -> QuantisedValues:
    """Pages whose contents are undefined until written."""
    codes = torch.empty(pages, tokens, width, dtype=dtype, device=device)
    return QuantisedValues(codes, torch.empty(pages, tokens, device=device))


def to_codes(units: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Multiples of a scale as codes, to nearest, halves to even; what is too large becomes the largest."""
    largest = LARGEST[dtype]
    units = units.clamp(-largest, largest)
    return (units.round() if dtype == torch.int8 else units).to(dtype)

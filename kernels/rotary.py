"""Rotary embedding in the two layouts of the LTX-2 family; plain-torch reference."""

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class RotaryLayout:
    """Which two elements of a token of width ``W`` form the pair ``p`` of ``W // 2``.

    ``interleaved``: elements 2p and 2p + 1 of the whole width. ``split``: the width is cut into ``heads`` blocks and
    pair p lies at offset p mod r in both halves of block p // r, r = W / (2 · heads).
    """

    kind: Literal["interleaved", "split"]
    heads: int


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: RotaryLayout) -> torch.Tensor:
    """Rotate the pairs of ``x`` [..., W] by the angles whose ``cos`` and ``sin`` [..., W // 2] broadcast against it.

    Computed in float32, returned in the type of ``x``.
    """
    if layout.kind == "interleaved":
        first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        pairs = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return pairs.flatten(-2).to(x.dtype)
    first, second = x.float().unflatten(-1, (layout.heads, 2, -1)).unbind(-2)
    cos, sin = cos.unflatten(-1, (layout.heads, -1)), sin.unflatten(-1, (layout.heads, -1))
    halves = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-2)
    return halves.flatten(-3).to(x.dtype)

"""Bring stored keys to another position on the time axis by rotating them; plain-torch reference."""

import torch

from kernels.quantised import QuantisedKeys
from kernels.rotary import RotaryLayout, rotate


def relocate(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: RotaryLayout) -> None:
    """Rotate ``keys`` [..., tokens, W] in place by one angle per pair, ``cos`` and ``sin`` [W // 2].

    Rotations add up, so keys encoded for time t and rotated by ω·Δ are the keys encoded for t + Δ, up to the rounding
    of the stored type. Spatial and padded pairs have angle 0 and do not change.
    """
    keys.copy_(rotate(keys, cos, sin, layout))


def restore(
    codes: QuantisedKeys, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: RotaryLayout
) -> None:
    """Write what ``codes`` [..., tokens, W] stand for into ``keys`` of that shape, rotated as ``relocate`` does."""
    keys.copy_(rotate(codes.read(torch.float32), cos, sin, layout))

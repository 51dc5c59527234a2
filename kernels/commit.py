"""Write the keys and values of a chunk into its page: norm over all heads, rotation, store; plain-torch reference."""

from collections.abc import Sequence

import torch
from torch.nn.functional import rms_norm

from kernels.rotary import RotaryLayout, rotate


def write(
    key: torch.Tensor,
    value: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    layout: RotaryLayout,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    pages: Sequence[int],
) -> None:
    """Normalise and rotate ``key`` [rows, tokens, W], then store row i of key and value in page ``pages[i]``.

    ``weight`` [W] and ``eps`` are those of the norm across heads; ``cos`` and ``sin`` are [rows, tokens, W // 2].
    ``key_pages`` and ``value_pages`` [pages, tokens, W] are written in place; rows of ``pages`` must differ.
    """
    rotated = rotate(rms_norm(key, key.shape[-1:], weight, eps), cos, sin, layout)
    for row, page in enumerate(pages):
        key_pages[page].copy_(rotated[row])
        value_pages[page].copy_(value[row])

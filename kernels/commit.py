"""Write the keys and values of a chunk into its page: norm over all heads, rotation, store; plain-torch reference."""

from collections.abc import Sequence

import torch
from torch.nn.functional import rms_norm

from kernels.quantised import KeyPages, QuantisedKeys, QuantisedValues, ValuePages, quantise_keys, quantise_values
from kernels.rotary import RotaryLayout, rotate


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
    """Normalise and rotate ``key`` [rows, tokens, W], then store row i of key and value in page ``pages[i]``.

    ``weight`` [W] and ``eps`` are those of the norm across heads; ``cos`` and ``sin`` are [rows, tokens, W // 2].
    ``key_pages`` and ``value_pages`` [pages, tokens, W], or codes of that shape, are written in place; no page may
    stand twice in ``pages``.
    """
    rotated = rotate(rms_norm(key, key.shape[-1:], weight, eps), cos, sin, layout)
    for row, page in enumerate(pages):
        store_keys(rotated[row], key_pages, page)
        _store_values(value[row], value_pages, page)


def store_keys(keys: torch.Tensor, pages: KeyPages, page: int) -> None:
    """Store ``keys`` [tokens, W], which are finished, in page ``page`` of ``pages`` [pages, tokens, W] or codes."""
    if isinstance(pages, QuantisedKeys):
        found = quantise_keys(keys, pages.codes.dtype)
        pages.codes[page], pages.scale[page], pages.zero[page] = found.codes, found.scale, found.zero
    else:
        pages[page].copy_(keys)


def _store_values(values: torch.Tensor, pages: ValuePages, page: int) -> None:
    if isinstance(pages, QuantisedValues):
        found = quantise_values(values, pages.codes.dtype)
        pages.codes[page], pages.scale[page] = found.codes, found.scale
    else:
        pages[page].copy_(values)

"""Queries that become codes as the keys they are multiplied with are; plain-torch reference.

Keys × queries then is a product of eight bits, twice as fast as one of sixteen, and no key is turned to the number it
stands for (SageAttention, arXiv 2410.02367). A page's keys have a scale and a zero by channel, so the scale goes into
the queries before they are coded, each query with a scale of its own, and what the zero adds is the same for all keys
of the page. In e4m3 each number of a query gets an error of 1/16 at the most, as those of keys have; as int8 all get
one of half a step of the query's largest, so where one channel is loud the others lose what fp8 keeps.
"""

import torch

from kernels.quantised import LARGEST, QuantisedKeys, to_codes

# Few queries wait for memory and not for products, and a short page is turned to numbers sooner than the queries to
# codes. So the sound of LTX-2, with 25 tokens a chunk, is left as exact as its pages are.
FEW_QUERIES = SHORT_PAGE = 32
LEAST = 1e-30  # of a query's scale: its inverse is finite


def pays(queries: int, tokens: int) -> bool:
    """Whether ``queries`` of a row become codes to be multiplied with pages of ``tokens``; our choice, not measured."""
    return queries > FEW_QUERIES and tokens > SHORT_PAGE


def logits(query: torch.Tensor, keys: QuantisedKeys, heads: int) -> torch.Tensor:
    """Products [heads, queries, tokens] of ``query`` [queries, W] with one page [tokens, W], float32."""
    by_head = [x.float().unflatten(-1, (heads, -1)) for x in (query, keys.codes, keys.scale, keys.zero)]
    q, k, scale, zero = (x.movedim(-2, 0) for x in by_head)
    scaled = q * scale.unsqueeze(-2)
    unit = (scaled.abs().amax(-1, keepdim=True) / LARGEST[keys.codes.dtype]).clamp(min=LEAST)
    codes = to_codes(scaled * (1.0 / unit), keys.codes.dtype).float()
    products: torch.Tensor = codes @ k.transpose(-1, -2) * unit + (q * zero.unsqueeze(-2)).sum(-1, keepdim=True)
    return products

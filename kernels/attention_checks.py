"""What attention must be given; a kernel that is given anything else would read what it must not.

Each function raises ``ValueError``, and says what was expected.
"""

from collections.abc import Sequence

import torch

from kernels.attention import BlockTable, Own
from kernels.configurations import LARGEST_HEAD
from kernels.launch import require, require_pages, require_rows
from kernels.quantised import LARGEST, KeyPages, ValuePages

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def codes_of(pages: KeyPages | ValuePages) -> torch.Tensor:
    """What is in the pages: numbers, or codes of numbers."""
    return pages if isinstance(pages, torch.Tensor) else pages.codes


def check_reads(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tables: Sequence[BlockTable], heads: int
) -> None:
    """Queries, pages (or the codes of pages) and block tables fit each other."""
    for name, x in (("query", query), ("key_pages", keys), ("value_pages", values)):
        require_rows(name, x, 3)
    rows, queries, width = query.shape
    require(queries > 0, f"query has shape {tuple(query.shape)}; expected one or more queries")
    require(keys.shape == values.shape, f"keys are {tuple(keys.shape)} but values {tuple(values.shape)}")
    alike = keys.stride()[:2] == values.stride()[:2]
    require(alike, f"keys have strides {keys.stride()} but values {values.stride()}; expected the same")
    require(keys.shape[2] == width, f"query has width {width} but pages {keys.shape[2]}")
    require(heads > 0 and width % heads == 0, f"width {width} does not divide into {heads} heads")
    require(width // heads <= LARGEST_HEAD, f"heads have {width // heads} elements; expected {LARGEST_HEAD} at most")
    require(query.dtype in DTYPES, f"query is {query.dtype}; expected one of {', '.join(map(str, DTYPES))}")
    stored = (query.dtype, *LARGEST)
    require(
        keys.dtype == values.dtype and keys.dtype in stored,
        f"keys are {keys.dtype} and values {values.dtype}; expected the same, of {', '.join(map(str, stored))}",
    )
    require(len(tables) == rows, f"{len(tables)} block tables for {rows} rows; expected one each")
    for table in tables:
        require_pages(table.pages, keys.shape[0])
        require(table.skip_tokens < keys.shape[1], f"{table.skip_tokens} of {keys.shape[1]} tokens skipped")


def check_own(own: Own, query: torch.Tensor, keys: torch.Tensor) -> None:
    """The chunk's own keys and values are as its queries and pages are."""
    expected = (query.shape[0], *keys.shape[1:])
    for name, x in (("own keys", own.keys), ("own values", own.values)):
        require_rows(name, x, 3)
        fits = x.shape == expected and x.dtype == query.dtype
        require(fits, f"{name} are {tuple(x.shape)} {x.dtype}; expected {expected} {query.dtype}")
    alike = own.keys.stride()[:2] == own.values.stride()[:2]
    require(alike, f"own keys have strides {own.keys.stride()} but values {own.values.stride()}; expected the same")
    require(len(own.pages) == len(query), f"{len(own.pages)} own pages for {len(query)} rows; expected one each")


def check_scales(
    keys: torch.Tensor,
    key_scale: torch.Tensor | None,
    key_zero: torch.Tensor | None,
    value_scale: torch.Tensor | None,
) -> None:
    """Pages of codes have scales of their own, and no others have."""
    require(
        (key_scale is None) == (value_scale is None),
        "keys or values are codes, but not both; expected both or neither",
    )
    pages, tokens, width = keys.shape
    for name, ends, shape in (
        ("scale of keys", key_scale, (pages, width)),
        ("zero of keys", key_zero, (pages, width)),
        ("scale of values", value_scale, (pages, tokens)),
    ):
        if ends is None:
            require(keys.dtype not in LARGEST, f"pages are {keys.dtype} without scales")
        else:
            fits = ends.shape == shape and ends.dtype == torch.float32 and ends.is_contiguous()
            require(fits, f"{name} is {tuple(ends.shape)} {ends.dtype}; expected {shape} float32, contiguous")

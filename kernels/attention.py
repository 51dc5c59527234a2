"""Attention of the current chunk over the chunks of its session in scattered pages of the pool; plain-torch reference.

Positions are in the keys, so the order of pages does not matter to the result but for rounding. Consecutive pages are
read as a view; others are gathered by copy (the Triton kernel reads them in place).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from kernels import coded_queries
from kernels.copies import floats_on_device, on_device
from kernels.quantised import KeyPages, QuantisedKeys, QuantisedValues, ValuePages


@dataclass(frozen=True)
class BlockTable:
    """The pages that one row of the batch attends to, the current chunk's own among them.

    Args:
        pages: page numbers in reading order.
        skip_tokens: tokens to leave out at the start of the first page (a subject anchor is right-aligned).
        multiplicity: how many chunks each page stands for (a merged one for several); empty if each for one. The
            logarithm is added to the page's logits, as if its tokens stood there that many times.

    Raises:
        ValueError: there is no page, or something is negative or does not fit.
    """

    pages: tuple[int, ...]
    skip_tokens: int = 0
    multiplicity: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.pages:
            raise ValueError("a row attends to no page; expected one or more, its own among them")
        if self.skip_tokens < 0:
            raise ValueError(f"skip_tokens is {self.skip_tokens}; expected 0 or more")
        if self.multiplicity and (len(self.multiplicity) != len(self.pages) or min(self.multiplicity) < 1):
            raise ValueError(f"multiplicity is {self.multiplicity}; expected 1 or more for {len(self.pages)} pages")

    @property
    def consecutive(self) -> bool:
        """Whether the pages are neighbours, so that reading them copies nothing."""
        return self.pages == tuple(range(self.pages[0], self.pages[0] + len(self.pages)))


@dataclass(frozen=True)
class Own:
    """The current chunk's own keys and values [rows, tokens, W], exact, beside pages of codes.

    They are read instead of page ``pages[i]`` of the table of row i, which may not have been written yet.
    """

    keys: torch.Tensor
    values: torch.Tensor
    pages: tuple[int, ...]

    def at(self, row: int, table: BlockTable) -> int:
        """Where in its table a row's own page stands.

        Raises:
            ValueError: it is not there, or tokens of it are to be skipped.
        """
        if self.pages[row] not in table.pages:
            raise ValueError(f"own page {self.pages[row]} of row {row} is not among {table.pages}")
        at = table.pages.index(self.pages[row])
        if at == 0 and table.skip_tokens:
            raise ValueError(f"{table.skip_tokens} tokens of the chunk's own page are to be skipped; expected none")
        return at


def read(pages: torch.Tensor, table: BlockTable) -> torch.Tensor:
    """Tokens [tokens, W] of the table's pages out of ``pages`` [pages, tokens, W]; a view if they are consecutive."""
    if table.consecutive:
        found = pages[table.pages[0] : table.pages[0] + len(table.pages)]
    else:
        found = pages.index_select(0, _numbers(table, pages.device))
    return found.flatten(0, 1)[table.skip_tokens :]


def attend(
    query: torch.Tensor,
    key_pages: KeyPages,
    value_pages: ValuePages,
    tables: Sequence[BlockTable],
    heads: int,
    own: Own | None = None,
    coded: bool = False,
) -> torch.Tensor:
    """Softmax attention of ``query`` [rows, queries, W], each row over its own pages; returns the shape of ``query``.

    ``key_pages`` and ``value_pages`` are [pages, tokens, W], or codes of that shape; W divides into ``heads``.
    ``coded``: queries become codes where keys are and it pays (``kernels.coded_queries``).
    """
    rows, coded = [], coded and _pays(query, key_pages)
    for i, (row, table) in enumerate(zip(query, tables, strict=True)):
        value = values_of(value_pages, table, row.dtype)
        if own is not None:
            value = _with_own(value, own, i, table, own.values[i])
        if coded:
            weights = logits(row, key_pages, table, heads, i, own, coded).softmax(-1)
            rows.append((weights.to(row.dtype) @ _by_head(value, heads)[0]).transpose(0, 1).flatten(1))
            continue
        key = keys_of(key_pages, table, row.dtype)
        if own is not None:
            key = _with_own(key, own, i, table, own.keys[i])
        q, k, v = (_by_head(x, heads) for x in (row, key, value))
        weight = _log_multiplicity(table, len(key), row) if table.multiplicity else None
        rows.append(scaled_dot_product_attention(q, k, v, attn_mask=weight)[0].transpose(0, 1).flatten(1))
    return torch.stack(rows)


def attend_and_mass(
    query: torch.Tensor,
    key_pages: KeyPages,
    value_pages: ValuePages,
    tables: Sequence[BlockTable],
    heads: int,
    own: Own | None = None,
    coded: bool = False,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What ``attend`` and ``page_mass`` return."""
    attended = attend(query, key_pages, value_pages, tables, heads, own, coded)
    return attended, page_mass(query, key_pages, tables, heads, own, coded)


def logits(
    row: torch.Tensor, key_pages: KeyPages, table: BlockTable, heads: int, i: int, own: Own | None, coded: bool
) -> torch.Tensor:
    """What softmax is taken of, [heads, queries, tokens], float32, for row ``i`` [queries, W] of a batch."""
    if coded and isinstance(key_pages, QuantisedKeys):
        found = []
        for page in table.pages:
            if own is not None and page == own.pages[i]:
                found.append(_products(row, own.keys[i], heads))
            else:
                one = QuantisedKeys(key_pages.codes[page], key_pages.scale[page], key_pages.zero[page])
                found.append(coded_queries.logits(row, one, heads))
        products = torch.cat(found, -1)[..., table.skip_tokens :]
    else:
        key = keys_of(key_pages, table, row.dtype)
        products = _products(row, key if own is None else _with_own(key, own, i, table, own.keys[i]), heads)
    products = products * math.sqrt(heads / row.shape[-1])
    if table.multiplicity:
        products = products + _log_multiplicity(table, products.shape[-1], products)
    return products


def page_lse(
    query: torch.Tensor,
    key_pages: KeyPages,
    tables: Sequence[BlockTable],
    heads: int,
    own: Own | None = None,
    coded: bool = False,
) -> list[torch.Tensor]:
    """Per row, the log-sum-exp [pages, heads, queries] of the logits of each page, float32."""
    found, coded = [], coded and _pays(query, key_pages)
    for i, (row, table) in enumerate(zip(query, tables, strict=True)):
        weights = logits(row, key_pages, table, heads, i, own, coded)
        tokens = (weights.shape[-1] + table.skip_tokens) // len(table.pages)
        sizes = [tokens - table.skip_tokens, *[tokens] * (len(table.pages) - 1)]
        found.append(torch.stack([part.logsumexp(-1) for part in weights.split(sizes, dim=-1)]))
    return found


def page_mass(
    query: torch.Tensor,
    key_pages: KeyPages,
    tables: Sequence[BlockTable],
    heads: int,
    own: Own | None = None,
    coded: bool = False,
) -> list[torch.Tensor]:
    """Per row, each page's share [pages] of the attention, averaged over queries and heads (H2O's accumulated score).

    The share is the softmax over pages of the per-page log-sum-exp of the logits, so no normalised matrix is formed.
    """
    return [lse.softmax(0).mean((1, 2)) for lse in page_lse(query, key_pages, tables, heads, own, coded)]


def keys_of(pages: KeyPages, table: BlockTable, dtype: torch.dtype) -> torch.Tensor:
    """Keys [tokens, W] of the table's pages; codes become ``dtype``."""
    if isinstance(pages, torch.Tensor):
        return read(pages, table)
    chosen = _numbers(table, pages.codes.device)
    some = QuantisedKeys(pages.codes[chosen], pages.scale[chosen], pages.zero[chosen])
    return some.read(dtype).flatten(0, 1)[table.skip_tokens :]


def values_of(pages: ValuePages, table: BlockTable, dtype: torch.dtype) -> torch.Tensor:
    """Values [tokens, W] of the table's pages; codes become ``dtype``."""
    if isinstance(pages, torch.Tensor):
        return read(pages, table)
    chosen = _numbers(table, pages.codes.device)
    return QuantisedValues(pages.codes[chosen], pages.scale[chosen]).read(dtype).flatten(0, 1)[table.skip_tokens :]


def _numbers(table: BlockTable, device: torch.device) -> torch.Tensor:
    return on_device((table.pages,), device)[0]


def _with_own(found: torch.Tensor, own: Own, row: int, table: BlockTable, exact: torch.Tensor) -> torch.Tensor:
    """``found`` [tokens of all pages, W] with ``exact`` [tokens of a page, W] where the row's own page is."""
    begin = own.at(row, table) * len(exact) - table.skip_tokens
    return torch.cat((found[:begin], exact, found[begin + len(exact) :]))


def _log_multiplicity(table: BlockTable, tokens: int, like: torch.Tensor) -> torch.Tensor:
    """What is added to the logits of each of ``tokens`` tokens, [1, tokens]."""
    each = (tokens + table.skip_tokens) // len(table.pages)
    by_page = floats_on_device((tuple(math.log(n) for n in table.multiplicity),), like.device)
    return by_page.repeat_interleave(each, 1)[:, table.skip_tokens :].to(like.dtype)


def _pays(query: torch.Tensor, pages: KeyPages) -> bool:
    """Whether queries [rows, queries, W] become codes, if they may."""
    return isinstance(pages, QuantisedKeys) and coded_queries.pays(query.shape[1], pages.codes.shape[1])


def _products(row: torch.Tensor, keys: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads, queries, tokens] of ``row`` [queries, W] and ``keys`` [tokens, W], float32."""
    q, k = _by_head(row, heads)[0].float(), _by_head(keys, heads)[0].float()
    return q @ k.transpose(-1, -2)


def _by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    by_head: torch.Tensor = x.unflatten(-1, (heads, -1)).transpose(0, 1).unsqueeze(0)
    return by_head

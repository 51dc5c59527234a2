"""Attention of the current chunk over the chunks of its session in scattered pages of the pool; plain-torch reference.

Positions are in the keys, so the order of pages does not matter to the result but for rounding. Consecutive pages are
read as a view; others are gathered by copy (the Triton kernel reads them in place).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class BlockTable:
    """The pages that one row of the batch attends to, the current chunk's own among them.

    Args:
        pages: page numbers in reading order.
        skip_tokens: tokens to leave out at the start of the first page (a subject anchor is right-aligned).
    """

    pages: tuple[int, ...]
    skip_tokens: int = 0

    @property
    def consecutive(self) -> bool:
        """Whether the pages are neighbours, so that reading them copies nothing."""
        return self.pages == tuple(range(self.pages[0], self.pages[0] + len(self.pages)))


def read(pages: torch.Tensor, table: BlockTable) -> torch.Tensor:
    """Tokens [tokens, W] of the table's pages out of ``pages`` [pages, tokens, W]; a view if they are consecutive."""
    if table.consecutive:
        found = pages[table.pages[0] : table.pages[0] + len(table.pages)]
    else:
        found = pages.index_select(0, torch.tensor(table.pages, device=pages.device))
    return found.flatten(0, 1)[table.skip_tokens :]


def attend(
    query: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    tables: Sequence[BlockTable],
    heads: int,
) -> torch.Tensor:
    """Softmax attention of ``query`` [rows, queries, W], each row over its own pages; returns the shape of ``query``.

    ``key_pages`` and ``value_pages`` are [pages, tokens, W]; W divides into ``heads``.
    """
    rows = []
    for row, table in zip(query, tables, strict=True):
        q, k, v = (_by_head(x, heads) for x in (row, read(key_pages, table), read(value_pages, table)))
        rows.append(scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1))
    return torch.stack(rows)


def page_mass(
    query: torch.Tensor, key_pages: torch.Tensor, tables: Sequence[BlockTable], heads: int
) -> list[torch.Tensor]:
    """Per row, each page's share [pages] of the attention, averaged over queries and heads (H2O's accumulated score).

    The share is the softmax over pages of the per-page log-sum-exp of the logits, so no normalised matrix is formed.
    """
    shares = []
    for row, table in zip(query, tables, strict=True):
        q, k = _by_head(row, heads)[0].float(), _by_head(read(key_pages, table), heads)[0].float()
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        tokens = key_pages.shape[1]
        sizes = [tokens - table.skip_tokens, *[tokens] * (len(table.pages) - 1)]
        lse = torch.stack([part.logsumexp(-1) for part in logits.split(sizes, dim=-1)], dim=-1)
        shares.append(lse.softmax(-1).mean((0, 1)))
    return shares


def _by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    by_head: torch.Tensor = x.unflatten(-1, (heads, -1)).transpose(0, 1).unsqueeze(0)
    return by_head

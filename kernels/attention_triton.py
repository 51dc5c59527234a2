"""Attention over scattered pages, read where they lie; Triton, after FlashAttention-2 (arXiv 2307.08691).

One launch serves rows of different keep-sets. A program has a tile of queries of one head of one row and goes through
the pages of its row; with few queries the pages of a row are split among several programs, whose parts are then put
together (flash-decoding). A page belongs to one program, which so knows the log-sum-exp of that page's logits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.attention import BlockTable, Own
from kernels.attention_checks import check_own, check_reads, check_scales, codes_of
from kernels.configurations import PROCESSORS, attention_tiles, splits
from kernels.copies import floats_on_device, on_device
from kernels.launch import (
    Launch,
    power_of_two,
)
from kernels.quantised import LARGEST, KeyPages, QuantisedKeys, QuantisedValues, ValuePages

LOG2_E = math.log2(math.e)


@triton.jit
def _log2(x):
    """−∞ of nothing, and no warning from Triton's interpreter."""
    return tl.where(x > 0, tl.log2(tl.where(x > 0, x, 1.0)), float("-inf"))


@triton.jit
def _attend(
    query,
    keys,
    values,
    key_scale,
    key_zero,
    value_scale,
    out,
    lse,
    page_lse,
    pages,
    counts,
    skips,
    weights,
    queries,
    tokens,
    table_width,
    lse_width,
    pages_each,
    query_row,
    query_token,
    key_page,
    key_token,
    value_page,
    value_token,
    out_part,
    scale,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    head_tile: tl.constexpr,
    block_q: tl.constexpr,
    block_k: tl.constexpr,
    masked: tl.constexpr,
    widened: tl.constexpr,
):
    row = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    part = tl.program_id(2)
    width = heads * head_dim
    q_at = tl.program_id(0) * block_q + tl.arange(0, block_q)
    d_at = tl.arange(0, head_tile)
    k_in_tile = tl.arange(0, block_k)
    real_q = q_at < queries
    real_d = d_at < head_dim
    q = tl.load(
        query + row.to(tl.int64) * query_row + q_at[:, None] * query_token + head * head_dim + d_at[None, :],
        mask=real_q[:, None] & real_d[None, :],
        other=0.0,
    )
    if widened:
        q = q.to(tl.float32)
    skip = tl.load(skips + row)
    tiles = tl.cdiv(tokens, block_k)
    first = part * pages_each
    last = tl.minimum(first + pages_each, tl.load(counts + row))
    # Tiles without a single token to read are left out, so that the largest logit of a tile is finite.
    begin = tl.where(part == 0, skip // block_k, first * tiles)
    top = tl.full([block_q], float("-inf"), tl.float32)
    total = tl.zeros([block_q], tl.float32)
    of_page = tl.zeros([block_q], tl.float32)
    acc = tl.zeros([block_q, head_tile], tl.float32)
    for tile in range(begin, last * tiles):
        entry = tile // tiles
        start = (tile - entry * tiles) * block_k
        page = tl.load(pages + row * table_width + entry).to(tl.int64)
        k_at = start + k_in_tile
        there = real_d[None, :] & (k_at < tokens)[:, None]
        if masked:
            real_k = (k_at < tokens) & ((entry > 0) | (k_at >= skip))
            there = real_d[None, :] & real_k[:, None]
        k_ptr = keys + page * key_page + k_at[:, None] * key_token + head * head_dim + d_at[None, :]
        v_ptr = values + page * value_page + k_at[:, None] * value_token + head * head_dim + d_at[None, :]
        if masked or head_tile != head_dim:
            k = tl.load(k_ptr, mask=there, other=0.0)
        else:
            k = tl.load(k_ptr)
        if key_scale is not None:
            channel = page * width + head * head_dim + d_at
            steps = tl.load(key_scale + channel, mask=real_d, other=0.0)
            zero = tl.load(key_zero + channel, mask=real_d, other=0.0)
            k = (k.to(tl.float32) * steps[None, :] + zero[None, :]).to(query.dtype.element_ty)
        if widened:
            k = k.to(tl.float32)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if weights is not None:
            logits += tl.load(weights + row * table_width + entry)
        if masked:
            logits = tl.where(real_k[None, :], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        p = tl.exp2(logits - higher[:, None])
        fade = tl.exp2(top - higher)
        mass = tl.sum(p, 1)
        total = total * fade + mass
        acc = acc * fade[:, None]
        if masked or head_tile != head_dim:
            v = tl.load(v_ptr, mask=there, other=0.0)
        else:
            v = tl.load(v_ptr)
        if value_scale is not None:
            if masked:
                steps = tl.load(value_scale + page * tokens + k_at, mask=real_k, other=0.0)
            else:
                steps = tl.load(value_scale + page * tokens + k_at)
            v = (v.to(tl.float32) * steps[:, None]).to(query.dtype.element_ty)
        p = p.to(query.dtype.element_ty)
        if widened:
            p = p.to(tl.float32)
            v = v.to(tl.float32)
        acc = tl.dot(p, v, acc, input_precision="ieee")
        top = higher
        if page_lse is not None:
            of_page = of_page * fade + mass
            over = start + block_k >= tokens
            at = ((row.to(tl.int64) * lse_width + entry) * heads + head) * queries + q_at
            tl.store(page_lse + at, (top + _log2(of_page)) * 0.6931471805599453, mask=real_q & over)
            of_page = tl.where(over, 0.0, of_page)
    real = real_q[:, None] & real_d[None, :]
    out_at = (row.to(tl.int64) * queries + q_at[:, None]) * width + head * head_dim + d_at[None, :]
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    if lse is not None:
        tl.store(out + part.to(tl.int64) * out_part + out_at, acc, mask=real)
        at = ((part * tl.num_programs(1)).to(tl.int64) + tl.program_id(1)) * queries + q_at
        tl.store(lse + at, top + _log2(total), mask=real_q)
    else:
        tl.store(out + out_at, acc.to(out.dtype.element_ty), mask=real)


@triton.jit
def _merge(
    parts,
    lse,
    out,
    queries,
    out_part,
    count,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    head_tile: tl.constexpr,
    block_q: tl.constexpr,
):
    row = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    q_at = tl.program_id(0) * block_q + tl.arange(0, block_q)
    d_at = tl.arange(0, head_tile)
    real_q = q_at < queries
    real = real_q[:, None] & (d_at < head_dim)[None, :]
    at = (row.to(tl.int64) * queries + q_at[:, None]) * (heads * head_dim) + head * head_dim + d_at[None, :]
    top = tl.full([block_q], float("-inf"), tl.float32)
    total = tl.zeros([block_q], tl.float32)
    acc = tl.zeros([block_q, head_tile], tl.float32)
    for part in range(0, count):
        lse_at = (part * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * queries + q_at
        weight = tl.load(lse + lse_at, mask=real_q, other=0.0)
        # The first part is never empty: its row has a page. Later ones may be, and weigh nothing.
        higher = tl.maximum(top, weight)
        fade = tl.exp2(top - higher)
        share = tl.exp2(weight - higher)
        acc = acc * fade[:, None] + tl.load(parts + part * out_part + at, mask=real, other=0.0) * share[:, None]
        total = total * fade + share
        top = higher
    tl.store(out + at, (acc / total[:, None]).to(out.dtype.element_ty), mask=real)


@dataclass(frozen=True)
class Attention:
    """What is to be launched, in order, and where the results will be.

    ``page_lse``: [rows, longest table, heads, queries] float32, natural logarithm; −inf beyond a row's own pages, and
    where a page weighs less than float32 can say against the largest logit before it. Where a chunk's own keys are
    apart, they come first, and then the table without them.
    """

    out: torch.Tensor
    page_lse: torch.Tensor | None
    launches: tuple[Launch, ...]

    def run(self) -> "Attention":
        """Queue the launches."""
        for launch in self.launches:
            launch.run()
        return self


def attend(
    query: torch.Tensor,
    key_pages: KeyPages,
    value_pages: ValuePages,
    tables: Sequence[BlockTable],
    heads: int,
    own: Own | None = None,
) -> torch.Tensor:
    """As ``kernels.attention.attend``."""
    return prepare(query, key_pages, value_pages, tables, heads, own=own).run().out


def attend_and_mass(
    query: torch.Tensor,
    key_pages: KeyPages,
    value_pages: ValuePages,
    tables: Sequence[BlockTable],
    heads: int,
    own: Own | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """As ``kernels.attention.attend_and_mass``, in one pass over the pages and with no matrix of weights."""
    done = prepare(query, key_pages, value_pages, tables, heads, wants_lse=True, own=own).run()
    assert done.page_lse is not None
    shares = done.page_lse.softmax(1).mean((2, 3))
    if own is None:
        return done.out, [row[: len(table.pages)] for row, table in zip(shares, tables, strict=True)]
    found = []
    for i, (row, table) in enumerate(zip(shares, tables, strict=True)):
        at = 1 + own.at(i, table)
        found.append(torch.cat((row[1:at], row[:1], row[at : len(table.pages)])))
    return done.out, found


def prepare(
    query: torch.Tensor,
    key_pages: KeyPages,
    value_pages: ValuePages,
    tables: Sequence[BlockTable],
    heads: int,
    wants_lse: bool = False,
    parts: int | None = None,
    own: Own | None = None,
) -> Attention:
    """Check, allocate and choose; ``parts``: programs that share the pages of a row, by default as many as pay.

    With ``own``, the chunk itself is one more part, read by a launch of its own, so that the loop over pages of codes
    stays as it is. It comes first: the merge relies on a first part that is never empty.

    Raises:
        ValueError: a shape, type, stride or page number with which the kernel would read what it must not.
    """
    keys, values = codes_of(key_pages), codes_of(value_pages)
    check_reads(query, keys, values, tables, heads)
    check_scales(key_pages, value_pages)
    rows, queries, width = query.shape
    head, device, first = width // heads, query.device, 0 if own is None else 1
    if own is not None:
        check_own(own, query, keys)
    read = [_Reads.of(table, None if own is None else own.at(i, table)) for i, table in enumerate(tables)]
    tiles = attention_tiles(head, queries, query.dtype, keys.dtype in LARGEST)
    longest = max(len(table.pages) for table in read)
    programs = -(-queries // tiles.queries) * rows * heads
    each = max(1, -(-longest // (parts or splits(programs, longest, _processors(device)))))
    parts = -(-longest // each) + first
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    partial = torch.empty(parts, *query.shape, device=device) if parts > 1 else None
    lse = torch.empty(parts, rows, heads, queries, device=device) if parts > 1 else None
    page_lse = torch.full((rows, longest + first, heads, queries), -torch.inf, device=device) if wants_lse else None
    launches = []
    if own is not None:
        alone = [_alone(i, own, table) for i, table in enumerate(tables)]
        launches.append(_launch(query, own.keys, own.values, alone, heads, 1, 1, partial, out, lse, page_lse))
    if longest:
        at = [x if x is None else x[first:] for x in (partial, lse)]
        of_pages = None if page_lse is None else page_lse[:, first:]
        launches.append(
            _launch(query, key_pages, value_pages, read, heads, each, parts - first, at[0], out, at[1], of_pages)
        )
    if partial is not None:
        shape = {"heads": heads, "head_dim": head, "head_tile": max(16, power_of_two(head))}
        merged = {"parts": partial, "lse": lse, "out": out, "queries": queries, "out_part": query.numel()}
        arguments = {**merged, "count": parts, **shape, "block_q": tiles.queries}
        launches.append(Launch(_merge, (-(-queries // tiles.queries), rows * heads), arguments, tiles.warps))
    return Attention(out, page_lse, tuple(launches))


@dataclass(frozen=True)
class _Reads:
    """What a block table says to one launch: one without its own page may have no pages at all."""

    pages: tuple[int, ...]
    skip_tokens: int = 0
    multiplicity: tuple[int, ...] = ()

    @classmethod
    def of(cls, table: BlockTable, without: int | None) -> "_Reads":
        """The whole table, or all of it but the entry ``without``."""
        if without is None:
            return cls(table.pages, table.skip_tokens, table.multiplicity)
        merged = table.multiplicity
        pages = table.pages[:without] + table.pages[without + 1 :]
        return cls(pages, table.skip_tokens, merged[:without] + merged[without + 1 :])


def _alone(row: int, own: Own, table: BlockTable) -> _Reads:
    at = own.at(row, table)
    return _Reads((row,), 0, table.multiplicity[at : at + 1])


def _launch(
    query: torch.Tensor,
    key_pages: KeyPages,
    value_pages: ValuePages,
    tables: Sequence[_Reads],
    heads: int,
    each: int,
    parts: int,
    partial: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    page_lse: torch.Tensor | None,
) -> Launch:
    """Attention over the pages of ``tables``, ``each`` of them to a part, into ``partial``, or ``out`` if it is all."""
    keys, values = codes_of(key_pages), codes_of(value_pages)
    rows, queries, width = query.shape
    head, tokens, device = width // heads, keys.shape[1], query.device
    tiles = attention_tiles(head, queries, query.dtype, keys.dtype in LARGEST)
    longest = max(len(table.pages) for table in tables)
    weighted = any(table.multiplicity for table in tables)
    arguments = {
        "query": query,
        "keys": keys,
        "values": values,
        **_scales(key_pages, value_pages),
        "out": out if partial is None else partial,
        "lse": lse,
        "page_lse": page_lse,
        "pages": on_device(tuple(table.pages for table in tables), device),
        "counts": on_device((tuple(len(table.pages) for table in tables),), device),
        "skips": on_device((tuple(table.skip_tokens for table in tables),), device),
        "weights": floats_on_device(_weights(tables), device) if weighted else None,
        "queries": queries,
        "tokens": tokens,
        "table_width": longest,
        "lse_width": longest if page_lse is None else page_lse.stride(0) // (heads * queries),
        "pages_each": each,
        "query_row": query.stride(0),
        "query_token": query.stride(1),
        "key_page": keys.stride(0),
        "key_token": keys.stride(1),
        "value_page": values.stride(0),
        "value_token": values.stride(1),
        "out_part": query.numel(),
        "scale": head**-0.5 * LOG2_E,
        "heads": heads,
        "head_dim": head,
        "head_tile": max(16, power_of_two(head)),
        "block_q": tiles.queries,
        "block_k": tiles.keys,
        "masked": bool(tokens % tiles.keys) or any(table.skip_tokens for table in tables),
        # Triton's interpreter multiplies the bits of bfloat16 as integers; in float32 the products are the same.
        "widened": triton.knobs.runtime.interpret,
    }
    grid = (-(-queries // tiles.queries), rows * heads, parts)
    return Launch(_attend, grid, arguments, tiles.warps, tiles.stages)


def _scales(keys: KeyPages, values: ValuePages) -> dict[str, torch.Tensor | None]:
    if isinstance(keys, QuantisedKeys) and isinstance(values, QuantisedValues):
        return {"key_scale": keys.scale, "key_zero": keys.zero, "value_scale": values.scale}
    return {"key_scale": None, "key_zero": None, "value_scale": None}


def _weights(tables: Sequence[_Reads]) -> tuple[tuple[float, ...], ...]:
    """Binary logarithms of the multiplicities: logits are in those units within the kernel."""
    return tuple(tuple(math.log2(n) for n in table.multiplicity or [1] * len(table.pages)) for table in tables)


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)

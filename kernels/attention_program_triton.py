"""The programs of attention over scattered pages; Triton, after FlashAttention-2 (arXiv 2307.08691).

One launch serves rows of different keep-sets. A program has a tile of queries of one head of one row and goes through
the pages of its row; with few queries the pages of a row are split among several programs, whose parts are then put
together (flash-decoding). A page belongs to one program, which so knows the log-sum-exp of that page's logits.
"""

import triton
import triton.language as tl

from kernels.attention_loops_triton import (
    LEAST,
    RAISED,
    log2_or_nothing,
    mask_where,
    through_coded_pages,
    through_tiles,
)


@triton.jit
def attend(
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
    query_row,
    page_stride,
    out_part,
    scale,
    query_token: tl.constexpr,
    token_stride: tl.constexpr,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    head_tile: tl.constexpr,
    block_q: tl.constexpr,
    block_k: tl.constexpr,
    page_tile: tl.constexpr,
    masked: tl.constexpr,
    skipping: tl.constexpr,
    full: tl.constexpr,
    largest: tl.constexpr,
    whole: tl.constexpr,
    widened: tl.constexpr,
):
    """Attention of a tile of queries over its part of the pages.

    ``largest``: of the codes that queries become, ``None`` if they stay what they are; ``whole``: those are integers.
    ``page_tile``: a power of two, of the tokens of a page at least. ``masked``: a page's last tile of keys goes
    beyond it; ``skipping``: first pages are not read from their beginning; ``full``: no tile of queries goes beyond
    them. ``widened``: products are of float32.
    """
    row = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    part = tl.program_id(2)
    width: tl.constexpr = heads * head_dim
    q_at = tl.program_id(0) * block_q + tl.arange(0, block_q)
    d_at = tl.arange(0, head_tile)
    real_q = mask_where(q_at < queries, not full)
    real_d = mask_where(d_at < head_dim, head_tile != head_dim)
    real = real_q[:, None] & real_d[None, :]
    channel = head * head_dim + d_at
    q_ptr = query + row.to(tl.int64) * query_row + q_at[:, None] * query_token + channel[None, :]
    in_tile = tl.arange(0, block_k)[:, None] * token_stride + channel[None, :]
    lse_at = (row.to(tl.int64) * lse_width * heads + head) * queries + q_at
    of_page = None if page_lse is None else page_lse + lse_at
    of_row = pages + row * table_width
    weights_at = None if weights is None else weights + row * table_width
    skip = tl.load(skips + row)
    # By the row's own pages alone: whoever else is in the batch changes not one bit of it.
    count = tl.load(counts + row)
    each = tl.cdiv(count, tl.num_programs(2))
    first = tl.minimum(part * each, count)
    last = tl.minimum(first + each, count)
    top = tl.full([block_q], float("-inf"), tl.float32)
    total = tl.zeros([block_q], tl.float32)
    acc = tl.zeros([block_q, head_tile], tl.float32)
    # Where a page is not read from its first token on, it is the first one: the others need no mask for it. Tiles
    # without a single token to read are left out, so that the largest logit of a tile is finite.
    if largest is None:
        q = tl.load(q_ptr, mask=real, other=0.0)
        if widened:
            q = q.to(tl.float32)
        tiles = tl.cdiv(tokens, block_k)
        begin = first * tiles
        if skipping:
            end = tl.minimum(begin + tiles, last * tiles)
            top, total, acc = through_tiles(
                q, keys, values, key_scale, key_zero, value_scale, of_page, of_row, weights_at, channel, real_d, real_q,
                in_tile, top, total, acc, scale, skip, tl.where(part == 0, skip // block_k, begin), end, tokens,
                page_stride, token_stride, width, heads * queries, block_k, True, widened, query.dtype.element_ty,
            )  # fmt: skip
            begin = end
        top, total, acc = through_tiles(
            q, keys, values, key_scale, key_zero, value_scale, of_page, of_row, weights_at, channel, real_d, real_q,
            in_tile, top, total, acc, scale, 0, begin, last * tiles, tokens, page_stride, token_stride, width,
            heads * queries, block_k, masked, widened, query.dtype.element_ty,
        )  # fmt: skip
    else:
        number: tl.constexpr = tl.float32 if query.dtype.element_ty == tl.float32 else tl.float16
        loudest = tl.full([], LEAST, tl.float32)
        if skipping:
            end = tl.minimum(first + 1, last)
            top, total, acc, loudest = through_coded_pages(
                q_ptr, keys, values, key_scale, key_zero, value_scale, of_page, of_row, weights_at, channel, real_d,
                real_q, in_tile, top, total, acc, loudest, scale, skip, first, end, tokens, page_stride, token_stride,
                width, heads * queries, block_k, page_tile, True, largest, whole, widened, number,
            )  # fmt: skip
            first = end
        top, total, acc, loudest = through_coded_pages(
            q_ptr, keys, values, key_scale, key_zero, value_scale, of_page, of_row, weights_at, channel, real_d,
            real_q, in_tile, top, total, acc, loudest, scale, 0, first, last, tokens, page_stride, token_stride,
            width, heads * queries, block_k, page_tile, masked, largest, whole, widened, number,
        )  # fmt: skip
        top -= RAISED
        acc *= loudest
    out_at = (row.to(tl.int64) * queries + q_at[:, None]) * width + channel[None, :]
    acc = acc * (1.0 / tl.maximum(total, LEAST))[:, None]
    if lse is not None:
        tl.store(out + part.to(tl.int64) * out_part + out_at, acc, mask=real)
        at = ((part * tl.num_programs(1)).to(tl.int64) + tl.program_id(1)) * queries + q_at
        tl.store(lse + at, top + log2_or_nothing(total), mask=real_q)
    else:
        tl.store(out + out_at, acc.to(out.dtype.element_ty), mask=real)


@triton.jit
def merge(
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
    """The parts of a tile of queries, weighted by their log-sum-exp."""
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

"""The programs of attention over scattered pages; Triton, after FlashAttention-2 (arXiv 2307.08691).

One launch serves rows of different keep-sets. A program has a tile of queries of one head of one row and goes through
the pages of its row; with few queries the pages of a row are split among several programs, whose parts are then put
together (flash-decoding). A page belongs to one program, which so knows the log-sum-exp of that page's logits.

Pages of codes are turned to numbers tile by tile, unless queries become codes (``kernels.coded_queries``): then keys
are multiplied as they lie, and weights, which take in the scales of the values, with codes in float16, which holds them
exactly.
"""

import triton
import triton.language as tl

from kernels.quantised_triton import encode

# Binary digits that weights are raised by for float16, which reaches 24 below 1 and 15 above.
RAISED = tl.constexpr(15.0)
LEAST = tl.constexpr(1e-30)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _log2(x):
    """−∞ of nothing, and no warning from Triton's interpreter."""
    return tl.where(x > 0, tl.log2(tl.where(x > 0, x, 1.0)), float("-inf"))


@triton.jit
def _where(holds, matters: tl.constexpr):
    """A mask; one that is true throughout, and costs nothing, unless it ``matters``."""
    if matters:
        return holds
    return tl.full(holds.shape, True, tl.int1)


@triton.jit
def _tile(
    q,
    k_ptr,
    v_ptr,
    there,
    real_k,
    key_steps,
    key_zero,
    value_steps,
    factor,
    added,
    raised,
    top,
    total,
    acc,
    number: tl.constexpr,
    masked: tl.constexpr,
    widened: tl.constexpr,
):
    """One tile of keys and values: the largest logit, the sum of weights, the sum of weighted values with it.

    Logits are products times ``factor`` plus ``added``; weights are 2 to what they are above the largest, and
    ``raised`` more. Codes are turned to numbers where ``key_steps`` are given; otherwise their scales are in queries
    and weights. ``number``: the type of weights and values in their product. Last: how much what was there before
    fades, and the sum of the weights of the tile.
    """
    k = tl.load(k_ptr, mask=there, other=0.0)
    if key_steps is not None:
        k = (k.to(tl.float32) * key_steps[None, :] + key_zero[None, :]).to(number)
    if widened:
        k = k.to(tl.float32)
    logits = tl.dot(q, tl.trans(k), input_precision="ieee").to(tl.float32)
    if masked:
        logits = tl.where(real_k[None, :], logits, float("-inf"))
    higher = tl.maximum(top, tl.max(logits, 1) * factor + added)
    p = tl.exp2(logits * factor[:, None] + (added + raised - higher)[:, None])
    fade = tl.exp2(top - higher)
    mass = tl.sum(p, 1)
    v = tl.load(v_ptr, mask=there, other=0.0)
    if key_steps is not None:
        v = v.to(tl.float32) * value_steps[:, None]
    elif value_steps is not None:
        if number == tl.float16 and v.dtype == tl.int8:
            v = (v.to(tl.int16) + 0x6600).to(tl.float16, bitcast=True) - 1536.0
        v = v.to(number) * value_steps[:, None].to(number)
    p = p.to(number)
    v = v.to(number)
    if widened:
        p = p.to(tl.float32)
        v = v.to(tl.float32)
    acc = tl.dot(p, v, acc * fade[:, None], input_precision="ieee")
    return higher, total * fade + mass, acc, fade, mass


@triton.jit
def _through_tiles(
    q,
    keys,
    values,
    key_scale,
    key_zero,
    value_scale,
    page_lse,
    pages,
    weights,
    channel,
    real_d,
    real_q,
    in_tile,
    top,
    total,
    acc,
    scale,
    skip,
    begin,
    end,
    tokens,
    page_stride,
    token_stride: tl.constexpr,
    width: tl.constexpr,
    lse_stride,
    block_k: tl.constexpr,
    masked: tl.constexpr,
    widened: tl.constexpr,
    number: tl.constexpr,
):
    """Tiles ``begin`` to ``end`` of all pages, in one loop: a loop within it would empty the pipeline at each page."""
    tiles = tl.cdiv(tokens, block_k)
    factor = tl.zeros_like(top) + scale
    of_page = tl.zeros_like(top)
    for tile in range(begin, end):
        entry = tile // tiles
        start = (tile - entry * tiles) * block_k
        page = tl.load(pages + entry).to(tl.int64)
        k_at = start + tl.arange(0, block_k)
        real_k = _where((k_at < tokens) & ((entry > 0) | (k_at >= skip)), masked)
        key_steps, zero, value_steps = None, None, None
        if key_scale is not None:
            key_steps = tl.load(key_scale + page * width + channel, mask=real_d, other=0.0)
            zero = tl.load(key_zero + page * width + channel, mask=real_d, other=0.0)
            value_steps = tl.load(value_scale + page * tokens + k_at, mask=real_k, other=0.0)
        added = tl.zeros_like(top)
        if weights is not None:
            added += tl.load(weights + entry)
        at = page * page_stride + start * token_stride + in_tile
        top, total, acc, fade, mass = _tile(
            q, keys + at, values + at, real_d[None, :] & real_k[:, None], real_k, key_steps, zero, value_steps,
            factor, added, 0.0, top, total, acc, number, masked, widened,
        )  # fmt: skip
        if page_lse is not None:
            of_page = of_page * fade + mass
            over = start + block_k >= tokens
            tl.store(page_lse + entry * lse_stride, (top + _log2(of_page)) * LN_2, mask=real_q & over)
            of_page = tl.where(over, 0.0, of_page)
    return top, total, acc


@triton.jit
def _as_codes(query, real, steps, zero, largest: tl.constexpr, whole: tl.constexpr, rounds: tl.constexpr):
    """Queries times a page's steps as codes times ``unit``; ``unit``; and what the page's zero adds to their logits.

    They are read twice, as nothing else needs as many registers as all of them at once in float32.
    """
    q = tl.load(query, mask=real, other=0.0).to(tl.float32)
    shift = tl.sum(q * zero[None, :], 1)
    q = q * steps[None, :]
    unit = tl.maximum(tl.max(tl.abs(q), 1) / largest, LEAST)
    q = q * (1.0 / unit)[:, None]
    # A GPU rounds to nearest when it converts to e4m3; Triton's interpreter does not.
    if whole or rounds:
        q = encode(q, largest, whole)
    return q, unit, shift


@triton.jit
def _through_coded_pages(
    query,
    keys,
    values,
    key_scale,
    key_zero,
    value_scale,
    page_lse,
    pages,
    weights,
    channel,
    real_d,
    real_q,
    in_tile,
    top,
    total,
    acc,
    loudest,
    scale,
    skip,
    first,
    last,
    tokens,
    page_stride,
    token_stride: tl.constexpr,
    width: tl.constexpr,
    lse_stride,
    block_k: tl.constexpr,
    page_tile: tl.constexpr,
    masked: tl.constexpr,
    largest: tl.constexpr,
    whole: tl.constexpr,
    widened: tl.constexpr,
    number: tl.constexpr,
):
    """Pages ``first`` to ``last``, one by one, as queries become other codes at each.

    Weights are raised, and their values are in units of ``loudest``, the largest scale of a token so far.
    """
    all_at = tl.arange(0, page_tile)
    # What does not change is computed at each page: kept in registers, it would push out what the tiles need.
    for entry in tl.range(first, last, disable_licm=True):
        page = tl.load(pages + entry).to(tl.int64)
        all_steps = tl.load(value_scale + page * tokens + all_at, mask=all_at < tokens, other=0.0)
        louder = tl.maximum(loudest, tl.max(all_steps, 0))
        acc *= loudest / louder
        loudest = louder
        steps = tl.load(key_scale + page * width + channel, mask=real_d, other=0.0)
        zero = tl.load(key_zero + page * width + channel, mask=real_d, other=0.0)
        real = real_q[:, None] & real_d[None, :]
        q, unit, shift = _as_codes(query, real, steps, zero, largest, whole, widened)
        if not widened:
            q = q.to(keys.dtype.element_ty)
        added = shift * scale
        if weights is not None:
            added += tl.load(weights + entry)
        of_page = tl.zeros_like(top)
        for start in range(tl.where(entry == 0, skip // block_k * block_k, 0), tokens, block_k):
            k_at = start + tl.arange(0, block_k)
            real_k = _where((k_at < tokens) & ((entry > 0) | (k_at >= skip)), masked)
            value_steps = tl.load(value_scale + page * tokens + k_at, mask=real_k, other=0.0) / loudest
            at = page * page_stride + start * token_stride + in_tile
            top, total, acc, fade, mass = _tile(
                q, keys + at, values + at, real_d[None, :] & real_k[:, None], real_k, None, None, value_steps,
                unit * scale, added, RAISED, top, total, acc, number, masked, widened,
            )  # fmt: skip
            of_page = of_page * fade + mass
        if page_lse is not None:
            tl.store(page_lse + entry * lse_stride, (top - RAISED + _log2(of_page)) * LN_2, mask=real_q)
    return top, total, acc, loudest


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
    pages_each,
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
    real_q = _where(q_at < queries, not full)
    real_d = _where(d_at < head_dim, head_tile != head_dim)
    real = real_q[:, None] & real_d[None, :]
    channel = head * head_dim + d_at
    q_ptr = query + row.to(tl.int64) * query_row + q_at[:, None] * query_token + channel[None, :]
    in_tile = tl.arange(0, block_k)[:, None] * token_stride + channel[None, :]
    lse_at = (row.to(tl.int64) * lse_width * heads + head) * queries + q_at
    of_page = None if page_lse is None else page_lse + lse_at
    of_row = pages + row * table_width
    weights_at = None if weights is None else weights + row * table_width
    skip = tl.load(skips + row)
    first = part * pages_each
    last = tl.minimum(first + pages_each, tl.load(counts + row))
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
            top, total, acc = _through_tiles(
                q, keys, values, key_scale, key_zero, value_scale, of_page, of_row, weights_at, channel, real_d, real_q,
                in_tile, top, total, acc, scale, skip, tl.where(part == 0, skip // block_k, begin), end, tokens,
                page_stride, token_stride, width, heads * queries, block_k, True, widened, query.dtype.element_ty,
            )  # fmt: skip
            begin = end
        top, total, acc = _through_tiles(
            q, keys, values, key_scale, key_zero, value_scale, of_page, of_row, weights_at, channel, real_d, real_q,
            in_tile, top, total, acc, scale, 0, begin, last * tiles, tokens, page_stride, token_stride, width,
            heads * queries, block_k, masked, widened, query.dtype.element_ty,
        )  # fmt: skip
    else:
        number: tl.constexpr = tl.float32 if query.dtype.element_ty == tl.float32 else tl.float16
        loudest = tl.full([], LEAST, tl.float32)
        if skipping:
            end = tl.minimum(first + 1, last)
            top, total, acc, loudest = _through_coded_pages(
                q_ptr, keys, values, key_scale, key_zero, value_scale, of_page, of_row, weights_at, channel, real_d,
                real_q, in_tile, top, total, acc, loudest, scale, skip, first, end, tokens, page_stride, token_stride,
                width, heads * queries, block_k, page_tile, True, largest, whole, widened, number,
            )  # fmt: skip
            first = end
        top, total, acc, loudest = _through_coded_pages(
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
        tl.store(lse + at, top + _log2(total), mask=real_q)
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

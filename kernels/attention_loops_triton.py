"""The loops of attention over the tiles of a row's pages; Triton, after FlashAttention-2 (arXiv 2307.08691).

Pages of codes are turned to numbers tile by tile, unless queries become codes (``kernels.coded_queries``): then keys
are multiplied as they lie, and values in float16, which holds a code exactly whatever the type of the model.
"""

import triton
import triton.language as tl

from kernels.quantised_triton import encode

# Binary digits that weights are raised by for float16, which reaches 24 below 1 and 15 above.
RAISED = tl.constexpr(15.0)
LEAST = tl.constexpr(1e-30)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def log2_or_nothing(x):
    """−∞ of nothing, and no warning from Triton's interpreter."""
    return tl.where(x > 0, tl.log2(tl.where(x > 0, x, 1.0)), float("-inf"))


@triton.jit
def mask_where(holds, matters: tl.constexpr):
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
    ``raised`` more. Keys and values are numbers; or codes to be turned to numbers, by ``key_steps``, ``key_zero`` and
    ``value_steps``; or, without ``key_steps``, codes whose scales are in the queries. ``number``: the type of weights
    and values in their product. Last: how much what was there before fades, and the sum of the weights of the tile.
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
            # 0x6600 is 1536, where the next number is 1 more: half as many registers as by way of float32.
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
def through_tiles(
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
        real_k = mask_where((k_at < tokens) & ((entry > 0) | (k_at >= skip)), masked)
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
            tl.store(page_lse + entry * lse_stride, (top + log2_or_nothing(of_page)) * LN_2, mask=real_q & over)
            of_page = tl.where(over, 0.0, of_page)
    return top, total, acc


@triton.jit
def _as_codes(query, real, steps, zero, largest: tl.constexpr, whole: tl.constexpr, rounds: tl.constexpr):
    """Queries times a page's steps as codes times ``unit``; ``unit``; and what the page's zero adds to their logits."""
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
def through_coded_pages(
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
            real_k = mask_where((k_at < tokens) & ((entry > 0) | (k_at >= skip)), masked)
            value_steps = tl.load(value_scale + page * tokens + k_at, mask=real_k, other=0.0) / loudest
            at = page * page_stride + start * token_stride + in_tile
            top, total, acc, fade, mass = _tile(
                q, keys + at, values + at, real_d[None, :] & real_k[:, None], real_k, None, None, value_steps,
                unit * scale, added, RAISED, top, total, acc, number, masked, widened,
            )  # fmt: skip
            of_page = of_page * fade + mass
        if page_lse is not None:
            tl.store(page_lse + entry * lse_stride, (top - RAISED + log2_or_nothing(of_page)) * LN_2, mask=real_q)
    return top, total, acc, loudest

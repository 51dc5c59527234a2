"""Tiles of the pairs that a rotation turns, in both layouts: pieces of Triton that several kernels are made of.

``heads`` blocks of ``2 · half`` neighbouring elements make up a token. In both layouts the pairs from ``h · half`` to
``(h + 1) · half``, exclusive, lie in block h: interleaved as neighbours, split as one element of each half.
"""

import triton
import triton.language as tl


@triton.jit
def load_pairs(at, begin, real, half: tl.constexpr, tile: tl.constexpr, interleaved: tl.constexpr):
    """Both elements of ``tile`` pairs, from ``begin`` on, of the blocks that lie at ``at`` [n, 1]: two [n, tile].

    As stored; ``real`` [n, 1] says which blocks exist.
    """
    if interleaved:
        element = begin * 2 + tl.arange(0, 2 * tile)
        both = tl.load(at + element[None, :], mask=real & (element < 2 * half)[None, :], other=0.0)
        first, second = tl.split(tl.reshape(both, [both.shape[0], tile, 2]))
    else:
        pair = begin + tl.arange(0, tile)
        there = real & (pair < half)[None, :]
        first = tl.load(at + pair[None, :], mask=there, other=0.0)
        second = tl.load(at + half + pair[None, :], mask=there, other=0.0)
    return first, second


@triton.jit
def store_pairs(at, first, second, begin, real, half: tl.constexpr, tile: tl.constexpr, interleaved: tl.constexpr):
    """The reverse of ``load_pairs``; converts to the type stored."""
    kind = at.dtype.element_ty
    if interleaved:
        element = begin * 2 + tl.arange(0, 2 * tile)
        both = tl.reshape(tl.join(first, second), [first.shape[0], 2 * tile])
        tl.store(at + element[None, :], both.to(kind), mask=real & (element < 2 * half)[None, :])
    else:
        pair = begin + tl.arange(0, tile)
        there = real & (pair < half)[None, :]
        tl.store(at + pair[None, :], first.to(kind), mask=there)
        tl.store(at + half + pair[None, :], second.to(kind), mask=there)


@triton.jit
def load_angles(cos, sin, at, begin, real, half: tl.constexpr, tile: tl.constexpr):
    """cos and sin [n, tile] of the blocks whose angles begin at ``at`` [n, 1]; no turn where there are none."""
    pair = begin + tl.arange(0, tile)
    there = real & (pair < half)[None, :]
    c = tl.load(cos + at + pair[None, :], mask=there, other=1.0)
    s = tl.load(sin + at + pair[None, :], mask=there, other=0.0)
    return c, s


@triton.jit
def turn(first, second, c, s):
    """The pairs rotated, float32; what does not turn keeps its bits, infinities and signed zeros too."""
    first = first.to(tl.float32)
    second = second.to(tl.float32)
    turning = (s != 0.0) | (c != 1.0)
    return tl.where(turning, first * c - second * s, first), tl.where(turning, second * c + first * s, second)

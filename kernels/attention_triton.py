"""Attention over scattered pages, read where they lie; the launchers of Triton's programs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from kernels import attention_program_triton
from kernels.attention import BlockTable, Own
from kernels.attention_checks import check_own, check_reads, check_scales, codes_of
from kernels.coded_queries import pays
from kernels.configurations import PROCESSORS, attention_tiles, splits
from kernels.copies import floats_on_device, on_device
from kernels.launch import Launch, by_form, power_of_two
from kernels.quantised import LARGEST, KeyPages, QuantisedKeys, QuantisedValues, ValuePages

LOG2_E = math.log2(math.e)


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
    coded: bool = False,
) -> torch.Tensor:
    """As ``kernels.attention.attend``."""
    return prepare(query, key_pages, value_pages, tables, heads, own=own, coded=coded).run().out


def attend_and_mass(
    query: torch.Tensor,
    key_pages: KeyPages,
    value_pages: ValuePages,
    tables: Sequence[BlockTable],
    heads: int,
    own: Own | None = None,
    coded: bool = False,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """As ``kernels.attention.attend_and_mass``, in one pass over the pages and with no matrix of weights."""
    done = prepare(query, key_pages, value_pages, tables, heads, wants_lse=True, own=own, coded=coded).run()
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
    coded: bool = False,
) -> Attention:
    """Check, allocate and choose; ``parts``: programs that share the pages of a row, by default as many as pay.

    With ``own``, the chunk itself is one more part, read by a launch of its own, so that the loop over pages of codes
    stays as it is. It comes first: the merge relies on a first part that is never empty.

    Raises:
        ValueError: a shape, type, stride or page number with which the kernel would read what it must not.
    """
    keys, values = codes_of(key_pages), codes_of(value_pages)
    key_scale = key_zero = value_scale = own_keys = own_values = None
    own_pages: tuple[int, ...] = ()
    if isinstance(key_pages, QuantisedKeys):
        key_scale, key_zero = key_pages.scale, key_pages.zero
    if isinstance(value_pages, QuantisedValues):
        value_scale = value_pages.scale
    if own is not None:
        own_keys, own_values, own_pages = own.keys, own.values, own.pages
    coded = coded and key_scale is not None and pays(query.shape[1], keys.shape[1])
    plan = _plan(
        query, keys, values, key_scale, key_zero, value_scale, own_keys, own_values, own_pages,
        tuple(tables), heads, wants_lse, parts, coded, _processors(query.device),
    )  # fmt: skip
    (rows, queries, _), device = query.shape, query.device
    out = torch.empty(query.shape, dtype=query.dtype, device=device)
    to, lse, page_lse = out, None, None
    if plan.merge is not None:
        to = torch.empty((plan.parts, *query.shape), device=device)
        lse = torch.empty((plan.parts, rows, heads, queries), device=device)
    if wants_lse:
        page_lse = torch.full((rows, plan.entries, heads, queries), -torch.inf, device=device)
    scales = {"key_scale": key_scale, "key_zero": key_zero, "value_scale": value_scale}
    at: dict[str, torch.Tensor | None] = {"query": query, "out": to, "lse": lse, "page_lse": page_lse}
    launches = []
    if own is not None:
        assert plan.own is not None
        launches.append(plan.own.of(keys=own.keys, values=own.values, **dict.fromkeys(scales), **at))
        rest = {"out": to[1:], "lse": lse if lse is None else lse[1:]} if plan.merge is not None else {}
        at = {**at, **rest, "page_lse": page_lse if page_lse is None else page_lse[:, 1:]}
    if plan.pages is not None:
        launches.append(plan.pages.of(keys=keys, values=values, **scales, **at))
    if plan.merge is not None:
        launches.append(plan.merge.of(parts=to, lse=lse, out=out))
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


@dataclass(frozen=True)
class _Plan:
    """What does not depend on what is in the tensors; launches without them.

    ``parts``: that the keys of a row are split into; ``entries``: of the table of log-sum-exps.
    """

    parts: int
    entries: int
    own: Launch | None
    pages: Launch | None
    merge: Launch | None


@by_form
def _plan(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_scale: torch.Tensor | None,
    key_zero: torch.Tensor | None,
    value_scale: torch.Tensor | None,
    own_keys: torch.Tensor | None,
    own_values: torch.Tensor | None,
    own_pages: tuple[int, ...],
    tables: tuple[BlockTable, ...],
    heads: int,
    wants_lse: bool,
    parts: int | None,
    coded: bool,
    processors: int,
) -> _Plan:
    check_reads(query, keys, values, tables, heads)
    check_scales(keys, key_scale, key_zero, value_scale)
    own = None if own_keys is None or own_values is None else Own(own_keys, own_values, own_pages)
    if own is not None:
        check_own(own, query, keys)
    rows, queries, width = query.shape
    head, first = width // heads, 0 if own is None else 1
    read = [_Reads.of(table, None if own is None else own.at(i, table)) for i, table in enumerate(tables)]
    tiles = attention_tiles(head, queries, query.dtype, keys.dtype, coded)
    longest = max(len(table.pages) for table in read)
    programs = -(-queries // tiles.queries) * rows * heads
    parts = min(longest, parts or splits(programs, longest, processors)) + first
    entries = longest + first if wants_lse else 0
    of_own = of_pages = merge = None
    if own is not None:
        alone = [_alone(i, own, table) for i, table in enumerate(tables)]
        of_own = _launch(query, own.keys, alone, heads, 1, entries)
    if longest:
        of_pages = _launch(query, keys, read, heads, parts - first, entries, coded)
    if parts > 1:
        merged = {"queries": queries, "out_part": query.numel(), "count": parts, "heads": heads, "head_dim": head}
        shape = {"head_tile": max(16, power_of_two(head)), "block_q": tiles.queries}
        grid = (-(-queries // tiles.queries), rows * heads)
        merge = Launch(attention_program_triton.merge, grid, {**merged, **shape}, tiles.warps)
    return _Plan(parts, entries, of_own, of_pages, merge)


def _launch(
    query: torch.Tensor,
    keys: torch.Tensor,
    tables: Sequence[_Reads],
    heads: int,
    parts: int,
    entries: int,
    coded: bool = False,
) -> Launch:
    """Attention over the pages of ``tables`` in so many parts, without its tensors."""
    rows, queries, width = query.shape
    head, tokens, device = width // heads, keys.shape[1], query.device
    tiles = attention_tiles(head, queries, query.dtype, keys.dtype, coded)
    longest = max(len(table.pages) for table in tables)
    weighted = any(table.multiplicity for table in tables)
    arguments = {
        "pages": on_device(tuple(table.pages for table in tables), device),
        "counts": on_device((tuple(len(table.pages) for table in tables),), device),
        "skips": on_device((tuple(table.skip_tokens for table in tables),), device),
        "weights": floats_on_device(_weights(tables), device) if weighted else None,
        "queries": queries,
        "tokens": tokens,
        "table_width": longest,
        "lse_width": entries,
        "query_row": query.stride(0),
        "query_token": query.stride(1),
        "page_stride": keys.stride(0),
        "token_stride": keys.stride(1),
        "out_part": query.numel(),
        "scale": head**-0.5 * LOG2_E,
        "heads": heads,
        "head_dim": head,
        "head_tile": max(16, power_of_two(head)),
        "block_q": tiles.queries,
        "block_k": tiles.keys,
        "page_tile": power_of_two(tokens) if coded else 0,
        "masked": bool(tokens % tiles.keys),
        "skipping": any(table.skip_tokens for table in tables),
        "full": queries % tiles.queries == 0,
        "largest": LARGEST[keys.dtype] if coded else None,
        "whole": keys.dtype == torch.int8,
        # Triton's interpreter multiplies the bits of bfloat16 as integers; in float32 the products are the same.
        "widened": triton.knobs.runtime.interpret,
    }
    grid = (-(-queries // tiles.queries), rows * heads, parts)
    return Launch(attention_program_triton.attend, grid, arguments, tiles.warps, tiles.stages)


def _weights(tables: Sequence[_Reads]) -> tuple[tuple[float, ...], ...]:
    """Binary logarithms of the multiplicities: logits are in those units within the kernel."""
    return tuple(tuple(math.log2(n) for n in table.multiplicity or [1] * len(table.pages)) for table in tables)


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)

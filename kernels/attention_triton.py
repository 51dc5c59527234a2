"""Attention over scattered pages, read where they lie; the launchers of Triton's programs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from kernels import attention_program_triton as programs
from kernels.attention import BlockTable, Own
from kernels.attention_checks import check_own, check_reads, check_scales, codes_of
from kernels.coded_queries import pays
from kernels.configurations import PROCESSORS, attention_tiles, splits
from kernels.copies import floats_on_device, on_device
from kernels.launch import Launch, power_of_two
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
    check_reads(query, keys, values, tables, heads)
    check_scales(key_pages, value_pages)
    rows, queries, width = query.shape
    head, device, first = width // heads, query.device, 0 if own is None else 1
    if own is not None:
        check_own(own, query, keys)
    read = [_Reads.of(table, None if own is None else own.at(i, table)) for i, table in enumerate(tables)]
    coded = coded and keys.dtype in LARGEST and pays(queries, keys.shape[1])
    tiles = attention_tiles(head, queries, query.dtype, keys.dtype, coded)
    longest = max(len(table.pages) for table in read)
    begun = -(-queries // tiles.queries) * rows * heads
    each = max(1, -(-longest // (parts or splits(begun, longest, _processors(device)))))
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
            _launch(query, key_pages, value_pages, read, heads, each, parts - first, at[0], out, at[1], of_pages, coded)
        )
    if partial is not None:
        shape = {"heads": heads, "head_dim": head, "head_tile": max(16, power_of_two(head))}
        merged = {"parts": partial, "lse": lse, "out": out, "queries": queries, "out_part": query.numel()}
        arguments = {**merged, "count": parts, **shape, "block_q": tiles.queries}
        launches.append(Launch(programs.merge, (-(-queries // tiles.queries), rows * heads), arguments, tiles.warps))
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
    coded: bool = False,
) -> Launch:
    """Attention over the pages of ``tables``, ``each`` of them to a part, into ``partial``, or ``out`` if it is all."""
    keys, values = codes_of(key_pages), codes_of(value_pages)
    rows, queries, width = query.shape
    head, tokens, device = width // heads, keys.shape[1], query.device
    tiles = attention_tiles(head, queries, query.dtype, keys.dtype, coded)
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
    return Launch(programs.attend, grid, arguments, tiles.warps, tiles.stages)


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

"""Triton's attention over scattered pages against the plain-torch one in float32."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import attention as reference
from kernels import attention_triton as triton
from kernels.attention import BlockTable, Own
from kernels.configurations import AttentionTiles, attention_tiles, splits
from kernels.quantised import LARGEST, QuantisedKeys, QuantisedValues, quantise_keys, quantise_values
from tests.kernel_cases import ATTENTION_TOLERANCE, DEVICE, DTYPES, block_tables, draw, near, poisoned


def pool(pages: int, tokens: int, width: int, written: set[int], dtype: torch.dtype) -> torch.Tensor:
    """Keys and values [2, pages, tokens, width], NaN but for the pages that somebody wrote."""
    storage = poisoned(2, pages, tokens, width, dtype=dtype)
    chosen = sorted(written)
    storage[:, chosen] = draw(2, len(chosen), tokens, width, dtype=dtype)
    return storage


def check(query: torch.Tensor, storage: torch.Tensor, tables: list[BlockTable], heads: int, parts: int | None) -> None:
    """Output and log-sum-exp of every page equal the reference's."""
    done = triton.prepare(query, storage[0], storage[1], tables, heads, wants_lse=True, parts=parts).run()
    wide, tolerance = storage.float(), ATTENTION_TOLERANCE[query.dtype]
    near(done.out, reference.attend(query.float(), wide[0], wide[1], tables, heads), tolerance)
    assert done.page_lse is not None
    for row, lse in enumerate(reference.page_lse(query.float(), wide[0], tables, heads)):
        torch.testing.assert_close(done.page_lse[row, : len(lse)], lse, atol=1e-4, rtol=1e-5)
        assert done.page_lse[row, len(lse) :].eq(-torch.inf).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "heads", "head"), [(63, 3, 10), (100, 1, 64), (1000, 1, 6)])
def test_rows_of_different_keep_sets_attend_in_one_launch(
    dtype: torch.dtype, tokens: int, heads: int, head: int
) -> None:
    """One page; neighbours; scattered, out of order, the first right-aligned; pages that nobody reads are NaN."""
    tables = [BlockTable((4,)), BlockTable((2, 3, 4)), BlockTable((7, 0, 5), skip_tokens=tokens - 1)]
    storage = pool(9, tokens, heads * head, {0, 2, 3, 4, 5, 7}, dtype)
    check(draw(3, 7, heads * head, dtype=dtype, seed=1), storage, tables, heads, None)


@pytest.mark.parametrize("queries", [1, 33, 130])
def test_every_query_is_answered_whatever_the_tile(queries: int) -> None:
    storage = pool(3, 5, 256, {0, 1, 2}, torch.bfloat16)
    check(draw(1, queries, 256, dtype=torch.bfloat16), storage, [BlockTable((2, 0, 1))], 2, None)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_parts_of_a_row_are_put_together_to_the_same(parts: int) -> None:
    """A part may have no page of a short row."""
    tables = [BlockTable((0, 1, 2, 3, 4)), BlockTable((3,), skip_tokens=60)]
    check(draw(2, 4, 16), pool(5, 63, 16, set(range(5)), torch.float32), tables, 2, parts)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype, parts: int) -> None:
    """Not one bit of it, however many pages they read, in part or merged."""
    storage, query = pool(9, 33, 20, set(range(9)), dtype), draw(2, 4, 20, dtype=dtype)
    mine = BlockTable((4, 0, 7, 2))
    beside = (BlockTable((1,)), BlockTable(tuple(range(9)), 5), BlockTable((3, 6), multiplicity=(2, 3)))
    rows = [triton.prepare(query, *storage, [mine, one], 2, parts=parts).run().out[0] for one in beside]
    assert all(torch.equal(row, rows[0]) for row in rows[1:])


@pytest.mark.parametrize("parts", [1, 2])
def test_a_merged_chunk_counts_as_often_as_it_stands_for(parts: int) -> None:
    merged, copied = BlockTable((1, 0), 2, (3, 1)), BlockTable((1, 1, 1, 0), 0)
    storage, query = pool(2, 5, 12, {0, 1}, torch.float32), draw(1, 4, 12)
    check(query, storage, [merged], 2, parts)
    whole = replace(merged, skip_tokens=0)
    expected = reference.attend(query, storage[0], storage[1], [copied], 2)
    near(triton.attend(query, storage[0], storage[1], [whole], 2), expected, 1e-5)
    near(reference.attend(query, storage[0], storage[1], [whole], 2), expected, 1e-5)


def test_shares_of_pages_are_those_of_the_normalised_matrix_and_add_up() -> None:
    tables = [BlockTable((2, 0), skip_tokens=4), BlockTable((0, 1, 2))]
    storage, query = pool(3, 9, 12, {0, 1, 2}, torch.float32), draw(2, 5, 12, seed=3)
    _, shares = triton.attend_and_mass(query, storage[0], storage[1], tables, 2)
    for got, expected in zip(shares, reference.page_mass(query, storage[0], tables, 2), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
        assert got.sum().item() == pytest.approx(1, abs=1e-5)


def test_outliers_of_keys_and_values_do_not_overflow() -> None:
    """Logits of thousands, which in exponents would be infinite, and one token's value a thousand times the rest."""
    storage = pool(3, 63, 16, {0, 1, 2}, torch.float32)
    storage[0, 1] *= 300
    storage[1, 0, 5] *= 1000
    for parts in (1, 3):
        done = triton.prepare(draw(1, 6, 16), storage[0], storage[1], [BlockTable((0, 1, 2))], 2, parts=parts).run()
        expected = reference.attend(draw(1, 6, 16).double(), *storage.double(), [BlockTable((0, 1, 2))], 2)
        near(done.out, expected, 1e-5)


@pytest.mark.parametrize("codes", LARGEST)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_of_codes_are_read_on_the_fly(dtype: torch.dtype, codes: torch.dtype) -> None:
    """To the accuracy of the type against the reference on the same codes, and near what the codes were made from."""
    tables = [BlockTable((3, 1), skip_tokens=40), BlockTable((1,))]
    storage, query = draw(2, 4, 63, 20), draw(2, 7, 20, dtype=dtype, seed=2)
    keys, values = quantise_keys(storage[0], codes), quantise_values(storage[1], codes)
    keys.scale[[0, 2]], values.scale[[0, 2]] = float("nan"), float("nan")
    got = triton.attend(query, keys, values, tables, 2)
    near(got, reference.attend(query.float(), keys, values, tables, 2), 2 * ATTENTION_TOLERANCE[dtype])
    near(
        got,
        reference.attend(query.float(), storage[0], storage[1], tables, 2),
        0.15 if codes == torch.float8_e4m3fn else 0.05,
    )


@settings(max_examples=15)
@given(st.data())
def test_any_block_tables_give_what_the_reference_gives(data: st.DataObject) -> None:
    """Random pools, keep-sets, anchors, merges and splits; a page may be in several rows."""
    heads, head = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([2, 6, 16]))
    tokens, pages = data.draw(st.sampled_from([1, 7, 33])), data.draw(st.integers(1, 6))
    tables = data.draw(block_tables(pages, tokens))
    written = {page for table in tables for page in table.pages}
    storage = pool(pages, tokens, heads * head, written, torch.float32)
    query = draw(len(tables), data.draw(st.integers(1, 5)), heads * head, seed=4)
    check(query, storage, tables, heads, data.draw(st.integers(1, pages)))


def test_what_does_not_fit_is_refused_before_anything_is_read() -> None:
    query, pages, one = draw(1, 4, 12), draw(3, 5, 12), [BlockTable((0,))]
    keys, values = quantise_keys(pages, torch.int8), quantise_values(pages, torch.int8)
    wide = torch.zeros(1, 4, 160, device=DEVICE)
    for arguments, what in (
        ((query[0], pages, pages, one, 2), "expected 3 dimensions"),
        ((query.transpose(1, 2), pages, pages, one, 2), "expected neighbours"),
        ((query, pages, pages[:, :4], one, 2), "keys are"),
        ((query, pages[..., :8], pages[..., :8], one, 2), "query has width 12 but pages 8"),
        ((query, pages, pages, one, 5), "does not divide into 5 heads"),
        ((wide, wide, wide, one, 1), "expected 128 at most"),
        ((query.double(), pages, pages, one, 2), "query is torch.float64"),
        ((query, pages.half(), pages.half(), one, 2), "keys are torch.float16"),
        ((query, pages, pages, one * 2, 2), "2 block tables for 1 rows"),
        ((query, pages, pages, [BlockTable((0, 3))], 2), r"pages \[3\] of a pool of 3"),
        ((query, pages, pages, [BlockTable((-1,))], 2), r"pages \[-1\]"),
        ((query, pages, pages, [BlockTable((0,), 5)], 2), "5 of 5 tokens skipped"),
        ((query, keys, pages, one, 2), "expected the same|both or neither"),
        ((query, QuantisedKeys(keys.codes, keys.scale[:2], keys.zero), values, one, 2), "scale of keys"),
        ((query, keys, QuantisedValues(values.codes, values.scale.half()), one, 2), "scale of values"),
        ((query, keys.codes, values.codes, one, 2), "without scales"),
    ):
        with pytest.raises(ValueError, match=what):
            triton.attend(*arguments)  # type: ignore[arg-type]


def test_a_block_table_says_what_is_wrong_with_it() -> None:
    for arguments, what in (
        (((),), "attends to no page"),
        (((1,), -1), "skip_tokens is -1"),
        (((1, 2), 0, (1,)), "for 2 pages"),
        (((1,), 0, (0,)), "1 or more"),
    ):
        with pytest.raises(ValueError, match=what):
            BlockTable(*arguments)  # type: ignore[arg-type]


def test_tiles_come_from_the_table_by_shape_and_types_alone() -> None:
    bf16, fp16, int8, fp8 = torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn
    assert attention_tiles(128, 1152, bf16, bf16) == AttentionTiles(128, 128, 8, 2)
    assert attention_tiles(64, 25, fp16, fp16) == AttentionTiles(32, 64, 4, 3)
    assert attention_tiles(8, 33, bf16, fp8) == attention_tiles(64, 1152, bf16, fp8)
    assert attention_tiles(128, 1152, bf16, int8) == AttentionTiles(128, 64, 8, 3)
    assert attention_tiles(128, 1152, bf16, int8, coded=True) == attention_tiles(128, 1152, bf16, fp8)
    assert splits(programs=288, pages=31, processors=132) == 1
    assert splits(programs=32, pages=31, processors=132) == 9
    assert splits(programs=1, pages=2, processors=132) == 2


@pytest.mark.parametrize("codes", LARGEST)
@pytest.mark.parametrize("parts", [None, 1, 2])
def test_a_chunk_reads_itself_exactly_beside_pages_of_codes(codes: torch.dtype, parts: int | None) -> None:
    """Its own page, wherever it stands in the table, has not been written and holds NaN; a chunk may stand alone."""
    tables = [BlockTable((3, 0, 1), skip_tokens=5), BlockTable((2,)), BlockTable((3, 1), multiplicity=(2, 3))]
    storage, query = draw(2, 5, 63, 20), draw(3, 7, 20, seed=2)
    keys, values = quantise_keys(storage[0], codes), quantise_values(storage[1], codes)
    keys.scale[[0, 2, 4]], values.scale[[0, 2, 4]] = float("nan"), float("nan")
    own = Own(draw(3, 63, 20, seed=7), draw(3, 63, 20, seed=8), (0, 2, 1))
    done = triton.prepare(query, keys, values, tables, 2, wants_lse=True, parts=parts, own=own).run()
    wide_keys, wide_values = keys.read(torch.float32), values.read(torch.float32)
    for i, table in enumerate(tables):
        wide = [wide_keys.clone(), wide_values.clone()]
        for pages, exact in zip(wide, (own.keys, own.values), strict=True):
            pages[own.pages[i]] = exact[i]
        expected = reference.attend(query[i : i + 1], wide[0], wide[1], [table], 2)
        near(done.out[i : i + 1], expected, 1e-5)
        one = Own(own.keys[i : i + 1], own.values[i : i + 1], own.pages[i : i + 1])
        near(reference.attend(query[i : i + 1], keys, values, [table], 2, one), expected, 1e-5)
    got, expected = (of.attend_and_mass(query, keys, values, tables, 2, own)[1] for of in (triton, reference))
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_own_keys_that_are_not_in_the_table_are_refused() -> None:
    pages, query = draw(3, 5, 12), draw(1, 4, 12)
    keys, values = quantise_keys(pages, torch.int8), quantise_values(pages, torch.int8)
    exact = draw(1, 5, 12)
    for own, table, what in (
        (Own(exact, exact, (1,)), BlockTable((0, 2)), "own page 1 of row 0 is not among"),
        (Own(exact, exact, (0,)), BlockTable((0, 2), 2), "2 tokens of the chunk's own page"),
        (Own(exact[:, :4], exact, (0,)), BlockTable((0, 2)), "own keys are"),
        (Own(exact, exact.half(), (0,)), BlockTable((0, 2)), "own values are"),
        (Own(exact, exact, (0, 1)), BlockTable((0, 2)), "2 own pages for 1 rows"),
    ):
        with pytest.raises(ValueError, match=what):
            triton.attend(query, keys, values, [table], 2, own)

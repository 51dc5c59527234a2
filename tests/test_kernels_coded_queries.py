"""Queries that become codes: Triton's attention against the plain-torch one, and how far either is from exact queries.

A number on the border between two codes may become either, so one query may differ by a code between the two.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import attention as reference
from kernels import attention_triton as triton
from kernels import coded_queries
from kernels.attention import BlockTable, Own
from kernels.quantised import LARGEST, QuantisedKeys, QuantisedValues, quantise_keys, quantise_values
from tests.kernel_cases import ATTENTION_TOLERANCE, DTYPES, block_tables, draw, near

# Of the largest number that comes out: what a code more or less in a query does, and what all codes of queries do.
BORDER, ERROR = 2e-3, 0.06


@pytest.fixture(autouse=True)
def _pays_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coded_queries, "FEW_QUERIES", 0)
    monkeypatch.setattr(coded_queries, "SHORT_PAGE", 0)


def pages_of(
    codes: torch.dtype, pages: int, tokens: int, width: int, written: set[int]
) -> tuple[QuantisedKeys, QuantisedValues]:
    """Codes of keys and values; of pages that nobody wrote, scales are NaN."""
    storage = draw(2, pages, tokens, width)
    keys, values = quantise_keys(storage[0], codes), quantise_values(storage[1], codes)
    empty = [page for page in range(pages) if page not in written]
    for scales in (keys.scale, keys.zero, values.scale):
        scales[empty] = float("nan")
    return keys, values


@pytest.mark.parametrize("codes", LARGEST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [1, 2])
def test_coded_queries_attend_as_the_reference_s(dtype: torch.dtype, codes: torch.dtype, parts: int) -> None:
    """Output, and what every page weighs: rows of different keep-sets, a page in part, merged chunks, odd sizes."""
    tables = [BlockTable((3, 1), 40), BlockTable((1,)), BlockTable((4, 3, 1), multiplicity=(1, 3, 2))]
    keys, values = pages_of(codes, 5, 63, 20, {1, 3, 4})
    query = draw(3, 37, 20, dtype=dtype, seed=2)
    done = triton.prepare(query, keys, values, tables, 2, wants_lse=True, parts=parts, coded=True).run()
    expected = reference.attend(query.float(), keys, values, tables, 2, coded=True)
    near(done.out, expected, BORDER + 2 * ATTENTION_TOLERANCE[dtype])
    assert done.page_lse is not None
    for row, lse in enumerate(reference.page_lse(query.float(), keys, tables, 2, coded=True)):
        torch.testing.assert_close(done.page_lse[row, : len(lse)], lse, atol=0.05, rtol=0)


@pytest.mark.parametrize("codes", LARGEST)
@pytest.mark.parametrize("of", [reference, triton])
def test_codes_of_queries_cost_a_few_hundredths(codes: torch.dtype, of: object) -> None:
    keys, values = pages_of(codes, 3, 63, 64, {0, 1, 2})
    query, tables = draw(1, 40, 64, seed=5), [BlockTable((2, 0, 1))]
    exact = reference.attend(query, keys, values, tables, 1)
    got = of.attend(query, keys, values, tables, 1, coded=True)  # type: ignore[attr-defined]
    near(got, exact, ERROR)
    assert (got - exact).abs().max() > 1e-4 * exact.abs().max()


@pytest.mark.parametrize("of", [reference, triton])
def test_few_queries_and_short_pages_are_left_exact(of: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for queries, tokens in ((coded_queries.FEW_QUERIES, 63), (40, coded_queries.SHORT_PAGE)):
        keys, values = pages_of(torch.int8, 2, tokens, 16, {0, 1})
        arguments = (draw(1, queries, 16), keys, values, [BlockTable((1, 0))], 2)
        plain, coded = (of.attend(*arguments, coded=x) for x in (False, True))  # type: ignore[attr-defined]
        assert torch.equal(plain, coded)


@pytest.mark.parametrize("parts", [None, 1, 2])
@pytest.mark.parametrize("codes", LARGEST)
def test_a_chunk_reads_itself_exactly_beside_coded_pages(codes: torch.dtype, parts: int | None) -> None:
    """What it reads of itself is as if queries were not codes: a chunk that stands alone is exact."""
    tables = [BlockTable((3, 0, 1), skip_tokens=5), BlockTable((2,)), BlockTable((3, 1), multiplicity=(2, 3))]
    keys, values = pages_of(codes, 5, 63, 20, {1, 3})
    query, own = draw(3, 37, 20, seed=2), Own(draw(3, 63, 20, seed=7), draw(3, 63, 20, seed=8), (0, 2, 1))
    expected = reference.attend(query, keys, values, tables, 2, own, coded=True)
    got = triton.prepare(query, keys, values, tables, 2, parts=parts, own=own, coded=True).run().out
    near(got, expected, BORDER)
    near(got[1:2], reference.attend(query[1:2], own.keys[1:2], own.values[1:2], [BlockTable((0,))], 2), 1e-5)
    masses = [of.attend_and_mass(query, keys, values, tables, 2, own, coded=True)[1] for of in (triton, reference)]
    for mine, theirs in zip(*masses, strict=True):
        torch.testing.assert_close(mine, theirs, atol=BORDER, rtol=0)
        assert mine.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("codes", LARGEST)
@pytest.mark.parametrize("dtype", DTYPES)
def test_loud_tokens_and_logits_of_thousands_do_not_overflow(dtype: torch.dtype, codes: torch.dtype) -> None:
    """Values a thousand times as loud as those of other pages; a query and a channel that are nothing."""
    storage = draw(2, 3, 63, 16)
    storage[0, 1] *= 300
    storage[1, 1, 5] *= 1000
    storage[0, :, :, 3] = 0
    keys, values = quantise_keys(storage[0], codes), quantise_values(storage[1], codes)
    query, tables = draw(1, 6, 16, dtype=dtype), [BlockTable((0, 1, 2))]
    query[0, 2] = 0
    for parts in (1, 3):
        got = triton.prepare(query, keys, values, tables, 2, parts=parts, coded=True).run().out
        expected = reference.attend(query.float(), keys, values, tables, 2, coded=True)
        near(got, expected, BORDER + 2 * ATTENTION_TOLERANCE[dtype])


@settings(max_examples=15)
@given(st.data())
def test_any_block_tables_give_what_the_reference_gives(data: st.DataObject) -> None:
    heads, head = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([2, 6, 16]))
    tokens, pages = data.draw(st.sampled_from([1, 7, 33])), data.draw(st.integers(1, 6))
    tables = data.draw(block_tables(pages, tokens))
    written = {page for table in tables for page in table.pages}
    keys, values = pages_of(data.draw(st.sampled_from(list(LARGEST))), pages, tokens, heads * head, written)
    query = draw(len(tables), data.draw(st.integers(1, 5)), heads * head, seed=4)
    parts = data.draw(st.integers(1, pages))
    got = triton.prepare(query, keys, values, tables, heads, parts=parts, coded=True).run().out
    near(got, reference.attend(query, keys, values, tables, heads, coded=True), 1e-2)

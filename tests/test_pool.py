"""Memory slots and places: exact expected tables, reference counts, and nothing that moves."""

import pytest
import torch

from cache.keep_set import RoleBudget
from cache.ledger import Ledger
from cache.pool import PageAllocator, Pool
from cache.spec import TYPES, AttentionSpec, AttentionType
from errors import BudgetError, CacheError, IntegrityError, PoolExhausted, TransactionError

SPECS = {t: AttentionSpec(t, layers=2, tokens_per_chunk=3, width=4, element_bytes=4) for t in TYPES}
T = AttentionType.VIDEO_SELF


def pool(pages: int = 8) -> Pool:
    return Pool(SPECS, dict.fromkeys(TYPES, pages), torch.float32)


def ledger(recent: int = 2) -> Ledger:
    return Ledger(SPECS[T], RoleBudget(subject_anchor=1, scene_sink=1, scene_anchor=0, restored=0, recent=recent))


def test_the_next_chunk_takes_the_place_that_was_vacated_and_nothing_moves() -> None:
    books = ledger()
    for chunk in range(3):
        assert books.stage() == chunk + 1
        books.book(chunk, slot=chunk)
    assert books.stage() == 4
    books.book(3, slot=3)
    for chunk in range(4, 9):
        vacated = books.evict(chunk - 3).place
        assert books.stage() == vacated
        books.book(chunk, slot=chunk)
        assert books.places() == [1, 2, 3, 4]
        assert books.entries[0].place == 1


def test_transactions_out_of_order_are_refused() -> None:
    books = ledger()
    for call in (books.unstage, lambda: books.book(0, 0)):
        with pytest.raises(TransactionError, match="nothing is staged"):
            call()
    books.stage()
    with pytest.raises(TransactionError, match="is staged already"):
        books.stage()
    assert books.unstage() == 1


def test_corrupted_books_are_noticed() -> None:
    books = ledger()
    books.stage()
    books.book(0, 0)
    books.check_integrity()
    books.entries[1] = books.entries[0]
    with pytest.raises(IntegrityError, match="do not add up"):
        books.check_integrity()


def test_a_lease_lives_in_a_home_range_of_its_own() -> None:
    made = pool(8)
    first, second = (made.open(dict.fromkeys(TYPES, 4)) for _ in range(2))
    assert [made.claim(first, T, place) for place in (2, 0, 1)] == [2, 0, 1]
    assert [made.claim(second, T, place) for place in (0, 3)] == [4, 7]
    made.check_integrity()
    made.close(first)
    third = made.open(dict.fromkeys(TYPES, 3))
    assert made.claim(third, T, 1) == 1


def test_an_exhausted_pool_leases_nothing_at_all() -> None:
    made = pool(8)
    made.open(dict.fromkeys(TYPES, 5))
    with pytest.raises(PoolExhausted, match="4 memory slots wanted, 3 of 8 are not leased"):
        made.open({**dict.fromkeys(TYPES, 3), AttentionType.VIDEO_TO_AUDIO: 4})
    made.check_integrity()
    made.open(dict.fromkeys(TYPES, 3))


def test_a_fork_reads_the_same_pages_and_a_write_copies_only_the_page_written() -> None:
    made = pool(8)
    parent = made.open(dict.fromkeys(TYPES, 4))
    pages = [made.claim(parent, T, place) for place in range(3)]
    for page in pages:
        made.storage[T][:, :, page] = float(page)
    child = made.fork(parent)
    assert made.pages(child, T, [0, 1, 2]) == (0, 1, 2)
    assert made.statistics().held_bytes[T] == 3 * SPECS[T].bytes_per_chunk
    own = made.exclusive(child, T, 1)
    assert own not in pages
    assert torch.equal(made.storage[T][:, :, own], made.storage[T][:, :, 1])
    assert made.exclusive(child, T, 1) == own
    assert made.exclusive(parent, T, 1) == 1
    made.release(parent, T, 0)
    made.check_integrity()
    assert made.pages(child, T, [0]) == (0,)
    made.close(parent)
    made.close(child)
    made.check_integrity()
    assert made.statistics().held_bytes[T] == 0


def test_pages_are_never_released_more_often_than_taken() -> None:
    allocator = PageAllocator(4)
    allocator.lease(1, 2)
    page = allocator.allocate(1, 0)
    allocator.release(page)
    with pytest.raises(IntegrityError, match="released more often"):
        allocator.release(page)


def test_foreign_leases_and_wrong_element_sizes_are_refused() -> None:
    here, there = pool(), pool()
    lease = there.open(dict.fromkeys(TYPES, 2))
    with pytest.raises(CacheError, match="is not open in this pool"):
        here.claim(lease, T, 0)
    there.claim(lease, T, 0)
    with pytest.raises(IntegrityError, match="place 0 has page"):
        there.claim(lease, T, 0)
    with pytest.raises(BudgetError, match="spec has 4 bytes an element"):
        Pool(SPECS, dict.fromkeys(TYPES, 2), torch.bfloat16)

"""The books of slots and the memory that is lent: nothing is used again while anybody may still touch or see it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache.lent import Bytes, WarmBuffers, lent
from cache.transfer import Lease, SlotBook


class Slots(RuleBasedStateMachine):
    """A book against a model that knows of every transfer whether its peer may still be in the slot."""

    @initialize(slots=st.integers(1, 4))
    def build(self, slots: int) -> None:
        self.book, self.now = SlotBook(slots, 10.0), 0.0
        self.inside: dict[int, Lease] = {}  # by generation: peers that may still touch their slot
        self.mine: dict[int, Lease] = {}  # by generation: leases that the owner has not let go of
        self.given: list[Lease] = []

    @rule()
    def reserve(self) -> None:
        lease = self.book.reserve(self.now)
        if lease is None:
            assert self.book.statistics().free == 0
            return
        assert lease.slot not in {one.slot for one in self.inside.values()}, "a peer may still be in it"
        assert lease.slot not in {one.slot for one in self.mine.values()}, "its owner still uses it"
        assert lease.generation not in {one.generation for one in self.given}
        self.given.append(lease)
        self.inside[lease.generation] = self.mine[lease.generation] = lease

    @precondition(lambda self: self.given)
    @rule(which=st.integers(0, 1000))
    def the_peer_answers(self, which: int) -> None:
        lease = self.given[which % len(self.given)]
        self.inside.pop(lease.generation, None)
        before = self.book.use(lease)
        assert self.book.release(lease) == (before is not None)
        assert self.book.use(lease) is None
        self.mine.pop(lease.generation, None)

    @precondition(lambda self: self.given)
    @rule(which=st.integers(0, 1000))
    def the_peer_answers_and_the_owner_reads_on(self, which: int) -> None:
        lease = self.given[which % len(self.given)]
        before = self.book.use(lease)
        assert self.book.hold(lease) == (before == "leased")
        if before == "leased":
            self.inside.pop(lease.generation, None)

    @precondition(lambda self: self.given)
    @rule(which=st.integers(0, 1000))
    def the_owner_gives_up(self, which: int) -> None:
        lease = self.given[which % len(self.given)]
        buried = self.book.bury(lease)
        assert buried == (lease.generation in self.inside and lease.generation in self.mine)
        if buried:
            self.mine.pop(lease.generation)

    @rule(seconds=st.sampled_from([0.5, 5.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for lease in self.book.expire(self.now):
            assert lease.until <= self.now
            self.mine.pop(lease.generation)
        assert all(self.book.use(one) != "leased" or one.until > self.now for one in self.given)

    @rule(alive=st.sets(st.integers(0, 3)))
    def some_peers_are_known_to_be_dead(self, alive: set[int]) -> None:
        for lease in self.book.exhume(lambda lease: lease.slot not in alive):
            assert lease.generation not in self.mine
            self.inside.pop(lease.generation, None)

    @invariant()
    def it_is_whole(self) -> None:
        if hasattr(self, "book"):
            self.book.check_integrity()
            found = self.book.statistics()
            assert found.free + found.leased + found.held + found.grave == self.book.slots
            assert found.leased + found.held == len(self.mine)


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# -- memory that comes back by itself


def test_lent_memory_comes_back_when_no_view_of_it_is_left_and_not_before() -> None:
    back: list[str] = []
    memory: Bytes = np.zeros(64, np.uint8)
    array = lent(memory, lambda: back.append("array"))
    view, tensor = array[8:16], torch.from_numpy(array)[32:].view(torch.float32)
    again = tensor.numpy()[:2]
    del array
    assert not back
    del view, tensor
    assert not back
    del again
    assert back == ["array"]


def test_warm_buffers_are_never_given_to_two_threads_at_once() -> None:
    warm = WarmBuffers(8 * 64)

    def work(mark: int) -> int:
        wrong = 0
        for _ in range(300):
            buffer = warm.take(64)
            buffer[:] = mark
            wrong += int((buffer != mark).sum())
        return wrong

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(work, range(4))) == 0
    warm.check_integrity()
    assert warm.statistics()["warm_lent_bytes"] == 0


def test_warm_buffers_are_used_again_and_never_while_somebody_sees_them() -> None:
    warm = WarmBuffers(300)
    first = warm.take(100)
    address = first.ctypes.data
    view = first[10:20]
    del first
    second = warm.take(100)
    assert second.ctypes.data != address
    del view
    assert warm.take(100).ctypes.data == address
    others = [warm.take(100) for _ in range(9)]
    assert warm.statistics() == {"warm_lent_bytes": 1000, "warm_idle_bytes": 0}
    del others, second
    assert warm.statistics() == {"warm_lent_bytes": 0, "warm_idle_bytes": 300}
    bigger = warm.take(250)
    del bigger
    assert warm.statistics() == {"warm_lent_bytes": 0, "warm_idle_bytes": 250}  # the size that is in use
    warm.check_integrity()

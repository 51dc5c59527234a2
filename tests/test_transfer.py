"""Bytes between processes, one-sided: what arrives is what was sent or a clear error, whoever dies or changes his mind.

The same tests for both transports. Who plays the generator or the store is another process that can be killed.
"""

import gc
import importlib.util
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from actors.transport.base import Kind, Offer, Reach, checksum
from actors.transport.choose import REACHES, AnyReach, region
from actors.transport.nixl import NixlReach, _payload_address
from actors.transport.shared import SharedReach, SharedRegion
from cache.lent import Bytes
from errors import ConfigError, PeerGone, RecordCorrupt, RecordLost, SlotRecycled, TransferFailed, TransferPending
from tests.transfer_peers import DEADLINE_S, POISON, owner, pattern, store

HAS_NIXL = importlib.util.find_spec("nixl_cu12") is not None
needs_nixl = pytest.mark.skipif(not HAS_NIXL, reason="NIXL is not installed")
KINDS = ["shared", pytest.param("nixl", marks=needs_nixl)]
MIB = 1 << 20


def poisoned(nbytes: int) -> Bytes:
    return np.full(nbytes, POISON, np.uint8)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def reach(kind: Kind) -> Iterator[Reach]:
    made = REACHES[kind]()
    yield made
    made.close()


def test_what_is_pulled_and_pushed_is_what_was_meant_at_odd_sizes_too(kind: Kind, reach: Reach) -> None:
    with owner(kind, 3, 2 * MIB) as generator:
        for generation, nbytes in enumerate([1, 63, 100, 4097, MIB + 7, 2 * MIB], 1):
            offer = generator.ask("offer", generation % 3, generation, generation, nbytes)
            into = poisoned(nbytes)
            reach.pull(offer, into)
            assert np.array_equal(into, pattern(generation, nbytes))
            landing = generator.ask("land", generation % 3, 100 + generation)
            reach.push(landing, pattern(50 + generation, nbytes))
            assert generator.ask("look", generation % 3, nbytes) == checksum(pattern(50 + generation, nbytes))


def test_a_slot_that_was_given_up_or_used_again_is_a_miss_and_is_not_touched(kind: Kind, reach: Reach) -> None:
    with owner(kind, 2, 4096) as generator:
        offer, landing = generator.ask("offer", 0, 1, 1, 4096), generator.ask("land", 1, 2)
        for slot in (0, 1):
            generator.ask("revoke", slot)
        newer = generator.ask("offer", 0, 3, 3, 4096)
        into, before = poisoned(4096), generator.ask("look", 1, 4096)
        with pytest.raises(SlotRecycled, match="no longer under generation 1"):
            reach.pull(offer, into)
        with pytest.raises(SlotRecycled, match="no longer under generation 2"):
            reach.push(landing, pattern(9, 4096))
        assert (into == POISON).all()
        assert generator.ask("look", 1, 4096) == before
        reach.pull(newer, into)
        assert np.array_equal(into, pattern(3, 4096))


def test_bytes_that_changed_after_they_were_offered_are_never_taken_for_them(kind: Kind, reach: Reach) -> None:
    with owner(kind, 1, MIB) as generator:
        offer = generator.ask("offer", 0, 1, 1, MIB)
        generator.ask("spoil", 0)
        with pytest.raises(RecordCorrupt, match="checksum differs"):
            reach.pull(offer, poisoned(MIB))


def test_what_does_not_fit_or_is_no_slot_is_refused(kind: Kind, reach: Reach) -> None:
    with owner(kind, 1, 4096) as generator:
        landing = generator.ask("land", 0, 1)
        with pytest.raises(TransferFailed, match="4,097 bytes do not fit a slot of 4,096"):
            reach.push(landing, poisoned(4097))
        for wrong in (Offer(landing.ticket, 1, 1, 4096), Offer(landing.ticket, 0, 1, 1 << 40)):
            with pytest.raises(TransferFailed, match="is not one of"):
                reach.pull(wrong, poisoned(8))
            with pytest.raises(TransferFailed, match="is not one of"):
                reach.push(wrong, poisoned(8))


def test_a_reader_never_gets_foreign_bytes_from_an_owner_that_recycles_under_it(kind: Kind, reach: Reach) -> None:
    seeds, nbytes, found = 250, 256 << 10, Counter[str]()
    with owner(kind, 1, nbytes) as generator:
        reach.pull(generator.ask("offer", 0, 10_000, 7, 4096), poisoned(4096))  # who has met reads sooner
        generator.tell("churn", 0, seeds, nbytes, 5)
        for seed in range(seeds):
            offer = generator.answer()
            into = poisoned(nbytes)
            try:
                reach.pull(offer, into)
            except (SlotRecycled, RecordCorrupt, TransferFailed) as error:
                found[type(error).__name__] += 1
            else:
                assert np.array_equal(into, pattern(seed, nbytes)), "foreign bytes were served"
                found["right"] += 1
        assert generator.answer() == seeds
    assert found["right"] > 0
    assert found["right"] < seeds, "nothing was ever recycled under the reader: the test shows nothing"


def test_an_owner_that_has_gone_is_a_clear_error(kind: Kind, reach: Reach) -> None:
    with owner(kind, 1, 4096) as generator:
        met = generator.ask("offer", 0, 1, 1, 4096)
        reach.pull(met, poisoned(4096))
        generator.kill()
    if kind == "shared":  # what was mapped is still there, and says the truth, until it is let go of
        assert reach.statistics()["regions"] == 1
        reach.sweep()
        assert reach.statistics()["regions"] == 0
    with pytest.raises(PeerGone):
        reach.pull(met, poisoned(4096))
    with pytest.raises(PeerGone):
        reach.greet(met.ticket)


@pytest.mark.parametrize("found", KINDS)
def test_a_region_can_be_reached_or_is_said_not_to_be(found: Kind) -> None:
    both = AnyReach()
    with owner(found, 2, 4096) as generator:
        both.greet(generator.ask("offer", 0, 1, 1, 8).ticket)
    both.close()


# -- shared memory


def test_the_kernel_says_who_is_in_a_slot_and_when_its_owner_has_gone() -> None:
    made, one, other = SharedRegion(2, 4096), SharedReach(), SharedReach()
    offer = Offer(made.ticket, 1, 1, 4096)
    made.announce(offer)
    with one._within(offer):
        assert (made.deserted(0), made.deserted(1)) == (True, False)
        with pytest.raises(TransferFailed, match="somebody else is in slot 1"):
            other.push(offer, poisoned(8))
    assert made.deserted(1)
    other.push(offer, poisoned(8))
    held = made.payload(1)
    made.close()
    for reach in (one, other):
        reach.sweep()
        assert reach.statistics() == {"regions": 0, "attached_bytes": 0, "graveyard_bytes": 0}
    assert (held[:8] == POISON).all()  # what is lent outlives the region


def test_another_file_in_place_of_a_region_is_not_taken_for_it() -> None:
    made, other, reach = SharedRegion(2, 4096), SharedRegion(2, 4096), SharedReach()
    ticket = made.ticket
    forged = type(ticket)("shared", ticket.region, other.ticket.where, 0, 2, 4096)
    with pytest.raises(PeerGone, match="another process in place"):
        reach.greet(forged)
    for where in (b"/proc/self/fd/0", b"/proc/1/fd/100000", b"/dev/null"):
        with pytest.raises(PeerGone):
            reach.greet(type(ticket)("shared", ticket.region, where, 0, 2, 4096))
    made.close()
    with pytest.raises(PeerGone):
        reach.greet(ticket)


def test_regions_of_the_dead_are_let_go_of_and_no_descriptor_stays() -> None:
    gc.collect()  # regions of other tests
    reach, before = SharedReach(), len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        made = SharedRegion(2, 4096)
        reach.greet(made.ticket)
        made.close()
        del made
    assert reach.statistics()["regions"] == 1  # the others went when the next came
    reach.close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_that_is_not_to_be_had_is_said_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="expected room, and Linux; or 'inline'"):
        SharedRegion(2, 1 << 50)


# -- NIXL


@needs_nixl
def test_a_payload_larger_than_a_bounce_buffer_goes_in_pieces() -> None:
    reach = NixlReach(bounces=2, bounce_bytes=64 << 10)
    with owner("nixl", 1, MIB) as generator:
        into = poisoned(MIB - 5)
        reach.pull(generator.ask("offer", 0, 1, 1, MIB - 5), into)
        assert np.array_equal(into, pattern(1, MIB - 5))
        reach.push(generator.ask("land", 0, 2), pattern(2, MIB - 5))
        assert generator.ask("look", 0, MIB - 5) == checksum(pattern(2, MIB - 5))
    assert reach.book.statistics().free == 2
    reach.close()


@needs_nixl
def test_a_transfer_that_is_not_over_in_time_keeps_its_buffer_until_it_is() -> None:
    reach = NixlReach(patience_s=0.2, bounces=2, bounce_bytes=8192)
    with owner("nixl", 1, 4096) as generator:
        offer = generator.ask("offer", 0, 1, 1, 4096)
        os.kill(generator.process.pid, signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(TransferFailed, match=r"not over after 0\.2 s"):
                reach.pull(offer, poisoned(4096))
        assert reach.statistics()["graveyard_bytes"] == 2 * 8192
        with pytest.raises(TransferFailed, match="all 2 buffers wait"):
            reach.pull(offer, poisoned(4096))
        os.kill(generator.process.pid, signal.SIGCONT)
        deadline = time.monotonic() + DEADLINE_S
        while reach.statistics()["graveyard_bytes"]:
            assert time.monotonic() < deadline
            reach.sweep()
        reach.book.check_integrity()
        reach.book.lease_s = DEADLINE_S
        into = poisoned(4096)
        reach.pull(offer, into)
        assert np.array_equal(into, pattern(1, 4096))
    reach.close()


@needs_nixl
def test_a_push_that_was_given_up_is_said_to_be_pending_until_it_cannot_write_any_more() -> None:
    reach = NixlReach(patience_s=DEADLINE_S)
    with owner("nixl", 2, MIB) as generator:
        landing = generator.ask("land", 0, 1)
        peer = reach._peer(landing.ticket)  # whom nothing was ever asked: who is stopped cannot be met
        os.kill(generator.process.pid, signal.SIGSTOP)
        lease = reach.book.reserve(time.monotonic() - DEADLINE_S)  # as if its time were up when it begins
        assert lease is not None
        reach.layout.payload(lease.slot)[:MIB] = pattern(3, MIB)
        with pytest.raises(TransferPending, match="WRITE of 1,048,576 bytes"):
            reach._move("WRITE", peer, lease, _payload_address(landing), MIB)
        assert reach.book.use(lease) == "grave"
        assert reach._abandoned
        os.kill(generator.process.pid, signal.SIGCONT)
        deadline = time.monotonic() + DEADLINE_S
        while reach.statistics()["graveyard_bytes"]:
            assert time.monotonic() < deadline
            reach.sweep()
        reach.greet(landing.ticket)
        assert generator.ask("look", 0, MIB) == checksum(pattern(3, MIB)), "it wrote after it was given up"
    reach.close()


def test_nixl_that_is_not_installed_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nixl_cu12", None)
    with pytest.raises(ConfigError, match="the extra 'nixl'\\), or 'shared' or 'inline'"):
        region("nixl", 2, 4096)
    with pytest.raises(TransferFailed, match="cannot be reached by nixl"):
        AnyReach().greet(type(SharedRegion(2, 4096).ticket)("nixl", "r", b"", 0, 2, 4096))


# -- kills

KILLS = int(os.environ.get("TRANSFER_KILLS", "12"))


def test_an_owner_killed_in_mid_transfer_leaves_right_bytes_or_an_error_and_nothing_else(kind: Kind) -> None:
    reach, rng, found = REACHES[kind](), np.random.default_rng(3), Counter[str]()
    before = 0
    for kill in range(KILLS if kind == "shared" else KILLS // 4):
        with owner(kind, 2, 4 * MIB) as generator:
            offers = [generator.ask("offer", slot, 1, 10 * kill + slot, 4 * MIB) for slot in (0, 1)]
            reach.greet(offers[0].ticket)
            until, killed = time.perf_counter() + rng.uniform(0, 0.01), False
            for lap in range(12):
                into, seed = poisoned(4 * MIB), 10 * kill + lap % 2
                if not killed and time.perf_counter() > until:
                    os.kill(generator.process.pid, signal.SIGKILL)
                    killed = True
                try:
                    reach.pull(offers[lap % 2], into)
                except RecordLost as error:
                    found[type(error).__name__] += 1
                else:
                    assert np.array_equal(into, pattern(seed, 4 * MIB))
                    found["right"] += 1
        reach.sweep()
        if kind == "shared":
            assert reach.statistics()["regions"] == 0
            before = before or len(os.listdir("/proc/self/fd"))
            assert len(os.listdir("/proc/self/fd")) <= before
        assert reach.statistics()["graveyard_bytes"] == 0
    assert found["right"]
    assert not {"RecordCorrupt"} & set(found)
    reach.close()


def test_the_pull_of_a_store_that_was_killed_leaves_nothing_behind(kind: Kind) -> None:
    with owner(kind, 1, MIB) as generator:
        offer = generator.ask("offer", 0, 1, 1, MIB)
        for _ in range(3 if kind == "shared" else 1):
            with store() as reader:
                assert reader.ask("pull", offer) == offer.checksum
                reader.tell("pull", offer)
                reader.kill()
            assert generator.ask("deserted", 0) in (True, None)
        with store() as reader:
            assert reader.ask("pull", offer) == offer.checksum

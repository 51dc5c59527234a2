"""A generator's slots and a store's hands: what RemoteTier promises holds through them, whoever fails in between."""

import gc
import importlib.util
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import rule

from actors.cargo import Cargo, Goods, unpacked, unpacked_inline
from actors.gauges import transfers
from actors.metrics import Tally
from actors.remote_tier import RemoteTier
from actors.restore_store import RestoreStore
from actors.staging import Landing, Staging, StagingConfig
from actors.transport.base import Kind, checksum
from actors.transport.choose import region
from cache.keep_set import Role
from cache.spec import TYPES, AttentionType
from cache.tiers import NOTHING, Arriving, KeyValues, LandedKeyValues, Latents, Room
from errors import ConfigError, RecordCorrupt, RecordLost, TransferPending
from tests.builders import engine
from tests.test_restore_store import CHUNKS, SESSIONS, Line, Twins, film
from tests.transfer_peers import POISON, Peer, pattern, store

HAS_NIXL = importlib.util.find_spec("nixl_cu12") is not None
KINDS = ["shared", pytest.param("nixl", marks=pytest.mark.skipif(not HAS_NIXL, reason="NIXL is not installed"))]
SMALL = StagingConfig(slots=4, slot_bytes=64 << 10, small_bytes=0)
KILLS = int(os.environ.get("TRANSFER_KILLS", "12"))


def staged(kind: Kind = "shared", config: StagingConfig = SMALL, clock: Any = time.monotonic) -> Staging:
    return Staging(region(kind, config.slots, config.slot_bytes), config, clock)


def payload(size: int = 1000, role: Role = Role.RECENT) -> KeyValues:
    return KeyValues(torch.rand(1, 2, 1, size), 3, role, 7)


@pytest.fixture
def line() -> Iterator[Line]:
    found = Line(RestoreStore(1 << 26, 0))
    yield found
    if found.store is not None:
        found.store.check_integrity()
        found.store.dock.close()


# -- as a cache sees it


class TwinsThroughSlots(Twins):
    """The machine of ``Twins`` with few slots, so that everything happens: slots, copies, calls that carry bytes."""

    def tier(self) -> RemoteTier:
        config = StagingConfig(slots=2, slot_bytes=4096, small_bytes=63, lands_bytes=0)
        return RemoteTier(self.line.call, staging=staged(config=config))

    @rule(session=SESSIONS, chunk=CHUNKS, kind=st.sampled_from(TYPES), size=st.sampled_from([8, 7]))
    def fetch_into_a_room(self, session: str, chunk: int, kind: AttentionType, size: int) -> None:
        room = room_of(size)
        if kind in self.twin.holds(session, chunk).types:
            here, there = self.twin.fetch(session, chunk, kind), self.remote.fetch(session, chunk, kind, room)
            assert same(here, there, room)
        else:
            with pytest.raises(RecordLost):
                self.remote.fetch(session, chunk, kind, room)
            with pytest.raises(RecordLost):
                self.twin.fetch(session, chunk, kind)

    @rule(session=SESSIONS, chunk=CHUNKS, kind=st.sampled_from(TYPES), size=st.sampled_from([8, 7]),
          follows=st.booleans())  # fmt: skip
    def begin_to_fetch_into_a_room(
        self, session: str, chunk: int, kind: AttentionType, size: int, follows: bool
    ) -> None:
        room = room_of(size)
        answer = self.remote.begin_fetch(session, chunk, kind, room)
        twin = self.twin.begin_fetch(session, chunk, kind)
        if isinstance(answer, Arriving):
            if not follows:
                answer.let_go()
            while answer.follow():
                pass
        assert type(answer.exception(0)) is type(twin.exception(0))
        if answer.exception() is None:
            assert same(twin.result(), answer.result(), room)
        if not follows:
            assert all((piece == POISON).all() for piece in room.pieces)

    def teardown(self) -> None:
        if hasattr(self, "remote"):
            for tier in (self.remote, self.other):
                tier.staging.check_integrity()
                tier.staging.close()


def room_of(size: int) -> Room:
    pieces = tuple(np.full(4 * size, POISON, np.uint8) for _ in range(2))
    return Room(pieces, torch.float32, (1, 2, 1, size), "exact")


def same(here: KeyValues, there: KeyValues, room: Room) -> bool:
    landed = np.concatenate(room.pieces).tobytes()
    found = landed if isinstance(there, LandedKeyValues) else there.tensor.numpy().tobytes()
    return (here.slot, here.role, here.tensor.numpy().tobytes()) == (there.slot, there.role, found)


TestTwinsThroughSlots = TwinsThroughSlots.TestCase


@pytest.mark.parametrize("kind", KINDS)
def test_a_take_whose_chunks_go_through_slots_equals_one_with_its_store_here(kind: Kind, line: Line) -> None:
    staging = staged(kind, StagingConfig(slots=3, slot_bytes=1 << 20, small_bytes=0))
    here, there = film(engine()), film(engine(tier=RemoteTier(line.call, staging=staging)))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert staging.moved["out", kind] > 0
    assert staging.moved["in", kind] > 0
    assert not staging.failures
    gc.collect()
    staging.answered(1 << 30)
    assert staging.book.statistics().free == 3
    assert line.store is not None
    found = line.store.statistics()
    assert found["records"] == 0
    assert found[f"transfer_taken_{kind}_bytes"] == staging.moved["out", kind]
    staging.close()


def test_nothing_goes_through_slots_before_the_store_said_that_it_reaches_them(line: Line) -> None:
    line.late = True
    staging = staged()
    tier = RemoteTier(line.call, staging=staging)
    tier.offload("a", 0, TYPES[0], payload())
    assert staging.inline["unreachable"] == 1
    line.carry_out()
    tier.offload("a", 1, TYPES[0], payload())
    assert staging.moved["out", "shared"] == 8000


def test_a_store_that_cannot_reach_the_slots_gets_everything_within_calls(line: Line) -> None:
    staging = staged()
    staging.region.ticket = type(staging.region.ticket)("shared", "elsewhere", b"/proc/0/fd/3", 0, 4, 65536)  # type: ignore[union-attr]
    tier, kept = RemoteTier(line.call, staging=staging), payload()
    tier.offload("a", 0, TYPES[0], kept)
    assert torch.equal(tier.fetch("a", 0, TYPES[0]).tensor, kept.tensor)
    assert (staging.open, staging.inline["unreachable"]) == (False, 2)
    assert not tier.failures


def test_full_slots_and_large_payloads_go_within_calls_and_are_counted(line: Line) -> None:
    staging = staged()
    tier = RemoteTier(line.call, staging=staging)
    tier.holds("a", 0)
    line.late = True
    kept = [payload() for _ in range(6)]
    for chunk, one in enumerate(kept):
        tier.offload("a", chunk, TYPES[0], one)
    assert (staging.inline["full"], staging.book.statistics().leased) == (2, 4)
    line.late = False
    large = payload(10_000)
    tier.offload("a", 6, TYPES[0], large)
    line.carry_out()
    assert staging.inline["large"] == 1
    for chunk, one in enumerate([*kept, large]):
        found = tier.fetch("a", chunk, TYPES[0])
        assert torch.equal(found.tensor, one.tensor)
        assert (found.slot, found.role, found.written) == (3, Role.RECENT, 7)
    assert staging.moved["in", "inline"] == large.nbytes
    told = Tally()
    for name, tags, value in transfers(staging):
        told.set(name, value, **tags)
    assert told.gauges["transfer_inline", "large"] == 1


def test_what_was_fetched_stays_as_it_is_for_as_long_as_somebody_has_it(line: Line) -> None:
    staging = staged()
    tier = RemoteTier(line.call, staging=staging)
    kept = [payload() for _ in range(12)]
    for chunk, one in enumerate(kept):
        tier.offload("a", chunk, TYPES[0], one)
    fetched = [tier.fetch("a", chunk, TYPES[0]).tensor for chunk in range(12)]
    assert staging.book.statistics().held == 2  # of four; the others are copies
    keys = [tensor[:, 0] for tensor in fetched]
    del fetched
    for _ in range(3):
        for one in kept:
            tier.offload("b", 0, TYPES[0], one)
    assert all(torch.equal(a, b.tensor[:, 0]) for a, b in zip(keys, kept, strict=True))
    del keys
    tier.fetch("a", 0, TYPES[0])
    tier.offload("a", 0, TYPES[0], kept[0])
    assert staging.book.statistics().held == 0


def test_latents_that_came_back_hold_no_slot(line: Line) -> None:
    staging = staged()
    tier = RemoteTier(line.call, staging=staging)
    kept = Latents(torch.rand(3, 5), torch.rand(7, 3, dtype=torch.float64), "p", "s")
    tier.keep_latents("a", 0, kept)
    found = tier.latents("a", 0)
    assert torch.equal(found.video, kept.video)
    assert torch.equal(found.audio, kept.audio)
    assert (found.prompt, found.scene) == ("p", "s")
    tier.holds("a", 0)
    tier.latents("a", 0)
    assert staging.book.statistics().held <= 1
    assert staging.moved["in", "shared"] == 2 * (64 + 192)


# -- what fails


def test_bytes_that_were_damaged_in_the_store_are_a_miss_and_counted(line: Line) -> None:
    for small_bytes in (0, 1 << 20):  # through a slot, and within a call
        staging = staged(config=StagingConfig(slots=2, slot_bytes=64 << 10, small_bytes=small_bytes))
        tier, kept = RemoteTier(line.call, staging=staging), payload()
        tier.offload("a", 0, TYPES[0], kept)
        assert line.store is not None
        line.store.tier.fetch("a", 0, TYPES[0]).tensor.view(torch.uint8)[0, 0, 0, 5] ^= 1
        with pytest.raises(RecordCorrupt, match="checksum differs"):
            tier.fetch("a", 0, TYPES[0])
        assert staging.failures["unverified"] >= 1
        gc.collect()
        tier.offload("a", 0, TYPES[0], kept)
        assert torch.equal(tier.fetch("a", 0, TYPES[0]).tensor, kept.tensor)
        staging.check_integrity()


def test_bytes_that_change_in_a_slot_are_not_kept_and_the_index_knows(line: Line) -> None:
    staging = staged()
    tier = RemoteTier(line.call, staging=staging)
    tier.offload("a", 0, TYPES[0], payload())
    line.late = True
    tier.offload("a", 1, TYPES[0], payload())
    assert staging.region is not None
    slot = line.waiting[-1][2][-1].where.slot
    staging.region.payload(slot)[100] ^= 1
    landed = tier.landed()
    line.carry_out()
    tier.holds("a", 1)
    assert landed.result(0) is False
    line.late = False
    tier.offload("a", 2, TYPES[0], payload())  # whose answer makes the tier ask what is there
    assert [tier.holds("a", chunk) == NOTHING for chunk in (0, 1, 2)] == [False, True, False]
    assert line.store is not None
    assert line.store.statistics()["transfer_failed_unverified"] == 1
    assert staging.book.statistics().free == 4


def test_a_landing_that_is_spoilt_is_asked_for_again_within_the_call(line: Line) -> None:
    staging = staged()
    kept = payload()
    spoil: list[bool] = []

    def call(name: str, *arguments: Any) -> "Future[Any]":
        answer = line.call(name, *arguments)
        if name == "fetch" and len(arguments) == 4 and spoil:
            assert staging.region is not None
            staging.region.payload(arguments[3].slot)[:64] = POISON
        return answer

    tier = RemoteTier(call, staging=staging)
    tier.offload("a", 0, TYPES[0], kept)
    spoil.append(True)
    assert torch.equal(tier.fetch("a", 0, TYPES[0]).tensor, kept.tensor)
    assert (staging.failures["unverified"], staging.moved["in", "inline"]) == (1, 8000)
    assert staging.book.statistics().free == 4


def test_a_slot_whose_call_hangs_is_given_up_and_a_store_that_wakes_up_does_not_touch_it(line: Line) -> None:
    now = [0.0]
    staging = staged(clock=lambda: now[0])
    tier = RemoteTier(line.call, patience_s=0.01, staging=staging, clock=lambda: now[0])
    tier.holds("a", 0)
    line.late = True
    tier.offload("a", 0, TYPES[0], payload())
    late = line.waiting[-1][2][-1].where
    now[0] = 31.0
    fresh = payload()
    line.late = False
    held, line.waiting = line.waiting, deque()
    tier.offload("b", 0, TYPES[0], fresh)  # the slot is used again: the kernel says that nobody is in it
    line.waiting = held
    line.carry_out()
    tier.holds("a", 0)
    assert line.store is not None
    assert line.store.statistics()["transfer_failed_failed"] == 1
    assert late.generation < staging.book.generation
    assert torch.equal(tier.fetch("b", 0, TYPES[0]).tensor, fresh.tensor)
    with pytest.raises(RecordLost):
        tier.fetch("a", 0, TYPES[0])


class Mute:
    """A region that cannot tell who is in a slot, as NIXL's; in this process."""

    def __init__(self, config: StagingConfig) -> None:
        self.inner: Any = region("shared", config.slots, config.slot_bytes)
        self.ticket = self.inner.ticket
        self.payload, self.announce, self.revoke = self.inner.payload, self.inner.announce, self.inner.revoke
        self.close = self.inner.close

    def deserted(self, slot: int) -> bool | None:
        return None


def test_where_nobody_can_tell_a_lost_transfer_keeps_its_slot_until_a_later_call_is_answered(line: Line) -> None:
    staging = Staging(Mute(SMALL), SMALL)
    tier = RemoteTier(line.call, staging=staging)
    kept = payload()
    tier.offload("a", 0, TYPES[0], kept)
    there, line.store = line.store, None
    tier.offload("a", 1, TYPES[0], kept)
    with pytest.raises(RecordLost, match="has gone"):
        tier.fetch("a", 0, TYPES[0])
    tier.holds("a", 0)
    assert staging.graveyard_bytes == 2 * SMALL.slot_bytes
    for _ in range(3):
        tier.offload("a", 2, TYPES[0], kept)
    assert staging.book.statistics().grave == 4
    assert staging.inline["full"] == 1
    line.store = there
    tier.offload("a", 3, TYPES[0], kept)
    tier.holds("a", 0)
    assert staging.graveyard_bytes == 0
    tier.offload("a", 4, TYPES[0], kept)
    assert torch.equal(tier.fetch("a", 4, TYPES[0]).tensor, kept.tensor)


def test_a_slot_that_the_store_may_still_write_to_waits_for_a_greeting_and_no_answer_frees_it(line: Line) -> None:
    now, pending = [0.0], [False]
    staging = Staging(Mute(SMALL), SMALL, lambda: now[0])

    def call(name: str, *arguments: Any) -> "Future[Any]":
        if pending[0] and (name == "greet" or (name == "fetch" and len(arguments) == 4)):
            told: Future[Any] = Future()
            if name == "fetch":
                told.set_exception(TransferPending("still on its way"))
            else:
                assert line.store is not None
                told.set_result(line.store._answer("still on its way"))
            return told
        return line.call(name, *arguments)

    tier, kept = RemoteTier(call, staging=staging, clock=lambda: now[0]), payload()
    tier.offload("a", 0, TYPES[0], kept)
    pending[0] = True
    assert torch.equal(tier.fetch("a", 0, TYPES[0]).tensor, kept.tensor)  # within the call
    assert (staging.open, staging.book.statistics().grave, staging.failures["pending"]) == (False, 1, 1)
    for chunk in range(3):
        now[0] += 31
        tier.offload("a", chunk, TYPES[0], kept)
    staging.check_integrity()
    assert (staging.open, staging.book.statistics().grave) == (False, 1)
    pending[0] = False
    now[0] += 31
    for chunk in range(3):
        tier.offload("a", chunk, TYPES[0], kept)
    assert (staging.open, staging.book.statistics().grave) == (True, 0)


def test_an_answer_that_names_another_slot_or_lies_about_its_bytes_is_refused() -> None:
    staging = staged()
    staging.open = True
    one, other = staging.landing(), staging.landing()
    assert one is not None
    assert other is not None
    with pytest.raises(RecordLost, match="another slot"):
        staging.unload(Cargo([("uint8", [8])], [], 64, b"", other.offer), one)
    goods = Goods([torch.arange(8)], [])
    cargo = Cargo([("int64", [9])], [], 64, goods.checksum(), goods.to_bytes())
    with pytest.raises(RecordCorrupt, match="do not have 64 bytes"):
        unpacked_inline(cargo, goods.to_bytes())
    with pytest.raises(RecordCorrupt, match="is no tensor type"):
        unpacked_inline(Cargo([("rand", [8])], [], 64, goods.checksum(), b""), goods.to_bytes())
    with pytest.raises(RecordCorrupt, match="63 bytes arrived; expected 64"):
        unpacked(cargo, np.frombuffer(goods.to_bytes()[:63], np.uint8))


def test_slots_that_make_no_sense_are_refused() -> None:
    for wrong in ({"slots": 1}, {"slot_bytes": 100}, {"lease_s": 0.0}, {"small_bytes": -1}, {"lands_bytes": -1}):
        with pytest.raises(ConfigError, match="expected 2 slots or more"):
            StagingConfig(**wrong)  # type: ignore[arg-type]


# -- a store that is killed


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_killed_in_mid_push_leaves_no_wrong_byte_and_no_slot_behind(kind: Kind) -> None:
    nbytes = 1 << 20
    config = StagingConfig(slots=4, slot_bytes=nbytes, small_bytes=0)
    staging, rng, told = staged(kind, config), np.random.default_rng(1), 0
    staging.open = True
    kills = KILLS if kind == "shared" else max(2, KILLS // 6)
    for kill in range(kills):
        with store() as peer:
            told += killed_in_mid_push(staging, peer, kill, nbytes, rng.uniform(0, 0.004))
        staging.check_integrity()
        number = staging.called()
        with store() as successor:  # an answer of whoever comes next tells that the one before is dead
            successor.ask("ready")
            staging.answered(number)
        assert staging.book.statistics().free == 4
    if kills >= KILLS:  # of few, all may fall on one side of the pushes
        assert 0 < told < 4 * kills, "all or none were pushed before the kill: the test shows nothing"
    assert not staging.failures
    staging.close()


def killed_in_mid_push(staging: Staging, peer: Peer, kill: int, nbytes: int, seconds: float) -> int:
    """Ask for four pushes and kill; how many were answered. Every one of these is right."""
    landings: dict[int, Landing] = {}
    for i in range(4):
        landing = staging.landing()
        assert landing is not None
        assert staging.region is not None
        staging.region.payload(landing.lease.slot)[:] = POISON
        landings[100 * kill + i] = landing
    for seed, landing in landings.items():
        staging.called()
        peer.tell("push", landing.offer, seed, nbytes)
    if peer.pipe.poll(10):  # it has begun
        time.sleep(seconds)
    peer.kill()
    answered = dict(peer.answers())
    for seed, landing in landings.items():
        if seed not in answered:
            staging.bury(landing.lease)
            continue
        cargo = Cargo([("uint8", [nbytes])], [], nbytes, answered[seed], landing.offer)
        found = staging.unload(cargo, landing).tensors[0].numpy()
        assert checksum(found) == checksum(pattern(seed, nbytes))
        del found
    return len(answered)


def test_a_tier_goes_on_through_its_slots_when_its_store_was_killed_and_made_anew(line: Line) -> None:
    staging = staged()
    tier = RemoteTier(line.call, staging=staging)
    for chunk in range(3):
        tier.offload("a", chunk, TYPES[0], payload())
    line.late = True
    tier.offload("a", 3, TYPES[0], payload())
    dead, line.store = line.store, None
    line.carry_out()
    assert dead is not None
    dead.dock.close()
    line.store, line.late = RestoreStore(1 << 26, 0), False
    for chunk in range(4, 8):
        tier.offload("a", chunk, TYPES[0], payload())
    assert [tier.holds("a", chunk) == NOTHING for chunk in range(8)] == [True] * 4 + [False] * 4
    through = staging.moved["out", "shared"]
    kept = payload()
    tier.offload("a", 8, TYPES[0], kept)
    assert staging.moved["out", "shared"] == through + 8000
    assert torch.equal(tier.fetch("a", 8, TYPES[0]).tensor, kept.tensor)
    assert staging.book.statistics().grave == 0

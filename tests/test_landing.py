"""What lands in a page while it is pushed: the bytes of the slow way, or an error and a page as free as before."""

import gc
import importlib.util
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from actors import landing
from actors.cargo import Cargo, Goods, padded
from actors.landing import Follower
from actors.remote_tier import RemoteTier
from actors.restore_store import RestoreStore
from actors.staging import Staging, StagingConfig
from actors.transport import shared
from actors.transport.base import Kind, Offer
from actors.transport.choose import region
from actors.transport.shared import SharedReach, SharedRegion
from cache.keep_set import Role
from cache.lent import Bytes
from cache.pool import Pool
from cache.spec import FORMATS, TYPES, AttentionSpec, AttentionType, PageFormat
from cache.tiers import KeyValues, LandedKeyValues, Room
from cache.way_back import WayBackConfig
from errors import RecordCorrupt, RecordLost, ServiceError, SlotRecycled, TransferFailed
from kernels.ops import ops
from streams.arrivals import first_of
from streams.paging import Paging
from streams.recovery import forget_lost, recover
from streams.slack import RestoreConfig
from streams.stream import Stream
from tests.builders import engine, poison
from tests.test_recovery import left
from tests.test_restore_store import Line, film
from tests.transfer_peers import DEADLINE_S, POISON, pattern, store

HAS_NIXL = importlib.util.find_spec("nixl_cu12") is not None
KINDS = ["shared", pytest.param("nixl", marks=pytest.mark.skipif(not HAS_NIXL, reason="NIXL is not installed"))]
T = AttentionType.VIDEO_SELF
CONFIG = StagingConfig(slots=2, slot_bytes=64 << 10, small_bytes=0, lands_bytes=0)
SIZES = [(1, 1, 1), (3, 5, 7), (2, 33, 62)]
WAITS = [pytest.param(True, id="fetch"), pytest.param(False, id="begin_fetch")]


MADE: list[Staging] = []


@pytest.fixture(autouse=True)
def no_region_stays() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


@pytest.fixture(params=[512, 1 << 20], ids=["many rounds", "one round"])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(SharedRegion, "window_bytes", request.param)
    monkeypatch.setattr(landing, "MOST_BYTES", 1000)
    monkeypatch.setattr(shared, "WAITS_S", DEADLINE_S)
    found: int = request.param
    return found


class Busy(Line):
    """A line to a store that works in a thread of its own."""

    def __init__(self, store: RestoreStore) -> None:
        super().__init__(store)
        self.thread = ThreadPoolExecutor(1)

    def call(self, name: str, *arguments: Any) -> "Future[Any]":
        return self.thread.submit(getattr(self.store, name), *arguments)


@pytest.fixture
def line() -> Iterator[Busy]:
    found = Busy(RestoreStore(1 << 26, 0))
    yield found
    found.thread.shutdown()
    if found.store is not None:
        found.store.check_integrity()
        found.store.dock.close()


def paging(form: PageFormat = "exact", dtype: torch.dtype = torch.float32, sizes: tuple[int, int, int] = (3, 5, 7),
           pages: int = 3) -> Paging:  # fmt: skip
    """A pool of few pages of odd sizes (layers, tokens, width), full of poison."""
    specs = {t: AttentionSpec(t, *sizes, dtype.itemsize).held_as(form) for t in TYPES}
    made = Paging(Pool(specs, dict.fromkeys(TYPES, pages), dtype), ops("torch"))
    for t in TYPES:
        ends = made.pool.ends[t].tensors if t in made.pool.ends else ()
        for tensor in (made.pool.storage[t], *ends):
            tensor.view(torch.uint8).fill_(POISON)
    return made


def record(made: Paging, seed: int = 0) -> KeyValues:
    """Some bytes as a packed page; whatever they are, they are not to change."""
    room = made.room(T, 0)
    assert room is not None
    drawn = torch.from_numpy(pattern(seed, room.nbytes))
    return KeyValues(drawn.view(room.dtype).view(room.shape), 3, Role.SCENE_SINK, 7, room.pages)


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8).flatten()


def staged(kind: Kind = "shared", config: StagingConfig = CONFIG, clock: Any = time.monotonic) -> Staging:
    made = Staging(region(kind, config.slots, config.slot_bytes), config, clock)
    MADE.append(made)
    return made


def tier_of(line: Line, staging: Staging) -> RemoteTier:
    made = RemoteTier(line.call, DEADLINE_S, staging=staging)
    settled(made)
    return made


def settled(tier: RemoteTier) -> None:
    """All answers have come."""
    deadline = time.monotonic() + DEADLINE_S
    while tier._sent or tier._begun:
        assert time.monotonic() < deadline
        tier.holds("a", 0)


def free(staging: Staging, tier: RemoteTier | None = None) -> int:
    if tier is not None:
        settled(tier)
    gc.collect()
    staging._reap(0)
    staging.check_integrity()
    return staging.book.statistics().free


# -- the same bytes


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", SIZES)
def test_a_room_is_the_page_byte_by_byte_and_nothing_else(
    form: PageFormat, dtype: torch.dtype, sizes: tuple[int, int, int]
) -> None:
    fast, slow = paging(form, dtype, sizes), paging(form, dtype, sizes)
    kept, room = record(fast), fast.room(T, 1)
    assert room is not None
    at, data = 0, raw(kept.tensor).numpy()
    for piece in room.pieces:
        piece[:] = data[at : at + len(piece)]
        at += len(piece)
    assert at == room.nbytes == kept.nbytes == fast.pool.specs[T].bytes_per_chunk
    slow.unpack(T, 1, kept.tensor)
    for page in range(3):
        assert torch.equal(raw(fast.pack(T, page)), raw(slow.pack(T, page)))
    assert torch.equal(raw(fast.pack_keys(T, 1).wait()[0]), raw(slow.keys_of(T, kept.tensor)))


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("waits", WAITS)
def test_what_landed_equals_what_was_unpacked(form: PageFormat, waits: bool, line: Busy) -> None:
    for dtype, sizes in product((torch.float32, torch.bfloat16), SIZES):
        made, staging = paging(form, dtype, sizes), staged()
        tier, kept = tier_of(line, staging), record(made)
        tier.offload("a", 0, T, kept)
        found = fetched(tier, made.room(T, 1), waits)
        assert isinstance(found, LandedKeyValues)
        assert (found.slot, found.role, found.written, found.pages) == (3, Role.SCENE_SINK, 7, form)
        assert found.nbytes == kept.nbytes == staging.landed_bytes
        assert made.put(T, 1, found) is None
        slow = tier.fetch("a", 0, T)
        packed = made.put(T, 2, slow)
        assert torch.equal(raw(made.pack(T, 1)), raw(kept.tensor))
        assert torch.equal(raw(made.pack(T, 1)), raw(made.pack(T, 2)))
        assert torch.equal(raw(made.put_keys(T, 1, None).wait()[0]), raw(made.put_keys(T, 2, packed).wait()[0]))
        assert (raw(made.pack(T, 0)) == POISON).all()
        assert not staging.failures
        del slow, packed
        assert free(staging, tier) == 2
        staging.close()


def fetched(tier: RemoteTier, room: Room | None, waits: bool) -> KeyValues:
    if waits:
        return tier.fetch("a", 0, T, room)
    answer = tier.begin_fetch("a", 0, T, room)
    deadline = time.monotonic() + DEADLINE_S
    while not answer.done():
        assert time.monotonic() < deadline
        first_of([answer], DEADLINE_S)
    return answer.result()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("waits", WAITS)
def test_what_is_not_of_the_rooms_form_or_has_no_window_comes_as_any_record_does(
    kind: Kind, waits: bool, line: Busy
) -> None:
    """Another engine may have written it in another format, or of another size; NIXL has no windows."""
    staging = staged(kind, replace(CONFIG, slots=8))
    tier = tier_of(line, staging)
    writers = [paging("int8"), paging("exact", torch.bfloat16), paging("exact", sizes=(3, 7, 5)), paging("fp8")]
    for writer in writers if kind == "shared" else [*writers, paging("exact")]:
        kept = record(writer)
        tier.offload("a", 0, T, kept)
        found = fetched(tier, paging("exact").room(T, 1), waits)
        assert not isinstance(found, LandedKeyValues)
        assert torch.equal(raw(found.tensor), raw(kept.tensor))
        assert found.pages == kept.pages
        assert staging.moved["in", "inline"] == 0
    assert staging.landed_bytes == 0
    del found
    assert free(staging, tier) == 8
    staging.close()


@pytest.mark.parametrize("waits", WAITS)
def test_what_is_larger_than_a_slot_lands_all_the_same_and_else_comes_within_its_call(waits: bool, line: Busy) -> None:
    made = paging(sizes=(3, 50, 70))
    kept = record(made)
    for staging in (staged(config=replace(CONFIG, slot_bytes=4096)), Staging(None, CONFIG)):
        tier = tier_of(line, staging)
        tier.offload("a", 0, T, kept)
        made.put(T, 1, fetched(tier, made.room(T, 1), waits))
        assert torch.equal(raw(made.pack(T, 1)), raw(kept.tensor))
        assert staging.landed_bytes == (kept.nbytes if staging.region else 0)
        found = fetched(tier, None, waits)
        assert torch.equal(raw(found.tensor), raw(kept.tensor))


def test_what_is_small_comes_through_its_slot(line: Busy) -> None:
    made = paging()
    kept = record(made)
    for lands_bytes in (kept.nbytes, kept.nbytes + 1):
        staging = staged(config=replace(CONFIG, lands_bytes=lands_bytes))
        tier = tier_of(line, staging)
        tier.offload("a", 0, T, kept)
        assert isinstance(tier.fetch("a", 0, T, made.room(T, 1)), LandedKeyValues) == (lands_bytes == kept.nbytes)


def test_a_take_brings_its_past_back_into_its_pages_and_is_the_same(line: Busy) -> None:
    staging = staged(config=replace(CONFIG, slots=16, slot_bytes=1 << 20))
    tier = tier_of(line, staging)
    here, there = film(engine()), film(engine(tier=tier), before_return=lambda: settled(tier))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert staging.landed_bytes > 0
    assert not staging.failures
    assert free(staging, tier) == 16


def test_a_stream_that_lost_its_generator_comes_back_into_its_pages_and_is_the_same(line: Busy) -> None:
    config = replace(CONFIG, slots=8, slot_bytes=1 << 20)

    def lived(stream: Stream) -> Stream:
        stream.take(7)
        stream.cut("elsewhere", "two", keep_subject=False)
        stream.take(3)
        return stream

    expected = lived(Stream.open(engine(), "one", 5)).take(3)
    before, after = (tier_of(line, staged(config=config)) for _ in range(2))
    stream = lived(Stream.open(engine(tier=before, durability="kv"), "one", 5))
    settled(before)
    other = engine(tier=after, durability="kv")
    found = Stream(other, recover(other, *left(stream)))
    forget_lost(other, stream.session.id)
    other.check_integrity()
    assert after.staging.landed_bytes > 0
    assert not after.staging.failures
    assert all(torch.equal(a.video, b.video) for a, b in zip(expected, found.take(3), strict=True))


# -- what is damaged


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("waits", WAITS)
def test_damage_in_any_block_is_named_and_the_page_is_of_use_again(form: PageFormat, waits: bool, line: Busy) -> None:
    made, staging = paging(form), staged()
    tier, kept = tier_of(line, staging), record(made)
    assert line.store is not None
    for at in [*range(0, kept.nbytes, 61), kept.nbytes - 1]:
        tier.offload("a", 0, T, kept)
        settled(tier)
        line.store.tier.fetch("a", 0, T).tensor.view(torch.uint8).view(-1)[at] ^= 1
        with pytest.raises(RecordCorrupt, match="checksum differs"):
            fetched(tier, made.room(T, 1), waits)
        tier.forget("a", 0)
        tier.offload("a", 0, T, kept)
        assert isinstance(fetched(tier, made.room(T, 1), waits), LandedKeyValues)
        assert torch.equal(raw(made.pack(T, 1)), raw(kept.tensor))
    assert free(staging, tier) == 2


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize("waits", WAITS)
def test_a_window_that_is_spoilt_is_not_believed_and_the_record_comes_another_way(
    waits: bool, line: Busy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, staging, follow = paging(), staged(), Follower.follow
    tier, kept = tier_of(line, staging), record(made)
    tier.offload("a", 0, T, kept)
    settled(tier)

    def spoilt(follower: Follower) -> bool:
        follower._window[:] = POISON
        return follow(follower)

    monkeypatch.setattr(Follower, "follow", spoilt)
    found = fetched(tier, made.room(T, 1), waits)
    assert not isinstance(found, LandedKeyValues)
    made.put(T, 1, found)
    assert torch.equal(raw(made.pack(T, 1)), raw(kept.tensor))
    del found
    assert free(staging, tier) == 2


# -- half-way


def half_pushed(offer: Offer, payload: Bytes, nbytes: int, held: ExitStack) -> None:
    """Be a store in the middle of a push, until ``held`` is closed."""
    reach = held.enter_context(closing(SharedReach()))
    layout = held.enter_context(reach._within(offer))
    layout.payload(offer.slot)[:nbytes] = payload[:nbytes]
    layout.say_written(offer, nbytes)


def followed(made: Paging, window: int) -> tuple[SharedRegion, Offer, Follower, Room]:
    region_, room = SharedRegion(1, 1 << 20), made.room(T, 1)
    assert room is not None
    offer = Offer(region_.ticket, 0, 5, padded(room.nbytes), window=window)
    region_.announce(offer)
    return region_, offer, Follower(region_, offer, room), room


def test_a_follower_puts_what_is_said_to_be_there_and_no_byte_more() -> None:
    made = paging(sizes=(3, 50, 70))
    kept, (region_, offer, follower, room) = record(made), followed(made, 1 << 17)
    data, half = raw(kept.tensor).numpy(), room.nbytes // 2
    assert not follower.follow()
    with ExitStack() as held:
        half_pushed(offer, data, half, held)
        while follower.follow():
            pass
        found, there = np.concatenate(room.pieces), follower._at
        assert half - offer.block < there <= half
        assert np.array_equal(found[:there], data[:there])
        assert (found[there:] == POISON).all()
        assert region_._layout.read(offer) == there
    assert (region_.written(offer), region_.written(replace(offer, generation=4))) == (half, 0)
    region_.close()


def test_a_push_is_never_further_ahead_of_its_reader_than_its_window() -> None:
    made = paging(sizes=(3, 50, 70))
    kept, (region_, offer, follower, room) = record(made), followed(made, 4096)
    reach, ahead = SharedReach(), []
    with ThreadPoolExecutor(1) as thread:
        pushed = thread.submit(reach.push, offer, raw(kept.tensor).numpy())
        while not pushed.done() or region_.written(offer) > follower._at:
            ahead.append(region_.written(offer) - follower._at)
            if not follower.follow() and follower._at == room.nbytes:
                break
        pushed.result(DEADLINE_S)
    assert 0 < max(ahead) <= 4096
    assert torch.equal(raw(made.pack(T, 1)), raw(kept.tensor))
    reach.close()
    region_.close()


def test_a_push_whose_reader_has_stopped_or_gone_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    made = paging(sizes=(3, 50, 70))
    data = raw(record(made).tensor).numpy()
    monkeypatch.setattr(shared, "WAITS_S", 0.01)
    reach = SharedReach()
    region_, offer, follower, _ = followed(made, 4096)
    with pytest.raises(TransferFailed, match="nobody reads"):
        reach.push(offer, data)
    assert region_.deserted(0)
    monkeypatch.setattr(shared, "WAITS_S", DEADLINE_S)
    with ThreadPoolExecutor(1) as thread:
        for stop, error in ((region_.revoke, SlotRecycled), (lambda _: follower.dismiss(), None)):
            region_.announce(offer)
            pushed = thread.submit(reach.push, offer, data)
            while region_.written(offer) < 4096 or region_.deserted(0):
                assert not pushed.done()
            stop(0)
            assert type(pushed.exception(DEADLINE_S)) is (error or type(None))
    assert not follower.follow()
    reach.close()
    region_.close()


def test_a_slot_that_is_used_again_while_it_is_followed_is_not_read_on_and_never_believed() -> None:
    made = paging(sizes=(3, 50, 70))
    kept, (region_, first, follower, room) = record(made), followed(made, 1 << 17)
    data, reach = raw(kept.tensor).numpy(), SharedReach()
    with ExitStack() as held:
        half_pushed(first, data, room.nbytes // 2, held)
        follower.follow()
    region_.revoke(0)
    second = replace(first, generation=6)
    region_.announce(second)
    before = np.concatenate(room.pieces)
    reach.push(second, np.full(room.nbytes, 7, np.uint8))
    assert not follower.follow()
    assert np.array_equal(np.concatenate(room.pieces), before)
    goods = Goods.of_key_values(kept)
    with pytest.raises(RecordCorrupt, match="are in a page that are not the ones"):
        follower.finish(Cargo(goods.layout, goods.rest, goods.nbytes, goods.checksum(), first))
    reach.close()
    region_.close()


def test_a_store_killed_in_mid_push_leaves_no_wrong_byte_and_its_slot_comes_back() -> None:
    made = paging(sizes=(8, 64, 512))
    kept, room = record(made), made.room(T, 1)
    assert room is not None
    staging, goods = staged(config=replace(CONFIG, slot_bytes=4 << 20)), Goods.of_key_values(kept)
    staging.open = True
    for upto in (1, kept.nbytes // 2, kept.nbytes - 1):
        place = staging.landing(room)
        assert place is not None
        follower = place.follower
        assert follower is not None
        with store() as peer:
            assert peer.ask("push_a_part", place.offer, 0, upto) == upto
            while follower.follow():
                pass
            assert staging.region is not None
            assert staging.region.deserted(place.lease.slot) is False
            peer.kill()
        cargo = Cargo(goods.layout, goods.rest, goods.nbytes, goods.checksum(), place.offer)
        with pytest.raises(RecordCorrupt, match="are in a page that are not the ones"):
            follower.finish(cargo)
        staging.bury(place.lease)
        assert free(staging) == 2, "the kernel knows that it is dead"
        staging.region.payload(place.lease.slot)[:] = POISON
    staging.close()


class Stuck:
    """A line to a store that stays in the middle of pushes: of these calls, or of these types."""

    def __init__(self, line: Line, *calls: str) -> None:
        self.line, self.calls, self.held = line, calls, ExitStack()
        self.asked: list[tuple[Future[Any], str, tuple[Any, ...]]] = []
        self.sticks = False

    def call(self, name: str, *arguments: Any) -> "Future[Any]":
        wanted = name in ("fetch", "latents") and {name, *map(str, arguments[2:3])} & set(self.calls)
        if not self.sticks or not wanted:
            return self.line.call(name, *arguments)
        told: Future[Any] = Future()
        self.asked.append((told, name, arguments))
        if name == "fetch" and len(arguments) == 4:
            half_pushed(arguments[3], np.full(1 << 20, 1, np.uint8), 256, self.held)
        return told

    def goes_on(self) -> None:
        """Carry out what was stuck."""
        for told, name, arguments in self._free():
            done = self.line.call(name, *arguments)
            error = done.exception()
            if error is None:
                told.set_result(done.result())
            else:
                told.set_exception(error)

    def dies(self) -> None:
        """All calls fail, and the kernel lets go of its slots."""
        for told, _, _ in self._free():
            told.set_exception(ServiceError("the store has gone"))

    def _free(self) -> list[tuple["Future[Any]", str, tuple[Any, ...]]]:
        self.held.close()
        self.sticks, asked, self.asked = False, self.asked, []
        return asked


@pytest.mark.parametrize("end", [Stuck.goes_on, Stuck.dies])
def test_a_fetch_that_is_not_answered_in_time_leaves_its_slot_in_the_graveyard(
    end: Callable[[Stuck], None], line: Line
) -> None:
    made, staging, stuck, now = paging(sizes=(3, 50, 70)), staged(), Stuck(line, "fetch"), [0.0]
    tier, kept = RemoteTier(stuck.call, staging=staging, clock=lambda: now[0]), record(made)
    settled(tier)
    tier.offload("a", 0, T, kept)
    settled(tier)
    stuck.sticks, tier.patience_s = True, 0.02
    with pytest.raises(RecordLost, match="has not answered"):
        tier.fetch("a", 0, T, made.room(T, 1))
    assert staging.book.statistics().grave == 1
    assert free(staging) == 1, "somebody is in the other"
    before = raw(made.pool.storage[T]).clone()
    end(stuck)
    assert torch.equal(raw(made.pool.storage[T]), before), "what was pushed late is in a page"
    assert free(staging) == 2
    now[0], tier.patience_s = 60.0, DEADLINE_S
    assert isinstance(tier.fetch("a", 0, T, made.room(T, 1)), LandedKeyValues)
    assert torch.equal(raw(made.pack(T, 1)), raw(kept.tensor))


def returned(stuck: Stuck, restore: RestoreConfig) -> Stream:
    """A stream that has come back to its opening, of which the store does not give what is stuck."""
    staging = staged(config=replace(CONFIG, slots=24, slot_bytes=1 << 20))
    tier = RemoteTier(stuck.call, staging=staging)
    settled(tier)
    made = engine(tier=tier, restore=restore)
    stream = Stream.open(made, "one", 5)
    stream.take(7)
    stream.cut("elsewhere", "two", keep_subject=False)
    stream.take(7)
    settled(tier)
    stuck.sticks = True
    poison(made)
    stream.return_to("opening")
    made.check_integrity()
    assert stuck.asked, "nothing was on its way: the test shows nothing"
    return stream


@pytest.mark.parametrize("end", [Stuck.goes_on, Stuck.dies])
def test_pages_of_what_was_given_up_are_encoded_and_nothing_late_gets_into_them(
    end: Callable[[Stuck], None], line: Line
) -> None:
    stuck = Stuck(line, "fetch")
    stream = returned(stuck, RestoreConfig(patience_s=1.0))
    made = stream.engine
    before = {t: raw(storage).clone() for t, storage in made.pool.storage.items()}
    end(stuck)
    made.tier.holds(stream.session.id, 0)
    assert all(torch.equal(before[t], raw(storage)) for t, storage in made.pool.storage.items())
    assert made.fetcher.restored.verdicts["store", "rebuilt instead"] > 0
    assert all(torch.isfinite(chunk.video).all() for chunk in stream.take(3))
    made.check_integrity()


def test_what_landed_of_a_chunk_that_is_late_is_fetched_again_with_the_rest(line: Line) -> None:
    """Its page was given back with the chunk; nobody may take it for what is here."""
    stuck = Stuck(line, "latents", T.value)
    sooner = WayBackConfig(elsewhere_bytes_s=1e12, latency_s=1e-6)
    config = RestoreConfig(share=0.0, least_s=1.0, patience_s=DEADLINE_S, tries=1000, way_back=sooner)
    stream = returned(stuck, config)
    made = stream.engine
    assert stream.session.manager.waiting
    landed = made.tier.staging.landed_bytes  # type: ignore[attr-defined]
    assert landed > 0, "nothing had landed: the test shows nothing"
    stuck.goes_on()
    deadline = time.monotonic() + DEADLINE_S
    while stream.session.manager.waiting:
        assert time.monotonic() < deadline
        poison(made)
        assert torch.isfinite(stream.next().video).all()
        made.check_integrity()
    assert stream.keep_set()["video_self"]["scene_sink"] == [0]
    assert made.tier.staging.landed_bytes > landed  # type: ignore[attr-defined]

"""The store of two tiers: a dictionary that is bounded, says what it dropped, and goes on when its disk does not."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.remote_tier import RemoteTier
from actors.restore_store import RestoreStore
from cache.codec import Buffer
from cache.host_tier import HostTier
from cache.keep_set import Role
from cache.spec import TYPES
from cache.storage.files import Files
from cache.tiered import TieredStore
from cache.tiered_config import TiersConfig
from cache.tiers import NOTHING, KeyValues, RestoreTier
from errors import ConfigError, RecordCorrupt, RecordLost
from streams.stream import Stream
from tests.builders import engine
from tests.records import KEY, key_values, latents, same
from tests.test_disk_tier import contents_of, files_of, flip, found_in
from tests.test_restore_store import Line, film

KIND = TYPES[0]
ONE = key_values(0).nbytes
BIG = 1 << 24
CALLS = ["offload", "offload", "latents", "write", "fetch", "forget", "close", "fork"]


class Time:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Failing(Files):
    """A disk that fails whenever ``error`` says so."""

    error: list[int] = field(default_factory=list)

    def write(self, path: Path, parts: Sequence[Buffer]) -> None:
        self.fail()
        super().write(path, parts)

    def rename(self, old: Path, new: Path) -> None:
        self.fail()
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        if errno.ENOSPC not in self.error:
            self.fail()
        super().unlink(path)

    def fail(self) -> None:
        if self.error:
            raise OSError(self.error[0], os.strerror(self.error[0]))


def tiered(root: Path, host: int = BIG, key: bytes = b"", files: Files | None = None, **config: Any) -> TieredStore:
    chosen = TiersConfig(disk=str(root), **{"disk_bytes": BIG, **config})
    return TieredStore(host, chosen, Time(), key, files=files)


def written(store: TieredStore) -> None:
    """Until nothing waits for the disk."""
    while store.write_next():
        store.check_integrity()


def test_what_host_memory_has_no_room_for_is_on_disk_and_comes_up_again(tmp_path: Path) -> None:
    store = tiered(tmp_path, host=3 * ONE)
    for chunk in range(10):
        store.offload("a", chunk, KIND, key_values(chunk))
        written(store)
    assert [store.host.chunks("a"), store.losses] == [[7, 8, 9], 0]
    assert all(store.holds("a", chunk).types == {KIND} for chunk in range(10))
    for chunk in range(10):
        assert same(store.fetch("a", chunk, KIND), key_values(chunk))
        store.check_integrity()
    assert store.hits == {"disk": 7, "queue": 3}  # bringing the first ones up sends the last ones down
    assert same(store.fetch("a", 9, KIND), key_values(9))
    assert store.hits["host"] == 1
    store.shut()


def test_what_is_on_its_way_to_disk_is_given_back_from_there(tmp_path: Path) -> None:
    store = tiered(tmp_path, host=ONE)
    for chunk in range(3):
        store.offload("a", chunk, KIND, key_values(chunk))
    assert same(store.fetch("a", 0, KIND), key_values(0))
    assert store.hits == {"queue": 1}
    assert sorted(store.records("a")) == [0, 1, 2]
    store.shut()


@pytest.mark.parametrize(
    ("admission", "ahead", "at_last"),
    [("always", "0123", "0123"), ("demoted", "13", "0123"), ("worthy", "13", "123")],
)
def test_disk_is_for_latents_sinks_anchors_second_use_and_what_has_to_go(
    tmp_path: Path, admission: str, ahead: str, at_last: str
) -> None:
    store = tiered(tmp_path, admission=admission)
    roles = [Role.RECENT, Role.SCENE_SINK, Role.RECENT, Role.SCENE_ANCHOR]
    for chunk, role in enumerate(roles):
        store.offload("a", chunk, KIND, key_values(chunk, role))
    store.keep_latents("a", 8, latents(8))
    written(store)
    disk = store.lower.disk
    assert disk is not None
    assert "".join(str(c) for c in range(4) if disk.has("a", c, KIND.value)) == ahead
    assert disk.has("a", 8, "latents")
    for _ in range(2):
        store.fetch("a", 2, KIND)
    store.host.budget_bytes = 0
    with store._lock:
        store.host._shrink()
    written(store)
    assert "".join(str(c) for c in range(4) if store.holds("a", c).types) == at_last
    store.shut()


def test_a_newer_record_is_never_answered_by_an_older_one_on_disk(tmp_path: Path) -> None:
    store = tiered(tmp_path, admission="always")
    store.offload("a", 0, KIND, key_values(1))
    written(store)
    store.offload("a", 0, KIND, key_values(2))
    store.host.forget("a", 0)
    assert same(store.fetch("a", 0, KIND), key_values(2))
    store.host.forget("a", 0)
    store.lower.behind.drop(store.lower.behind.keys()[0])
    with pytest.raises(RecordLost):
        store.fetch("a", 0, KIND)
    store.shut()


def test_the_queue_is_bounded_and_keeps_what_is_worth_most(tmp_path: Path) -> None:
    store = tiered(tmp_path, host=BIG, admission="always", behind_bytes=2 * ONE)
    for chunk, role in enumerate([Role.RECENT, Role.RECENT, Role.RECENT, Role.SCENE_SINK]):
        store.offload("a", chunk, KIND, key_values(chunk, role))
        store.check_integrity()
    assert [key.chunk for key in store.lower.behind.keys()] == [0, 3]  # noqa: SIM118
    assert (store.statistics().refused, store.losses) == (2, 0)
    store.shut()


@pytest.mark.parametrize("key", [b"", KEY])
def test_after_a_restart_everything_on_disk_is_there_again(tmp_path: Path, key: bytes) -> None:
    store = tiered(tmp_path, key=key, admission="always")
    store.introduce("a", "kim", "weights")
    for chunk in range(3):
        store.offload("a", chunk, KIND, key_values(chunk))
        store.keep_latents("a", chunk, latents(chunk))
    store.fork("a", "b")
    written(store)
    store.shut()
    store = tiered(tmp_path, key=key)
    store.check_integrity()
    for name in "ab":
        assert store.chunks(name) == [0, 1, 2]
        for chunk in range(3):
            assert same(store.fetch(name, chunk, KIND), key_values(chunk))
            assert same(store.latents(name, chunk), latents(chunk))
    assert (store.owners.owner("a"), store.owners.model("b")) == ("kim", "weights")
    store.shut()


def test_damage_is_a_miss_that_is_counted_and_the_store_says_that_it_lost_something(tmp_path: Path) -> None:
    store = tiered(tmp_path, host=0)
    store.offload("a", 0, KIND, key_values(0))
    written(store)
    flip(contents_of(tmp_path)[0], 3, 1)
    with pytest.raises(RecordCorrupt):
        store.fetch("a", 0, KIND)
    assert (store.statistics().misses, store.losses) == ({"damaged": 1}, 1)
    assert store.holds("a", 0) == NOTHING
    store.check_integrity()
    store.shut()


# -- a disk that fails


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_with_a_failing_disk_there_is_host_memory_alone_until_it_works_again(tmp_path: Path, error: int) -> None:
    told: list[str] = []
    files = Failing("never")
    store = tiered(tmp_path, host=2 * ONE + 200, files=files, retry_s=10)
    store.lower.tell = told.append
    store.offload("a", 0, KIND, key_values(0, Role.SCENE_SINK))
    written(store)
    files.error.append(error)
    for chunk in range(1, 8):
        store.offload("a", chunk, KIND, key_values(chunk))
        store.write_next()
    store.keep_latents("a", 9, latents(9))
    store.offload("a", 0, KIND, key_values(20, Role.SCENE_SINK))
    assert os.strerror(error) in store.statistics().degraded
    assert (store.statistics().degradations, len(told), store.losses > 0) == (1, 1, True)
    held = [chunk for chunk in range(8) if store.holds("a", chunk) != NOTHING]
    expected = {0: key_values(20, Role.SCENE_SINK)}
    assert all(same(store.fetch("a", c, KIND), expected.get(c, key_values(c))) for c in held)
    store.tend()
    assert store.statistics().degraded
    files.error.clear()
    store.clock.now += 10  # type: ignore[attr-defined]
    store.tend()
    assert (store.statistics().degraded, told[1:]) == ("", ["the disk works again"])
    written(store)
    disk = store.lower.disk
    assert disk is not None
    assert disk.has("a", 9, "latents")
    store.check_integrity()
    if store.holds("a", 0).types:
        assert same(store.fetch("a", 0, KIND), expected[0])
    store.shut()


def test_what_could_not_be_erased_is_erased_when_the_disk_works_again(tmp_path: Path) -> None:
    files = Failing("never")
    store = tiered(tmp_path, files=files, admission="always")
    for name in "ab":
        store.offload(name, 0, KIND, key_values(ord(name), tokens=64))
    written(store)
    files.error.append(errno.EROFS)
    store.close("a")
    assert store.statistics().unerased == 1
    assert store.holds("a", 0) == NOTHING
    files.error.clear()
    store.clock.now += 10  # type: ignore[attr-defined]
    store.tend()
    assert store.statistics().unerased == 0
    assert not found_in(tmp_path, key_values(ord("a"), tokens=64).tensor.numpy().tobytes()[:64])
    assert same(store.fetch("b", 0, KIND), key_values(ord("b"), tokens=64))
    store.check_integrity()
    store.shut()


def test_a_disk_that_another_store_has_is_taken_when_that_one_has_gone(tmp_path: Path) -> None:
    first, second = tiered(tmp_path), tiered(tmp_path)
    assert "in use" in second.statistics().degraded
    second.keep_latents("a", 0, latents(0))
    first.shut()
    second.clock.now += 10  # type: ignore[attr-defined]
    second.tend()
    written(second)
    assert second.statistics().disk is not None
    assert len(files_of(tmp_path)) == 2
    second.shut()


# -- time, quotas, erasure


def test_a_stream_that_nobody_used_for_its_time_to_live_is_erased_from_every_tier(tmp_path: Path) -> None:
    store = tiered(tmp_path, admission="always", ttl_s=100.0)
    time = store.clock
    assert isinstance(time, Time)
    for name in ("a", "a#subject", "b"):
        store.offload(name, 0, KIND, key_values(len(name)))
    written(store)
    time.now += 60
    store.fetch("a#subject", 0, KIND)
    time.now += 60
    store.tend()
    assert [store.chunks(name) for name in ("a", "a#subject", "b")] == [[0], [0], []]
    store.shut()
    store = tiered(tmp_path, ttl_s=100.0)
    store.clock.now = time.now  # type: ignore[attr-defined]
    store.tend()
    assert not files_of(tmp_path)
    assert store.statistics().expired == 2
    store.check_integrity()
    store.shut()


def test_quotas_hold_in_both_tiers_and_cost_their_owner_only(tmp_path: Path) -> None:
    store = tiered(tmp_path, admission="always", session_bytes=2 * 8192, owner_bytes=3 * 8192)
    for name, owner in (("a", "kim"), ("b", "kim"), ("c", "lee")):
        store.introduce(name, owner, "")
    for chunk in range(4):
        for name in "abc":
            store.offload(name, chunk, KIND, key_values(10 * chunk + ord(name), tokens=64))
            written(store)
    disk = store.lower.disk
    assert disk is not None
    assert disk.index.used(lambda name: name in "ab") <= 3 * 8192
    assert disk.index.used(lambda name: name == "c") <= 2 * 8192
    store.shut()


def test_codecs_hold_fewer_bytes_and_what_is_packed_is_not_packed_again(tmp_path: Path) -> None:
    payload = key_values(1, tokens=64)
    payload = type(payload)(torch.randn(2, 2, 64, 64), 3, Role.SCENE_SINK, 5)
    store = tiered(tmp_path, host_codec="int8@0.05", disk_codec="int4")
    store.offload("a", 0, KIND, payload)
    first = store.fetch("a", 0, KIND)
    written(store)
    statistics = store.statistics()
    assert statistics.disk is not None
    assert statistics.host.bytes_held < 0.4 * payload.nbytes
    assert statistics.disk.payload_bytes == statistics.host.bytes_held
    store.host.forget("a", 0)
    assert same(store.fetch("a", 0, KIND), first)
    assert (first.tensor - payload.tensor).abs().max() < 0.05
    store.shut()


def test_equal_contents_of_strangers_are_held_once_in_each_tier(tmp_path: Path) -> None:
    store = tiered(tmp_path, admission="always")
    for name in "abc":
        store.offload(name, 0, KIND, key_values(1))
        store.keep_latents(name, 0, latents(1))
    written(store)
    once = ONE + latents(1).nbytes
    statistics = store.statistics()
    assert statistics.disk is not None
    assert (statistics.host.bytes_held, statistics.disk.payload_bytes, len(contents_of(tmp_path))) == (once, once, 2)
    store.close("a")
    store.close("b")
    assert same(store.fetch("c", 0, KIND), key_values(1))
    store.check_integrity()
    store.close("c")
    assert store.statistics().host.bytes_held == 0
    assert not files_of(tmp_path)
    store.shut()


def test_only_what_is_equal_in_every_bit_is_one_content() -> None:
    tier = HostTier(1 << 20)
    tensors = [torch.full((4,), value) for value in (0.0, -0.0, float("nan"), float("nan"))]
    tensors += [torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32)]
    for chunk, tensor in enumerate(tensors):
        tier.offload("a", chunk, KIND, KeyValues(tensor, 0, Role.RECENT))
    tier.check_integrity()
    assert tier.bytes_held == 5 * 16  # the two that are no numbers are the same bytes
    assert torch.signbit(tier.fetch("a", 1, KIND).tensor).all()
    tier.close("a")
    assert tier.bytes_held == 0


def test_landed_on_disk_means_written(tmp_path: Path) -> None:
    store = tiered(tmp_path, admission="always", safe="disk")
    store.offload("a", 0, KIND, key_values(1))
    landed = store.landed()
    assert not landed.done()
    written(store)
    assert landed.result(0)
    store.offload("a", 1, KIND, key_values(2))
    landed = store.landed()
    store.lower._degrade(OSError(errno.EIO, "gone"))
    assert not landed.result(0)
    assert not store.landed().result(0)
    store.shut()
    with pytest.raises(ConfigError, match="expected a disk, and admission 'always'"):
        TiersConfig(safe="disk")


# -- against a dictionary, and as the host tier alone


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_it_equals_a_dictionary_but_for_what_it_says_it_lost(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("store")
    host, disk = data.draw(st.sampled_from([0, 3 * ONE, BIG])), data.draw(st.sampled_from([0, 4 * 8192, BIG]))
    admission = data.draw(st.sampled_from(["always", "demoted", "worthy"]))
    config = {"disk_bytes": disk, "admission": admission, "behind_bytes": data.draw(st.sampled_from([2 * ONE, BIG]))}
    store, reference = tiered(root, host, **config), {}
    for _ in range(data.draw(st.integers(5, 40))):
        name, chunk = data.draw(st.sampled_from("abc")), data.draw(st.integers(0, 3))
        seed = data.draw(st.integers(0, 9))
        match data.draw(st.sampled_from(CALLS)):
            case "offload":
                reference[name, chunk, KIND] = key_values(seed, list(Role)[seed % len(Role)])
                store.offload(name, chunk, KIND, reference[name, chunk, KIND])
            case "latents":
                reference[name, chunk, None] = latents(seed)
                store.keep_latents(name, chunk, latents(seed))
            case "write":
                store.write_next()
            case "fetch":
                if KIND in store.holds(name, chunk).types:
                    assert same(store.fetch(name, chunk, KIND), reference[name, chunk, KIND])
            case "forget":
                store.forget(name, chunk)
                reference = {k: v for k, v in reference.items() if k[:2] != (name, chunk)}
            case "close":
                store.close(name)
                reference = {k: v for k, v in reference.items() if k[0] != name}
            case "fork":
                store.close("child")
                reference = {k: v for k, v in reference.items() if k[0] != "child"}
                reference |= {("child", *k[1:]): v for k, v in reference.items() if k[0] == name}
                store.fork(name, "child")
        store.check_integrity()
    held = 0
    for (name, chunk, kind), payload in reference.items():
        has = store.holds(name, chunk)
        if kind is None and has.latents:
            assert same(store.latents(name, chunk), payload)
            held += 1
        elif kind is not None and kind in has.types:
            assert same(store.fetch(name, chunk, kind), payload)
            held += 1
        elif not store.losses:
            pytest.fail(f"{name} {chunk} {kind} is gone, and nothing was said")
    if host == BIG:
        assert held == len(reference)
    store.shut()


@pytest.mark.parametrize("below", ["nothing", "disk"])
def test_a_take_with_a_tiered_store_equals_one_with_host_memory(tmp_path: Path, below: str) -> None:
    """With nothing in host memory, everything that comes back comes from disk or from the queue to it."""
    tier: RestoreTier
    if below == "disk":
        tier = store = tiered(tmp_path, host=0)
    else:
        tier = store = TieredStore(1 << 26, TiersConfig(), Time())
    expected = film(engine(tier=HostTier(1 << 26)))
    found = film(engine(tier=tier))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    if below == "disk":
        assert store.hits["queue"] > 0
    assert not store.host.bytes_held
    store.shut()


def test_a_stream_goes_on_when_all_its_records_on_disk_are_damaged(tmp_path: Path) -> None:
    store = tiered(tmp_path, host=0)
    stream = Stream.open(engine(tier=store), "one", 5)
    stream.take(7)
    stream.cut("elsewhere", "two", keep_subject=False)
    stream.take(7)
    written(store)
    for path in contents_of(tmp_path):
        flip(path, path.stat().st_size // 2, 4)
    stream.return_to("opening")
    assert all(torch.isfinite(chunk.video).all() for chunk in stream.take(3))
    assert store.statistics().misses["damaged"] > 0
    stream.engine.check_integrity()
    stream.close()
    store.check_integrity()
    assert not files_of(tmp_path)
    store.shut()


def test_a_store_that_is_made_anew_has_its_disk_and_a_remote_tier_believes_it(tmp_path: Path) -> None:
    config = TiersConfig(disk=str(tmp_path), disk_bytes=BIG, admission="always", safe="disk")
    line = Line(RestoreStore(BIG, 0, config))
    tier = RemoteTier(line.call)
    for chunk in range(3):
        tier.offload("a", chunk, KIND, key_values(chunk))
        tier.keep_latents("a", chunk, latents(chunk))
    assert tier.landed().result(0)
    assert line.store is not None
    line.store.shut()
    line.store = None
    tier.offload("a", 9, KIND, key_values(9))
    assert tier.holds("a", 9) == NOTHING
    line.store = RestoreStore(BIG, 0, config)
    tier.introduce("a", "", "")
    tier.holds("a", 0)
    assert [tier.holds("a", chunk).types for chunk in range(3)] == [{KIND}] * 3
    assert same(tier.fetch("a", 1, KIND), key_values(1))
    assert same(tier.latents("a", 2), latents(2))
    assert line.store.statistics()["hits_disk"] == 2
    line.store.shut()

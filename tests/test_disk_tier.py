"""The tier on disk: what was written comes back or nothing does, whatever happens to its files."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.codec import Buffer
from cache.keep_set import Role
from cache.storage.disk import DiskTier
from cache.storage.files import Files
from cache.storage.index import Key
from cache.storage.packing import KINDS, LATENTS, Payload
from cache.storage.quotas import Quota
from cache.storage.seals import Aes, Seal, Unsealed
from errors import ConfigError, RecordCorrupt, RecordForeign, RecordLost
from tests.records import KEY, SEALS, disk_tier, key_values, latents, same

KIND = "video_self"
sealed = pytest.mark.parametrize("seal", SEALS, ids=["plain", "sealed"])


def files_of(root: Path) -> list[Path]:
    return sorted(p for folder in ("heads", "contents") for p in (root / folder).rglob("*") if p.is_file())


def contents_of(root: Path) -> list[Path]:
    return sorted((root / "contents").iterdir())


@sealed
@pytest.mark.parametrize("codec", ["exact", "planes"])
def test_what_was_written_comes_back_bit_for_bit_also_after_a_restart(tmp_path: Path, seal: Seal, codec: str) -> None:
    tier = disk_tier(tmp_path, seal=seal, codec=codec)
    written = {(name, i): key_values(i) for name in "ab" for i in range(4)}
    for (name, chunk), payload in written.items():
        assert tier.put(name, chunk, KIND, payload)
        assert tier.put(name, chunk, LATENTS, latents(chunk))
    for _ in range(2):
        tier.check_integrity()
        for (name, chunk), payload in written.items():
            assert same(tier.get(name, chunk, KIND), payload)
            assert same(tier.get(name, chunk, LATENTS), latents(chunk))
        tier.shut()
        tier = disk_tier(tmp_path, seal=seal, codec=codec)
        assert not tier.removed
    with pytest.raises(RecordLost, match="chunk 9 of 'a' is not on disk"):
        tier.get("a", 9, KIND)
    tier.shut()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 63, 1000])
def test_any_type_and_size_comes_back_as_it_was(tmp_path: Path, dtype: torch.dtype, tokens: int) -> None:
    tier = disk_tier(tmp_path)
    payload = key_values(1, tokens=tokens)
    payload = type(payload)(payload.tensor.to(dtype), 3, Role.SCENE_SINK, 5)
    tier.put("a", 0, KIND, payload)
    found = tier.get("a", 0, KIND)
    assert same(found, payload)
    assert isinstance(found, type(payload))
    assert found.tensor.dtype is dtype
    tier.shut()


@sealed
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("folder", ["heads", "contents"])
def test_a_flipped_bit_anywhere_gives_what_was_written_or_nothing(
    tmp_path: Path, seal: Seal, restart: bool, folder: str
) -> None:
    """At each byte of a small payload, and a share of those of heads; all are tried by ``bench.damage``."""
    payload, tier, lost = key_values(1, tokens=1), disk_tier(tmp_path, seal=seal), 0
    size = {"heads": 4096, "contents": payload.nbytes}[folder]
    for at in range(0, size, {"heads": 101, "contents": 3 if restart else 1}[folder]):
        tier.put("a", 0, KIND, payload)
        for path in files_of(tmp_path):
            if path.parent.name == folder or path.parent.parent.name == folder:
                flip(path, at % path.stat().st_size, 1 << at % 8)
        tier = reopened(tier) if restart else tier
        lost += not given_back(tier, payload)
        tier.close("a")
        tier.check_integrity()
    assert lost or (folder == "heads" and not restart)
    tier.shut()


def reopened(tier: DiskTier) -> DiskTier:
    tier.shut()
    return disk_tier(tier.root, seal=tier.config.seal)


def flip(path: Path, at: int, bits: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= bits
    path.write_bytes(data)


def given_back(tier: DiskTier, payload: Payload) -> bool:
    """Whether the record is there; if not, it is counted and gone for good."""
    try:
        found = tier.get("a", 0, KIND)
    except RecordLost:
        assert sum((tier.misses + tier.removed).values()) >= 1
        assert not tier.has("a", 0, KIND)
        return False
    assert same(found, payload)
    return True


@sealed
@pytest.mark.parametrize("restart", [False, True])
def test_a_file_cut_off_anywhere_gives_nothing(tmp_path: Path, seal: Seal, restart: bool) -> None:
    payload, tier = key_values(1, tokens=1), disk_tier(tmp_path, seal=seal)
    for length in range(0, payload.nbytes + seal.overhead, 5 if restart else 1):
        tier.put("a", 0, KIND, payload)
        [content] = contents_of(tmp_path)
        os.truncate(content, length)
        tier = reopened(tier) if restart else tier
        assert not given_back(tier, payload)
        tier.check_integrity()
        assert not files_of(tmp_path)
        assert restart == (tier.removed["cut off"] == 1)
    tier.shut()


@sealed
@pytest.mark.parametrize("restart", [False, True])
def test_another_record_s_file_under_this_one_s_name_gives_nothing(tmp_path: Path, seal: Seal, restart: bool) -> None:
    """Every ordered pair of files of four records: contents, heads of one session, heads of two."""
    whole = disk_tier(tmp_path / "whole", seal=seal)
    written: dict[tuple[str, int], Payload] = {
        ("a", 0): key_values(1),
        ("a", 1): key_values(2),
        ("b", 0): key_values(3),
    }
    for (name, chunk), payload in written.items():
        whole.put(name, chunk, KIND, payload)
    whole.shut()
    names = [p.relative_to(tmp_path / "whole") for p in files_of(tmp_path / "whole")]
    for one in names:
        for other in names:
            root = tmp_path / "one"
            shutil.copytree(tmp_path / "whole", root)
            tier = None if restart else disk_tier(root, seal=seal)
            (root / one).write_bytes((root / other).read_bytes())
            tier = tier or disk_tier(root, seal=seal)
            for (name, chunk), payload in written.items():
                try:
                    assert same(tier.get(name, chunk, KIND), payload)
                except RecordLost:
                    assert one != other
            tier.shut()
            again = disk_tier(root, seal=seal)
            again.check_integrity()
            again.shut()
            shutil.rmtree(root)


class Crash(BaseException):
    """The process ends here."""


@dataclass(frozen=True)
class Torn(Files):
    """Files of a process that ends after so many bytes and calls."""

    left: list[int] = field(default_factory=lambda: [1 << 40])

    def step(self, cost: int = 100) -> None:
        self.left[0] -= cost
        if self.left[0] < 0:
            raise Crash

    def write(self, path: Path, parts: Sequence[Buffer]) -> None:
        data = b"".join(bytes(part) for part in parts)
        if len(data) > self.left[0]:
            path.write_bytes(data[: max(0, self.left[0])])
            self.left[0] = -1
            raise Crash
        self.step(len(data))
        super().write(path, parts)

    def rename(self, old: Path, new: Path) -> None:
        self.step()
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self.step()
        super().unlink(path)

    def wipe(self, path: Path) -> None:
        self.step()
        super().wipe(path)


def until_crash(tier: DiskTier) -> None:
    """A life: three records, one of them written anew, one session erased."""
    try:
        tier.put("a", 0, KIND, key_values(1))
        tier.put("b", 0, KIND, key_values(1))
        tier.put("a", 0, KIND, key_values(2))
        tier.close("b")
    except Crash:
        pass


@sealed
def test_a_write_torn_at_any_byte_leaves_a_whole_record_or_none(tmp_path: Path, seal: Seal) -> None:
    """The process ends at every byte and between any two calls; the next one finds no remains."""
    budget, seen = 0, set()
    while True:
        root, left = tmp_path / "one", [1 << 40]
        tier = disk_tier(root, seal=seal, files=Torn("never", left))
        left[0] = budget
        until_crash(tier)
        ended = left[0] >= 0
        os.close(tier.folder.lock)
        tier = disk_tier(root, seal=seal)
        tier.check_integrity()
        held = []
        for name, kept in (("a", (1, 2)), ("b", (1,))):
            if tier.has(name, 0, KIND):
                found = tier.get(name, 0, KIND)
                held.append(name + str(next(i for i in kept if same(found, key_values(i)))))
        seen.add(tuple(held))
        tier.shut()
        shutil.rmtree(root)
        if ended:
            break
        budget += 1 if seal.overhead == 0 and budget < 200 else 97
    assert held == ["a2"]
    assert seen == {(), ("a1",), ("a1", "b1"), ("b1",), ("a2", "b1"), ("a2",)}


def test_rubbish_in_the_folders_is_removed_and_counted_and_what_is_whole_stays(tmp_path: Path) -> None:
    tier = disk_tier(tmp_path)
    tier.put("a", 0, KIND, key_values(1))
    heads = next((tmp_path / "heads").iterdir())
    tier.shut()
    (tmp_path / "contents" / "stray").write_bytes(b"x" * 100)
    (tmp_path / "contents" / "folder").mkdir()
    (heads / "3-video_self.tmp").write_bytes(b"y")
    (heads / "notes.txt").write_bytes(b"z")
    (tmp_path / "heads" / "stray").write_bytes(b"z")
    shutil.copyfile(heads / f"0-{KIND}", heads / f"7-{KIND}")
    tier = disk_tier(tmp_path)
    assert tier.removed == {"orphan": 1, "unknown": 2, "temporary": 1, "cut off": 1, "foreign": 1}
    assert same(tier.get("a", 0, KIND), key_values(1))
    tier.check_integrity()
    tier.shut()


def test_a_folder_that_is_somebody_else_s_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds \['thesis.txt'\]; expected an empty one"):
        disk_tier(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    tier = disk_tier(tmp_path)
    with pytest.raises(OSError, match="in use by another process"):
        disk_tier(tmp_path)
    tier.shut()
    disk_tier(tmp_path).shut()


def test_another_key_or_none_opens_nothing_and_destroys_nothing(tmp_path: Path) -> None:
    tier = disk_tier(tmp_path, seal=Aes(KEY))
    tier.put("a", 0, KIND, key_values(1))
    tier.shut()
    for wrong in (Aes(bytes(32)), Unsealed()):
        with pytest.raises(ConfigError, match="another key, or with none"):
            disk_tier(tmp_path, seal=wrong)
    tier = disk_tier(tmp_path, seal=Aes(KEY))
    assert same(tier.get("a", 0, KIND), key_values(1))
    tier.shut()


def test_a_record_of_another_model_is_not_given(tmp_path: Path) -> None:
    tier = disk_tier(tmp_path)
    tier.owners.introduce("a", "", "first weights")
    tier.put("a", 0, KIND, key_values(1))
    tier.owners.introduce("a", "", "second weights")
    with pytest.raises(RecordForeign, match="'first weights'; expected 'second weights'"):
        tier.get("a", 0, KIND)
    assert tier.misses == {"foreign": 1}
    tier.check_integrity()
    tier.shut()


# -- sharing


@sealed
def test_equal_contents_of_strangers_are_on_disk_once_until_the_last_one_goes(tmp_path: Path, seal: Seal) -> None:
    tier = disk_tier(tmp_path, seal=seal)
    for name in "abc":
        tier.put(name, 0, KIND, key_values(1))
    tier.fork("a", "fork")
    assert (len(contents_of(tmp_path)), tier.shared) == (1, 3)
    for name in ("a", "b", "c"):
        tier.close(name)
        tier.check_integrity()
    assert same(tier.get("fork", 0, KIND), key_values(1))
    tier.close("fork")
    assert not contents_of(tmp_path)
    assert tier.bytes_held == 0
    tier.shut()


def test_nothing_is_shared_with_a_damaged_file(tmp_path: Path) -> None:
    tier = disk_tier(tmp_path)
    tier.put("a", 0, KIND, key_values(1))
    flip(contents_of(tmp_path)[0], 5, 1)
    tier.put("b", 0, KIND, key_values(1))
    assert same(tier.get("b", 0, KIND), key_values(1))
    with pytest.raises(RecordCorrupt):
        tier.get("a", 0, KIND)
    tier.check_integrity()
    tier.shut()


def test_who_shares_a_damaged_file_has_lost_it_too(tmp_path: Path) -> None:
    tier = disk_tier(tmp_path)
    tier.put("a", 0, KIND, key_values(1))
    tier.fork("a", "b")
    flip(contents_of(tmp_path)[0], 5, 1)
    with pytest.raises(RecordCorrupt):
        tier.get("a", 0, KIND)
    assert not tier.has("b", 0, KIND)
    assert not files_of(tmp_path)
    tier.shut()


# -- erasure


@sealed
def test_after_close_no_byte_of_a_session_is_in_the_files(tmp_path: Path, seal: Seal) -> None:
    tier = disk_tier(tmp_path, seal=seal)
    secret = key_values(7, tokens=64)
    for chunk in range(3):
        tier.put("the-secret-session", chunk, KIND, secret)
        tier.put("the-secret-session", chunk, LATENTS, latents(chunk))
    tier.put("other", 0, KIND, key_values(8, tokens=64))
    traces = [secret.tensor.numpy().tobytes()[i : i + 32] for i in (0, 500)]
    traces += [b"the-secret-session", b"prompt 1", latents(2).audio.numpy().tobytes()]
    plain = isinstance(seal, Unsealed)
    assert all(found_in(tmp_path, trace) == plain for trace in traces)
    tier.close("the-secret-session")
    assert not any(found_in(tmp_path, trace) for trace in traces)
    assert same(tier.get("other", 0, KIND), key_values(8, tokens=64))
    tier.check_integrity()
    tier.shut()


def found_in(root: Path, trace: bytes) -> bool:
    return any(trace in path.read_bytes() for path in files_of(root))


# -- bounds


def test_a_full_tier_drops_recent_then_anchors_then_sinks_then_latents_oldest_first(tmp_path: Path) -> None:
    tier = disk_tier(tmp_path, budget=8 * 8192)
    for chunk, role in enumerate([Role.SCENE_SINK, Role.SCENE_ANCHOR, Role.RECENT, Role.RESTORED]):
        tier.put("s", chunk, KIND, key_values(chunk, role))
        tier.put("s", chunk, LATENTS, latents(chunk))
    seen = []
    for chunk in range(4, 12):
        assert tier.put("s", chunk, LATENTS, latents(chunk))
        tier.check_integrity()
        seen.append("".join("k" if tier.has("s", c, KIND) else "-" for c in range(4)))
    assert seen == ["kk-k", "kk--", "k---", "----", "----", "----", "----", "----"]
    assert [tier.has("s", c, LATENTS) for c in range(12)] == [False] * 4 + [True] * 8
    assert (tier.dropped["key_values"], tier.dropped["latents"]) == (4, 4)
    tier.shut()


def test_what_is_larger_than_the_tier_makes_nobody_go(tmp_path: Path) -> None:
    tier = disk_tier(tmp_path, budget=3 * 4096)
    assert tier.put("a", 0, KIND, key_values(1))
    assert not tier.put("a", 1, KIND, key_values(2, tokens=400))
    assert tier.has("a", 0, KIND)
    tier.check_integrity()
    tier.shut()


def test_a_quota_makes_its_own_stream_s_and_its_own_owner_s_records_go(tmp_path: Path) -> None:
    tier = disk_tier(tmp_path, quota=Quota(session_bytes=2 * 8192, owner_bytes=3 * 8192))
    for name, owner in (("a", "kim"), ("b", "kim"), ("c", "lee")):
        tier.owners.introduce(name, owner, "")
    for chunk in range(3):
        for name in "abc":
            tier.put(name, chunk, KIND, key_values(10 * chunk + ord(name)))
            tier.check_integrity()
    held = {name: [chunk for chunk in range(3) if tier.has(name, chunk, KIND)] for name in "abc"}
    assert held == {"a": [2], "b": [1, 2], "c": [1, 2]}
    tier.shut()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_budgets_and_books_hold_after_every_operation(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Against a dictionary: what is there equals it, and what is not there was dropped, forgotten or refused."""
    seal = data.draw(st.sampled_from(SEALS))
    root, budget = tmp_path_factory.mktemp("tier"), data.draw(st.sampled_from([0, 5 * 8192, 1 << 24]))
    tier, reference = disk_tier(root, budget, seal), {}
    for _ in range(data.draw(st.integers(5, 40))):
        name, chunk = data.draw(st.sampled_from("abc")), data.draw(st.integers(0, 3))
        kind, seed = data.draw(st.sampled_from(KINDS[:2])), data.draw(st.integers(0, 5))
        match data.draw(st.sampled_from(["put", "put", "put", "get", "remove", "close", "fork", "restart"])):
            case "put":
                payload = latents(seed) if kind == LATENTS else key_values(seed, list(Role)[seed % len(Role)])
                reference.pop((name, chunk, kind), None)
                if tier.put(name, chunk, kind, payload):
                    reference[name, chunk, kind] = payload
            case "get":
                if tier.has(name, chunk, kind):
                    assert same(tier.get(name, chunk, kind), reference[name, chunk, kind])
            case "remove":
                tier.remove(Key(name, chunk, kind))
                reference.pop((name, chunk, kind), None)
            case "close":
                tier.close(name)
                reference = {k: v for k, v in reference.items() if k[0] != name}
            case "fork":
                tier.close("child")
                reference = {k: v for k, v in reference.items() if k[0] != "child"}
                reference |= {("child", *k[1:]): v for k, v in reference.items() if k[0] == name}
                tier.fork(name, "child")
            case "restart":
                tier.shut()
                tier = disk_tier(root, budget, seal)
                assert not tier.removed
        tier.check_integrity()
    for key in list(tier.index.entries):
        assert same(tier.get(*key), reference[key])
    if budget == 1 << 24:
        assert set(tier.index.entries) == set(reference)
    tier.shut()


# -- the disk itself


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    where = tmp_path / "disk"
    where.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=1m tmpfs {where} 2>/dev/null"):
        pytest.skip("only who may mount can make a small disk")
    yield where
    os.system(f"umount -l {where}")


def fill(tier: DiskTier) -> None:
    chunk = 0
    while tier.put("a", chunk, KIND, key_values(chunk, tokens=500)):
        chunk += 1


def test_a_full_disk_refuses_and_keeps_what_it_has_whole(small_disk: Path) -> None:
    tier = disk_tier(small_disk / "store", budget=1 << 30)
    with pytest.raises(OSError, match="No space left"):
        fill(tier)
    written = len(tier.index.entries)
    assert written > 10
    tier.check_integrity()
    assert all(same(tier.get("a", c, KIND), key_values(c, tokens=500)) for c in range(written))
    tier.close("a")
    assert tier.put("a", 0, KIND, key_values(0))
    tier.shut()


def test_a_read_only_disk_still_gives_what_it_has(small_disk: Path) -> None:
    tier = disk_tier(small_disk / "store")
    tier.put("a", 0, KIND, key_values(0))
    assert not os.system(f"mount -o remount,ro {small_disk}")
    with pytest.raises(OSError, match="Read-only"):
        tier.put("a", 1, KIND, key_values(1))
    assert same(tier.get("a", 0, KIND), key_values(0))
    assert not os.system(f"mount -o remount,rw {small_disk}")
    assert tier.put("a", 1, KIND, key_values(1))
    tier.check_integrity()
    tier.shut()


def test_buffers_come_back_when_nobody_looks_at_them_and_not_before(tmp_path: Path) -> None:
    tier = disk_tier(tmp_path)
    tier.put("a", 0, KIND, key_values(0))
    tier.put("a", 1, KIND, key_values(1))
    first = tier.get("a", 0, KIND)
    assert isinstance(first, type(key_values(0)))
    keys = first.tensor[:, 0]
    del first
    second = tier.get("a", 1, KIND)
    assert torch.equal(keys, key_values(0).tensor[:, 0])
    assert tier.buffers.made == 2
    del keys, second
    assert same(tier.get("a", 0, KIND), key_values(0))
    assert tier.buffers.made == 2
    assert tier.buffers.reused >= 1
    tier.shut()

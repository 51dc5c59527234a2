"""The file journal: whatever happens to file or writer, a replay has what was acknowledged, or says what it lacks."""

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.journals import JournalSettings, build_journal
from actors.ledger_service import LedgerShard
from actors.statements import Verdict
from bench.killing import Deadly, Death, Rounds
from bench.lives import SPECS, Life, books_of
from cache import terms as plain_forms
from cache.books import CacheConfig
from cache.drift import DriftConfig
from cache.file_journal import FileJournal, Keeping
from cache.frames import HEAD, PREAMBLE, preamble
from cache.journal import Kind, Line, Replay
from cache.keep_set import Budgets, RoleBudget
from cache.policies import ALL
from cache.positions import PositionConfig
from cache.scenes import SceneConfig
from cache.terms import Terms, parse_terms, plain_terms
from errors import ConfigError, IntegrityError, JournalDown, SnapshotMismatch
from tests.full_disk import limited

QUICK = Keeping(fsync="never", slack_bytes=4096)
LINES = [
    [Line("a", Kind.WHOLE, b"a0"), Line("b", Kind.WHOLE, b"b0" * 9)],
    [Line("a", Kind.MORE, b"a1"), Line("b", Kind.MORE, b"b1")],
    [Line("b", Kind.GONE)],
    [Line("a", Kind.MORE, b"a2"), Line("c", Kind.WHOLE, b"c0")],
    [Line("a", Kind.WHOLE, b"A0")],
    [Line("a", Kind.MORE, b"A1")],
    [Line("c", Kind.MORE, b"c1")],
]
HAS = {"a": [b"A0", b"A1"], "c": [b"c0", b"c1"]}


@contextmanager
def journal(path: Path, keeping: Keeping = QUICK) -> Iterator[tuple[FileJournal, Replay]]:
    made = FileJournal(path, keeping, lambda: 0.0)
    try:
        yield made, made.replay()
    finally:
        made.close()


@pytest.fixture
def quick_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: these tests make a thousand journals, and no power fails here."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("written") / "j"
    with journal(path, replace(QUICK, slack_bytes=1 << 20)) as (made, _):
        for lines in LINES:
            made.append(lines)
    return path.read_bytes()


def replayed(path: Path, data: bytes) -> Replay:
    path.write_bytes(data)
    with journal(path) as (made, found):
        made.append([Line("new", Kind.WHOLE, b"new")])
    with journal(path) as (_, again):
        assert again.sessions == {**found.sessions, "new": [b"new"]}, "what was found is there the next time too"
        assert not again.damaged
        assert not again.torn_bytes
    return found


def test_a_replay_has_the_newest_whole_and_what_followed_and_nothing_of_who_is_gone(
    written: bytes, tmp_path: Path
) -> None:
    assert replayed(tmp_path / "j", written) == Replay(HAS)


def test_an_append_that_was_torn_at_any_byte_is_cut_off_and_nothing_before_it_is_lost(quick_disk: Path) -> None:
    path = quick_disk / "j"
    with journal(path) as (made, _):
        made.append([Line("a", Kind.WHOLE, b"a0"), Line("b", Kind.WHOLE, b"b0")])
        before = path.stat().st_size
        made.append([Line("a", Kind.MORE, bytes(range(60)))])
    whole = path.read_bytes()
    for cut in range(before, len(whole)):
        found = replayed(path, whole[:cut])
        assert found == Replay({"a": [b"a0"], "b": [b"b0"]}, (), cut - before)


def test_an_append_of_which_a_sector_never_reached_the_disk_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with journal(path) as (made, _):
        made.append([Line("a", Kind.WHOLE, b"a0")])
        before = path.stat().st_size
        made.append([Line(name, Kind.WHOLE, random.Random(1).randbytes(900)) for name in "bcd"])
    whole = path.read_bytes()
    for sector in range(-(-before // 512), len(whole) // 512):
        holed = whole[: sector * 512] + bytes(512) + whole[sector * 512 + 512 :]
        found = replayed(path, holed)
        assert found.sessions["a"] == [b"a0"]
        assert not found.damaged, "nobody was told of that append, so nothing is lost"
        assert 900 < found.torn_bytes <= len(whole) - before


def test_a_flipped_bit_anywhere_is_found_and_named_and_no_session_is_ever_wrong(
    written: bytes, quick_disk: Path
) -> None:
    draw = random.Random(0)
    for at in range(len(written)):
        damaged = bytearray(written)
        damaged[at] ^= 1 << draw.randrange(8)
        found = replayed(quick_disk / "j", bytes(damaged))
        assert found.damaged, f"byte {at}"
        assert all(found.sessions[s] == HAS[s] for s in found.sessions), f"byte {at}"
        if at < PREAMBLE:
            assert found.sessions == HAS
        for session in set(HAS) - set(found.sessions):
            assert any("are damaged" in word for word in found.damaged), session


def test_damage_in_the_middle_costs_the_sessions_that_it_may_be_of_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with journal(path) as (made, _):
        ends = []
        for lines in ([Line(n, Kind.WHOLE, n.encode() * 50)] for n in "abc"):
            made.append(lines)
            ends.append(path.stat().st_size)
        made.append([Line("c", Kind.MORE, b"c1")])
    whole = path.read_bytes()
    payload, head = bytearray(whole), bytearray(whole)
    payload[ends[0] + HEAD + 20] ^= 4
    head[ends[0] + 9] ^= 4
    both = bytearray(head)
    both[ends[1] + 9] ^= 4
    found = replayed(path, bytes(payload))
    assert set(found.sessions) == {"a", "c"}
    assert any("'b'" in word or "are damaged" in word for word in found.damaged)
    assert set(replayed(path, bytes(head)).sessions) == {"a", "c"}, "the line behind says whose it was"
    assert set(replayed(path, bytes(both)).sessions) == set(), "a may have had a line there, and c lacks its first"


def test_a_file_that_is_none_of_ours_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "j"
    for data, said in (
        (b"a letter to a friend" * 9, "is no journal"),
        (preamble(7), "version 7; this release reads 1"),
    ):
        path.write_bytes(data)
        with pytest.raises(JournalDown, match=said), journal(path):
            pass
        assert path.read_bytes() == data


def test_a_second_owner_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    with (
        journal(tmp_path / "j"),
        pytest.raises(JournalDown, match="belongs to another process"),
        journal(tmp_path / "j"),
    ):
        pass
    with journal(tmp_path / "j") as (_, found):
        assert found == Replay()


def test_the_file_stays_bounded_and_a_session_that_ended_is_gone_from_it(tmp_path: Path) -> None:
    path, now = tmp_path / "j", [0.0]
    made = FileJournal(path, replace(QUICK, erase_s=60), lambda: now[0])
    made.replay()
    made.append([Line("secret", Kind.WHOLE, b"what nobody may read")])
    for i in range(400):
        made.append([Line("a", Kind.WHOLE if i % 8 == 0 else Kind.MORE, bytes(200))])
        assert path.stat().st_size <= max(4096, 2 * made.statistics().live_bytes) + 300
    assert made.statistics().compactions > 5
    made.append([Line("secret", Kind.GONE)])
    now[0] = 61
    made.tend()
    assert b"what nobody may read" not in path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["j", "j.lock"]
    made.close()


def test_a_full_journal_refuses_what_has_no_room_and_goes_on_when_a_session_ends(tmp_path: Path) -> None:
    with journal(tmp_path / "j", replace(QUICK, max_bytes=4096)) as (made, _):
        made.append([Line("a", Kind.WHOLE, bytes(3000))])
        with pytest.raises(JournalDown, match="is full"):
            made.append([Line("b", Kind.WHOLE, bytes(2000))])
        assert made.statistics().down
        assert made.ready() == {"b"}
        made.append([Line("a", Kind.GONE)])
        made.append([Line("b", Kind.WHOLE, b"b0")])
        assert made.statistics().down == ""
    with journal(tmp_path / "j") as (_, found):
        assert found.sessions == {"b": [b"b0"]}


def test_a_session_that_ends_makes_room_for_others_in_a_full_journal(tmp_path: Path) -> None:
    keeping = Keeping(fsync="never", slack_bytes=4096, max_bytes=64 << 10)
    shard = LedgerShard(journal=FileJournal(tmp_path / "j", keeping, lambda: 0.0), whole_every=1000)
    life = Life(6, ("a", "b"))
    while len(life.live) < 2:
        life.step(shard)
    with pytest.raises(JournalDown, match="is full"):
        fill(shard, life)
    assert shard.statistics()["journal_down"] == 1
    shard.close("b", life.live.pop("b").epoch)
    shard.tend()
    assert shard.statistics()["journal_down"] == shard.statistics()["journal_unwritten"] == 0
    life._commit(shard)
    expected = books_of(shard)
    shard.journal.close()
    assert taken_up(tmp_path / "j") == expected
    assert set(expected) == {"a"}


def test_what_follows_lines_that_nobody_knows_of_is_refused(tmp_path: Path) -> None:
    with journal(tmp_path / "j") as (made, _):
        made.append([Line("a", Kind.WHOLE, b"a0")])
        with limited((tmp_path / "j").stat().st_size), pytest.raises(JournalDown):
            made.append([Line("a", Kind.MORE, b"a1")])
        with pytest.raises(IntegrityError, match="to be written whole"):
            made.append([Line("a", Kind.MORE, b"a1")])


@pytest.mark.parametrize("fsync", ["commit", "interval", "never"])
def test_on_a_full_disk_nothing_is_acknowledged_and_all_goes_on_when_there_is_room(tmp_path: Path, fsync: str) -> None:
    keeping = Keeping(fsync=fsync, slack_bytes=1 << 20)  # type: ignore[arg-type]
    shard, life = LedgerShard(journal=FileJournal(tmp_path / "j", keeping, lambda: 0.0)), Life(1, ("a", "b"))
    for _ in range(20):
        life.step(shard)
    before = books_of(shard)
    with limited((tmp_path / "j").stat().st_size + 500):
        entries = [life._entry(name) for name in sorted(life.live)]
        for _ in range(3):
            with pytest.raises(JournalDown, match="File too large"):
                shard.commit(entries)
        told = shard.statistics()
        assert (told["journal_down"], told["journal_unwritten"]) == (1, len(entries))
        with pytest.raises(JournalDown):
            shard.read(entries[0].session)
    copy = tmp_path / "copy"
    copy.write_bytes((tmp_path / "j").read_bytes())
    with journal(copy) as (_, found):
        assert set(found.sessions) == set(before)
    assert shard.commit(entries) == [Verdict.BOOKED] * len(entries)
    assert shard.statistics()["journal_down"] == 0
    expected = books_of(shard)
    shard.journal.close()
    assert taken_up(tmp_path / "j") == expected


def test_a_real_full_disk_and_one_that_became_read_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        shard, life = LedgerShard(journal=FileJournal(disk / "j", Keeping(), lambda: 0.0)), Life(2, ("a",))
        life.step(shard)
        with pytest.raises(JournalDown, match="No space left"):
            fill(shard, life)
        assert shard.statistics()["journal_down"] == 1
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        shard.tend()
        assert shard.statistics()["journal_down"] == 0
        expected = books_of(shard)
        shard.journal.close()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        again = LedgerShard(journal=FileJournal(disk / "j", Keeping(), lambda: 0.0))
        with pytest.raises(JournalDown, match="Read-only"):
            again.claim("a")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert books_of(again) == expected
        again.journal.close()
    finally:
        subprocess.run(["umount", disk], check=True)


def fill(shard: LedgerShard, life: Life) -> None:
    for _ in range(200):
        life._commit(shard)


def taken_up(path: Path) -> dict[str, object]:
    shard = LedgerShard(journal=FileJournal(path, QUICK, lambda: 0.0))
    try:
        return dict(books_of(shard))
    finally:
        shard.journal.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 20))
def test_books_after_a_replay_equal_the_books_before(quick_disk: Path, seed: int, steps: int, whole_every: int) -> None:
    path = quick_disk / f"{seed}-{steps}-{whole_every}"
    shard = LedgerShard(journal=FileJournal(path, QUICK, lambda: 0.0), whole_every=whole_every)
    oracle, life, twin = LedgerShard(), Life(seed, ("a", "b", "c")), Life(seed, ("a", "b", "c"))
    for _ in range(steps):
        life.step(shard)
        twin.step(oracle)
    shard.journal.close()
    again = LedgerShard(journal=FileJournal(path, QUICK, lambda: 0.0), whole_every=whole_every)
    assert books_of(again) == books_of(oracle)
    for _ in range(8):
        life.step(again)
        twin.step(oracle)
    assert books_of(again) == books_of(oracle), "and they go on the same"
    again.journal.close()
    for left in quick_disk.glob(f"{path.name}*"):
        left.unlink()


def test_who_was_taken_over_from_is_refused_after_a_restart_too_and_a_commit_is_booked_once(tmp_path: Path) -> None:
    path = tmp_path / "j"
    shard, life = LedgerShard(journal=FileJournal(path, QUICK, lambda: 0.0)), Life(3, ("a",))
    life.step(shard)
    entry = life._entry("a")
    assert shard.commit([entry]) == [Verdict.BOOKED]
    assert shard.claim("a")[0] == 2
    shard.journal.close()
    again = LedgerShard(journal=FileJournal(path, QUICK, lambda: 0.0))
    assert again.commit([entry]) == [Verdict.FENCED]
    before = books_of(again)
    assert again.commit([entry.under(2)]) == [Verdict.BOOKED]
    assert books_of(again) == before
    again.close("a", 2)
    again.journal.close()
    assert taken_up(path) == {}


def test_writers_killed_at_random_moments_lose_nothing_that_was_acknowledged(quick_disk: Path) -> None:
    rounds = Rounds(lambda: FileJournal(quick_disk / "j", QUICK, lambda: 0.0))
    for number in range(12):
        rounds.round(number)
    found = rounds.tally
    assert (found.lost, found.wrong) == (0, 0)
    assert found.acknowledged > 40


@pytest.mark.parametrize("moment", ["before", "after", "amid"])
def test_a_writer_killed_at_every_call_of_the_system_compaction_included_loses_nothing(
    quick_disk: Path, moment: str
) -> None:
    at, steps = 1, 5
    while True:
        path = quick_disk / str(at)
        rounds = Rounds(lambda path=path: FileJournal(path, Keeping(slack_bytes=2048), lambda: 0.0), seed=5)
        done = rounds.round(0, Death(Deadly(at, moment, random.Random(at)).set, steps))
        assert (rounds.tally.lost, rounds.tally.wrong) == (0, 0), f"call {at}"
        if done == steps:
            break
        at += 1
    assert at > 3 * steps, "several calls a step, and compactions among them"


def test_terms_survive_as_plain_data_and_every_field_of_them_is_spelled_out() -> None:
    for policy in ALL:
        drift = DriftConfig(strength={"video": 0.1}, patience=9)
        config = CacheConfig(PositionConfig(20, "following"), SceneConfig(anchors=5), drift, 0.5, 99)
        made = Terms(SPECS, policy.of(Budgets.uniform(RoleBudget(0, 2, 2, 2, 4, max_bytes=1 << 30))), config)
        assert parse_terms(plain_terms(made)) == made
        plain = plain_terms(made)
        assert plain["positions"] == asdict(config.positions)
        assert plain["scenes"] == asdict(config.scenes)
        assert plain["drift"] == asdict(config.drift)
        assert set(plain) >= {f.name for f in fields(config)}
        assert plain["policy"]["budgets"]["video_self"] == asdict(made.policy.budgets.video_self)
        with pytest.raises(SnapshotMismatch, match="version 99"):
            parse_terms({**plain, "version": 99})
    assert set(plain_forms.POLICIES.values()) == set(ALL)


def test_settings_choose_the_journal_and_never_tell_a_password(tmp_path: Path) -> None:
    named = JournalSettings(path=str(tmp_path / "named"))
    made = build_journal(named, 1, 2, Path("/nowhere"))
    assert isinstance(made, FileJournal)
    assert made.path == tmp_path / "named" / "ledger-1-of-2.journal"
    secret = JournalSettings(kind="redis", url="redis://:secret@127.0.0.1:1/0")
    assert "secret" not in repr(secret)
    shard = LedgerShard(journal=build_journal(secret, 0, 1, tmp_path))
    with pytest.raises(JournalDown) as caught:
        shard.read("a")
    assert "secret" not in str(caught.value)
    assert "secret" not in shard.journal.statistics().down
    for wrong in (
        {"kind": "redis"},
        {"kind": "redis", "url": "http://x"},
        {"kind": "none", "path": "x"},
        {"name": "{"},
    ):
        with pytest.raises(ConfigError, match=r"service\.journal"):
            JournalSettings(**wrong)  # type: ignore[arg-type]


def test_the_process_that_tests_this_is_not_left_with_deadly_calls() -> None:
    from cache import file_journal

    assert file_journal.os is os

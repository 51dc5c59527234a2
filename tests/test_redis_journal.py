"""The journal in a real Redis: outages, restarts, lost memory, late writers and damage."""

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.ledger_service import LedgerShard
from actors.redis_journal import RedisJournal
from actors.statements import Verdict
from bench.killing import Rounds
from bench.lives import Life, books_of
from bench.real_redis import RealRedis, found, real_redis
from cache.journal import Kind, Line
from errors import JournalDown

pytestmark = pytest.mark.skipif(not found(), reason="no redis-server on this machine")
BOTH = [Line("a", Kind.WHOLE, b"a0"), Line("b", Kind.WHOLE, b"b0")]


@pytest.fixture(scope="module")
def server() -> Iterator[RealRedis]:
    folder = Path(tempfile.mkdtemp(prefix="lt"))  # pytest's own are too long for a socket's path
    with real_redis(folder) as made:
        yield made
    shutil.rmtree(folder)


@pytest.fixture
def name(server: RealRedis) -> str:
    if server.process is None:
        server.start()
    with server.client() as client:
        client.flushall()
        client.config_set("maxmemory", 0)
    return "test"


class Clock:
    """Later by a second each time it is read: no call waits for the pause after a failure."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def journal(server: RealRedis, name: str) -> RedisJournal:
    made = RedisJournal(server.url, name, Clock())
    made.replay()
    return made


def shard_of(server: RealRedis, name: str) -> LedgerShard:
    return LedgerShard(journal=RedisJournal(server.url, name, Clock()), whole_every=8)


def test_a_session_is_a_snapshot_and_a_stream_and_is_gone_when_it_ends(server: RealRedis, name: str) -> None:
    made = journal(server, name)
    made.append(BOTH)
    made.append([Line("a", Kind.MORE, b"a1"), Line("a", Kind.MORE, b"a2"), Line("b", Kind.MORE, b"b1")])
    assert journal(server, name).replay().sessions == {"a": [b"a0", b"a1", b"a2"], "b": [b"b0", b"b1"]}
    made = journal(server, name)
    made.append([Line("a", Kind.WHOLE, b"A0"), Line("b", Kind.GONE)])
    with server.client() as client:
        keys = {key.decode().rpartition("}:")[2] for key in client.scan_iter()}
        assert keys == {"writer", "sessions", "snapshot:a"}, "trimmed at the snapshot, and nothing of b"
    assert journal(server, name).replay().sessions == {"a": [b"A0"]}


@pytest.mark.parametrize("seed", range(3))
def test_books_after_a_replay_equal_the_books_before(server: RealRedis, name: str, seed: int) -> None:
    shard, life = shard_of(server, name), Life(seed, ("a", "b", "c"))
    oracle, twin = LedgerShard(), Life(seed, ("a", "b", "c"))
    for steps in (15, 25, 10):
        for _ in range(steps):
            life.step(shard)
            twin.step(oracle)
        shard = shard_of(server, name)
        assert books_of(shard) == books_of(oracle)


def test_a_shard_that_another_has_replaced_acknowledges_nothing_more(server: RealRedis, name: str) -> None:
    old = journal(server, name)
    old.append(BOTH)
    new = journal(server, name)
    for kind in (Kind.MORE, Kind.WHOLE, Kind.GONE):
        with pytest.raises(JournalDown, match="another shard"):
            old.append([Line("a", kind, b"late")])
        with pytest.raises(JournalDown, match="another shard"):
            old.ready()
    new.append([Line("a", Kind.MORE, b"a1")])
    assert journal(server, name).replay().sessions == {"a": [b"a0", b"a1"], "b": [b"b0"]}


def test_while_redis_is_away_commits_wait_and_when_it_is_back_nothing_is_lost(server: RealRedis, name: str) -> None:
    shard, life = shard_of(server, name), Life(1, ("a", "b"))
    for _ in range(12):
        life.step(shard)
    entries = [life._entry(session) for session in sorted(life.live)]
    server.kill()
    for _ in range(3):
        with pytest.raises(JournalDown, match="ConnectionError"):
            shard.commit(entries)
    with pytest.raises(JournalDown):
        shard.claim(entries[0].session)
    closed = entries[0].session
    with pytest.raises(JournalDown):
        shard.close(closed, 99)
    told = shard.statistics()
    assert told["journal_down"] == 1
    assert told["journal_unwritten"] >= 1
    server.start()
    assert shard.commit(entries[1:]) == [Verdict.BOOKED] * len(entries[1:])
    expected = books_of(shard)
    assert shard.statistics()["journal_down"] == shard.statistics()["journal_unwritten"] == 0
    assert closed not in expected
    assert books_of(shard_of(server, name)) == expected


def test_a_redis_that_lost_everything_or_its_newest_lines_gets_all_books_anew(server: RealRedis, name: str) -> None:
    shard, life = shard_of(server, name), Life(2, ("a", "b", "c"))
    while len(life.live) < 3:
        life.step(shard)
    with server.client() as client:
        client.flushall()
    for _ in range(2):
        with pytest.raises(JournalDown):
            shard.commit([life._entry("a")])
        shard.tend()
        expected = books_of(shard)
        assert set(expected) == {"a", "b", "c"}
        shard.commit([life._entry("b"), life._entry("c")])
        expected = books_of(shard)
        assert books_of(LedgerShard(journal=shard.journal)) == expected
        with server.client() as client:
            client.delete(*client.keys("*snapshot:a"), *client.keys("*stream:a"))
    assert books_of(shard_of(server, name)).keys() == {"b", "c"}, "a is not there in part"


def test_a_redis_without_room_refuses_and_what_it_had_stays_whole(server: RealRedis, name: str) -> None:
    made = journal(server, name)
    made.append(BOTH)
    made.append([Line("a", Kind.MORE, b"a1")])
    with server.client() as client:
        client.config_set("maxmemory", 1)
        for kind in (Kind.MORE, Kind.WHOLE):
            with pytest.raises(JournalDown, match="OutOfMemory"):
                made.append([Line("a", kind, b"a2")])
        assert made.ready() == {"a"}
        made.append([Line("b", Kind.GONE)])
        client.config_set("maxmemory", 0)
    assert journal(server, name).replay().sessions == {"a": [b"a0", b"a1"]}


def test_a_changed_byte_in_redis_is_found_and_its_session_not_taken_up(server: RealRedis, name: str) -> None:
    made = journal(server, name)
    made.append([*BOTH, Line("b", Kind.MORE, b"b1")])
    with server.client() as client:
        (key,) = client.keys("*snapshot:a")
        client.hset(key, "data", b"aO")
        (key,) = client.keys("*stream:b")
        client.xtrim(key, maxlen=0)
        client.xadd(key, {"digest": "1", "data": "b1"}, id="9-0")
    found = made.replay()
    assert not found.sessions
    assert [("'a'" in word, "'b'" in word) for word in found.damaged] == [(True, False), (False, True)]
    assert made.ready() == {"a", "b"}
    made.append([Line("a", Kind.GONE), Line("b", Kind.GONE)])
    assert made.replay().damaged == ()


def test_writers_and_redis_killed_at_random_moments_lose_nothing_that_was_acknowledged(
    server: RealRedis, name: str
) -> None:
    rounds = Rounds(lambda: RedisJournal(server.url, name, Clock()))
    for number in range(12):
        rounds.round(number)
        if number % 4 == 3:
            server.kill()
            server.start()
    assert (rounds.tally.lost, rounds.tally.wrong) == (0, 0)
    assert rounds.tally.acknowledged > 40


def test_redis_killed_in_the_middle_of_a_stream_of_commits_has_all_that_were_acknowledged(
    server: RealRedis, name: str
) -> None:
    draw = random.Random(0)
    for turn in range(3):
        session = f"turn-{turn}"
        shard, life = shard_of(server, name), Life(turn, (session,))
        for _ in range(draw.randrange(5, 15)):
            life.step(shard)
        entry = life._entry(session) if life.live else None
        server.kill()
        if entry is not None:
            with pytest.raises(JournalDown):
                shard.commit([entry])
        server.start()
        shard.tend()
        expected = books_of(shard)
        assert books_of(shard_of(server, name)) == expected

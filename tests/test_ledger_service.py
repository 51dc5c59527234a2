"""The ledger service: books outside the generator that stay the same, each commit once, and one writer a session."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from actors.bookkeeping import OwnLedger
from actors.ledger_service import Entry, LedgerShard, Statement, Terms, Verdict, shard_of
from actors.live import State
from actors.order import Order
from actors.pace import Pace
from actors.worker import Direction
from cache.books import CacheConfig
from cache.file_journal import FileJournal, Keeping
from cache.host_tier import HostTier
from cache.keep_set import Budgets, RoleBudget
from cache.manager import CacheManager
from cache.policies import SceneMemory
from cache.replica import digest
from cache.state import dump
from errors import FencedOff, IntegrityError, NoCapacity, ServiceError, SessionMoved, UnknownSession
from models.segmenter import Finding
from tests.builders import tiny_backbone
from tests.full_disk import limited
from tests.service import generator, run, until
from tests.test_generator import BALL, RING, of, take

POLICY = SceneMemory(Budgets.uniform(RoleBudget(1, 1, 1, 1, 2)))
TERMS = Terms(tiny_backbone().specs(), POLICY, CacheConfig())


def books() -> CacheManager:
    made = CacheManager("a", TERMS.specs, POLICY, TERMS.config, HostTier(0))
    made.open_scene("opening", "p")
    return made


def statement(made: CacheManager) -> Statement:
    return Statement("a", TERMS, dump(made), made.recorder.noted)


def entry(made: CacheManager, epoch: int = 1) -> Entry:
    made.begin()
    made.commit(made.next_chunk)
    number, operations = made.recorder.take()
    return Entry("a", made.next_chunk - 1, number, operations, digest(made), epoch)


def test_a_commit_is_booked_once_however_often_it_comes() -> None:
    shard, made = LedgerShard(), books()
    assert shard.open(statement(made)) == 1
    entries = [entry(made) for _ in range(6)]
    for one in entries:
        assert shard.commit([one, one]) == [Verdict.BOOKED, Verdict.BOOKED]
    before = shard.read("a")
    assert shard.commit(entries) == [Verdict.BOOKED] * 6
    assert shard.read("a") == before
    assert before[1].state["next_chunk"] == 6


def test_who_was_taken_over_from_is_refused_from_then_on() -> None:
    shard, made = LedgerShard(), books()
    assert shard.open(statement(made)) == 1
    assert shard.commit([entry(made)]) == [Verdict.BOOKED]
    assert shard.open(shard.read("a")[1]) == 2
    assert shard.commit([entry(made, epoch=1)]) == [Verdict.FENCED]
    with pytest.raises(FencedOff, match="written under epoch 2; this generator has 1"):
        shard.state(statement(made), 1)
    shard.close("a", 1)
    assert shard.read("a")[0] == 2


def test_books_that_miss_something_or_differ_are_put_right_by_a_statement() -> None:
    shard, made = LedgerShard(), books()
    shard.open(statement(made))
    entry(made)
    late = entry(made)
    assert shard.commit([late]) == [Verdict.BEHIND]
    shard.state(statement(made), 1)
    assert shard.commit([late]) == [Verdict.BOOKED]
    assert shard.commit([replace(entry(made), digest=b"another.")]) == [Verdict.DIFFERS]
    mangled = entry(made)
    broken = replace(mangled.operations[0], arguments={"chunk": 99, "seen": {}, "mass": None})
    assert shard.commit([replace(mangled, operations=[broken])]) == [Verdict.DIFFERS]
    shard.state(statement(made), 1)
    assert shard.commit([entry(made)]) == [Verdict.BOOKED]
    assert shard.commit([replace(entry(made), session="b")]) == [Verdict.BEHIND]


def test_a_full_shard_refuses_the_next_session_unless_one_is_long_forgotten() -> None:
    now = [0.0]
    shard, made = LedgerShard(sessions=1, forget_s=10, clock=lambda: now[0]), books()
    shard.open(statement(made))
    with pytest.raises(NoCapacity, match="1 sessions are in the books"):
        shard.open(replace(statement(made), session="b"))
    now[0] = 11
    shard.open(replace(statement(made), session="b"))
    with pytest.raises(UnknownSession):
        shard.read("a")


def test_the_shard_of_a_session_is_the_same_in_every_process() -> None:
    assert [shard_of(name, 4) for name in ("a", "b", "session-1")] == [3, 1, 2]


class Broken(OwnLedger):
    """A ledger service that answers with an error that nobody expects."""

    async def commit(self, shard: int, entries: Sequence[Entry]) -> list[Verdict]:
        raise IntegrityError("the books contradict themselves")


class Silent(OwnLedger):
    """A ledger service that does not answer."""

    async def commit(self, shard: int, entries: Sequence[Entry]) -> list[Verdict]:
        await asyncio.Event().wait()
        raise AssertionError


class Fragile(OwnLedger):
    """A ledger service of two shards, of which one can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.away: set[int] = set()
        self.asked = 0

    def shard(self, session: str) -> int:
        return int(session == "b")

    async def commit(self, shard: int, entries: Sequence[Entry]) -> list[Verdict]:
        self.asked += 1
        if shard in self.away:
            raise ServiceError("the shard has gone")
        return await super().commit(shard, entries)


def test_through_cuts_returns_pauses_and_forks_books_and_service_agree() -> None:
    async def test() -> None:
        ledger = OwnLedger()

        async def see(glimpse: object) -> Finding:
            raise ServiceError("blind")

        async with generator(Pace(lead=2), ledger=ledger, see=see) as made:
            await made.create("a", Order(BALL.prompt, subject="red ball"))
            await take(made, "a", 4)
            await made.control("a", Direction("cut", RING.prompt, "yellow"))
            await take(made, "a", 9, after=3)
            await made.control("a", Direction("return", scene="opening"))
            await made.pause("a")
            await made.resume("a")
            await take(made, "a", 3, after=12)
            await made.fork("a", "child")
            await made.control("child", Direction("prompt", RING.prompt, mode="recache"))
            await asyncio.gather(take(made, "a", 3, after=15), take(made, "child", 3, after=None))
            counts = ledger.service.statistics()
            assert counts["booked"] >= 22
            assert (counts["behind"], counts["differs"], counts["fenced"]) == (0, 0, 0)
            assert counts["sessions"] == 2
        assert ledger.service.statistics()["sessions"] == 2  # a generator that closes may be taken over from

    run(test)


def test_no_chunk_is_shown_before_it_is_booked_and_other_shards_go_on() -> None:
    async def test() -> None:
        ledger = Fragile()
        async with generator(Pace(lead=2), ledger=ledger) as made:
            await made.create("a", BALL)
            await made.create("b", RING)
            await asyncio.gather(take(made, "a", 2), take(made, "b", 2))
            await until(lambda: made.sessions["b"].next_chunk == 4)
            ledger.away = {1}
            waits = asyncio.create_task(take(made, "b", 4, after=2))
            await take(made, "a", 6, after=1)
            assert made.sessions["b"].next_chunk == 4
            assert not waits.done()
            ledger.away = set()
            assert [m["index"] for m in of(await waits, "chunk")] == [3, 4, 5, 6]

    run(test)


def test_books_that_the_service_has_lost_are_stated_anew() -> None:
    async def test() -> None:
        ledger = OwnLedger()
        async with generator(ledger=ledger) as made:
            await made.create("a", BALL)
            await take(made, "a", 2)
            ledger.service = LedgerShard()
            await take(made, "a", 4, after=1)
            epoch, found = ledger.service.read("a")
            assert epoch == 1
            assert found.state["next_chunk"] >= 6
            await made.stop("a")
            assert not ledger.service.books

    run(test)


def test_a_session_that_another_generator_has_taken_over_shows_nothing_more() -> None:
    async def test() -> None:
        ledger = OwnLedger()
        async with generator(Pace(lead=2), ledger=ledger) as made:
            await made.create("a", BALL)
            await take(made, "a", 2)
            await until(lambda: made.sessions["a"].next_chunk == 4)
            ledger.service.open(ledger.service.read("a")[1])
            seen: list[int] = []

            async def watch() -> None:
                async for message in made.watch("a", "", "me", 1, 9, False):
                    if message["type"] == "chunk":
                        seen.append(message["index"])
                        await made.acknowledge("a", "me", message["index"], 9)

            with pytest.raises(SessionMoved, match="connect again"):
                await watch()
            assert seen == [2, 3]
            assert "a" not in made.sessions
            assert ledger.service.read("a")[0] == 2

    run(test)


@pytest.mark.parametrize(("ledger", "said"), [(Broken(), "contradict"), (Silent(), "has not answered")])
def test_a_ledger_service_that_fails_or_hangs_ends_the_take_with_a_word(
    ledger: OwnLedger, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.bookkeeping.CALL_S", 0.1)

    async def test() -> None:
        async with generator(ledger=ledger) as made:
            made.loop.books.patience_s = 0.2
            await made.create("a", BALL)
            messages = [m async for m in made.watch("a", "", "me", -1, 4)]
            assert messages[-1]["state"] == State.FAILED
            assert said in messages[-1]["reason"]
            made.check_health()

    run(test)


def test_while_the_journal_is_down_nothing_is_shown_and_the_take_goes_on_when_it_is_back(tmp_path: Path) -> None:
    async def test() -> None:
        shard = LedgerShard(journal=FileJournal(tmp_path / "j", Keeping(), time.monotonic))
        async with generator(Pace(lead=2), ledger=OwnLedger(shard)) as made:
            made.loop.books.patience_s = 0.0  # which is for a service that does not answer
            await made.create("a", BALL)
            await take(made, "a", 2)
            await until(lambda: made.sessions["a"].next_chunk == 4)
            with limited((tmp_path / "j").stat().st_size):
                waits = asyncio.create_task(take(made, "a", 4, after=1))
                await until(lambda: shard.statistics()["journal_failures"] > 3)
                assert made.sessions["a"].next_chunk == 4
                assert shard.statistics()["journal_down"] == 1
            assert [m["index"] for m in of(await waits, "chunk")] == [2, 3, 4, 5]
            assert shard.statistics()["journal_down"] == 0
        shard.journal.close()

    run(test)


def test_a_full_shard_ends_the_session_that_it_forgot_and_no_other() -> None:
    async def test() -> None:
        ledger = OwnLedger(LedgerShard(sessions=2, forget_s=0.0))
        async with generator(Pace(lead=2), ledger=ledger) as made:
            await made.create("a", BALL)
            await made.create("b", RING)
            await asyncio.gather(take(made, "a", 2), take(made, "b", 2))
            await until(lambda: all(live.next_chunk == 4 for live in made.sessions.values()))
            del ledger.service.books["b"]
            ledger.service.sessions, ledger.service.forget_s = 1, 3600.0
            await take(made, "a", 4, after=1)
            messages = [m async for m in made.watch("b", "", "me", 3, 4, False)]
            assert "sessions are in the books" in messages[-1]["reason"]

    run(test)

"""A session outlives its generator: another goes on with it, its viewers miss nothing, nobody else writes to it."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from actors import takeover
from actors.bookkeeping import OwnLedger
from actors.generator import Generator
from actors.order import Order, pack_order, parse_order
from actors.pace import Pace
from actors.worker import Direction, Worker
from cache.host_tier import HostTier
from errors import FencedOff, NoCapacity, ServiceError, SessionMoved, SnapshotCorrupt, UnknownSession
from media.reading import read
from settings import build_worker, load
from streams.director import Script, Shot
from tests.service import QUICK, Shelf, run, until
from tests.test_generator import BALL, media_of, of, take


class House:
    """What generators share, and the generators; the chunks that any of them stepped."""

    def __init__(self, durability: str = "kv", sessions: int = 2) -> None:
        environ = {
            **QUICK,
            "LONGTAKE_ENGINE__SESSIONS": str(sessions),
            "LONGTAKE_SERVICE__DURABILITY": durability,
        }
        self.settings = load(environ=environ)
        self.tier, self.shelf, self.ledger = HostTier(1 << 30), Shelf(), OwnLedger()
        self.built: list[Generator] = []
        self.latents: dict[str, dict[int, torch.Tensor]] = {}

    def generator(self, pace: Pace | None = None) -> Generator:
        worker = build_worker(self.settings, self.shelf, self.tier)
        made = Generator(worker, pace, ledger=self.ledger)
        self._remember(worker)
        made.start()
        self.built.append(made)
        return made

    def _remember(self, worker: Worker) -> None:
        step = worker.engine.step

        def stepped(sessions: Any) -> Any:
            chunks = step(sessions)
            names = {id(reel.stream.session): name for name, reel in worker.reels.items() if reel.stream is not None}
            for session, chunk in zip(sessions, chunks, strict=True):
                self.latents.setdefault(names[id(session)], {})[chunk.index] = chunk.video
            return chunks

        worker.engine.step = stepped  # type: ignore[method-assign]


async def die(made: Generator) -> None:
    """As a killed process: its loop ends between any two lines, and nothing is given back."""
    assert made.loop.task is not None
    made.loop.task.cancel()
    for task in made.loop._tasks:
        task.cancel()
    await asyncio.gather(made.loop.task, return_exceptions=True)
    with suppress(TimeoutError):  # a process writes nothing after its end; a thread that hangs does not either
        idle = asyncio.get_running_loop().run_in_executor(made.loop.compute._thread, int)
        await asyncio.wait_for(idle, 5)


@asynccontextmanager
async def house(durability: str = "kv", sessions: int = 2) -> AsyncIterator[House]:
    made = House(durability, sessions)
    try:
        yield made
    finally:
        for one in made.built:
            await one.close()


def test_after_a_generator_is_lost_another_goes_on_with_the_same_latents_and_no_chunk_is_missed() -> None:
    async def test() -> None:
        async with house("kv") as shared:
            whole = shared.generator()
            await whole.create("whole", BALL)
            await take(whole, "whole", 16)
            first, second = shared.generator(), shared.generator()
            await first.create("a", BALL)
            seen = await take(first, "a", 7)
            await die(first)
            await second.succession.take_over("a")
            seen += await take(second, "a", 9, after=6)
            assert [m["index"] for m in of(seen, "chunk")] == list(range(16))
            for chunk in range(16):
                assert torch.equal(shared.latents["a"][chunk], shared.latents["whole"][chunk]), chunk
            film = read(io.BytesIO(media_of([m for m in seen if m["type"] != "init" or m is of(seen, "init")[0]])))
            assert len({m["data"] for m in of(seen, "init")}) == 1
            assert len(film.frames) == 16 * 8
            steps = {round(float(b - a), 4) for a, b in zip(film.frame_times[:-1], film.frame_times[1:], strict=True)}
            assert steps == {0.08}

    run(test)


@pytest.mark.parametrize("durability", ["latents", "kv"])
def test_what_a_viewer_had_not_acknowledged_is_shown_once_more_as_it_was(durability: str) -> None:
    async def test() -> None:
        async with house(durability) as shared:
            first, second = shared.generator(), shared.generator()
            await first.create("a", BALL)
            seen = await take(first, "a", 10)
            await until(lambda: first.sessions["a"].next_chunk >= 13)
            await die(first)
            await second.succession.take_over("a")
            again = await take(second, "a", 8, after=5)
            assert [m["index"] for m in of(again, "chunk")] == list(range(6, 14))
            before = read(io.BytesIO(media_of(seen)))
            after = read(io.BytesIO(media_of(again)))
            start = [round(float(t), 3) for t in before.frame_times].index(round(float(after.frame_times[0]), 3))
            assert start == 6 * 8
            old, new = before.frames[start : start + 32].astype(float), after.frames[:32].astype(float)
            assert abs(old - new).mean() < 2.0
            late = float(after.audio_start - before.audio_start)
            sound = before.samples[round(late * before.sample_rate) :][:48_000, 0], after.samples[:48_000, 0]
            count = min(map(len, sound))
            assert float((sound[0][:count] - sound[1][:count]).__pow__(2).mean()) < 0.2 * float((sound[0] ** 2).mean())

    run(test)


def test_whoever_had_every_chunk_that_was_published_goes_on_with_a_key_frame() -> None:
    async def test() -> None:
        async with house("latents") as shared:
            first, second = shared.generator(Pace(lead=2)), shared.generator(Pace(lead=2))
            await first.create("a", BALL)
            seen = await take(first, "a", 4)
            await until(lambda: first.sessions["a"].next_chunk == 6 and not first.sessions["a"].in_flight)
            seen += await take(first, "a", 2, after=3)
            await until(lambda: not first.sessions["a"].due and not first.sessions["a"].in_flight)
            newest = first.sessions["a"].next_chunk - 1
            seen += await take(first, "a", newest - 5, after=5)
            await die(first)
            await second.succession.take_over("a")
            seen += await take(second, "a", 3, after=newest)
            chunks = of(seen, "chunk")
            assert [m["index"] for m in chunks] == list(range(newest + 4))
            assert chunks[newest + 1]["key"]
            film = read(io.BytesIO(of(seen, "init")[0]["data"] + b"".join(m["data"] for m in chunks)))
            assert len(film.frames) == 8 * (newest + 4)

    run(test)


def test_a_script_goes_on_where_it_was_and_ends() -> None:
    script = Script((Shot(2.6, "lab", BALL.prompt), Shot(2.6, "attic", "a blue ring"), Shot(1.3, return_to="lab")))

    async def test() -> None:
        async with house("latents") as shared:
            first, second = shared.generator(Pace(lead=2)), shared.generator()
            await first.create("a", Order(script=script), "somebody")
            messages = first.watch("a", "somebody", "me", -1, 2, False)
            async for message in messages:
                if message["type"] == "chunk":
                    await first.acknowledge("a", "me", message["index"], 2)
                    if message["index"] == 5:
                        break
            await die(first)
            await second.succession.take_over("a")
            with pytest.raises(UnknownSession):
                await second.ask("a", "", "inspect")
            scenes = []
            async for message in second.watch("a", "somebody", "me", 5, 9, False):
                if message["type"] == "chunk":
                    scenes.append(message["scene"])
                    await second.acknowledge("a", "me", message["index"], 9)
            assert scenes == ["attic"] * 2 + ["lab"] * 2
            assert message["state"] == "finished"

    run(test)


def test_a_receipt_that_was_given_holds_after_the_generator_is_lost() -> None:
    async def test() -> None:
        async with house("latents") as shared:
            first, second = shared.generator(Pace(lead=2)), shared.generator(Pace(lead=2))
            await first.create("a", BALL)
            await take(first, "a", 3)
            await until(lambda: not first.sessions["a"].due and not first.sessions["a"].in_flight)
            receipt = await first.control("a", Direction("cut", "a green cube in a red hall", "hall"))
            await die(first)
            await second.succession.take_over("a")
            seen = await take(second, "a", 5, after=2)
            scenes = {m["index"]: m["scene"] for m in of(seen, "chunk")}
            assert scenes[receipt["from"]] == "hall"
            assert scenes[receipt["from"] - 1] != "hall"

    run(test)


def test_a_session_that_was_put_away_is_taken_over_bit_for_bit_and_its_snapshot_is_dropped() -> None:
    async def test() -> None:
        async with house("none") as shared:
            whole = shared.generator()
            await whole.create("whole", BALL)
            await take(whole, "whole", 9)
            first, second = shared.generator(), shared.generator()
            await first.create("a", BALL)
            await take(first, "a", 4)
            await first.pause("a")
            await die(first)
            assert shared.shelf.held
            at = shared.ledger.service.read("a")[1].state["next_chunk"]
            await second.succession.take_over("a")
            await take(second, "a", 3, after=at - 1)
            assert not shared.shelf.held
            await take(whole, "whole", at + 3)
            both = set(shared.latents["a"]) & set(shared.latents["whole"])
            assert {at, at + 1, at + 2} < both
            assert all(torch.equal(shared.latents["a"][c], shared.latents["whole"][c]) for c in both)

    run(test)


class RestatesOnce:
    """The ledger service of a generator fails once to put books right: ``before`` or after it has done so."""

    def __init__(self, made: Generator, error: Exception, before: bool = True) -> None:
        self.restate, self.error, self.before, self.tries = made.loop.books.restate, error, before, 0
        made.loop.books.restate = self  # type: ignore[method-assign, assignment]

    async def __call__(self, session: str) -> None:
        self.tries += 1
        if self.tries > 1 or not self.before:
            await self.restate(session)
        if self.tries == 1:
            raise self.error


@pytest.mark.parametrize(
    ("error", "before"), [(ServiceError("late"), True), (ServiceError("late"), False), (NoCapacity("full"), True)]
)
def test_a_takeover_that_the_books_refused_or_left_in_doubt_costs_nothing(error: Exception, before: bool) -> None:
    async def test() -> None:
        async with house("kv") as shared:
            whole = shared.generator()
            await whole.create("whole", BALL)
            await take(whole, "whole", 12)
            await whole.stop("whole")
            assert not shared.tier.sessions()
            first, second = shared.generator(), shared.generator()
            await first.create("a", BALL)
            await take(first, "a", 7)
            await die(first)
            RestatesOnce(second, error, before)
            with pytest.raises(type(error)):
                await second.succession.take_over("a")
            assert not second.worker.engine.sessions
            await second.succession.take_over("a")
            await take(second, "a", 5, after=6)
            for chunk in range(12):
                assert torch.equal(shared.latents["a"][chunk], shared.latents["whole"][chunk]), chunk
            second.worker.engine.check_integrity()
            await second.stop("a")
            assert not shared.tier.sessions()

    run(test)


def test_a_takeover_that_breaks_off_in_the_midst_gives_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with house("kv") as shared:
            first, second = shared.generator(), shared.generator()
            await first.create("a", BALL)
            await take(first, "a", 7)
            await die(first)
            with monkeypatch.context() as broken:
                broken.setattr(takeover, "primed", Mock(side_effect=SnapshotCorrupt("a decoder that cannot go on")))
                with pytest.raises(SnapshotCorrupt):
                    await second.succession.take_over("a")
            assert not second.worker.engine.sessions
            await second.succession.take_over("a")
            await take(second, "a", 3, after=6)
            await second.stop("a")
            assert not shared.tier.sessions()

    run(test)


def test_a_snapshot_is_kept_until_the_books_have_the_stream_that_came_of_it() -> None:
    async def test() -> None:
        async with house("none") as shared:
            whole, first, second = shared.generator(), shared.generator(), shared.generator()
            await whole.create("whole", BALL)
            await take(whole, "whole", 12)
            await first.create("a", BALL)
            await take(first, "a", 4)
            await first.succession.hand_over("a")
            at = shared.ledger.service.read("a")[1].state["next_chunk"]
            RestatesOnce(second, FencedOff("another was faster"))
            with pytest.raises(FencedOff):
                await second.succession.take_over("a")
            assert shared.shelf.held
            await second.succession.take_over("a")
            assert not shared.shelf.held
            await take(second, "a", 3, after=at - 1)
            await take(whole, "whole", at + 3)
            for chunk in range(at, at + 3):
                assert torch.equal(shared.latents["a"][chunk], shared.latents["whole"][chunk]), chunk

    run(test)


def test_a_paused_session_that_cannot_be_put_away_again_is_taken_over_all_the_same() -> None:
    async def test() -> None:
        async with house("none") as shared:
            first, second = shared.generator(), shared.generator()
            await first.create("a", BALL)
            await take(first, "a", 3)
            await first.pause("a")
            await first.succession.hand_over("a")
            shared.shelf.room = 0
            for _ in range(2):
                await second.succession.take_over("a")
            assert len(second.worker.engine.sessions) == 1
            await second.create("b", BALL)
            await second.stop("a")
            assert len(second.worker.engine.sessions) == 1

    run(test)


def test_a_session_is_given_away_to_the_end_though_whoever_asked_has_gone() -> None:
    async def test() -> None:
        async with house("latents") as shared:
            made = shared.generator()
            await made.create("a", BALL)
            await take(made, "a", 3)
            began, goes_on = asyncio.Event(), threading.Event()
            loop = asyncio.get_running_loop()

            def step() -> None:
                loop.call_soon_threadsafe(began.set)
                goes_on.wait()

            stepping = asyncio.create_task(made.loop.between(step))
            await began.wait()
            asking = asyncio.create_task(made.loop.give_away(made.sessions["a"]))
            await until(lambda: "a" not in made.sessions)
            asking.cancel()
            await asyncio.wait([asking])
            goes_on.set()
            await stepping
            await until(lambda: not made.worker.reels and not made.worker.engine.sessions)

    run(test)


def test_a_session_that_is_handed_over_goes_on_elsewhere_and_its_viewers_are_sent_there() -> None:
    async def test() -> None:
        async with house("none") as shared:
            first, second = shared.generator(), shared.generator()
            await first.create("a", BALL)
            watching = asyncio.create_task(take(first, "a", 1000))
            await until(lambda: first.sessions["a"].next_chunk > 4)
            await first.succession.hand_over("a")
            with pytest.raises(SessionMoved):
                await watching
            assert "a" not in first.sessions
            assert not first.worker.engine.sessions
            at = shared.ledger.service.read("a")[1].state["next_chunk"]
            await second.succession.take_over("a")
            seen = await take(second, "a", 5, after=at - 1)
            assert [m["index"] for m in of(seen, "chunk")] == list(range(at, at + 5))

    run(test)


def test_a_generator_that_was_only_slow_shows_nothing_more_and_harms_nothing() -> None:
    async def test() -> None:
        async with house("kv") as shared:
            slow, second = shared.generator(), shared.generator()
            await slow.create("a", BALL)
            await take(slow, "a", 5)
            await second.succession.take_over("a")
            with pytest.raises((SessionMoved, UnknownSession)):
                await take(slow, "a", 50, after=4)
            await until(lambda: not slow.worker.engine.sessions)
            seen = await take(second, "a", 12, after=4)
            assert [m["index"] for m in of(seen, "chunk")] == list(range(5, 17))
            second.worker.engine.check_integrity()

    run(test)


def test_a_late_refusal_does_not_end_a_session_that_has_come_back_meanwhile() -> None:
    """Two chunks are refused; the answer for the second is late."""

    async def test() -> None:
        async with house("kv") as shared:
            first, second = shared.generator(), shared.generator()
            await first.create("a", BALL)
            await take(first, "a", 5)
            real, late, refused = first.loop.books.confirm, asyncio.Event(), list[int]()

            async def confirm(entries: Any) -> Any:
                found = await real(entries)
                if isinstance(found["a"], FencedOff):
                    refused.append(entries[0].chunk)
                    if len(refused) == 2:
                        await late.wait()
                    else:
                        await until(lambda: len(refused) == 2)
                return found

            first.loop.books.confirm = confirm  # type: ignore[method-assign]
            before = first.sessions["a"]
            await second.succession.take_over("a")
            with pytest.raises((SessionMoved, UnknownSession)):
                await take(first, "a", 50, after=4)
            await until(lambda: not first.worker.engine.sessions)
            await second.succession.hand_over("a")
            await first.succession.take_over("a")
            late.set()
            assert before.publishing is not None
            await asyncio.wait_for(before.publishing, 30)
            at = first.sessions["a"].next_chunk
            seen = await take(first, "a", 5, after=at - 1)
            assert [m["index"] for m in of(seen, "chunk")] == list(range(at, at + 5))

    run(test)


def test_two_that_ask_at_once_get_one_session_and_no_room_or_an_unknown_one_is_said() -> None:
    async def test() -> None:
        async with house("kv", sessions=1) as shared:
            first, second, full = shared.generator(), shared.generator(), shared.generator()
            await first.create("a", BALL)
            await take(first, "a", 2)
            await full.create("other", BALL)
            await die(first)
            with pytest.raises(NoCapacity):
                await full.succession.take_over("a")
            assert set(full.sessions) == {"other"}
            await asyncio.gather(second.succession.take_over("a"), second.succession.take_over("a"))
            assert list(second.worker.reels) == ["a"]
            with pytest.raises(UnknownSession):
                await second.succession.take_over("nobody")

    run(test)


def test_an_order_is_read_back_as_it_was_and_damage_is_found() -> None:
    script = Script((Shot("1m", "lab", "a", "b"), Shot(2.0, "c", "d"), Shot(1, return_to="lab")))
    for order in (BALL, Order(script=script, seed=3, model="toy", size="128x128")):
        packed = pack_order(order, "me")
        assert parse_order(packed) == (order, "me")
        with pytest.raises(SnapshotCorrupt):
            parse_order(packed[:-1])

"""Sessions that are copied ahead while they are watched: the same chunks, none missed, nothing left, whatever fails."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import pytest
import torch

from actors import migration, movement
from actors.generator import Generator
from actors.ledger_service import Statement
from actors.live import State
from actors.movement import Mover
from actors.order import Order
from actors.worker import Worker
from errors import LongtakeError, ServiceError, SessionMoved
from media.reading import read
from tests.service import Shelf, run, studio, until
from tests.test_gateway import BALL
from tests.test_generator import media_of, of
from tests.town import Town, refuse, town

CHUNKS = 20
ORDER = Order(BALL, seed=3)


@cache
def stayed() -> list[torch.Tensor]:
    """The chunks of a take that never moves."""
    made = studio()
    worker = Worker(made.engine, made.codecs, Shelf())
    worker.open("stayed", ORDER, "")
    chunks = [worker.step(["stayed"])["stayed"].chunk for _ in range(CHUNKS)]
    worker.close("stayed")
    return [chunk.video for chunk in chunks if chunk is not None]


class Watched:
    """A take in the first of two generators, watched and to be moved, perhaps with a neighbour that stays."""

    def __init__(self, made: Town, nodes: int, neighbour: bool) -> None:
        self.made, self.mover, self.seen = made, Mover(made), list[int]()
        self.takes = ("a", "neighbour") if neighbour else ("a",)
        self.messages: list[dict[str, Any]] = []
        self.first, self.second = made.settle("first"), made.settle("second", node=nodes - 1)
        made.directory.drain("second")

    async def begin(self) -> None:
        for name in self.takes:
            await self.made.create(name, ORDER, "")
        self.made.directory.undrain("second")
        self.watching = asyncio.gather(*(self._watch(name, self.seen if name == "a" else []) for name in self.takes))
        await until(lambda: len(self.seen) > 5)

    async def _watch(self, session: str, seen: list[int]) -> None:
        while len(seen) < CHUNKS:
            after = seen[-1] if seen else -1
            try:
                async for message in self.made.watch(session, "", "me", after, 4, False):
                    if session == "a":
                        self.messages.append(message)
                    if message["type"] == "chunk":
                        seen.append(message["index"])
                        if len(seen) == CHUNKS:
                            return
                        await self.made.ask(session, "", "acknowledge", "me", message["index"], 4)
            except SessionMoved:
                continue

    async def check(self) -> None:
        """Nothing was missed or shown twice, and every chunk is as in the take that never moved."""
        await self.watching
        assert self.seen == list(range(CHUNKS))
        for name in self.takes:
            for chunk, video in enumerate(stayed()):
                assert torch.equal(self.made.latents[name][chunk], video), (name, chunk)

    async def check_nothing_left(self) -> None:
        """When all is over the stores are empty, and so are the generators."""
        for name in self.takes:
            await self.made.ask(name, "", "stop")
        for node in self.made.nodes:
            assert node.store is not None
            told = node.store.statistics()
            assert (told["records"], told["vault_streams"]) == (0, 0), told
        for one in self.made.built:
            await until(lambda one=one: not one.migration.precopy.coming)  # type: ignore[misc]
            await until(lambda one=one: not one.migration.precopy.came)  # type: ignore[misc]
            assert not sum(one.worker.engine.pool.statistics().leased_bytes.values())


@asynccontextmanager
async def watched(
    durability: str = "none", nodes: int = 2, mirror: bool = False, neighbour: bool = False
) -> AsyncIterator[Watched]:
    async with town(durability, nodes=nodes, mirror=mirror) as made:
        found = Watched(made, nodes, neighbour)
        await found.begin()
        try:
            yield found
        finally:
            found.watching.cancel()


def chunks_made(take: Watched) -> Callable[[str], Awaitable[None]]:
    """A chunk more is made before each of the first calls, and two before it stands still."""
    at: list[int] = []

    async def before(call: str) -> None:
        live = take.first.sessions["a"]
        if call in ("copy_ahead", "hold") and len(at) < 8:
            at.append(live.made)
            await until(lambda: live.made > at[-1] or len(take.seen) == CHUNKS)

    return before


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("durability", ["none", "latents", "kv"])
def test_a_session_that_makes_chunks_while_it_is_copied_is_the_same_and_no_chunk_is_missed(
    durability: str, nodes: int
) -> None:
    async def test() -> None:
        async with watched(durability, nodes, neighbour=nodes == 2) as take:
            take.made.before = chunks_made(take)
            assert (await take.mover.move("a"))["to"] == "second"
            assert take.made.calls[-3:] == ["hold", "accept", "passed"]
            assert "a" not in take.first.sessions
            assert take.made.directory.find("a") == "second"
            await take.check()
            await take.check_nothing_left()

    run(test)


def test_the_media_of_a_session_that_moved_are_one_film_without_a_frame_missed() -> None:
    async def test() -> None:
        async with watched() as take:
            for to in ("second", "first"):
                await take.mover.move("a", to)
            await take.check()
            assert len({m["data"] for m in of(take.messages, "init")}) == 1
            film = read(io.BytesIO(media_of([of(take.messages, "init")[0], *of(take.messages, "chunk")])))
            assert len(film.frames) == CHUNKS * 8
            times = zip(film.frame_times[:-1], film.frame_times[1:], strict=True)
            assert {round(float(after - before), 4) for before, after in times} == {0.08}

    run(test)


def test_it_goes_back_and_forth_also_where_latents_are_mirrored() -> None:
    async def test() -> None:
        async with watched("latents", mirror=True) as take:
            for to in ("second", "first", "second"):
                assert (await take.mover.move("a", to))["to"] == to
            assert take.made.calls.count("passed") == 3
            await take.check()
            await take.check_nothing_left()

    run(test)


@pytest.mark.parametrize("call", ["copy_ahead", "prepare", "hold", "accept"])
def test_what_cannot_be_copied_ahead_is_put_away_and_fetched(call: str) -> None:
    async def test() -> None:
        async with watched() as take:
            take.made.before = refuse(call)
            assert (await take.mover.move("a"))["to"] == "second"
            assert "passed" not in take.made.calls
            await take.check()
            await take.check_nothing_left()

    run(test)


@pytest.mark.parametrize("call", ["prepare", "hold", "accept"])
def test_an_answer_that_is_lost_leaves_one_owner_and_nothing_twice(call: str) -> None:
    async def test() -> None:
        async with watched() as take:
            take.made.after = refuse(call)
            assert (await take.mover.move("a"))["to"] == "second"
            await take.check()
            await take.check_nothing_left()

    run(test)


def test_who_finds_out_by_itself_that_it_was_fenced_off_while_it_is_told_so_lets_go_once() -> None:
    async def test() -> None:
        async with watched() as take:
            books = take.second.loop.books
            state, asked = books.state, []

            async def late(session: str) -> Statement:
                """The answer of a compute thread that is busy until the next commit was refused."""
                books.state = state
                found = await state(session)
                await until(lambda: session not in take.second.sessions)
                asked.append(session)
                return found

            async def before(call: str) -> None:
                if call == "drop":
                    books.state = late

            take.made.before, take.made.after = before, refuse("accept")
            assert (await take.mover.move("a"))["to"] == "second"
            assert asked == ["a"]
            await take.check()
            await take.check_nothing_left()

    run(test)


def test_a_vault_that_is_full_does_not_keep_a_session_from_being_copied_ahead() -> None:
    async def test() -> None:
        async with watched(nodes=1) as take:
            store = take.made.nodes[0].store
            assert store is not None
            store.vault.budget_bytes = 0
            await take.mover.move("a")
            assert take.made.calls[-1] == "passed"
            await take.check()

    run(test)


@pytest.mark.parametrize("call", ["prepare", "hold", "accept", "passed"])
def test_a_generator_that_is_killed_while_its_session_is_copied_loses_nothing(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movement, "COPY_S", 2.0)  # a call to it may never be answered

    async def test() -> None:
        async with watched("kv") as take:

            async def before(now: str) -> None:
                if now == call:
                    await take.made.kill("first")

            take.made.before = before
            try:
                await take.mover.move("a")
            except LongtakeError:
                assert call != "passed"
            await take.check()
            assert take.made.directory.find("a") == "second"
            await take.check_nothing_left()

    run(test)


def test_a_generator_that_is_killed_while_a_session_comes_to_it_loses_nothing() -> None:
    async def test() -> None:
        async with watched() as take:
            gone: list[Generator] = []

            async def before(now: str) -> None:
                if now == "hold":
                    gone.append(take.second)
                    await take.made.kill("second")

            async def coming(member: str, call: str, session: str, *arguments: object) -> object:
                if member not in take.made.named:
                    raise ServiceError("it has gone")
                return await ask(member, call, session, *arguments)

            ask, take.made.coming = take.made.coming, coming  # type: ignore[method-assign]
            take.made.before = before
            move = asyncio.create_task(take.mover.move("a"))
            await until(lambda: bool(gone))
            take.made.settle("third", node=1)
            assert (await move)["to"] in ("first", "third")
            await take.check()

    run(test)


def end_soon(take: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on neither side waits long for the other: first the one that gave, then the one that has."""
    monkeypatch.setattr(migration, "HELD_S", 0.1)
    monkeypatch.setattr(migration, "AWAITED_S", 0.5)
    take.first.migration._hold("a")
    take.second.migration._await("a")


def test_who_stands_still_and_is_not_fetched_goes_on_and_what_had_come_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        async with watched() as take:

            async def before(call: str) -> None:
                if call == "accept":
                    end_soon(take, monkeypatch)
                    raise asyncio.CancelledError  # whoever moves it ends

            take.made.before = before
            with pytest.raises(asyncio.CancelledError):
                await take.mover.move("a")
            await until(lambda: take.first.sessions["a"].state is State.RUNNING)
            await until(lambda: not take.second.migration.precopy.coming)
            await take.check()
            await take.check_nothing_left()

    run(test)


def test_who_has_come_and_was_taken_back_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with watched() as take:

            async def after(call: str) -> None:
                if call == "accept":
                    end_soon(take, monkeypatch)
                    raise asyncio.CancelledError

            take.made.after = after
            with pytest.raises(asyncio.CancelledError):
                await take.mover.move("a")
            assert "a" in take.second.sessions
            await until(lambda: "a" not in take.second.sessions)
            assert take.made.directory.find("a") == "first"
            await take.check()
            await take.check_nothing_left()

    run(test)


def test_whoever_directs_or_ends_a_session_that_stands_still_is_to_ask_again() -> None:
    async def test() -> None:
        async with watched() as take:
            await take.first.migration.hold("a")
            for call in ("pause", "resume", "stop"):
                with pytest.raises(SessionMoved, match="on its way"):
                    await take.first.ask("a", "", call)
            await take.first.migration.resume("a")
            await take.check()
            await take.check_nothing_left()

    run(test)

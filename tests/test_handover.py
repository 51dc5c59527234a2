"""A generator that is told to stop: its sessions move while they are watched, or wait for a place, or finish."""

import asyncio

from actors.directory import DOUBT_S
from actors.following import Follower
from actors.handover import LAST_S, Handover
from actors.movement import Mover
from actors.steering import Orders
from client import Client
from tests.service import run
from tests.test_gateway import BALL
from tests.test_movement import seen
from tests.town import Town, gate, town

GRACE_S = 30.0


class Stopping:
    """A generator's handover under a clock of its own, and who watches its sessions meanwhile."""

    def __init__(self, made: Town, generator: str) -> None:
        self.now, self.listed = 0.0, {"first", "second"}
        self.handover = Handover(generator, Mover(made), asyncio.Lock(), GRACE_S, lambda: self.now)

    async def look(self, after_s: float = 0.0) -> None:
        self.now += after_s
        await self.handover.look(self.listed)


async def watched(client: Client, count: int, chunks: int) -> tuple[list[str], "asyncio.Task[list[list[int]]]"]:
    """So many new sessions, all of which are at their fifth chunk, and who watches them up to another."""
    names = [(await client.create(BALL, seed=i))["session"] for i in range(count)]
    fifth = [asyncio.Event() for _ in names]
    watching = asyncio.gather(*(seen(client, n, chunks, {4: at}) for n, at in zip(names, fifth, strict=True)))
    for at in fifth:
        await at.wait()
    return names, asyncio.ensure_future(watching)


def test_a_generator_that_is_not_listed_any_more_moves_its_sessions_and_viewers_miss_nothing() -> None:
    async def test() -> None:
        async with town("latents") as made, gate(made) as (client, _):
            made.settle("first")
            stopping = Stopping(made, "first")
            stopping.listed = {"second"}
            await stopping.look()
            assert not made.directory.generators()[0]["draining"]  # it was never listed: it is starting
            made.settle("second")
            made.directory.drain("second")
            names, watching = await watched(client, 2, 14)
            made.directory.undrain("second")
            stopping.listed = {"first", "second"}
            await stopping.look()
            stopping.listed = {"second"}
            await stopping.look()
            await stopping.look(DOUBT_S / 2)
            assert made.directory.find(names[0]) == "first"
            await stopping.look(DOUBT_S)
            assert {made.directory.find(name) for name in names} == {"second"}
            assert await watching == [list(range(14))] * 2
            assert not made.named["first"].sessions

    run(test)


def test_who_finds_no_place_goes_on_where_it_is_until_there_is_one() -> None:
    async def test() -> None:
        async with town("latents") as made, gate(made) as (client, _):
            made.settle("first")
            made.settle("second")
            made.directory.drain("second")
            names, watching = await watched(client, 1, 16)
            stopping = Stopping(made, "first")
            await stopping.look()
            stopping.listed = set()
            for _ in range(4):
                await stopping.look(DOUBT_S)
            assert made.directory.find(names[0]) == "first"
            assert made.named["first"].sessions[names[0]].state == "running"
            made.directory.undrain("second")
            await stopping.look()
            assert made.directory.find(names[0]) == "second"
            assert await watching == [list(range(16))]

    run(test)


def test_who_found_no_place_in_time_is_put_away_and_goes_on_when_a_generator_comes() -> None:
    async def test() -> None:
        async with town("latents") as made, gate(made) as (client, _):
            made.settle("first")
            made.settle("second")
            made.directory.drain("second")
            names, watching = await watched(client, 2, 16)
            stopping = Stopping(made, "first")
            await stopping.look()
            stopping.listed = set()
            await stopping.look()
            await stopping.look(GRACE_S - LAST_S - 1)
            assert {live.state for live in made.named["first"].sessions.values()} == {"running"}
            await stopping.look(1.0)
            assert not made.named["first"].sessions
            assert made.directory.orphans.keys() == set(names)
            made.directory.bury("first")
            made.directory.undrain("second")
            assert await watching == [list(range(16))] * 2

    run(test)


def test_a_generator_that_is_listed_again_takes_sessions_again() -> None:
    async def test() -> None:
        async with town("latents") as made:
            made.settle("first")
            stopping = Stopping(made, "first")
            await stopping.look()
            stopping.listed = {"second"}
            await stopping.look()
            await stopping.look(DOUBT_S)
            assert made.directory.generators()[0]["draining"]
            stopping.listed = {"first"}
            await stopping.look()
            assert not made.directory.generators()[0]["draining"]
            assert stopping.handover.since is None

    run(test)


def test_who_is_told_to_stop_and_ordered_to_leave_at_once_gives_each_session_away_once() -> None:
    async def test() -> None:
        async with town("latents") as made, gate(made) as (client, _):
            made.settle("first")
            made.settle("second")
            made.directory.drain("second")
            names, watching = await watched(client, 2, 14)
            made.directory.undrain("second")
            mover, leaving, moved = Mover(made), asyncio.Lock(), []
            give = made.hand_over

            async def hand_over(session: str, passed: bool = False) -> None:
                moved.append(session)
                await give(session, passed)

            made.hand_over = hand_over  # type: ignore[method-assign]
            follower = Follower(mover, "first", lambda: bool(made.named["first"].sessions), leaving)
            follower.follow(Orders(leave=True))
            await Handover("first", mover, leaving).leave(last=False)
            assert {made.directory.find(name) for name in names} == {"second"}
            assert sorted(moved) == sorted(names)
            assert await watching == [list(range(14))] * 2

    run(test)

"""Sessions are moved while they are watched: no chunk is missed, and what has no place elsewhere stays where it is."""

import asyncio
from typing import Any

import pytest
import torch

from actors.directory import SessionDirectory
from actors.limits import Limits
from actors.live import State
from actors.movement import Mover
from actors.order import Order
from actors.pace import Pace
from actors.vault import HostVault
from client import Client
from errors import BadMessage, ConfigError, NoCapacity, NotAllowed, UnknownSession
from settings import load
from tests.service import run, until
from tests.test_directory import held
from tests.test_gateway import BALL, KEY, OTHER, RING
from tests.town import Town, gate, refuse, town


async def seen(client: Client, session: str, chunks: int, at: dict[int, asyncio.Event] | None = None) -> list[int]:
    """Indices of the chunks that a viewer gets, as it connects again by itself."""
    found: list[int] = []
    async with client.watch(session) as watch:
        async for message in watch:
            if message["type"] == "chunk":
                found.append(message["index"])
                if at and message["index"] in at:
                    at[message["index"]].set()
                if len(found) == chunks:
                    break
    return found


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_session_that_is_moved_while_it_is_watched_goes_on_elsewhere_without_a_chunk_missed(nodes: int) -> None:
    async def test() -> None:
        async with town("none", nodes=nodes) as made, gate(made) as (client, _):
            made.settle("first")
            made.settle("second", node=nodes - 1)
            made.directory.drain("second")
            session = (await client.create(BALL, seed=2))["session"]
            made.directory.undrain("second")
            moved = asyncio.Event()
            watching = asyncio.create_task(seen(client, session, 16, {5: moved}))
            await moved.wait()
            assert (await client.move(session))["to"] == "second"
            assert await watching == list(range(16))
            assert made.directory.find(session) == "second"
            assert session not in made.named["first"].sessions
            with pytest.raises(BadMessage, match="expected a generator other than 'second'"):
                await client.move(session, "second")
            assert (await client.move(session, "first"))["to"] == "first"
            assert (await client.cut(session, "attic", RING))["from"] >= 16

    run(test)


def test_a_moved_session_makes_the_latents_of_one_that_was_not() -> None:
    async def test() -> None:
        async with town("none", nodes=2) as made:
            made.settle("first")
            made.settle("second", node=1)
            mover = Mover(made)
            await made.create("whole", Order(BALL, seed=3), "")
            await made.create("a", Order(BALL, seed=3), "")
            await asyncio.gather(watched(made, "whole", 15), watched(made, "a", 6))
            await mover.move("a", "first" if made.directory.find("a") == "second" else "second")
            await watched(made, "a", 15)
            for chunk in range(15):
                assert torch.equal(made.latents["a"][chunk], made.latents["whole"][chunk]), chunk

    run(test)


async def watched(made: Town, session: str, until_chunk: int) -> None:
    """Watch a session from where it is up to a chunk."""
    async for message in made.watch(session, "", "me", None, 4, True):
        if message["type"] == "chunk":
            if message["index"] >= until_chunk - 1:
                return
            await made.ask(session, "", "acknowledge", "me", message["index"], 4)


@pytest.mark.parametrize("nodes", [1, 2])
def test_draining_empties_a_generator_viewers_go_on_and_who_is_put_away_waits_elsewhere(nodes: int) -> None:
    async def test() -> None:
        async with town("latents", sessions=4, nodes=nodes) as made, gate(made) as (client, _):
            made.settle("first")
            made.settle("second", node=nodes - 1)
            await client.drain("second")
            names = [(await client.create(BALL, seed=i))["session"] for i in range(3)]
            await client.pause(names[2])
            await client.undrain("second")
            moved = asyncio.Event()
            watching = [asyncio.create_task(seen(client, name, 14, {4: moved})) for name in names[:2]]
            await moved.wait()
            done = await client.drain("first")
            assert done["moved"] == dict.fromkeys(names[:2], "second")
            assert done["parked"] == {names[2]: "second"}
            assert not done["stayed"]
            assert await asyncio.gather(*watching) == [list(range(14))] * 2
            assert not made.named["first"].sessions
            assert made.directory.find((await client.create(RING))["session"]) == "second"
            if nodes == 2:
                assert made.nodes[0].store is not None
                assert made.nodes[0].store.statistics()["vault_streams"] == 0
                assert made.nodes[0].store.statistics()["records"] == 0
            assert (await client.inspect(names[2]))["state"] == "paused"  # a person paused it, and it stays so
            assert (await client.resume(names[2]))["do"] == "resume"
            assert await seen(client, names[2], 6) == list(range(6))
            listed = {g["generator"]: g for g in await client.generators()}
            assert (listed["first"]["draining"], listed["second"]["draining"]) == (True, False)
            assert listed["first"]["taken"] == 0
            await client.undrain("first")
            assert made.directory.find((await client.create(RING, seed=1))["session"]) == "first"

    run(test)


def test_what_has_no_place_elsewhere_stays_and_is_named_and_is_not_disturbed() -> None:
    async def test() -> None:
        async with town("latents", sessions=2) as made, gate(made) as (client, _):
            made.settle("first")
            made.settle("second")
            await client.drain("second")
            names = [(await client.create(BALL, seed=i))["session"] for i in range(2)]
            with pytest.raises(NoCapacity, match="no generator has reported"):
                await client.move(names[0])
            await client.undrain("second")
            other = (await client.create(RING))["session"]
            assert made.directory.find(other) == "second"
            done = await client.drain("first")
            assert len(done["moved"]) == 1, done
            assert len(done["stayed"]) == 1
            (stayed, reason), (moved, where) = *done["stayed"].items(), *done["moved"].items()
            assert {stayed, moved} == set(names)
            assert where == "second"
            assert "places" in reason
            assert (await client.inspect(stayed))["state"] == "running"
            assert await seen(client, stayed, 5) == list(range(5))
            with pytest.raises(NoCapacity):
                await client.create(RING)  # the free place is in a generator that is drained
            await client.stop(other)
            await until(lambda: made.directory.places()["second"]["taken"] == 1)
            assert (await client.drain("first"))["moved"] == {stayed: "second"}

    run(test)


def test_a_vault_that_is_full_keeps_a_session_where_it_is() -> None:
    async def test() -> None:
        async with town("latents") as made, gate(made) as (client, _):
            made.settle("first")
            made.settle("second")
            session = (await client.create(BALL))["session"]
            home = str(made.directory.find(session))
            store = made.nodes[0].store
            assert store is not None
            store.vault = HostVault(1000)
            made.before = refuse("prepare")  # what is copied ahead needs no vault
            done = await client.drain(home)
            assert "do not fit" in done["stayed"][session]
            assert (await client.inspect(session))["state"] == "running"
            assert sum(place["taken"] for place in made.directory.places().values()) == 1
            assert await seen(client, session, 5) == list(range(5))

    run(test)


def test_only_who_runs_the_service_may_drain_and_move() -> None:
    async def test() -> None:
        limits = Limits(keys=(KEY,), admins=(OTHER,))
        async with town() as made, gate(made, limits, KEY) as (client, url), Client(url, OTHER) as admin:
            made.settle("first")
            made.settle("second")
            session = (await client.create(BALL))["session"]
            for call in (client.generators(), client.drain("first"), client.undrain("first"), client.move(session)):
                with pytest.raises(NotAllowed):
                    await call
            with pytest.raises(NotAllowed):
                await admin.create(BALL)
            assert (await admin.move(session))["to"] in ("first", "second")
            with pytest.raises(BadMessage, match="no generator 'third'; there are: first, second"):
                await admin.drain("third")
            with pytest.raises(UnknownSession):
                await admin.move("nobody")

    run(test)
    Limits(keys=(KEY,)).owner(KEY)
    with pytest.raises(NotAllowed):
        Limits(keys=(KEY,)).admin(KEY)
    Limits().admin("")


def test_a_viewer_that_acknowledges_does_not_bring_back_what_is_being_handed_over() -> None:
    async def test() -> None:
        async with town("none") as made:
            second, first = made.settle("second"), made.settle("first", pace=Pace(lead=2))
            made.directory.drain("second")
            await made.create("a", Order(BALL), "")
            messages = first.watch("a", "", "me", -1, 1)
            while (await anext(messages))["type"] != "chunk":
                pass
            restate = first.loop.books.restate

            async def slow(session: str) -> None:
                await first.acknowledge("a", "me", 0, 4)
                assert first.sessions["a"].state is State.PAUSED
                await restate(session)

            first.loop.books.restate = slow  # type: ignore[method-assign]
            await first.succession.hand_over("a")
            assert "a" not in first.sessions
            made.directory.undrain("second")
            made.directory.desert("a")
            made.directory.drain("first")
            await made.take_over("a")
            assert "a" in second.sessions
            await messages.aclose()  # type: ignore[attr-defined]

    run(test)


def directory(*members: str) -> SessionDirectory:
    found = SessionDirectory(clock=lambda: 0.0)
    for name in members:
        found.report(name, 1, [], store=f"store-{name}")
    return found


def test_a_reserved_place_is_kept_for_its_session_and_given_back() -> None:
    found = directory("a", "b")
    found.report("a", 1, held("one"))
    assert found.reserve("one") == "b"
    assert found.find("one") == "a"
    for call in (lambda: found.place("two"), lambda: found.reserve("one", "c"), lambda: found.reserve("two")):
        with pytest.raises((NoCapacity, BadMessage, UnknownSession)):
            call()
    found.report("b", 1, [])
    assert found.find("one") == "a"
    found.desert("one")
    assert found.rescue("one") == ("b", True)
    found.report("b", 1, held("one"))
    assert found.places() == {"a": {"capacity": 1, "taken": 0}, "b": {"capacity": 1, "taken": 1}}
    assert found.reserve("one", "a") == "a"
    found.unreserve("one")
    assert found.place("two") == "a"


def test_a_generator_that_is_drained_stays_so_when_the_directory_begins_anew() -> None:
    found = directory("a", "b")
    found.drain("a")
    told = found.report("a", 1, [])
    assert told.draining
    anew = directory()
    anew.report("a", 1, [], draining=told.draining)
    anew.report("b", 1, [])
    assert [anew.place("one")] == ["b"]
    with pytest.raises(NoCapacity):
        anew.place("two")
    anew.undrain("a")
    assert not anew.report("a", 1, [], draining=True).draining
    assert anew.place("two") == "a"


def test_every_store_is_the_mirror_of_the_one_before_it() -> None:
    found = directory("a", "b", "c")
    told: dict[str, Any] = {name: found.report(name, 1, [], store=f"store-{name}").stores for name in "abc"}
    assert [told[name][0] for name in "abc"] == ["store-b", "store-c", "store-a"]
    assert directory("a").report("a", 1, [], store="store-a").stores == ()


@pytest.mark.parametrize(("name", "value"), [("STORE", "cluster"), ("DURABILITY", "none")])
def test_a_mirror_that_could_not_help_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=r"service\.mirror"):
        load(environ={"LONGTAKE_SERVICE__MIRROR": "latents", f"LONGTAKE_SERVICE__{name}": value})

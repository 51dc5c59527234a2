"""The generator: batches, leads, pauses, forks, failures and scripts, with the shipped model in one pass per chunk."""

import asyncio
import io
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from actors.bookkeeping import OwnLedger
from actors.generator import Generator
from actors.live import State
from actors.metrics import Tally
from actors.order import Order
from actors.pace import Pace
from actors.reel import Glimpse, notable
from actors.vault import HostVault
from actors.worker import Direction
from cache.decisions import DecisionLog
from errors import (
    BadMessage,
    NoCapacity,
    SceneExists,
    ServiceError,
    SessionOver,
    StreamError,
    UnknownScene,
    UnknownSession,
)
from media.reading import read
from models.segmenter import Finding
from streams.director import Script, Shot
from tests.service import Shelf, generator, run, studio, until
from tests.slow_tier import SlowTier

BALL = Order("a red ball bouncing in a blue room", seed=1)
RING = Order("a black ring bouncing in a yellow room", seed=2)


async def take(made: Generator, session: str, chunks: int, viewer: str = "me", after: int | None = -1) -> list[Any]:
    """Watch until ``chunks`` chunks have come, acknowledging each; gives all messages."""
    seen = []
    messages = made.watch(session, "", viewer, after, 2, after is None)
    async for message in messages:
        seen.append(message)
        if message["type"] == "chunk":
            await made.acknowledge(session, viewer, message["index"], 2)
            if len(of(seen, "chunk")) == chunks:
                break
    await messages.aclose()  # type: ignore[attr-defined]
    return seen


def of(messages: list[Any], kind: str) -> list[Any]:
    return [m for m in messages if m["type"] == kind]


def stepped_by(made: Generator) -> list[str]:
    """The sessions that are stepped from now on, in that order."""
    order: list[str] = []
    step = made.worker.step
    made.worker.step = lambda ids: order.extend(ids) or step(ids)  # type: ignore[method-assign, func-returns-value]
    return order


def media_of(messages: list[Any]) -> bytes:
    return b"".join(m["data"] for m in messages if m["type"] in ("init", "chunk"))


def test_a_viewer_gets_a_film_that_plays_and_every_chunk_once_in_order() -> None:
    async def test() -> None:
        async with generator() as made:
            await made.create("a", BALL)
            seen = await take(made, "a", 6)
            assert [m["type"] for m in seen[:2]] == ["hello", "init"]
            assert [m["index"] for m in of(seen, "chunk")] == list(range(6))
            film = read(io.BytesIO(media_of(seen)))
            assert film.frames.shape == (48, 128, 128, 3)
            assert "avc1" in of(seen, "init")[0]["mime"]
            assert "opus" in of(seen, "init")[0]["mime"]

    run(test)


def test_nothing_is_made_beyond_the_lead_and_nothing_sent_beyond_the_credits() -> None:
    async def test() -> None:
        async with generator(Pace(lead=3)) as made:
            await made.create("a", BALL)
            await until(lambda: made.sessions["a"].next_chunk == 3)
            messages = made.watch("a", "", "me", -1, 2)
            seen = [await anext(messages) for _ in range(4)]
            assert [m["index"] for m in of(seen, "chunk")] == [0, 1]
            more = asyncio.ensure_future(anext(messages))
            for _ in range(3):  # three looks of the loop at who is due
                await made.inspect("a")
            assert not more.done()
            assert made.sessions["a"].next_chunk == 3
            await made.acknowledge("a", "me", 1, 1)
            assert (await more)["index"] == 2
            await until(lambda: made.sessions["a"].next_chunk == 5)
            with pytest.raises(BadMessage, match="ack of chunk 4; expected one of 1 to 2"):
                await made.acknowledge("a", "me", 4, 1)
            with pytest.raises(BadMessage, match="1000 credits"):
                await made.acknowledge("a", "me", 2, 1000)
            await messages.aclose()  # type: ignore[attr-defined]

    run(test)


def test_sessions_of_different_age_and_scene_share_a_batch_and_stay_themselves() -> None:
    """Alone and in a batch a session shows the same, up to the rounding of another batch shape."""

    async def film(orders: dict[str, Order]) -> dict[str, torch.Tensor]:
        async with generator(Pace(lead=2)) as made:
            sizes: list[int] = []
            watched, step = threading.Event(), made.worker.step

            def stepped(ids: Sequence[str]) -> Any:
                sizes.append(len(ids))
                end = time.monotonic() + 60
                while watched.is_set() and not all(live.due for live in [*made.sessions.values()]):
                    assert time.monotonic() < end
                    time.sleep(0.001)
                watched.clear()  # the others are due by now, and so is this one again
                return step(ids)

            made.worker.step = stepped  # type: ignore[method-assign, assignment]
            for name, order in orders.items():
                await made.create(name, order)
            await until(lambda: all(live.next_chunk == 2 for live in made.sessions.values()))
            watched.set()
            got = await asyncio.gather(*(take(made, name, 5) for name in orders))
            assert max(sizes) == len(orders)
            return {n: torch.from_numpy(read(io.BytesIO(media_of(m))).frames) for n, m in zip(orders, got, strict=True)}

    async def test() -> None:
        together = await film({"a": BALL, "b": RING, "c": Order(RING.prompt, seed=3)})
        alone = await film({"a": BALL})
        difference = (together["a"].float() - alone["a"].float()).abs().mean()
        other = (together["b"].float() - alone["a"].float()).abs().mean()
        assert difference < 0.1 * other

    run(test)


def test_who_is_due_is_served_in_the_order_of_deadlines() -> None:
    async def test() -> None:
        async with generator(Pace(lead=2, batch=1)) as made:
            order = stepped_by(made)
            for name in ("calm", "hungry"):
                await made.create(name, BALL)
            await until(lambda: all(live.next_chunk == 2 for live in made.sessions.values()))
            watches = {name: made.watch(name, "", name, -1, 2) for name in ("calm", "hungry")}
            for messages in watches.values():
                for _ in range(4):
                    await anext(messages)
            order.clear()
            await made.acknowledge("calm", "calm", 1, 2, buffered=9.0)
            await made.acknowledge("hungry", "hungry", 1, 2, buffered=0.1)
            await until(lambda: len(order) == 4)
            assert order == ["hungry", "hungry", "calm", "calm"]
            for messages in watches.values():
                await messages.aclose()  # type: ignore[attr-defined]

    run(test)


def test_more_sessions_than_a_batch_takes_are_served_in_turn() -> None:
    async def test() -> None:
        async with generator(Pace(lead=8, batch=1)) as made:
            order = stepped_by(made)
            for name in "abc":
                await made.create(name, BALL)
            await until(lambda: len(order) >= 15)
            assert sorted(order[9:12]) == ["a", "b", "c"]
            assert order[12:15] == order[9:12]

    run(test)


def test_a_paused_session_gives_its_place_back_and_goes_on_bit_equal() -> None:
    async def film(pauses: bool) -> bytes:
        shelf = Shelf()
        async with generator(sessions=1, vault=shelf) as made:
            await made.create("a", BALL)
            seen = await take(made, "a", 3)
            if pauses:
                assert (await made.pause("a"))["do"] == "pause"
                assert made.sessions["a"].state is State.PAUSED
                assert not made.worker.engine.sessions
                assert shelf.held
                assert (await made.inspect("a"))["state"] == "paused"
                await made.create("b", RING)
                with pytest.raises(NoCapacity, match="1 places"):
                    await made.resume("a")
                await made.stop("b")
                await made.resume("a")
                assert not shelf.held
            seen += [m for m in await take(made, "a", 4, after=2) if m["type"] == "chunk"]
            return media_of(seen)

    async def test() -> None:
        assert await film(False) == await film(True)

    run(test)


def test_who_is_not_watched_is_put_away_and_comes_back_with_its_viewer() -> None:
    async def test() -> None:
        async with generator(Pace(idle_s=0.05, lead=2)) as made:
            await made.create("a", BALL)
            await until(lambda: made.sessions["a"].state is State.PAUSED)
            assert made.sessions["a"].reason == "nobody watches"
            seen = await take(made, "a", 4)
            assert [m["index"] for m in of(seen, "chunk")] == [0, 1, 2, 3]
            assert made.sessions["a"].state is not State.FAILED

    run(test)


def test_whoever_pauses_what_another_resumes_at_the_same_time_does_not_end_it() -> None:
    async def test() -> None:
        async with generator() as made:
            await made.create("a", BALL)
            await take(made, "a", 3)
            for calls in ((made.resume, made.pause), (made.pause, made.resume)):
                await made.pause("a")
                await asyncio.gather(*(call("a") for call in calls))
                live = made.sessions["a"]
                assert live.state is (State.PAUSED if calls[-1] == made.pause else State.RUNNING)
                assert (made.worker.reels["a"].stream is None) == (live.state is State.PAUSED)
            seen = await take(made, "a", 6, after=2)
            assert [m["index"] for m in of(seen, "chunk")] == [3, 4, 5, 6, 7, 8]

    run(test)


def test_a_viewer_that_stalls_pauses_its_session_alone_but_holds_up_nobody_else() -> None:
    async def test() -> None:
        async with generator(Pace(patience_s=0.2, lead=2)) as made:
            await made.create("a", BALL)
            stuck = made.watch("a", "", "stuck", -1, 1)
            for _ in range(3):
                await anext(stuck)
            await until(lambda: made.sessions["a"].state is State.PAUSED)
            assert "acknowledge nothing" in made.sessions["a"].reason
            await made.acknowledge("a", "stuck", 0, 1)
            assert made.sessions["a"].state is State.RUNNING
            seen = await take(made, "a", 8)
            assert len(of(seen, "chunk")) == 8
            assert "stuck" not in made.sessions["a"].watching
            last = [m async for m in stuck][-1]
            assert last["type"] == "end"
            assert last["state"] == "dropped"

    run(test)


async def quiet(made: Generator, session: str) -> None:
    """Wait until a session has made all that it may."""
    await until(lambda: not made.sessions[session].due and not made.sessions[session].in_flight)


async def chunk(messages: Any, index: int) -> None:
    """Wait for a chunk."""
    while (message := await anext(messages))["type"] != "chunk" or message["index"] != index:
        assert message["type"] != "end"


def test_a_session_for_which_there_was_no_place_comes_back_when_there_is_one_and_is_not_tried_all_the_time() -> None:
    now = [0.0]

    async def test() -> None:
        async with generator(Pace(patience_s=1.0, lead=2), sessions=1, clock=lambda: now[0]) as made:

            async def passes(seconds: float) -> None:
                now[0] += seconds
                for _ in range(3):  # the loop has looked in between
                    await made.inspect("a")

            await made.create("a", BALL)
            messages = made.watch("a", "", "me", -1, 1)
            await chunk(messages, 0)
            await quiet(made, "a")
            await passes(1.5)
            assert made.sessions["a"].state is State.PAUSED
            await made.create("b", RING)
            tries: list[str] = []
            bring_back = made.worker.bring_back
            made.worker.bring_back = lambda s: tries.append(s) or bring_back(s)  # type: ignore[method-assign, func-returns-value]
            await made.acknowledge("a", "me", 0, 2)
            await passes(0.0)
            before = len(tries)
            await passes(4.0)
            assert len(tries) == before == 2  # at the acknowledgement, and by itself
            await passes(2.0)
            assert len(tries) == 3
            await made.stop("b")
            await passes(6.0)
            await chunk(messages, 2)
            await messages.aclose()  # type: ignore[attr-defined]

    run(test)


def test_a_session_that_could_not_be_handed_over_goes_on_for_those_who_watch() -> None:
    async def test() -> None:
        async with generator(Pace(lead=2)) as made:
            await made.create("a", BALL)
            messages = made.watch("a", "", "me", -1, 1)
            await chunk(messages, 0)
            await quiet(made, "a")
            restate = made.loop.books.restate

            async def fails(session: str) -> None:
                await made.acknowledge("a", "me", 0, 2)  # and says nothing more
                raise ServiceError("the shard begins anew")

            made.loop.books.restate = fails  # type: ignore[method-assign]
            with pytest.raises(ServiceError):
                await made.succession.hand_over("a")
            made.loop.books.restate = restate  # type: ignore[method-assign]
            await chunk(messages, 2)
            await messages.aclose()  # type: ignore[attr-defined]

    run(test)


def test_whoever_comes_while_an_idle_session_is_being_put_away_gets_its_next_chunk() -> None:
    now, began, goes_on = [0.0], threading.Event(), threading.Event()

    class Slow(Shelf):
        def put(self, session: str, data: bytes) -> None:
            began.set()
            goes_on.wait()
            super().put(session, data)

    async def test() -> None:
        async with generator(Pace(lead=2, idle_s=1.0), vault=Slow(), clock=lambda: now[0]) as made:
            await made.create("a", BALL)
            await quiet(made, "a")
            now[0] += 1.5
            made.loop.wake()
            await until(began.is_set)
            coming = asyncio.create_task(take(made, "a", 2, after=1))
            await until(lambda: bool(made.sessions["a"].watching))
            goes_on.set()
            assert [m["index"] for m in of(await coming, "chunk")] == [2, 3]

    run(test)


def test_controls_say_from_which_chunk_they_hold_and_refuse_what_cannot_be() -> None:
    async def test() -> None:
        async with generator() as made:
            await made.create("a", BALL)
            first = await take(made, "a", 4)
            cut = await made.control("a", Direction("cut", RING.prompt, "attic"))
            with pytest.raises(SceneExists):
                await made.control("a", Direction("cut", RING.prompt, "attic"))
            with pytest.raises(UnknownScene):
                await made.control("a", Direction("return", scene="cellar"))
            seen = first + await take(made, "a", 6, after=3)
            back = await made.control("a", Direction("return", scene="opening"))
            prompt = await made.control("a", Direction("prompt", "a green box bouncing in a red room", mode="recache"))
            seen += await take(made, "a", 6, after=9)
            scenes = {m["index"]: m["scene"] for m in of(seen, "chunk")}
            assert [i for i, s in scenes.items() if s == "attic"] == list(range(cut["from"], back["from"]))
            assert prompt["from"] >= back["from"]
            books = await made.inspect("a")
            assert {s["name"] for s in books["scenes"]} == {"opening", "attic"}
            assert await made.thumbnail("a", "opening")
            assert await made.thumbnail("a", "cellar") is None

    run(test)


@contextmanager
def store_far_away() -> Iterator[SlowTier]:
    """The engine of these tests with a store that answers when the test says so, and somebody who waits."""
    engine, tier = studio(4).engine, SlowTier(1 << 28)
    before, config = engine.tier, engine.slack.config
    engine.tier = engine.staging.tier = tier
    engine.slack.config = replace(config, share=0.5)
    try:
        yield tier
    finally:
        engine.tier = engine.staging.tier = before
        engine.slack.config = config


async def returned(made: Generator, tier: SlowTier, delay: float | None) -> tuple[int, int, list[Any]]:
    """Go away, and back when the store answers after ``delay``; when it was asked for, when it held, what was seen."""
    await made.create("a", BALL)
    await take(made, "a", 6)
    await made.control("a", Direction("cut", RING.prompt, "attic"))
    await take(made, "a", 7, after=5)
    tier.delay = lambda chunk, kind: delay
    watching = asyncio.create_task(take(made, "a", 12, after=12))
    await until(lambda: bool(made.sessions["a"].watching))
    asked = made.sessions["a"].made
    back = await made.control("a", Direction("return", scene="opening"))
    return asked, back["from"], await watching


def test_a_return_waits_some_chunks_for_a_scene_that_is_far_away_and_no_longer() -> None:
    async def test() -> None:
        with store_far_away() as tier:
            async with generator() as made:
                asked, begin, seen = await returned(made, tier, None)
                lead = made.worker.engine.config.restore.lead
                assert asked < begin <= asked + lead + 1  # a step may be on its way
                assert [m["index"] for m in of(seen, "chunk")] == list(range(13, 25))
                scenes = {m["index"]: m["scene"] for m in of(seen, "chunk")}
                assert scenes[begin - 1] == "attic"
                assert scenes[begin] == "opening"
                actions = {d["action"] for d in (await made.inspect("a"))["decisions"]}
                assert "postpone" in actions
                await made.loop.measure()
                meter = made.loop.meter
                assert isinstance(meter, Tally)
                assert meter.gauges["restores", "slow", "postponed"] > 0
                assert meter.gauges["prefetched", "late"] > 0

    run(test)


def test_a_return_to_a_scene_that_is_near_holds_from_the_next_chunk() -> None:
    async def test() -> None:
        with store_far_away() as tier:
            async with generator() as made:
                asked, begin, _ = await returned(made, tier, 0.0)
                assert begin <= asked + 2
                books = await made.inspect("a")
                assert books["keep_set"]["video_self"]["scene_sink"] == [0]

    run(test)


def test_a_fork_has_the_same_past_and_its_own_future() -> None:
    async def test() -> None:
        async with generator() as made:
            await made.create("a", BALL)
            await take(made, "a", 4)
            at = (await made.fork("a", "same"))["from"]
            assert (await made.fork("a", "other", 7))["from"] >= at
            seen = await take(made, "same", 4, after=at - 1)
            assert [m["index"] for m in of(seen, "chunk")] == list(range(at, at + 4))
            assert len(read(io.BytesIO(media_of(seen))).frames) == 32
            await made.fork("a", "last")
            with pytest.raises(NoCapacity):
                await made.fork("a", "one too many")

    run(test)


def test_of_two_that_fork_or_create_under_one_name_at_once_one_is_refused_and_leaves_nothing() -> None:
    async def test() -> None:
        async with generator() as made:
            await made.create("a", BALL)
            for calls in ([made.fork("a", "b"), made.fork("a", "b")], [made.create("c", RING), made.create("c", BALL)]):
                done = await asyncio.gather(*calls, return_exceptions=True)
                assert [type(one) for one in done] == [dict, BadMessage]
            await take(made, "b", 4)
            await take(made, "c", 4)
            assert set(made.worker.reels) == {"a", "b", "c"}
            assert len(made.worker.engine.sessions) == 3

    run(test)


def test_a_session_for_which_the_vault_has_no_room_goes_on_and_is_nobody_s_pause() -> None:
    async def test() -> None:
        async with generator(vault=HostVault(0)) as made:
            await made.create("a", BALL)
            with pytest.raises(NoCapacity, match="put away"):
                await made.pause("a")
            assert not made.worker.reels["a"].held
            assert made.sessions["a"].state is State.RUNNING
            await take(made, "a", 4)

    run(test)


def test_a_script_is_played_to_its_end_and_then_forgotten() -> None:
    script = Script((Shot(1.3, "lab", BALL.prompt), Shot(1.3, "attic", RING.prompt), Shot(1.3, return_to="lab")))

    async def test() -> None:
        async with generator(Pace(linger_s=0.05)) as made:
            await made.create("a", Order(script=script))
            seen = await take(made, "a", 100)
            assert seen[-1] == {"type": "end", "state": "finished", "reason": "the take is over"}
            assert [m["scene"] for m in of(seen, "chunk")] == ["lab"] * 2 + ["attic"] * 2 + ["lab"] * 2
            film = read(io.BytesIO(media_of(seen)))
            assert len(film.frames) == 48
            assert abs(len(film.samples) / film.sample_rate - 6 * 0.64) < 0.05
            with pytest.raises(SessionOver):
                await made.control("a", Direction("cut", "a", "b"))
            await until(lambda: not made.sessions)
            with pytest.raises(UnknownSession):
                await made.inspect("a")

    run(test)


def test_a_session_that_is_being_forgotten_while_the_generator_closes_gives_everything_back() -> None:
    async def free_when_ended(made: Generator, free: threading.Event) -> None:
        await until(lambda: made.loop.task is not None and made.loop.task.done())
        free.set()

    async def test() -> None:
        free = threading.Event()
        async with generator(Pace(linger_s=0.05)) as made:
            await made.create("a", BALL)
            made.sessions["a"].enter(State.FINISHED, made.clock())
            made.loop.compute._thread.submit(free.wait)  # what is asked of the thread from now on waits
            await until(lambda: not made.sessions)
            freeing = asyncio.create_task(free_when_ended(made, free))
        await freeing

    run(test)


def test_a_session_that_fails_ends_alone() -> None:
    async def test() -> None:
        async with generator() as made:
            await made.create("good", BALL)
            await made.create("bad", RING)
            await until(lambda: made.sessions["bad"].next_chunk >= 2)
            made.worker.reels["bad"].on.session.failure = OSError("the disk is gone")
            good, bad = await asyncio.gather(take(made, "good", 8), take(made, "bad", 100))
            assert len(of(good, "chunk")) == 8
            assert bad[-1]["state"] == "failed"
            assert "the disk is gone" in bad[-1]["reason"]

    run(test)


def test_a_slow_or_dead_segmenter_delays_the_anchor_and_never_the_stream() -> None:
    async def test() -> None:
        gate = asyncio.Event()
        asked: list[Glimpse] = []

        async def see(glimpse: Glimpse) -> Finding:
            asked.append(glimpse)
            await gate.wait()
            if len(asked) == 1:
                raise StreamError("the segmenter is gone")
            return Finding(torch.full((len(glimpse.at),), 0.9), torch.ones(glimpse.frames.shape[:3]))

        async with generator(see=see) as made:
            await made.create("a", Order(BALL.prompt, subject="red ball", seed=1))
            seen = await take(made, "a", 10)
            assert len(of(seen, "chunk")) == 10
            assert len(asked) == 1
            gate.set()
            await take(made, "a", 20, after=9)
            assert len(asked) > 1
            await until(lambda: "subject_anchor" in made.worker.reels["a"].on.keep_set()["video_self"])

    run(test)


def test_a_stuck_step_is_noticed() -> None:
    async def test() -> None:
        now = [0.0]
        async with generator(stuck_s=5.0, clock=lambda: now[0]) as made:
            made.check_health()
            made.loop.compute.busy_since = 0.0
            now[0] = 6.0
            with pytest.raises(RuntimeError, match="more than 5 s"):
                made.check_health()
            made._busy_since = None

    run(test)


def test_the_compute_thread_is_one() -> None:
    made = studio()
    from actors.worker import Worker

    worker = Worker(made.engine, made.codecs, Shelf())
    with pytest.raises(RuntimeError, match="two threads in one worker"):
        worker.call(lambda: worker.call(lambda: None))


def test_inspection_shows_old_scene_changes_beneath_many_evictions() -> None:
    log = DecisionLog()
    for at in range(500):
        log.add(at, "cut" if at % 100 == 0 else "evict", "")
    shown = notable(log)
    assert [d.at for d in shown if d.action == "cut"] == [0, 100, 200, 300, 400]
    assert [d.at for d in shown if d.action == "evict"][-1] == 499
    assert len(shown) == 105
    assert shown == sorted(shown, key=lambda d: d.at)


def test_whoever_asks_and_goes_leaves_no_session_behind() -> None:
    async def test() -> None:
        async with generator() as made:
            await made.create("a", BALL)
            for work in (made.create("b", RING), made.fork("a", "c")):
                asked = asyncio.create_task(work)
                await until(lambda: bool(made.loop.compute.jobs) or len(made.worker.reels) > 1)
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
                await asyncio.wait(list(made.loop._tasks))  # among them what was asked, and what undoes it
                assert len(made.worker.reels) == 1
            assert list(made.sessions) == ["a"]
            assert len(made.worker.engine.sessions) == 1

    run(test)


def test_an_error_that_nobody_expected_ends_its_own_session_only() -> None:
    async def test() -> None:
        async with generator() as made:
            for name in ("good", "bad"):
                await made.create(name, BALL)
            await asyncio.gather(take(made, "good", 2), take(made, "bad", 2))
            made.worker.reels["bad"].encoder = None  # type: ignore[assignment]
            made.worker.reels["bad"].decided = {}.popitem  # type: ignore[method-assign, assignment]
            with pytest.raises(KeyError):
                await made.loop.between({}.popitem)
            await take(made, "good", 3, after=1)
            await until(lambda: made.sessions["bad"].state is State.FAILED)
            made.check_health()

    run(test)


def test_a_player_that_stands_still_does_not_bring_its_session_back_with_every_word() -> None:
    async def test() -> None:
        async with generator(Pace(patience_s=0.2, lead=2)) as made:
            await made.create("a", BALL)
            messages = made.watch("a", "", "me", -1, 2)
            while (await anext(messages))["type"] != "chunk":
                pass
            await made.acknowledge("a", "me", 0, 0)
            await until(lambda: made.sessions["a"].state is State.PAUSED)
            await made.acknowledge("a", "me", 0, 0)
            assert made.sessions["a"].state is State.PAUSED
            await made.acknowledge("a", "me", 0, 4)
            assert made.sessions["a"].state is State.RUNNING
            await messages.aclose()  # type: ignore[attr-defined]

    run(test)


def test_what_nobody_comes_back_to_is_stopped_in_the_end() -> None:
    async def test() -> None:
        shelf = Shelf()
        async with generator(Pace(idle_s=0.1, away_s=0.1, linger_s=0.1), vault=shelf) as made:
            await made.create("a", BALL)
            await until(lambda: not made.sessions and not made.worker.reels)
            assert not shelf.held

    run(test)


def test_the_next_chunk_is_stepped_while_the_one_before_is_encoded_and_no_further() -> None:
    async def test() -> None:
        async with generator(Pace(lead=8)) as made:
            may, show = threading.Event(), made.worker.show

            def gated(stepped: Any) -> Any:
                assert may.wait(30)
                return show(stepped)

            made.worker.show = gated  # type: ignore[method-assign]
            await made.create("a", BALL)
            live = made.sessions["a"]
            await until(lambda: live.in_flight == 2)
            forked = asyncio.create_task(made.fork("a", "b"))
            await until(lambda: made.loop.compute.busy_since is not None)  # the fork waits for the media thread
            assert not forked.done()
            assert (live.made, live.next_chunk, live.due) == (2, 0, False)
            may.set()
            assert (await forked)["from"] >= 2
            seen = [m["index"] for m in of(await take(made, "a", 6), "chunk")]
            assert seen == list(range(6))
            child = await take(made, "b", 4, after=None)
            assert len(read(io.BytesIO(media_of(child))).frames) >= 8

    run(test)


def test_chunks_are_given_in_order_though_the_ledger_service_answers_the_later_one_first() -> None:
    class Slow(OwnLedger):
        first = asyncio.Event()

        async def commit(self, shard: int, entries: Any) -> Any:
            verdicts = await super().commit(shard, entries)
            if entries[0].chunk == 0:
                await self.first.wait()
            return verdicts

    async def test() -> None:
        ledger = Slow()
        async with generator(Pace(lead=8), ledger=ledger) as made:
            await made.create("a", BALL)
            live = made.sessions["a"]
            await until(lambda: live.made == 2 and bool(made.loop.meter.counts["chunk_seconds", "ledger"]))  # type: ignore[attr-defined]
            assert live.next_chunk == 0
            ledger.first.set()
            assert [m["index"] for m in of(await take(made, "a", 4), "chunk")] == [0, 1, 2, 3]

    run(test)


def test_the_messages_to_a_viewer_that_left_without_a_word_end() -> None:
    async def test() -> None:
        async with generator(Pace(lead=2)) as made:
            await made.create("a", BALL)
            messages = made.watch("a", "", "me", -1, 2)
            while (await anext(messages))["type"] != "chunk":
                pass
            rest = asyncio.create_task(collect(messages))
            await until(lambda: made.sessions["a"].next_chunk == 2)
            made.sessions["a"].detach("me", 0.0)
            assert (await rest)[-1]["reason"] == "the viewer has left"

    async def collect(messages: Any) -> list[Any]:
        return [message async for message in messages]

    run(test)


def test_what_leaves_a_gpu_is_given_to_the_store_as_soon_as_nothing_else_is_to_be_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that a session which is ahead of its viewers is not held up by a store that was not given its last chunk."""

    class Leaving:
        def __init__(self, tier: Any) -> None:
            self.tier, self.leaving, self.settled = tier, False, 0

        def settle(self) -> None:
            self.settled, self.leaving = self.settled + 1, True  # a pass later something leaves

        def drain(self) -> None:
            self.leaving = False

    async def test() -> None:
        async with generator(Pace(lead=3)) as made:
            leaving = Leaving(made.worker.engine.store)
            engine = made.worker.engine
            monkeypatch.setattr(engine, "departures", leaving)
            monkeypatch.setattr(engine, "maker", replace(engine.maker, meanwhile=leaving.settle))
            await made.create("a", BALL)
            await until(lambda: made.sessions["a"].next_chunk == 3)
            await until(lambda: not leaving.leaving)
            assert leaving.settled > 3
            await made.stop("a")
            monkeypatch.undo()

    run(test)

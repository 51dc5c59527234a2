"""The gateway on a real port: what callers get, and what rubbish, lies and strangers get."""

import asyncio
import io
from typing import Any

import httpx
import msgpack
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from actors.limits import Bucket, Limits
from actors.pace import Pace
from client import Client
from errors import (
    BadMessage,
    ConfigError,
    NoCapacity,
    NotAllowed,
    SceneExists,
    ScriptError,
    ServiceError,
    SessionOver,
    UnknownScene,
    UnknownSession,
)
from media.reading import read
from tests.service import run, served, until
from wire import pack_message, unpack_message

BALL, RING = "a red ball bouncing in a blue room", "a black ring bouncing in a yellow room"
KEY, OTHER = "correct-horse-battery", "another.key~entirely"


def watch_url(url: str, session: str, query: str = "") -> str:
    return f"{url.replace('http', 'ws')}/v1/sessions/{session}/watch?{query}"


async def said(socket: Any) -> list[dict[str, Any]]:
    """Everything that a socket says until it is closed."""
    found = []
    try:
        while True:
            found.append(unpack_message(await socket.recv(), None))
    except ConnectionClosed:
        return found


def test_a_take_is_begun_watched_directed_inspected_and_stopped() -> None:
    async def test() -> None:
        async with served() as (_, client, _):
            session = (await client.create(BALL, seed=1))["session"]
            film, scenes, receipts = b"", {}, []
            async with client.watch(session, credits=2) as watch:
                async for message in watch:
                    film += message.get("data", b"")
                    if message["type"] != "chunk":
                        continue
                    scenes[message["index"]] = message["scene"]
                    if message["index"] == 3:
                        receipts.append(await client.cut(session, "attic", RING))
                    if message["index"] == 9:
                        receipts.append(await client.return_to(session, "opening"))
                    if message["index"] == 15:
                        break
            assert len(read(io.BytesIO(film)).frames) == 16 * 8
            (cut, back) = (r["from"] for r in receipts)
            assert [i for i, s in scenes.items() if s == "attic"] == list(range(cut, back))
            books = await client.inspect(session)
            assert [s["name"] for s in books["scenes"]] == ["opening", "attic"]
            assert books["keep_set"]["video_self"]["scene_sink"] == [0]
            assert (await client.thumbnail(session, "attic"))[:2] == b"\xff\xd8"
            assert [s["session"] for s in await client.sessions()] == [session]
            await client.stop(session)
            assert await client.sessions() == []

    run(test)


def test_controls_over_the_socket_are_answered_there() -> None:
    async def test() -> None:
        async with served() as (_, client, _):
            session = (await client.create(BALL))["session"]
            async with client.watch(session) as watch:

                async def look() -> None:
                    async for _ in watch:
                        pass

                looking = asyncio.create_task(look())
                assert (await watch.control("cut", scene="attic", prompt=RING))["do"] == "cut"
                with pytest.raises(SceneExists):
                    await watch.control("cut", scene="attic", prompt=RING)
                with pytest.raises(BadMessage, match="'fly'"):
                    await watch.control("fly")
                await watch.control("stop")
                await looking

    run(test)


def test_a_lost_connection_goes_on_without_a_gap_and_nothing_comes_twice() -> None:
    async def test() -> None:
        async with served() as (_, client, _):
            session = (await client.create(BALL))["session"]
            film, indices = b"", []
            async with client.watch(session, credits=3) as watch:
                async for message in watch:
                    film += message.get("data", b"") if message["type"] == "chunk" or not indices else b""
                    if message["type"] == "chunk":
                        indices.append(message["index"])
                        if message["index"] in (3, 7):
                            watch._socket.transport.abort()  # type: ignore[union-attr]
                        if message["index"] == 10:
                            break
                assert watch.reconnected == 2
            assert indices == list(range(11))
            assert len(read(io.BytesIO(film)).frames) == 88

    run(test)


def test_a_control_whose_connection_is_lost_is_an_error_and_the_watch_goes_on() -> None:
    async def test() -> None:
        async with served() as (made, client, _):
            session = (await client.create(BALL))["session"]
            asked, go_on = asyncio.Event(), asyncio.Event()

            async def never(*arguments: Any) -> dict[str, Any]:
                asked.set()
                await go_on.wait()
                return {}

            ask, made.ask = made.ask, never  # type: ignore[method-assign]
            async with client.watch(session) as watch:
                seen = asyncio.Queue[int]()

                async def look() -> None:
                    async for message in watch:
                        if message["type"] == "chunk":
                            seen.put_nowait(message["index"])

                looking = asyncio.create_task(look())
                waits = asyncio.create_task(watch.control("cut", scene="attic", prompt=RING))
                await asked.wait()
                assert watch._socket is not None
                watch._socket.transport.abort()
                with pytest.raises(ServiceError, match="was lost"):
                    await waits
                with pytest.raises(ServiceError, match="was lost"):
                    await watch.control("cut", scene="attic", prompt=RING)  # before there is a new one
                made.ask = ask  # type: ignore[method-assign]
                go_on.set()
                await until(lambda: watch.reconnected == 1)
                assert (await watch.control("cut", scene="attic", prompt=RING))["do"] == "cut"
                assert not watch._answers
                looking.cancel()

    run(test)


def test_who_goes_without_a_word_is_gone_within_seconds() -> None:
    async def test() -> None:
        async with served() as (made, client, url):
            session = (await client.create(BALL))["session"]
            socket = await connect(watch_url(url, session))
            await until(lambda: len(made.sessions[session].watching) == 1)
            socket.transport.abort()
            await until(lambda: not made.sessions[session].watching, seconds=5)

    run(test)


def test_many_viewers_see_the_same_and_a_late_one_begins_at_a_key_frame() -> None:
    async def test() -> None:
        async with served(pace=Pace(viewers=3)) as (_, client, _):
            session = (await client.create(BALL))["session"]

            async def film(after: int | None, until_index: int) -> list[dict[str, Any]]:
                async with client.watch(session, after=after) as watch:
                    found = []
                    async for message in watch:
                        found.append(message)
                        if message["type"] == "chunk" and message["index"] >= until_index:
                            return found
                return found

            one, two = await asyncio.gather(film(-1, 8), film(-1, 8))
            assert [m.get("data") for m in one[1:]] == [m.get("data") for m in two[1:]]
            late = [m for m in await film(None, 10) if m["type"] in ("init", "chunk")]
            assert late[1]["key"]
            assert late[1]["index"] > 0
            assert len(read(io.BytesIO(b"".join(m["data"] for m in late))).frames) == 8 * (len(late) - 1)

    run(test)


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"prompt": " "}, 400, "bad_message", "prompt that is not empty"),
        ({}, 400, "bad_message", "prompt that is not empty"),
        ({"prompt": "a", "seed": -1}, 400, "bad_message", "seed is '-1'"),
        ({"prompt": "a", "speed": 3}, 400, "bad_message", "speed"),
        ({"prompt": "a" * 3000}, 400, "bad_message", "3,000 characters"),
        ({"scenes": [{"prompt": "a", "duration": 1}] * 1000}, 422, "script", "1000 scenes; expected at most 256"),
        ({"prompt": "a", "model": "ltx-9"}, 400, "bad_message", "model is 'ltx-9'; this service has 'toy'"),
        ({"prompt": "a", "size": "64x64"}, 400, "bad_message", "size is '64x64'; this service has '128x128'"),
        ({"scenes": [{"return_to": "cellar", "duration": 1}]}, 422, "script", "return-to 'cellar'"),
        ({"prompt": "a" * 300_000}, 413, "bad_message", "the body has"),
        ("no mapping", 400, "bad_message", "no mapping"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_why_in_problem_details(
    body: Any, status: int, code: str, words: str
) -> None:
    async def test() -> None:
        async with served() as (made, _, url), httpx.AsyncClient(base_url=url) as http:
            answer = await http.post("/v1/sessions", json=body)
            assert answer.status_code == status, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
            problem = answer.json()
            assert problem["code"] == code
            assert problem["status"] in (status, 400)
            assert words in problem["detail"]
            assert not made.sessions

    run(test)


def test_rubbish_and_lies_end_one_socket_with_a_reason_and_disturb_nobody_else() -> None:
    lies: list[tuple[bytes | str, int, str]] = [
        ("text", 4400, "a text message; expected binary ones"),
        (b"\xc1\xff rubbish", 4400, "no msgpack"),
        (msgpack.packb([1, 2]), 4400, "no map with a type"),
        (msgpack.packb({"v": 99, "type": "ack"}), 4400, "protocol version 99"),
        (pack_message({"type": "ack", "chunk": 10_000, "credits": 1}), 4400, "ack of chunk 10000"),
        (pack_message({"type": "ack", "chunk": 0, "credits": 10**9}), 4400, "1000000000 credits"),
        (pack_message({"type": "ack", "chunk": "one", "credits": 1}), 4400, "chunk is 'one'"),
        (pack_message({"type": "fly"}), 4400, "type is 'fly'"),
        (pack_message({"type": "ack", "padding": "x" * 100_000}), 4400, "expected at most 65,536"),
    ]

    async def test() -> None:
        async with served() as (_, client, url):
            session = (await client.create(BALL))["session"]
            async with client.watch(session) as other:
                messages = aiter(other)
                for data, code, words in lies:
                    async with connect(watch_url(url, session, "after=-1")) as socket:
                        while unpack_message(await socket.recv(), None)["type"] != "chunk":
                            pass
                        await socket.send(data)
                        last = (await said(socket))[-1]
                        assert last["type"] == "problem"
                        assert words in last["detail"]
                        assert socket.close_code == code
                    await anext(messages)

    run(test)


def test_unknown_finished_and_impossible_are_told_apart() -> None:
    async def test() -> None:
        async with served() as (_, client, url):
            with pytest.raises(UnknownSession):
                await client.inspect("take-nobody")
            with pytest.raises(UnknownSession):
                await client.stop("take-nobody")
            async with connect(watch_url(url, "take-nobody")) as socket:
                assert (await said(socket))[-1]["code"] == "unknown_session"
                assert socket.close_code == 4404
            session = (await client.create(scenes=[{"prompt": BALL, "duration": 0.64}]))["session"]
            with pytest.raises(UnknownScene):
                await client.return_to(session, "cellar")
            async with client.watch(session) as watch:
                assert [m["type"] async for m in watch] == ["hello", "init", "chunk", "end"]
            with pytest.raises(SessionOver):
                await client.change_prompt(session, RING)
            with pytest.raises(ScriptError):
                await client.create(scenes=[{"prompt": BALL, "duration": "soon"}])

    run(test)


def test_the_place_too_many_gets_429_with_retry_after() -> None:
    async def test() -> None:
        async with served(sessions=1) as (_, client, url), httpx.AsyncClient(base_url=url) as http:
            await client.create(BALL)
            answer = await http.post("/v1/sessions", json={"prompt": RING})
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json()["code"] == "no_capacity"

    run(test)


def test_sessions_belong_to_their_key() -> None:
    async def test() -> None:
        limits = Limits(keys=(KEY, OTHER))
        async with served(limits, key=KEY) as (_, client, url), Client(url, OTHER) as other, Client(url) as nobody:
            session = (await client.create(BALL))["session"]
            assert await other.sessions() == []
            for call in (other.inspect, other.stop, other.pause):
                with pytest.raises(UnknownSession):
                    await call(session)
            with pytest.raises(NotAllowed):
                await nobody.sessions()
            async with connect(watch_url(url, session), subprotocols=["longtake.v1", f"key.{OTHER}"]) as socket:  # type: ignore[list-item]
                assert (await said(socket))[-1]["code"] == "unknown_session"
            async with connect(watch_url(url, session), subprotocols=["longtake.v1", f"key.{KEY}"]) as socket:  # type: ignore[list-item]
                assert socket.subprotocol == "longtake.v1"
                assert unpack_message(await socket.recv())["type"] == "hello"
            async with connect(watch_url(url, session)) as socket:
                assert (await said(socket))[-1]["code"] == "not_allowed"
                assert socket.close_code == 4401

    run(test)


def test_other_origins_are_refused_unless_they_are_named() -> None:
    async def test() -> None:
        headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        for limits, allowed in ((Limits(), None), (Limits(origins=("https://evil.example",)), "https://evil.example")):
            async with served(limits) as (_, _, url), httpx.AsyncClient(base_url=url) as http:
                answer = await http.options("/v1/sessions", headers=headers)
                assert answer.headers.get("access-control-allow-origin") == allowed

    run(test)


def test_too_many_requests_and_messages_are_refused() -> None:
    async def test() -> None:
        async with served(Limits(creations=2, messages=5)) as (_, client, url):
            session = (await client.create(BALL))["session"]
            await client.create(BALL)
            with pytest.raises(NoCapacity, match="too many sessions created"):
                await client.create(BALL)
            async with connect(watch_url(url, session)) as socket:
                for _ in range(20):
                    await socket.send(pack_message({"type": "ping"}))
                assert "too many messages" in (await said(socket))[-1]["detail"]

    run(test)


def test_a_key_that_is_easily_guessed_or_cannot_be_sent_is_refused_in_the_settings() -> None:
    for key in ("short", "a key with spaces in it", ""):
        with pytest.raises(ConfigError, match=r"limits\.keys"):
            Limits(keys=(key,))


def test_a_bucket_gives_its_rate_and_no_more() -> None:
    now = [0.0]
    bucket = Bucket(2.0, 4.0, lambda: now[0])
    given = 0
    for step in range(100):
        now[0] = step * 0.1
        try:
            bucket.take("calls")
            given += 1
        except NoCapacity:
            pass
    assert given == 4 + int(2 * 9.9)


def test_a_service_that_is_not_there_is_an_error_that_says_so() -> None:
    async def test() -> None:
        async with Client("http://127.0.0.1:9") as client:
            with pytest.raises(ServiceError, match="is the service running"):
                await client.sessions()

    run(test)

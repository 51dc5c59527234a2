"""What viewers who stall, vanish or lie cost on a real Ray cluster, and what many sessions leave behind: nothing."""

import asyncio
import socket as sockets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import msgpack
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from client import Client
from tests.real_service import PLANES, RealService, real_service
from tests.service import warmed
from wire import pack_message, unpack_message

pytest.importorskip("ray")

BALL = "a red ball bouncing in a blue room"
TAKE = [{"prompt": BALL, "duration": 1.28}]  # two chunks
SESSIONS, ROUNDS = 20, 2
LEAD = 60  # chunks, of 85 kB at CRF 1
STALL_S = 10.0
# Of all processes, and of each. A generator's allocator keeps up to 240 MB, which come and go over a thousand sessions.
LEFT_BYTES, LEFT_FILES = 256 << 20, 4
MIB = 1 << 20
SETTINGS = {
    "LONGTAKE_ENGINE__SESSIONS": str(SESSIONS),
    "LONGTAKE_SEGMENTER__KIND": "none",
    "LONGTAKE_SERVICE__CPUS": "0.5",
    "LONGTAKE_SERVICE__ENCODING__CRF": "1",
    "LONGTAKE_SERVICE__LIMITS__CREATIONS": "100000",
    "LONGTAKE_SERVICE__PACE": f"{{lead: {LEAD}, kept: {LEAD}}}",
}


@pytest.fixture(scope="module", params=list(PLANES))
def service(request: pytest.FixtureRequest) -> Iterator[RealService]:
    with real_service(request.param, SETTINGS) as found:
        asyncio.run(warmed(found.url))
        yield found


def test_a_viewer_that_stops_reading_costs_little_memory_and_misses_nothing_when_it_comes_back(
    service: RealService,
) -> None:
    """It may end the wait itself, or the service may: who answers no ping for 40 s is taken for gone."""

    async def test() -> None:
        async with taken(service) as (client, session):
            async with viewer(service, session, credits=LEAD) as socket:
                await chunks(socket, 8)
                before = resident(service)
                socket.transport.pause_reading()
                begun, made = time.monotonic(), 0
                most: dict[str, int] = {}
                while made < LEAD or time.monotonic() - begun < STALL_S:
                    made = (await client.inspect(session))["next_chunk"]
                    most = max(most, growth(before, resident(service)), key=lambda grown: sum(grown.values()))
                    await asyncio.sleep(0.2)
                assert made == LEAD
                assert sum(most.values()) < 64 * MIB, str(most)
                socket.transport.abort()
            await until(lambda: nobody_watches(client, session), 10)
            async with viewer(service, session, after=7, credits=LEAD) as socket:
                rest = await chunks(socket, LEAD - 8)
                assert [m["index"] for m in rest] == list(range(8, LEAD))
                assert sum(len(m["data"]) for m in rest) > 4 * MIB
                await socket.send(pack_message({"type": "ack", "chunk": LEAD - 1, "credits": 4}))
                assert (await chunks(socket, 1))[0]["index"] == LEAD

    run(test)


def test_who_vanishes_without_a_word_is_forgotten_within_seconds(service: RealService) -> None:
    async def test() -> None:
        async with taken(service) as (client, session), viewer(service, session) as socket:
            await chunks(socket, 1)
            assert (await client.inspect(session))["viewers"] == 1
            socket.transport.abort()
            await until(lambda: nobody_watches(client, session), 10)

    run(test)


def test_rubbish_lies_and_strangers_leave_the_others_undisturbed(service: RealService) -> None:
    told: list[tuple[bytes, set[int]]] = [
        (b"\xc1\xff rubbish", {4400}),
        (msgpack.packb({"v": 99, "type": "ack"}), {4400}),
        (pack_message({"type": "ack", "chunk": 10_000, "credits": 1}), {4400}),
        (pack_message({"type": "ack", "chunk": 0, "credits": 10**9}), {4400}),
        (pack_message({"type": "ack", "padding": "x" * 100_000}), {4400}),
        (bytes(17 * MIB), {1009, 1006}),  # cut off while it still sends
    ]
    scenes = [{"prompt": BALL, "duration": 1}] * 1000

    async def test() -> None:
        async with taken(service) as (client, session), client.watch(session) as other:
            messages = aiter(other)
            for data, codes in told:
                async with viewer(service, session) as socket:
                    await chunks(socket, 1)
                    with suppress(ConnectionClosed):
                        await socket.send(data)
                    assert await closed(socket) in codes, data[:40]
                await anext(messages)
            async with viewer(service, "take-of-nobody") as socket:
                assert await closed(socket) == 4404
            async with httpx.AsyncClient(base_url=service.url) as http:
                assert (await http.post("/v1/sessions", json={"scenes": scenes})).status_code == 422
                assert (await http.post("/v1/sessions", content=b"{")).status_code == 400
                assert (await http.post("/v1/sessions", content=bytes(MIB))).status_code == 413
            begin = (await client.inspect(session))["next_chunk"]
            async for message in messages:
                if message["type"] == "chunk" and message["index"] > begin:
                    break
            assert other.reconnected == 0
            assert len(await client.sessions()) == 1

    run(test)


def test_twenty_sessions_begun_and_ended_many_times_leave_nothing_behind(service: RealService) -> None:
    async def test() -> None:
        await crowd(service)
        books, memory, files = service.books(), own_memory(service), open_files(service)
        for _ in range(ROUNDS):
            await crowd(service)

        async def as_before() -> bool:
            more = (count - files.get(process, 0) for process, count in open_files(service).items())
            return max(more) <= LEFT_FILES and service.books() == books

        await until(as_before, 30)
        assert not any(books["kept"].values()), books["kept"]
        assert not sum(one["taken"] for one in books["places"].values())
        left = growth(memory, own_memory(service))
        assert sum(left.values()) < LEFT_BYTES, str(left)

    run(test)


async def crowd(service: RealService) -> None:
    """All places are taken, each session is watched, and left with or without a word; then all are stopped."""

    async def look(number: int, session: str) -> None:
        async with viewer(service, session) as socket:
            await chunks(socket, 1)
            if number % 2:
                socket.transport.abort()

    async with Client(service.url) as client:
        made = await asyncio.gather(*(client.create(scenes=TAKE, seed=seed) for seed in range(SESSIONS)))
        names = [one["session"] for one in made]
        await asyncio.gather(*(look(number, name) for number, name in enumerate(names)))
        await asyncio.gather(*map(client.stop, names))
        assert not await client.sessions()


@asynccontextmanager
async def taken(service: RealService) -> AsyncIterator[tuple[Client, str]]:
    """A client and a session without end."""
    async with Client(service.url) as client:
        session = (await client.create(BALL))["session"]
        try:
            yield client, session
        finally:
            await client.stop(session)


@asynccontextmanager
async def viewer(
    service: RealService, session: str, after: int = -1, credits: int = 4
) -> AsyncIterator[ClientConnection]:
    """A viewer that reads and says only what the test has it do, through a socket that holds little."""
    host, _, port = service.url.rpartition("/")[2].partition(":")
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 64 << 10)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
    url = f"ws://{host}:{port}/v1/sessions/{session}/watch?after={after}&credits={credits}&fresh=false"
    async with connect(url, sock=raw, max_size=None, compression=None, ping_interval=None) as socket:
        yield socket


async def chunks(socket: ClientConnection, count: int) -> list[dict[str, Any]]:
    """The next chunks that a viewer reads."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        message = unpack_message(await socket.recv(decode=False), None)
        if message["type"] == "chunk":
            found.append(message)
    return found


async def closed(socket: ClientConnection) -> int | None:
    """The code that the service closes with, after whatever it says before."""
    with suppress(ConnectionClosed):
        while True:
            await socket.recv()
    return socket.close_code


async def nobody_watches(client: Client, session: str) -> bool:
    return not (await client.inspect(session))["viewers"]


def resident(service: RealService) -> dict[psutil.Process, int]:
    """Bytes by process."""
    return measured(service, lambda process: process.memory_info().rss)


def own_memory(service: RealService) -> dict[psutil.Process, int]:
    """Bytes by process that are its alone; Ray's object store is mapped into all and not counted."""
    return measured(service, lambda process: process.memory_full_info().uss)


def open_files(service: RealService) -> dict[psutil.Process, int]:
    """File descriptors by process."""
    return measured(service, lambda process: process.num_fds())


def measured(service: RealService, figure: Callable[[psutil.Process], int]) -> dict[psutil.Process, int]:
    found = {}
    for process in service.processes():
        with suppress(psutil.NoSuchProcess):
            found[process] = figure(process)
    return found


def growth(before: dict[psutil.Process, int], after: dict[psutil.Process, int]) -> dict[str, int]:
    """Bytes by process that grew or is new; none makes up for another."""
    grown = {process: held - before.get(process, 0) for process, held in after.items()}
    return {
        f"{process.pid} {process.name()}{'' if process in before else ', new'}": more
        for process, more in grown.items()
        if more > 0 and process.is_running()
    }


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.1)


def run(test: Callable[[], Coroutine[Any, Any, None]], seconds: float = 200.0) -> None:
    asyncio.run(asyncio.wait_for(test(), seconds))

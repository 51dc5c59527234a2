"""A generator with the shipped model in few passes, and a real server before it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn

import web
from actors.gateway import gateway
from actors.generator import Generator, See
from actors.limits import Limits
from actors.metrics import Meter
from actors.pace import Pace
from actors.worker import Vault, Worker
from client import Client
from errors import LongtakeError, NoCapacity, RecordLost
from settings import Studio, build_studio, load

QUICK = {
    "LONGTAKE_THREADS": "1",
    "LONGTAKE_ENGINE__FIRST_SCHEDULE": "{sigmas: [1.0]}",
    "LONGTAKE_ENGINE__SCHEDULE": "{sigmas: [1.0]}",
}


class Shelf(Vault):
    """A vault in memory, with room for so many streams."""

    def __init__(self, room: int = 100) -> None:
        self.room = room
        self.held: dict[str, bytes] = {}

    def put(self, session: str, data: bytes) -> None:
        if len(self.held) >= self.room:
            raise NoCapacity(f"{len(self.held)} streams are on the shelf")
        self.held[session] = data

    def take(self, session: str) -> bytes:
        if session not in self.held:
            raise RecordLost(session)
        return self.held[session]

    def drop(self, session: str) -> None:
        self.held.pop(session, None)


@cache
def studio(sessions: int = 4) -> Studio:
    """One per process and size: its pool must be empty again after each test."""
    return build_studio(load(environ={**QUICK, "LONGTAKE_ENGINE__SESSIONS": str(sessions)}))


@asynccontextmanager
async def generator(
    pace: Pace | None = None, sessions: int = 4, vault: Vault | None = None, see: See | None = None, **options: Any
) -> AsyncIterator[Generator]:
    """A generator that has given everything back when it is closed."""
    made = studio(sessions)
    keeper = made.keeper() if see is not None else None
    found = Generator(Worker(made.engine, made.codecs, vault or Shelf(), keeper), pace, see, **options)
    found.start()
    try:
        yield found
    finally:
        await found.close()
        assert not made.engine.sessions
        assert not sum(made.engine.pool.statistics().held_bytes.values())


@asynccontextmanager
async def served(
    limits: Limits | None = None, pace: Pace | None = None, key: str = "", meter: Meter | None = None, **options: Any
) -> AsyncIterator[tuple[Generator, Client, str]]:
    """A generator behind a gateway on a real port, and a client."""
    async with generator(pace, **options) as found:
        listening = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        app = gateway(found, limits, Path(web.__file__).parent, meter)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="websockets-sansio"))
        serving = asyncio.create_task(server.serve([listening]))
        try:
            async with Client(url, key) as client:
                yield found, client, url
        finally:
            server.should_exit = True
            await serving


def run(test: Callable[[], Awaitable[None]], seconds: float = 120.0) -> None:
    """Run an asynchronous test."""
    asyncio.run(asyncio.wait_for(test(), seconds))  # type: ignore[arg-type]


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something to come true, and fail if it does not."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def warmed(url: str, seconds: float = 120.0) -> None:
    """Wait until a session can be had: Serve waits neither for the directory nor for the books when these begin."""
    async with Client(url) as client, asyncio.timeout(seconds):
        while True:
            with suppress(LongtakeError):
                await client.stop((await client.create("a red ball bouncing in a blue room"))["session"])
                return
            await asyncio.sleep(0.5)

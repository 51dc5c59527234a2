"""What a Kubernetes service does for viewers: one address, and a connection to any pod that takes one."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

HOST, PIECE = "127.0.0.1", 1 << 16


@contextmanager
def kube_service(ports: Callable[[], Sequence[int]]) -> Iterator[str]:
    """Passes connections on to one of ``ports()``, in a thread of its own; yields the URL."""
    loop, begun = asyncio.new_event_loop(), threading.Event()
    server: list[asyncio.Server] = []
    turn, ended = iter(range(1 << 62)), asyncio.Event()

    async def connected() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        among = list(ports())
        first = next(turn)
        for i in range(len(among)):
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(HOST, among[(first + i) % len(among)])
        raise ConnectionRefusedError("no pod takes connections")

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await connected()
        except OSError:
            writer.close()
            return
        await asyncio.gather(passed(reader, back), passed(there, writer))

    async def begin() -> None:
        server.append(await asyncio.start_server(served, HOST, 0))
        begun.set()
        async with server[0]:
            await ended.wait()

    def whole() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(begin())

    thread = threading.Thread(target=whole, name="kube-service", daemon=True)
    thread.start()
    begun.wait()
    try:
        yield f"http://{HOST}:{server[0].sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)

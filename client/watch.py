"""Media and control over one WebSocket, with acknowledged credits, and a new socket where one was lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from client.problems import raised
from errors import LongtakeError, ServiceError, SessionOver
from wire import pack_message, unpack_message

PROTOCOL_NAME = "longtake.v1"
LOST = "the connection was lost before the service answered; ask what became of it"
PATIENCE = (0.2, 0.5, 1.0, 2.0, 4.0)  # seconds before each new try of a lost connection


class Watch:
    """One viewer. Use it as an async context manager and iterate over it: messages of type ``hello``, ``init``,
    ``chunk``, ``state`` and ``end``, as docs/protocol.md has them.

    Each chunk is acknowledged when the next one is asked for, so whoever is slow slows the session down. If the
    connection is lost, a new one goes on after the newest chunk that was given out; nothing is given out twice.
    """

    def __init__(
        self, url: str, key: str, session: str, after: int | None = -1, credits: int = 8, fresh: bool = True
    ) -> None:
        self.session, self.credits = session, credits
        self._url, self._key, self._after, self._fresh = url, key, after, fresh
        self._socket: ClientConnection | None = None
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._sent_ack: int | None = None
        self.reconnected = 0

    async def __aenter__(self) -> Self:
        self._socket = await self._connected()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            await self._socket.close()
        for answer in self._answers.values():
            answer.cancel()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        ended = False
        try:
            while not ended:
                with suppress(ConnectionClosed):
                    async for message in self._messages():
                        if message["type"] == "problem":
                            raise raised(message)
                        yield message
                        ended = message["type"] == "end"
                        if message["type"] == "chunk":
                            self._after, self._fresh = message["index"], False
                            await self._acknowledge(message["index"])
                if not ended:
                    self._give_up(ServiceError(LOST))
                    self._socket = await self._connected_again()
        finally:
            self._give_up(SessionOver("the watch ended before the service answered"))

    def _give_up(self, error: LongtakeError) -> None:
        """Nobody answers any more what was asked over the socket that there was."""
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)

    async def control(self, do: str, **fields: Any) -> dict[str, Any]:
        """Direct the session over the socket; somebody must be iterating.

        Returns the receipt or raises; ``ServiceError`` if the connection is lost, and then it may have been done.
        """
        if self._socket is None:
            raise SessionOver("the watch is not open; use it as an async context manager")
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send(pack_message({"type": "control", "id": number, "do": do, **fields}))
            message: dict[str, Any] = await answer
        except ConnectionClosed as error:
            raise ServiceError(LOST) from error
        finally:
            self._answers.pop(number, None)
        if message["type"] == "problem":
            raise raised(message)
        return message

    async def _messages(self) -> AsyncIterator[dict[str, Any]]:
        """Messages of the present socket, without answers to controls."""
        assert self._socket is not None
        async for data in self._socket:
            message = unpack_message(data if isinstance(data, bytes) else data.encode(), None)
            number = message.get("id")
            if number is None:
                yield message
            elif number in self._answers and not self._answers[number].done():
                self._answers[number].set_result(message)

    async def _acknowledge(self, chunk: int) -> None:
        assert self._socket is not None
        await self._socket.send(pack_message({"type": "ack", "chunk": chunk, "credits": self.credits}))

    async def _connected(self) -> ClientConnection:
        after = "" if self._after is None else f"&after={self._after}"
        query = f"credits={self.credits}&fresh={str(self._fresh).lower()}{after}"
        url = f"{self._url.replace('http', 'ws', 1)}/v1/sessions/{self.session}/watch?{query}"
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            return await connect(
                url,
                additional_headers=headers,
                subprotocols=[PROTOCOL_NAME],  # type: ignore[list-item]
                max_size=None,
                max_queue=16,
                compression=None,
            )
        except (OSError, InvalidHandshake, TimeoutError) as error:
            raise ServiceError(f"{self._url} cannot be reached: {error!r}; is the service running?") from error

    async def _connected_again(self) -> ClientConnection:
        for wait in PATIENCE:
            await asyncio.sleep(wait)
            with suppress(ServiceError):
                found = await self._connected()
                self.reconnected += 1
                return found
        raise ServiceError(f"the connection to {self._url} was lost, and {len(PATIENCE)} tries to renew it failed")

"""The gateway's sockets: media to a viewer as far as its credits go, acknowledgements and controls from it."""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from actors.asking import Backend, bearer, directed, problem, status_of
from actors.limits import Bucket, Limits
from actors.metrics import Meter
from actors.requests import CONTROL, Acknowledgement, parsed
from errors import BadMessage, LongtakeError, SessionMoved
from wire import pack_message, unpack_message

PROTOCOL_NAME = "longtake.v1"
ENDED, COME_AGAIN = 1000, 1012
SHOWN_OUT = {400: 4400, 401: 4401, 404: 4404, 409: 4409, 422: 4422, 429: 4429, 503: 4503}


@dataclass(frozen=True)
class Door:
    """One viewer's socket: whose it is, and what it may ask."""

    socket: WebSocket
    backend: Backend
    limits: Limits
    session: str
    owner: str
    viewer: str

    async def say(self, message: dict[str, Any]) -> None:
        """Send a message."""
        await self.socket.send_bytes(pack_message(message))


def watching(backend: Backend, limits: Limits, meter: Meter) -> Any:
    """The WebSocket route of viewers."""
    open_sockets = count_of(meter)

    async def watch(
        socket: WebSocket, session: str, after: int | None = None, credits: int = 4, fresh: bool = True
    ) -> None:
        offered = socket.headers.get("sec-websocket-protocol", "")
        await socket.accept(PROTOCOL_NAME if PROTOCOL_NAME in offered else None)
        open_sockets(1)
        try:
            owner = limits.owner(bearer(socket))
            if credits < 0 or (after is not None and after < -1):
                raise BadMessage(f"after is {after} and credits {credits}; expected a chunk's index and 0 or more")
            door = Door(socket, backend, limits, session, owner, secrets.token_hex(8))
            await _close(socket, ENDED, await _serve(door, after, credits, fresh))
        except SessionMoved as error:  # the viewer connects again, and is asked nothing
            await _close(socket, COME_AGAIN, str(error))
        except LongtakeError as error:
            with suppress(RuntimeError, WebSocketDisconnect):
                await socket.send_bytes(pack_message({"type": "problem", **_untyped(problem(error))}))
            await _close(socket, SHOWN_OUT.get(status_of(error), 1011), str(error))
        except (WebSocketDisconnect, RuntimeError):  # the second if it closed while something was being sent
            pass
        finally:
            open_sockets(-1)

    return watch


def count_of(meter: Meter) -> Callable[[int], None]:
    """Counts sockets up and down."""
    held = 0

    def change(by: int) -> None:
        nonlocal held
        held += by
        meter.set("sockets", held)

    return change


async def _serve(door: Door, after: int | None, credits: int, fresh: bool) -> str:
    """Send and receive until either side is done; returns why the take ended."""
    messages = door.backend.watch(door.session, door.owner, door.viewer, after, credits, fresh)
    answering, greeted = asyncio.Lock(), asyncio.Event()

    async def send() -> str:
        reason = ""
        async for message in messages:
            await door.say(message)
            greeted.set()
            if message["type"] == "end":
                reason = str(message["reason"])
        return reason

    async def receive() -> str:
        bucket = Bucket(door.limits.messages, 2 * door.limits.messages)
        while (received := await door.socket.receive())["type"] != "websocket.disconnect":
            data = received.get("bytes")
            if data is None:
                raise BadMessage("a text message; expected binary ones, msgpack as in docs/protocol.md")
            bucket.take("messages")
            message = unpack_message(data)
            if message["type"] == "ack" and not greeted.is_set():
                continue  # of what came over an earlier socket; the session may still be on its way here
            async with answering:
                await _answer(door, message)
        return "the viewer has left"

    tasks = [asyncio.create_task(send()), asyncio.create_task(receive())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[1] not in done and tasks[0].exception() is None:
            async with answering:  # a take that is stopped over this socket ends before the receipt is sent
                pass
        return next(iter(done)).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        close = getattr(messages, "aclose", None)
        if close is not None:
            await close()


async def _answer(door: Door, message: dict[str, Any]) -> None:
    """One message of a viewer. A control that cannot be carried out is answered; a lie or rubbish ends the socket."""
    kind = message.pop("type")
    if kind == "ack":
        ack = parsed(Acknowledgement, message)
        await door.backend.ask(
            door.session, door.owner, "acknowledge", door.viewer, ack.chunk, ack.credits, ack.buffered
        )
    elif kind == "control":
        number = message.pop("id", None)
        try:
            receipt = await directed(door.backend, door.session, door.owner, parsed(CONTROL, message), door.limits)
            answer = {"type": "receipt", "id": number, **receipt}
        except LongtakeError as error:
            answer = {"type": "problem", "id": number, **_untyped(problem(error))}
        await door.say(answer)
    elif kind == "ping":
        await door.say({"type": "pong"})
    else:
        raise BadMessage(f"type is {kind!r}; expected ack, control or ping")


def _untyped(details: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in details.items() if name != "type"}


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):
        await socket.close(code, reason.encode()[:120].decode(errors="ignore"))

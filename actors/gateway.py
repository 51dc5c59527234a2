"""The gateway: sessions over HTTP, media and control over a WebSocket, static pages. Stateless; any replica will do."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from actors.limits import Bucket, Buckets, Limits
from actors.reel import Order
from actors.requests import (
    CONTROL,
    Acknowledgement,
    ChangePrompt,
    Control,
    CutTo,
    Fork,
    GoBack,
    NewSession,
    direction,
    explained,
    parsed,
)
from errors import (
    BadMessage,
    ConfigError,
    LongtakeError,
    NoCapacity,
    NotAllowed,
    SceneExists,
    ServiceError,
    SessionOver,
    StreamClosed,
    StreamError,
    UnknownScene,
    UnknownSession,
)
from wire import pack_message, unpack_message

STATUS: tuple[tuple[type[LongtakeError], int], ...] = (
    (UnknownSession, 404),
    (UnknownScene, 404),
    (SceneExists, 409),
    (SessionOver, 409),
    (StreamClosed, 409),
    (NoCapacity, 429),
    (NotAllowed, 401),
    (BadMessage, 400),
    (ConfigError, 422),
    (StreamError, 409),
    (ServiceError, 503),
)
PROTOCOL_NAME, KEY_PREFIX = "longtake.v1", "key."
ENDED, SHOWN_OUT = 1000, {400: 4400, 401: 4401, 404: 4404, 409: 4409, 422: 4422, 429: 4429, 503: 4503}


class Backend(Protocol):
    """The generators behind a gateway; every call raises ``LongtakeError``."""

    async def create(self, session: str, order: Order, owner: str) -> dict[str, Any]:
        """Place a session and begin it."""
        ...

    async def ask(self, session: str, owner: str, call: str, *arguments: Any) -> Any:
        """Ask the generator that has ``session``; see ``Generator.ask``."""
        ...

    def watch(
        self, session: str, owner: str, viewer: str, after: int | None, credits: int, from_key: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """Messages for a viewer; closing the iterator detaches it."""
        ...

    async def listing(self, owner: str) -> list[dict[str, Any]]:
        """All sessions of an owner."""
        ...


def status_of(error: LongtakeError) -> int:
    """The HTTP status of an error."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def problem(error: LongtakeError) -> dict[str, Any]:
    """Problem details (RFC 9457) with the stable code of the error."""
    status = status_of(error)
    return {"type": f"urn:longtake:error:{error.code}", "title": type(error).__name__, "status": status,
            "detail": str(error), "code": error.code}  # fmt: skip


def gateway(backend: Backend, limits: Limits | None = None, pages: Path | None = None) -> FastAPI:
    """The application; ``pages``: folder of the player and the studio."""
    rules = limits or Limits()
    app = FastAPI(title="Longtake", version="1", description="Endless, interactive audio-video streams.")
    app.state.backend, app.state.limits = backend, rules
    app.state.creations = Buckets(rules.creations / 60, rules.creations)
    if rules.origins:
        app.add_middleware(CORSMiddleware, allow_origins=rules.origins, allow_methods=["*"], allow_headers=["*"])
    _errors(app)
    _sessions(app, backend, rules)
    app.add_api_websocket_route("/v1/sessions/{session}/watch", _watching(backend, rules))
    if pages is not None:
        app.mount("/", StaticFiles(directory=pages, html=True), name="pages")
    return app


def _errors(app: FastAPI) -> None:
    @app.exception_handler(LongtakeError)
    async def refused(_: Request, error: LongtakeError) -> JSONResponse:
        headers = {"Retry-After": f"{NoCapacity.retry_after_s:.0f}"} if isinstance(error, NoCapacity) else {}
        if isinstance(error, NotAllowed):
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(problem(error), status_of(error), headers, "application/problem+json")

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        told = problem(BadMessage(explained(error.errors())))
        return JSONResponse(told, 400, media_type="application/problem+json")

    @app.exception_handler(HTTPException)
    async def elsewhere(_: Request, error: HTTPException) -> JSONResponse:
        told = {"type": "about:blank", "title": str(error.detail), "status": error.status_code, "code": "http"}
        return JSONResponse(told, error.status_code, media_type="application/problem+json")


def _sessions(app: FastAPI, backend: Backend, limits: Limits) -> None:
    @app.middleware("http")
    async def small_bodies(request: Request, call_next: Any) -> Response:
        length = request.headers.get("content-length", "0")
        chunked = "transfer-encoding" in request.headers
        if chunked or not length.isdigit() or int(length) > limits.body_bytes:
            error = BadMessage(f"the body has {length} bytes or an unknown length; expected {limits.body_bytes:,}")
            return JSONResponse(problem(error), 413, media_type="application/problem+json")
        answer: Response = await call_next(request)
        return answer

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the gateway answers."""
        return {"status": "ok"}

    @app.post("/v1/sessions", status_code=201)
    async def create(request: Request, wanted: NewSession) -> dict[str, Any]:
        """Begin a session; 429 with ``Retry-After`` if every place is taken."""
        owner = limits.owner(bearer(request))
        app.state.creations.take(owner, "sessions created")
        session = f"take-{secrets.token_urlsafe(12)}"
        return await backend.create(session, wanted.order(limits), owner)

    @app.get("/v1/sessions")
    async def listing(request: Request) -> list[dict[str, Any]]:
        """The caller's sessions."""
        return await backend.listing(limits.owner(bearer(request)))

    @app.get("/v1/sessions/{session}")
    async def inspect(request: Request, session: str) -> Any:
        """What a session's cache holds and did: keep-set, slots, bytes, drift, decisions, scenes."""
        return await backend.ask(session, limits.owner(bearer(request)), "inspect")

    @app.post("/v1/sessions/{session}/control")
    async def control(request: Request, session: str, wanted: Control) -> Any:
        """Direct a session; the receipt says from which chunk it holds."""
        return await directed(backend, session, limits.owner(bearer(request)), wanted, limits)

    @app.get("/v1/sessions/{session}/scenes/{scene}/thumbnail.jpg")
    async def thumbnail(request: Request, session: str, scene: str) -> Response:
        """A picture of a scene."""
        found = await backend.ask(session, limits.owner(bearer(request)), "thumbnail", scene)
        if found is None:
            raise UnknownScene(f"{session} has no picture of {scene!r}")
        return Response(found, media_type="image/jpeg")

    @app.delete("/v1/sessions/{session}")
    async def delete(request: Request, session: str) -> Any:
        """End a session and release all that it holds."""
        return await backend.ask(session, limits.owner(bearer(request)), "stop")


async def directed(backend: Backend, session: str, owner: str, wanted: Any, limits: Limits) -> Any:
    """Carry a control out; returns its receipt."""
    if isinstance(wanted, Fork):
        return await backend.ask(session, owner, "fork", f"take-{secrets.token_urlsafe(12)}", wanted.seed)
    if isinstance(wanted, ChangePrompt | CutTo | GoBack):
        return await backend.ask(session, owner, "control", direction(wanted, limits))
    return await backend.ask(session, owner, wanted.do)


def bearer(request: Request | WebSocket) -> str:
    """The key of a request; browsers give it to a WebSocket as a sub-protocol."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    offered = [p.strip() for p in request.headers.get("sec-websocket-protocol", "").split(",")]
    return next((p.removeprefix(KEY_PREFIX) for p in offered if p.startswith(KEY_PREFIX)), "")


def _watching(backend: Backend, limits: Limits) -> Any:
    async def watch(
        socket: WebSocket, session: str, after: int | None = None, credits: int = 4, fresh: bool = True
    ) -> None:
        offered = socket.headers.get("sec-websocket-protocol", "")
        await socket.accept(PROTOCOL_NAME if PROTOCOL_NAME in offered else None)
        try:
            owner = limits.owner(bearer(socket))
            if credits < 0 or (after is not None and after < -1):
                raise BadMessage(f"after is {after} and credits {credits}; expected a chunk's index and 0 or more")
            reason = await _serve(socket, backend, limits, session, owner, after, credits, fresh)
            await _close(socket, ENDED, reason)
        except LongtakeError as error:
            with suppress(RuntimeError, WebSocketDisconnect):
                await socket.send_bytes(pack_message({"type": "problem", **_untyped(problem(error))}))
            await _close(socket, SHOWN_OUT.get(status_of(error), 1011), str(error))
        except WebSocketDisconnect:
            pass

    return watch


async def _serve(
    socket: WebSocket,
    backend: Backend,
    limits: Limits,
    session: str,
    owner: str,
    after: int | None,
    credits: int,
    fresh: bool,
) -> str:
    """Send and receive until either side is done; returns why the take ended."""
    viewer = secrets.token_hex(8)
    messages = backend.watch(session, owner, viewer, after, credits, fresh)
    answering = asyncio.Lock()

    async def send() -> str:
        reason = ""
        async for message in messages:
            await socket.send_bytes(pack_message(message))
            if message["type"] == "end":
                reason = str(message["reason"])
        return reason

    async def receive() -> str:
        bucket = Bucket(limits.messages, 2 * limits.messages)
        async for data in socket.iter_bytes():
            bucket.take("messages")
            async with answering:
                await _answer(socket, backend, limits, session, owner, viewer, unpack_message(data))
        return "the viewer has left"

    tasks = [asyncio.create_task(send()), asyncio.create_task(receive())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[1] not in done:
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


async def _answer(
    socket: WebSocket,
    backend: Backend,
    limits: Limits,
    session: str,
    owner: str,
    viewer: str,
    message: dict[str, Any],
) -> None:
    """One message of a viewer. A control that cannot be carried out is answered; a lie or rubbish ends the socket."""
    kind = message.pop("type")
    if kind == "ack":
        ack = parsed(Acknowledgement, message)
        await backend.ask(session, owner, "acknowledge", viewer, ack.chunk, ack.credits, ack.buffered)
    elif kind == "control":
        number = message.pop("id", None)
        try:
            receipt = await directed(backend, session, owner, parsed(CONTROL, message), limits)
            answer = {"type": "receipt", "id": number, **receipt}
        except LongtakeError as error:
            answer = {"type": "problem", "id": number, **_untyped(problem(error))}
        await socket.send_bytes(pack_message(answer))
    elif kind == "ping":
        await socket.send_bytes(pack_message({"type": "pong"}))
    else:
        raise BadMessage(f"type is {kind!r}; expected ack, control or ping")


def _untyped(details: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in details.items() if name != "type"}


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):
        await socket.close(code, reason.encode()[:120].decode(errors="ignore"))

"""What HTTP and WebSocket sides of the gateway share: the generators behind it, keys, controls, and problem details."""

import secrets
from collections.abc import AsyncIterator
from typing import Any, Protocol

from fastapi import Request, WebSocket

from actors.limits import Limits
from actors.order import Order
from actors.requests import ChangePrompt, CutTo, Fork, GoBack, direction
from errors import (
    BadMessage,
    ConfigError,
    LongtakeError,
    NoCapacity,
    NotAllowed,
    SceneExists,
    ServiceError,
    SessionOver,
    SnapshotCorrupt,
    SnapshotMismatch,
    StreamClosed,
    StreamError,
    UnknownScene,
    UnknownSession,
)

KEY_PREFIX = "key."
STATUS: tuple[tuple[type[LongtakeError], int], ...] = (
    (UnknownSession, 404),
    (UnknownScene, 404),
    (SceneExists, 409),
    (SessionOver, 409),
    (StreamClosed, 409),
    (NoCapacity, 429),
    (NotAllowed, 401),
    (BadMessage, 400),
    (SnapshotCorrupt, 400),
    (SnapshotMismatch, 422),
    (ConfigError, 422),
    (StreamError, 409),
    (ServiceError, 503),
)


class Backend(Protocol):
    """The generators behind a gateway; every call raises ``LongtakeError``."""

    async def create(self, session: str, order: Order, owner: str) -> dict[str, Any]:
        """Place a session and begin it."""
        ...

    async def bring(self, session: str, owner: str, nbytes: int, pieces: AsyncIterator[bytes]) -> dict[str, Any]:
        """Place a session and begin it with the take of a file of ``nbytes``."""
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

"""The gateway's files: a session out of the service as a file, and one begun from a file; a piece at a time."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from actors.asking import Backend, bearer
from actors.freight import PATIENCE_S, PIECE
from actors.limits import Limits
from errors import BadMessage

IMPORTS, MEDIA_TYPE = "/v1/imports", "application/vnd.longtake.take"
MEDIA = {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
BODY = {"requestBody": {**MEDIA, "required": True}}


def carrying(app: FastAPI, backend: Backend, limits: Limits) -> None:
    """The routes of exports and imports."""

    @app.get("/v1/sessions/{session}/export", response_class=StreamingResponse, responses={200: MEDIA})
    async def export(request: Request, session: str) -> StreamingResponse:
        """A session as a file, as it stands between two chunks; it goes on."""
        owner = limits.owner(bearer(request))
        found = await backend.ask(session, owner, "export", limits.take_bytes)
        headers = {
            "Content-Length": str(found["bytes"]),
            "Content-Disposition": f'attachment; filename="{session}.take"',
        }
        pieces = _pieces(backend, session, owner, found["ticket"], found["bytes"])
        return StreamingResponse(pieces, headers=headers, media_type=MEDIA_TYPE)

    @app.post(IMPORTS, status_code=201, openapi_extra=BODY)
    async def bring(request: Request) -> dict[str, Any]:
        """Begin a session that goes on from the take in the body, as a fork of the one that was exported."""
        owner = limits.owner(bearer(request))
        app.state.creations.take(owner, "sessions created")
        session = f"take-{secrets.token_urlsafe(12)}"
        nbytes = int(request.headers.get("content-length", "0"))
        return await backend.bring(session, owner, nbytes, _body(request))


async def _pieces(backend: Backend, session: str, owner: str, ticket: str, nbytes: int) -> AsyncIterator[bytes]:
    offset = 0
    while offset < nbytes:
        piece: bytes = await backend.ask(session, owner, "piece", ticket, offset)
        offset += len(piece)
        yield piece


async def _body(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces of about ``PIECE``; raises ``BadMessage`` if it stops coming."""
    held, parts = bytearray(), aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(PATIENCE_S):
                part = await anext(parts, None)
        except (TimeoutError, ClientDisconnect) as error:
            raise BadMessage(f"the body stopped coming: {error!r}") from error
        held += part or b""
        if held and (part is None or len(held) >= PIECE):
            yield bytes(held)
            held.clear()
        if part is None:
            return

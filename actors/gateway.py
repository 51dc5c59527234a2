"""The gateway: sessions over HTTP, media and control over a WebSocket, static pages. Stateless; any replica will do."""

import secrets
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from opentelemetry import trace
from starlette.exceptions import HTTPException

from actors.asking import Backend, bearer, directed, problem, status_of
from actors.files import IMPORTS, carrying
from actors.limits import Buckets, Limits
from actors.metrics import Meter, Tally
from actors.movement import Mover
from actors.operating import operating
from actors.requests import Control, NewSession, explained
from actors.sockets import watching
from errors import BadMessage, LongtakeError, NoCapacity, NotAllowed, UnknownScene

TRACER = trace.get_tracer("longtake")


def gateway(
    backend: Backend,
    limits: Limits | None = None,
    pages: Path | None = None,
    meter: Meter | None = None,
    mover: Mover | None = None,
) -> FastAPI:
    """The application; ``pages``: folder of the player and the studio.

    ``mover``: moves sessions, where there are several generators.
    """
    rules, meter = limits or Limits(), meter or Tally()
    app = FastAPI(title="Longtake", version="1", description="Endless, interactive audio-video streams.")
    app.state.backend, app.state.limits = backend, rules
    app.state.creations = Buckets(rules.creations / 60, rules.creations)
    if rules.origins:
        app.add_middleware(CORSMiddleware, allow_origins=rules.origins, allow_methods=["*"], allow_headers=["*"])
    _errors(app)
    _metered(app, meter)
    _sessions(app, backend, rules)
    carrying(app, backend, rules)
    if mover is not None:
        operating(app, mover, rules)
    app.add_api_websocket_route("/v1/sessions/{session}/watch", watching(backend, rules, meter))
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


def _metered(app: FastAPI, meter: Meter) -> None:
    @app.middleware("http")
    async def counted(request: Request, call_next: Any) -> Response:
        with TRACER.start_as_current_span("request", attributes={"method": request.method, "path": request.url.path}):
            answer: Response = await call_next(request)
        route = getattr(request.scope.get("route"), "path", "page")
        meter.add("requests", call=f"{request.method} {route}", outcome=str(answer.status_code))
        return answer


def _sessions(app: FastAPI, backend: Backend, limits: Limits) -> None:
    @app.middleware("http")
    async def small_bodies(request: Request, call_next: Any) -> Response:
        length = request.headers.get("content-length", "0")
        chunked = "transfer-encoding" in request.headers
        most = limits.take_bytes if request.url.path == IMPORTS else limits.body_bytes
        if chunked or not length.isdigit() or int(length) > most:
            error = BadMessage(f"the body has {length} bytes or an unknown length; expected at most {most:,}")
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

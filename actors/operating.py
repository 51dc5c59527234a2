"""The gateway's side for whoever runs the service: generators, draining, and moving sessions between them."""

from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request

from actors.asking import bearer
from actors.limits import Limits
from actors.movement import Mover
from actors.requests import Move


def operating(app: FastAPI, mover: Mover, limits: Limits) -> None:
    """The routes, for the keys of ``limits.admins``."""

    @app.get("/v1/generators")
    async def generators(request: Request) -> list[dict[str, Any]]:
        """Every generator: places, sessions, restore store, whether it is drained."""
        limits.admin(bearer(request))
        return await mover.fleet.generators()

    @app.post("/v1/generators/{generator}/drain")
    async def drain(request: Request, generator: str) -> dict[str, Any]:
        """Place no more sessions in a generator and hand over those that it has; the answer says where each went."""
        limits.admin(bearer(request))
        return asdict(await mover.drain(generator))

    @app.delete("/v1/generators/{generator}/drain")
    async def undo(request: Request, generator: str) -> dict[str, Any]:
        """Place sessions in a generator again."""
        limits.admin(bearer(request))
        await mover.undo(generator)
        return {"generator": generator, "do": "undrain"}

    @app.post("/v1/sessions/{session}/move")
    async def move(request: Request, session: str, wanted: Move) -> dict[str, Any]:
        """Have another generator go on with a session."""
        limits.admin(bearer(request))
        return await mover.move(session, wanted.to)

"""The plain classes as Ray Serve deployments, and nothing else."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError

from actors.autoscaling import DECISION, WANTED
from actors.backend import ServeBackend
from actors.directory import BEAT_S, Standing
from actors.fleet import FleetFromWithin, ServeFleet
from actors.following import Follower
from actors.gateway import gateway
from actors.generator import Generator
from actors.handover import Handover
from actors.limits import Limits
from actors.movement import Mover
from actors.order import Order
from actors.pace import Pace
from actors.ray_meter import RayMeter
from actors.reel import Glimpse
from actors.remote import Around, Handle, RemoteLedger, directory, is_head
from actors.routes import ROUTES
from actors.sites import Sites
from actors.steering import Load, Orders
from actors.telemetry import Carrier, Telemetry, begin, carrier, span
from actors.worker import FAILURES, Vault, Worker
from cache.tiers import RestoreTier
from errors import ServiceError
from models.segmenter import Finding, Segmenter
from scaling.rules import Balance, Fleet, Rules

LOG = logging.getLogger("longtake.generator")


class SegmenterReplica:
    """One segmenter as a Serve replica. Frames come as an array and masks go as one, never as tensors."""

    def __init__(self, build: Callable[[], Segmenter], telemetry: Telemetry) -> None:
        begin(telemetry, "segmenter")
        self.segmenter = build()
        self._thread = ThreadPoolExecutor(1, "segmenter")

    async def score(
        self, carried: Carrier, frames: NDArray[np.uint8], description: str
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Scores [frames] and masks [frames, height, width]; see ``Segmenter.score``."""
        with span("score", carried, frames=len(frames)):
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, frames, description)

    def _score(self, frames: NDArray[np.uint8], description: str) -> tuple[NDArray[Any], NDArray[Any]]:
        finding = self.segmenter.score(torch.from_numpy(frames.copy()), description)
        return finding.scores.numpy(), finding.masks.numpy()


async def seen_by(segmenter: Handle, sight_s: float, glimpse: Glimpse) -> Finding:
    """What a segmenter sees in a glimpse; raises ``ServiceError`` if it does not answer in time."""
    asked = segmenter.score.remote(carrier(), glimpse.frames.numpy(), glimpse.description)
    try:
        scores, masks = await asyncio.wait_for(asked, sight_s)
    except (TimeoutError, RayError, BackPressureError) as error:
        raise ServiceError(f"the segmenter did not answer: {error!r}") from error
    return Finding(torch.from_numpy(scores.copy()), torch.from_numpy(masks.copy()))


class GeneratorReplica:
    """One generator as a Serve replica; tells the directory every second what it holds."""

    handover: Handover | None = None  # none before it has begun, and after it was done

    def __init__(self, build: Callable[[Vault, RestoreTier], Worker], around: Around, segmenter: Handle) -> None:
        """``segmenter``: handle of the segmenters, or ``None``."""
        begin(around.telemetry, "generator")
        context = serve.get_replica_context()
        self.name: str = context.replica_id.unique_id
        self.directory = directory(around.books_resources)
        self.sites, self.draining = Sites(around), False
        see = None if segmenter is None else partial(seen_by, segmenter, around.sight_s)
        ledger = RemoteLedger(around.ledgers, around.journal, around.books_resources)
        worker = build(self.sites.vault, self.sites.tier)
        worker.others = self.sites.others
        self.generator = Generator(
            worker,
            see=see,
            ledger=ledger,
            stuck_s=around.stuck_s,
            meter=RayMeter(self.name),
        )
        self.backend = ServeBackend(context.deployment, around.books_resources)
        self._beats: list[asyncio.Task[None]] = []
        self.mover = Mover(FleetFromWithin(self.backend, self._report, self.hand_over, self.migrate))
        self.leaving = asyncio.Lock()
        self.follower = Follower(self.mover, self.name, lambda: bool(self.generator.sessions), self.leaving)
        self.node, self.began, self.orders = ray.get_runtime_context().get_node_id(), time.time(), Orders()
        self.head, self.rules = is_head(self.node), Rules()

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        """Called by Serve when a replica that is told to stop has no request left: whoever nobody watches moves too."""
        handover, self.handover = self.handover, None
        return None if handover is None else handover.leave(last=True)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve's ``user_config``: what may change while sessions run. Called before the first request."""
        rules = config["rules"]
        self.rules = Rules(**rules | {"balance": Balance(**rules["balance"]), "fleet": Fleet(**rules["fleet"])})
        self.generator.repace(Pace(**config["pace"]))
        if not self._beats:
            self.generator.start()
            works = (self._report, self.generator.measure, self._look)
            self._beats = [asyncio.create_task(every(BEAT_S, work)) for work in works]
            await self._report()
            self.handover = Handover(self.name, self.mover, self.leaving)
        if self.handover is not None:
            self.handover.grace_s = float(config["grace_s"])

    async def create(self, carried: Carrier, session: str, order: Order, owner: str) -> dict[str, Any]:
        """See ``Generator.create``; ``carried``: the caller's span."""
        with span("create", carried, session=session):
            found = await self.generator.create(session, order, owner)
        await self._told()
        return found

    async def expect(self, nbytes: int) -> str:
        """See ``Carriage.expect``."""
        return await self.generator.carriage.expect(nbytes)

    async def add(self, ticket: str, offset: int, piece: bytes) -> None:
        """See ``Freight.add``."""
        self.generator.carriage.incoming.add(ticket, offset, piece)

    async def unpack(self, carried: Carrier, session: str, owner: str, ticket: str) -> dict[str, Any]:
        """See ``Carriage.unpack``."""
        with span("unpack", carried, session=session):
            found = await self.generator.carriage.unpack(session, owner, ticket)
        await self._told()
        return found

    async def take_over(self, carried: Carrier, session: str, generator: str) -> dict[str, Any]:
        """See ``Succession.take_over``; raises ``ServiceError`` if another ``generator`` was meant, which has gone."""
        if generator != self.name:
            raise ServiceError(f"generator {generator} has gone; ask again")
        with span("take over", carried, session=session):
            found = await self.generator.succession.take_over(session)
        await self._told()
        return found

    async def migrate(self, call: str, session: str, *arguments: Any) -> Any:
        """One of ``migration.CALLS``; see ``Migration``."""
        return await self.generator.migration.ask(call, session, *arguments)

    async def hand_over(self, session: str, passed: bool = False) -> None:
        """See ``Succession.hand_over``."""
        await self.generator.succession.hand_over(session, passed)
        told = self.directory.desert.remote(session)
        self.generator.succession.left(session)
        await told

    async def shelter(self, session: str) -> None:
        """See ``Succession.shelter``."""
        await self.generator.succession.shelter(session)

    async def report(self) -> None:
        """Tell the directory at once what is held."""
        await self._report()

    async def ask(self, carried: Carrier, session: str, owner: str, call: str, *arguments: Any) -> Any:
        """See ``Generator.ask``; ``carried``: the caller's span."""
        with span(call, carried, session=session):
            found = await self.generator.ask(session, owner, call, *arguments)
        try:
            if call == "fork":
                await self.directory.adopt.remote(arguments[0], self.name)
                await self._report()
            elif call == "stop":
                await self.directory.release.remote(session)
        except FAILURES as error:  # it is done; the next beat says so, and whoever asked must not ask again
            LOG.warning("the directory was not told", extra={"session": session, "reason": repr(error)})
        return found

    async def watch(
        self, session: str, owner: str, viewer: str, after: int | None, credits: int, from_key: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """See ``Generator.watch``."""
        async for message in self.generator.watch(session, owner, viewer, after, credits, from_key):
            yield message

    async def leave(self, session: str, viewer: str) -> None:
        """A viewer has gone; said by its gateway, for Serve does not always end a stream that nobody reads."""
        live = self.generator.sessions.get(session)
        if live is not None:
            live.detach(viewer, self.generator.clock())

    async def check_health(self) -> None:
        """Raises if a step is stuck or nothing is reported; Serve then replaces the replica."""
        self.generator.check_health()
        if any(beat.done() for beat in self._beats):
            raise RuntimeError("this generator no longer reports to the directory")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Sessions that take a place, the slack, and how many generators there are to be, if that is decided."""
        found = {"sessions": float(sum(bool(s["on"]) for s in self._held()))}
        slack = self.generator.slack_s()
        if slack != float("inf"):
            found["slack_s"] = slack
        if self.orders.generators:
            found |= {WANTED: float(self.orders.generators), DECISION: float(self.orders.decision)}
        return found

    def _held(self) -> list[dict[str, Any]]:
        return self.generator.held()

    def _load(self) -> Load:
        base_s, each_s = self.generator.loop.times.line()
        slack_s, leaving = self.generator.slack_s(), self.follower.leaving
        return Load(base_s, each_s, slack_s, self.node, self.head, self.began, leaving, self.rules)

    async def _told(self) -> None:
        """A session that the directory has heard of is an orphan, not lost, should this process end or give it away."""
        try:
            await self._report()
        except FAILURES as error:  # the next beat says it too
            LOG.warning("a beat was left out", extra={"reason": repr(error)})

    async def _look(self) -> None:
        if not ROUTES.listed:  # the router of this process is made for the first request, and hears from Serve then
            await self.backend.of(self.name).report.remote()
        if self.handover is not None:
            await self.handover.look(ROUTES.listed)

    async def _report(self) -> None:
        actor = ray.get_runtime_context().get_actor_name()
        standing: Standing = await self.directory.report.remote(
            self.name,
            self.generator.capacity,
            self._held(),
            actor or "",
            self.sites.name,
            self.draining,
            self.generator.identity,
            self._load(),
        )
        self.draining, self.orders = standing.draining, standing.orders
        self.follower.follow(standing.orders, standing.over)
        self.sites.names = standing.stores
        if self.sites.mirrors != standing.stores[:1]:
            await self.generator.loop.between(self.sites.mirror)


async def every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again, whatever it raises."""
    while True:
        try:
            await work()
        except FAILURES as error:  # the directory is being made anew, or too much waits for the compute thread
            LOG.warning("a beat was left out", extra={"reason": repr(error)})
        await asyncio.sleep(seconds)


def gateway_builder(
    deployment: str, limits: Limits, pages: Path, telemetry: Telemetry, books_resources: dict[str, float]
) -> Callable[[], FastAPI]:
    """Builds the gateway's application inside its replica."""

    def build() -> FastAPI:
        begin(telemetry, "gateway")
        backend = ServeBackend(deployment, books_resources)
        meter = RayMeter(serve.get_replica_context().replica_id.unique_id)
        return gateway(backend, limits, pages, meter, Mover(ServeFleet(backend)))

    return build

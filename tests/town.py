"""Nodes with a restore store each, generators on them, a directory, and a gateway's backend; all in this process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from actors.directory import SessionDirectory
from actors.gateway import gateway
from actors.generator import Generator
from actors.limits import Limits
from actors.mirrored import MirroredTier, MirroredVault
from actors.movement import Fleet, Mover
from actors.order import Order
from actors.pace import Pace
from actors.remote_tier import RemoteTier
from actors.restore_store import Answer, RestoreStore
from actors.worker import Site, Vault
from client import Client
from errors import LongtakeError, NoCapacity, RecordLost, ServiceError, SessionMoved, UnknownSession
from settings import build_worker
from tests.real_service import free_ports
from tests.test_takeover import House, die


async def nothing(call: str) -> None:
    """Does nothing before or after a call."""


def refuse(*calls: str) -> Callable[[str], Awaitable[None]]:
    """These calls do not come through."""

    async def refused(call: str) -> None:
        if call in calls:
            raise ServiceError(f"{call} did not come through")

    return refused


class Node:
    """A machine: its restore store, behind calls, until it is lost."""

    def __init__(self) -> None:
        self.store: RestoreStore | None = RestoreStore(1 << 30, 1 << 30)

    def call(self, name: str, *arguments: Any) -> "Future[Answer]":
        told: Future[Answer] = Future()
        try:
            told.set_result(self.asked(name, *arguments))
        except (ServiceError, RecordLost) as error:
            told.set_exception(error)
        return told

    def asked(self, name: str, *arguments: Any) -> Any:
        if self.store is None:
            raise ServiceError("the node is lost")
        return getattr(self.store, name)(*arguments)


class NodeVault(Vault):
    """The vault of a node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def put(self, session: str, data: bytes) -> None:
        self.node.asked("put", session, data)

    def take(self, session: str) -> bytes:
        return bytes(self.node.asked("take", session))

    def drop(self, session: str) -> None:
        if self.node.store is not None:
            self.node.store.drop(session)


class Town(House, Fleet):
    """See the module; what a gateway's backend is to a client, and to whoever moves sessions."""

    def __init__(self, durability: str, sessions: int, nodes: int, mirror: bool) -> None:
        super().__init__(durability, sessions)
        self.nodes, self.mirror = [Node() for _ in range(nodes)], mirror
        self.directory = SessionDirectory()
        self.named: dict[str, Generator] = {}
        self.at: dict[str, Node] = {}
        self.reporting: dict[str, asyncio.Task[None]] = {}
        self.calls: list[str] = []  # of ``Migration``, and ``passed``
        self.before = self.after = nothing

    def settle(self, name: str, node: int = 0, pace: Pace | None = None) -> Generator:
        """A generator on a node."""
        mine = self.nodes[node]
        tier, vault = RemoteTier(mine.call), NodeVault(mine)
        sites = {n: Site(RemoteTier(n.call), NodeVault(n)) for n in self.nodes if n is not mine}
        mirrored, twice = MirroredTier(tier), MirroredVault(vault)
        worker = build_worker(self.settings, *((twice, mirrored) if self.mirror else (vault, tier)))
        worker.others = lambda: [site for n, site in sites.items() if n.store is not None]
        if self.mirror:
            first = next(iter(sites.values()))
            mirrored.mirror_to(first.tier)
            twice.mirror = first.vault
        made = Generator(worker, pace, ledger=self.ledger)
        self._remember(worker)
        made.start()
        self.built.append(made)
        self.named[name], self.at[name] = made, mine
        self._report(name)
        self.reporting[name] = asyncio.create_task(self._beat(name))
        return made

    async def lose(self, node: int) -> None:
        """Everything on a node ends, and what it had is gone."""
        lost, self.nodes[node].store = self.nodes[node], None
        for name in [n for n, where in self.at.items() if where is lost]:
            await self.kill(name)

    async def kill(self, name: str) -> None:
        """A generator ends."""
        self.reporting.pop(name).cancel()
        await die(self.named[name])
        for live in self.named[name].sessions.values():  # as a gateway's connection to it would end
            live.moved = True
            live.tell()
        self.built.remove(self.named.pop(name))
        self.at.pop(name)
        self.directory.bury(name)

    def _report(self, name: str) -> None:
        made = self.named[name]
        store = f"store-{self.nodes.index(self.at[name])}"
        self.directory.report(name, made.capacity, made.held(), store=store, identity=made.identity)

    async def _beat(self, name: str) -> None:
        while True:
            await asyncio.sleep(0.05)
            self._report(name)

    def of(self, session: str) -> Generator:
        home = self.directory.find(session)
        if home is None:
            raise UnknownSession(f"no session {session!r}")
        return self.named[home]

    # -- as the backend of a gateway

    async def create(self, session: str, order: Order, owner: str) -> dict[str, Any]:
        self.directory.place(session)
        found = await self.of(session).create(session, order, owner)
        self._report(str(self.directory.find(session)))
        return found

    async def bring(self, session: str, owner: str, nbytes: int, pieces: AsyncIterator[bytes]) -> dict[str, Any]:
        self.directory.place(session)
        return await self.of(session).carriage.bring(session, owner, nbytes, pieces)

    async def listing(self, owner: str) -> list[dict[str, Any]]:
        return self.directory.listing(owner)

    async def ask(self, session: str, owner: str, call: str, *arguments: Any) -> Any:
        while True:
            try:
                return await self.of(session).ask(session, owner, call, *arguments)
            except (SessionMoved, UnknownSession) as error:
                if call == "acknowledge":
                    raise SessionMoved(str(error)) from error
                await self.rescued(session)

    async def watch(
        self, session: str, owner: str, viewer: str, after: int | None, credits: int, from_key: bool
    ) -> AsyncIterator[dict[str, Any]]:
        while True:
            begun = False
            try:
                async for message in self.of(session).watch(session, owner, viewer, after, credits, from_key):
                    begun = True
                    yield message
                return
            except (SessionMoved, UnknownSession):
                if begun:
                    raise
            await self.rescued(session)

    async def rescued(self, session: str) -> None:
        try:
            await self.take_over(session)
        except NoCapacity:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.02)

    # -- as a fleet

    async def generators(self) -> list[dict[str, Any]]:
        return self.directory.generators()

    async def drain(self, member: str) -> list[dict[str, Any]]:
        self.directory.drain(member)
        self._report(member)
        return self.directory.drain(member)

    async def undrain(self, member: str) -> None:
        self.directory.undrain(member)

    async def reserve(self, session: str, to: str) -> str:
        return self.directory.reserve(session, to)

    async def unreserve(self, session: str) -> None:
        self.directory.unreserve(session)

    async def refuge(self, member: str) -> str:
        return self.directory.refuge(member)

    async def leaving(self, call: str, session: str, *arguments: Any) -> Any:
        return await self._called(call, lambda: self.of(session).migration.ask(call, session, *arguments))

    async def coming(self, member: str, call: str, session: str, *arguments: Any) -> Any:
        return await self._called(call, lambda: self.named[member].migration.ask(call, session, *arguments))

    async def _called(self, call: str, work: Callable[[], Awaitable[Any]]) -> Any:
        self.calls.append(call)
        await self.before(call)
        found = await work()
        await self.after(call)
        return found

    async def hand_over(self, session: str, passed: bool = False) -> None:
        if passed:
            self.calls.append("passed")
            await self.before("passed")
        home = self.directory.find(session)
        await self.of(session).succession.hand_over(session, passed)
        assert home is not None
        self.directory.desert(session)
        self.named[home].succession.left(session)

    async def take_over(self, session: str) -> str:
        home, promised = self.directory.rescue(session)
        if promised:
            try:
                await self.named[home].succession.take_over(session)
            except LongtakeError:
                self.directory.unplace(session)
                raise
            self._report(home)
        return home

    async def stop(self, session: str, owner: str) -> None:
        await self.ask(session, owner, "stop")

    async def shelter(self, session: str, member: str) -> None:
        await self.named[member].succession.shelter(session)


@asynccontextmanager
async def town(
    durability: str = "latents", sessions: int = 2, nodes: int = 1, mirror: bool = False
) -> AsyncIterator[Town]:
    """A town in which nothing runs yet; nothing is left running."""
    made = Town(durability, sessions, nodes, mirror)
    try:
        yield made
    finally:
        for task in made.reporting.values():
            task.cancel()
        for one in made.built:
            await one.close()
            assert not one.worker.engine.sessions


@asynccontextmanager
async def gate(made: Town, limits: Limits | None = None, key: str = "") -> AsyncIterator[tuple[Client, str]]:
    """A real port before a town, and a client."""
    port = free_ports(1)[0]
    app = gateway(made, limits, mover=Mover(made))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", ws="websockets-sansio"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        async with Client(f"http://127.0.0.1:{port}", key) as client:
            yield client, client.url
    finally:
        server.should_exit = True
        await serving

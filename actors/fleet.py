"""The generators of the cluster and their directory, as whoever moves sessions between them calls them."""

from collections.abc import Awaitable, Callable
from typing import Any

from actors.backend import ServeBackend
from actors.movement import Fleet
from actors.remote import told_plainly


class ServeFleet(Fleet):
    """By the handles of a gateway's backend."""

    def __init__(self, backend: ServeBackend) -> None:
        self.backend = backend

    async def generators(self) -> list[dict[str, Any]]:
        with told_plainly():
            found: list[dict[str, Any]] = await self.backend.directory.generators.remote()
            return found

    async def drain(self, member: str) -> list[dict[str, Any]]:
        with told_plainly():
            await self.backend.directory.drain.remote(member)
            await self.backend.of(member).report.remote()
            found: list[dict[str, Any]] = await self.backend.directory.drain.remote(member)
            return found

    async def undrain(self, member: str) -> None:
        with told_plainly():
            await self.backend.directory.undrain.remote(member)

    async def reserve(self, session: str, to: str) -> str:
        with told_plainly():
            found: str = await self.backend.directory.reserve.remote(session, to)
            return found

    async def unreserve(self, session: str) -> None:
        with told_plainly():
            await self.backend.directory.unreserve.remote(session)

    async def refuge(self, member: str) -> str:
        with told_plainly():
            found: str = await self.backend.directory.refuge.remote(member)
            return found

    async def leaving(self, call: str, session: str, *arguments: Any) -> Any:
        with told_plainly():
            home = await self.backend.directory.find.remote(session)
            return await self.backend.of(home or session).migrate.remote(call, session, *arguments)

    async def coming(self, member: str, call: str, session: str, *arguments: Any) -> Any:
        with told_plainly():
            return await self.backend.of(member).migrate.remote(call, session, *arguments)

    async def hand_over(self, session: str, passed: bool = False) -> None:
        with told_plainly():
            home = await self.backend.directory.find.remote(session)
            await self.backend.of(home or session).hand_over.remote(session, passed)

    async def take_over(self, session: str) -> str:
        return await self.backend.take_over(session)

    async def stop(self, session: str, owner: str) -> None:
        await self.backend.ask(session, owner, "stop")

    async def shelter(self, session: str, member: str) -> None:
        with told_plainly():
            await self.backend.of(member).shelter.remote(session)


class FleetFromWithin(ServeFleet):
    """As a generator calls it that gives its sessions away itself: once it is told to stop, Serve lets no request
    through to it any more, not even its own."""

    def __init__(
        self,
        backend: ServeBackend,
        report: Callable[[], Awaitable[None]],
        hand_over: Callable[[str, bool], Awaitable[None]],
        migrate: Callable[..., Awaitable[Any]],
    ) -> None:
        """``report``, ``hand_over``, ``migrate``: what is asked of the generator itself."""
        super().__init__(backend)
        self._report, self._hand_over, self._migrate = report, hand_over, migrate

    async def drain(self, member: str) -> list[dict[str, Any]]:
        with told_plainly():
            await self._report()
            found: list[dict[str, Any]] = await self.backend.directory.drain.remote(member)
            return found

    async def leaving(self, call: str, session: str, *arguments: Any) -> Any:
        with told_plainly():
            return await self._migrate(call, session, *arguments)

    async def hand_over(self, session: str, passed: bool = False) -> None:
        with told_plainly():
            await self._hand_over(session, passed)

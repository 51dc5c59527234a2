"""The generators behind a gateway, in the cluster: by way of the directory, the session router, and a rescue."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError

from actors.apart import Apart
from actors.order import Order
from actors.remote import Handle, directory, told_plainly
from actors.routes import ROUTES
from actors.telemetry import carrier
from errors import LongtakeError, NoCapacity, RecordLost, ServiceError, SessionMoved, UnknownSession

RESCUE_S, PAUSE_S = 60.0, 0.25  # how long a session whose generator has gone is looked for, and how often
OF_VIEWERS = {"acknowledge"}
AGAIN = (NoCapacity, ServiceError, RecordLost)  # the last where a restore store does not answer: nothing was changed
LOG = logging.getLogger("longtake.gateway")


@contextmanager
def found_again() -> Iterator[None]:
    """As ``told_plainly``; a generator that has gone is a ``SessionMoved``, one that misses somebody else is not."""
    with told_plainly():
        try:
            yield
        except RayActorError as error:
            if isinstance(error, RayTaskError):  # it lives, and somebody whom it asked does not
                raise
            raise SessionMoved("the generator has gone; connect again") from error


@dataclass
class Search:
    """For a session whose generator has gone: how long, and the generators that said that they do not know it."""

    until: float
    asked: set[str] = field(default_factory=set)


class ServeBackend:
    """The generators behind a gateway, by way of the directory and the session router."""

    def __init__(self, deployment: str, books_resources: Mapping[str, float]) -> None:
        self._deployment, self._resources = deployment, books_resources
        self._handle: Handle = None
        self._directory: Handle = None

    @property
    def handle(self) -> Handle:
        """The generators' handle, in the application that the gateway is of."""
        if self._handle is None:
            self._handle = Apart(serve.get_deployment_handle(self._deployment))
        return self._handle

    @property
    def directory(self) -> Handle:
        """The session directory."""
        if self._directory is None:
            self._directory = directory(self._resources)
        return self._directory

    async def create(self, session: str, order: Order, owner: str) -> dict[str, Any]:
        """Place a session and begin it."""
        with told_plainly():
            await self.directory.place.remote(session)
            try:
                found: dict[str, Any] = await self.of(session).create.remote(carrier(), session, order, owner)
            except BaseException:
                self.directory.release.remote(session)
                raise
            return found

    async def bring(self, session: str, owner: str, nbytes: int, pieces: AsyncIterator[bytes]) -> dict[str, Any]:
        """Place a session and begin it with the take of a file, which goes on to its generator as it comes."""
        with told_plainly():
            await self.directory.place.remote(session)
            try:
                of, offset = self.of(session), 0
                ticket = await of.expect.remote(nbytes)
                async for piece in pieces:
                    await of.add.remote(ticket, offset, piece)
                    await self.directory.renew.remote(session)
                    offset += len(piece)
                found: dict[str, Any] = await of.unpack.remote(carrier(), session, owner, ticket)
            except BaseException:
                self.directory.release.remote(session)
                raise
            return found

    async def ask(self, session: str, owner: str, call: str, *arguments: Any) -> Any:
        """Ask the generator that has ``session``, or goes on with it now."""
        search = Search(time.monotonic() + RESCUE_S)
        while True:
            try:
                with found_again():
                    return await self.of(session).ask.remote(carrier(), session, owner, call, *arguments)
            except (SessionMoved, UnknownSession) as error:
                ROUTES.forget(session)
                if call in OF_VIEWERS:  # who watches connects again, and the watch has the session looked for
                    raise SessionMoved(str(error)) from error
                await self._rescue(session, error, search)

    async def watch(
        self, session: str, owner: str, viewer: str, after: int | None, credits: int, from_key: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """Messages for a viewer; closing the iterator detaches it.

        Raises ``SessionMoved`` if the generator is lost after the first message: where the viewer is then, only it
        knows, and says when it connects again.
        """
        search = Search(time.monotonic() + RESCUE_S)
        while True:
            of, begun = self.of(session), False
            messages = of.options(stream=True).watch.remote(session, owner, viewer, after, credits, from_key)
            try:
                with found_again():
                    async for message in messages:
                        begun = True
                        yield message
                return
            except (SessionMoved, UnknownSession) as error:
                ROUTES.forget(session)
                if begun:
                    raise
                missing = error
            finally:
                messages.cancel()
                if begun:
                    of.leave.remote(session, viewer)
            await self._rescue(session, missing, search)

    async def _rescue(self, session: str, error: LongtakeError, search: "Search") -> None:
        """Have a session that was not found taken over, or wait for whoever does; raises if it is not to be had."""
        try:
            with told_plainly():
                home, promised = await self.directory.rescue.remote(session)
                if promised:
                    await self._taken_over(session, home)
                elif isinstance(error, UnknownSession):
                    if home in search.asked:
                        raise error
                    search.asked.add(home)  # it may have taken the session over since
        except UnknownSession:
            raise
        except AGAIN:  # a generator or its store may be starting, or has gone too
            if time.monotonic() + PAUSE_S > search.until:
                raise
        await asyncio.sleep(PAUSE_S)

    async def _taken_over(self, session: str, home: str) -> None:
        try:
            with told_plainly():  # asked for by its own name: where the session was may still be where it is sent to
                await self.of(home).take_over.remote(carrier(), session, home)
        except LongtakeError as error:
            lost = isinstance(error, UnknownSession) or not isinstance(error, AGAIN)
            done = self.directory.release if lost else self.directory.unplace
            await done.remote(session)
            raise
        finally:
            ROUTES.forget(session)
        LOG.info("session taken over", extra={"session": session})

    async def take_over(self, session: str) -> str:
        """Have a session that was given away taken over; returns the generator that has it."""
        search = Search(time.monotonic() + RESCUE_S)
        while True:
            try:
                with told_plainly():
                    home, promised = await self.directory.rescue.remote(session)
                if promised:
                    await self._taken_over(session, home)
                return str(home)
            except UnknownSession:
                raise
            except AGAIN:
                if time.monotonic() + PAUSE_S > search.until:
                    raise
            await asyncio.sleep(PAUSE_S)

    async def listing(self, owner: str) -> list[dict[str, Any]]:
        """All sessions of an owner."""
        with told_plainly():
            found: list[dict[str, Any]] = await self.directory.listing.remote(owner)
            return found

    def of(self, session: str) -> Handle:
        """The generator that has a session, or is called that."""
        return self.handle.options(session_id=session)

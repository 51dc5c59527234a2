"""A session that moves while it goes on: the generator that it leaves, and the one that it comes to.

Whoever moves it asks them in turn (``actors.movement``). A generator that is left keeps the session, standing still,
until it is told that the other one has it; so whatever fails before, the session goes on where it is. There is one
owner at every moment, whom the ledger service knows: the other one claims the books as they were when the session
stood still, or not at all.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from actors.live import Live, State
from actors.precopy import Precopy
from errors import (
    BadMessage,
    FencedOff,
    LongtakeError,
    RecordLost,
    ServiceError,
    SessionMoved,
    SessionOver,
    UnknownSession,
)
from streams.durability import PUBLISHED
from streams.migration import Offer, Page

if TYPE_CHECKING:
    from actors.generator import Generator

LANDING_S = 5.0  # what is copied ahead has that long to get to the store
HELD_S = 10.0  # a session that stands still goes on where it is if nobody has said by then that it has gone
AWAITED_S = 30.0  # what has come of a session that does not is dropped after that
Timers = dict[str, asyncio.TimerHandle]
CALLS = {"copy_ahead", "hold", "resume", "prepare", "accept", "drop"}  # what whoever moves a session may ask
LOG = logging.getLogger("longtake.generator")


class Migration:
    """See the module. Event loop only."""

    def __init__(self, generator: "Generator") -> None:
        self.generator, self.loop = generator, generator.loop
        self.precopy = Precopy(generator.worker)
        self._held: Timers = {}
        self._awaited: Timers = {}

    async def ask(self, call: str, session: str, *arguments: Any) -> Any:
        """One of ``CALLS``."""
        if call not in CALLS:
            raise BadMessage(f"call is {call!r}; expected one of {', '.join(sorted(CALLS))}")
        return await getattr(self, call)(session, *arguments)

    # -- where it comes from

    async def copy_ahead(self, session: str, came: Sequence[Page] = ()) -> Offer:
        """Copy a chunk's pages of a session that goes on to the store; ``came``: those that were fetched.

        Raises ``LongtakeError`` if it does not run, or the store does not take them.
        """
        return await self._copied(self._running(session), came, False)

    async def hold(self, session: str) -> bytes:
        """Let a session stand still, and copy the last pages to the store; what else the other generator must know.

        Within ``HELD_S`` it is to be released or resumed. Raises ``LongtakeError``, and then it goes on.
        """
        live = self._running(session)
        async with live.directing:
            live.moving = True
            live.enter(State.PAUSED, self.generator.clock(), "it moves to another generator")
            self._hold(session)
            try:
                await self._copied(live, (), True)
                if live.publishing is not None:
                    await asyncio.wait([live.publishing])
                media = live.wanted(PUBLISHED), live.header, live.mime
                data: bytes = await self.loop.between(self.precopy.pack, session, *media)
                await self.loop.books.restate(session)
            except BaseException:
                await self.resume(session)
                raise
            return data

    async def resume(self, session: str) -> None:
        """A session does not move after all, and goes on here; unknown ones are no error.

        Should the other generator have claimed it, that one is fenced off. Raises ``ServiceError``, and is tried again.
        """
        live = self.generator.sessions.get(session)
        if live is None:
            return
        if session in self._held:
            self._hold(session)
            await self.loop.books.open(session)
            self._held.pop(session).cancel()
            live.moving = False
            if live.state is State.PAUSED:
                live.enter(State.RUNNING, self.generator.clock())
        await self.loop.between(self.precopy.stay, session)
        self.loop.wake()

    def release(self, session: str) -> Live | None:
        """The other generator has a session that stands still here; nothing if this is that other one.

        Raises ``SessionMoved`` if it goes on here again, and ``UnknownSession``.
        """
        live = self.generator.known(session)
        if session in self._awaited:  # who had it has gone
            return None
        if session not in self._held:
            raise SessionMoved(f"{session} does not stand still here any more")
        self._held.pop(session).cancel()
        return live

    # -- where it goes

    async def prepare(self, session: str, offer: Offer) -> int:
        """Fetch what is offered; returns how many records of evicted chunks are still to be fetched.

        Raises ``LongtakeError``; what has come is kept until ``drop``, or until nobody asks for ``AWAITED_S``.
        """
        if session in self.generator.sessions:
            raise ServiceError(f"{session} is here already")
        self._await(session)
        left: int = await self.loop.between(self.precopy.prepare, session, offer)
        return left

    async def accept(self, session: str, data: bytes) -> None:
        """Go on with a session that stands still elsewhere. Raises ``LongtakeError``, and then it is not here."""
        if session in self.generator.sessions:
            raise ServiceError(f"{session} is here already")
        self._await(session)
        await self.generator.succession.come(session, self._accept(session, data))

    async def _accept(self, session: str, data: bytes) -> None:
        try:
            number = await self.loop.between(self.precopy.complete, session, data)
            worker = self.generator.worker
            await self.generator.succession.enter_taken(
                session, self.precopy.take, lambda session, *_: worker.close(session), number=number
            )
        except BaseException:
            await self.loop.between(self.precopy.drop, session)
            raise

    async def confirmed(self, session: str) -> None:
        """Whoever had a session has let it go: what it left in the stores is forgotten. Again is no error."""
        if session in self._awaited:
            self._no_longer_awaited(session)
            await self.loop.between(self.precopy.forget, session)

    async def drop(self, session: str) -> None:
        """A session does not come: nothing of it stays. One that has come is let go only if another has it now.

        Unknown ones are no error. Raises ``ServiceError`` while the ledger service does not answer.
        """
        live = self.generator.sessions.get(session)
        if session not in self._awaited:
            return
        if live is not None:
            try:
                await self.loop.books.restate(session)
                return
            except (FencedOff, UnknownSession):  # it may have found out by itself meanwhile
                await self.loop.give_away(live, whole=True)
        self._no_longer_awaited(session)
        await self.loop.between(self.precopy.drop, session)

    # -- inside

    def _running(self, session: str) -> Live:
        live = self.generator.known(session)
        if live.state is not State.RUNNING or live.moving:
            raise SessionOver(f"{session} does not run; it moves as it is")
        return live

    async def _copied(self, live: Live, came: Sequence[Page], whole: bool) -> Offer:
        offer, landed = await self.loop.between(self.precopy.copy_ahead, live.id, came, whole)
        try:
            whole = await asyncio.wait_for(asyncio.wrap_future(landed), LANDING_S)
        except TimeoutError:
            whole = False
        if not whole:
            raise RecordLost(f"pages of {live.id} were lost on their way to the store")
        found: Offer = offer
        return found

    def _hold(self, session: str) -> None:
        """Keep a session standing still for ``HELD_S`` from now."""
        self._again(self._held, session, HELD_S, self.resume)

    def _await(self, session: str) -> None:
        """Keep what has come of a session for ``AWAITED_S`` from now."""
        self._again(self._awaited, session, AWAITED_S, self._given_up)

    def _no_longer_awaited(self, session: str) -> None:
        """It is known what became of a session."""
        timer = self._awaited.pop(session, None)
        if timer is not None:
            timer.cancel()

    async def _given_up(self, session: str) -> None:
        """Nobody has said what became of a session: if it is ours, so be it, else it does not come."""
        await self.drop(session)
        await self.confirmed(session)

    def _again(self, timers: Timers, session: str, seconds: float, what: Callable[[str], Awaitable[None]]) -> None:
        if session in timers:
            timers.pop(session).cancel()

        async def late() -> None:
            LOG.warning("a move was not ended", extra={"session": session})
            try:
                await what(session)
            except LongtakeError as error:  # the ledger service does not answer
                LOG.warning("a move could not be ended", extra={"session": session, "reason": str(error)})
                if self.loop.goes_on:
                    self._again(timers, session, seconds, what)

        timers[session] = asyncio.get_running_loop().call_later(seconds, lambda: self.loop.spawn(late()))

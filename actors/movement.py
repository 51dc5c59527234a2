"""Moving sessions between generators while they are watched: one, or all of one generator before it is taken away.

A session is handed over by the one and taken over by the other, the same way as after a loss; its viewers connect again
by themselves. Nothing is handed over before there is a place for it.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.live import OVER, State
from errors import LongtakeError, ServiceError, SessionMoved
from streams.migration import Offer, Page

LOG = logging.getLogger("longtake.gateway")
COPIES = 64  # rounds of a chunk; what is left then is copied while the session stands still
COPY_S = 30.0  # a place is not kept for much longer
ROUNDS = 3  # looks at what is left in a generator that is drained: forks are born where their parents are


class Fleet(Protocol):
    """The generators and their directory; every call raises ``LongtakeError``."""

    async def generators(self) -> list[dict[str, Any]]:
        """See ``SessionDirectory.generators``."""
        ...

    async def drain(self, member: str) -> list[dict[str, Any]]:
        """See ``SessionDirectory.drain``; sessions as the generator has them now."""
        ...

    async def undrain(self, member: str) -> None:
        """See ``SessionDirectory.undrain``."""
        ...

    async def reserve(self, session: str, to: str) -> str:
        """See ``SessionDirectory.reserve``."""
        ...

    async def unreserve(self, session: str) -> None:
        """See ``SessionDirectory.unreserve``."""
        ...

    async def refuge(self, member: str) -> str:
        """See ``SessionDirectory.refuge``."""
        ...

    async def leaving(self, call: str, session: str, *arguments: Any) -> Any:
        """A call of ``Migration`` in the generator that has a session."""
        ...

    async def coming(self, member: str, call: str, session: str, *arguments: Any) -> Any:
        """A call of ``Migration`` in the generator that a session is to go to."""
        ...

    async def hand_over(self, session: str, passed: bool = False) -> None:
        """See ``Succession.hand_over``; the session is an orphan then."""
        ...

    async def take_over(self, session: str) -> str:
        """Have an orphan taken over where a place is reserved for it, or where there is one; returns where."""
        ...

    async def stop(self, session: str, owner: str) -> None:
        """End a session, wherever it is; an orphan is taken over first."""
        ...

    async def shelter(self, session: str, member: str) -> None:
        """See ``Succession.shelter``."""
        ...


@dataclass
class Drained:
    """What became of a generator's sessions.

    Args:
        moved: by session, the generator that goes on with it.
        parked: of those that are put away, by session, the generator beside whose store it waits to be asked for.
        stayed: by session, why it could not go.
        ending: sessions that are over, and only wait for their viewers.
    """

    generator: str
    moved: dict[str, str] = field(default_factory=dict)
    parked: dict[str, str] = field(default_factory=dict)
    stayed: dict[str, str] = field(default_factory=dict)
    ending: list[str] = field(default_factory=list)

    @property
    def known(self) -> set[str]:
        """All that was seen to."""
        return {*self.moved, *self.parked, *self.stayed, *self.ending}


@dataclass(frozen=True)
class Mover:
    """See the module.

    Args:
        ahead: whether sessions are copied while they go on, so that they hardly stand still.
    """

    fleet: Fleet
    ahead: bool = True

    async def move(self, session: str, to: str = "") -> dict[str, Any]:
        """Have another generator, perhaps ``to``, go on with a session; returns which.

        Raises:
            NoCapacity: there is no place elsewhere; it stays.
            BadMessage: ``to`` is no generator, or it is there already.
        """
        target = await self.fleet.reserve(session, to)
        try:
            if not (self.ahead and await self._pass(session, target)):
                await self.fleet.hand_over(session)
        except BaseException:
            await self.fleet.unreserve(session)
            raise
        target = await self.fleet.take_over(session)
        LOG.info("session moved", extra={"session": session, "to": target})
        return {"session": session, "do": "move", "to": target}

    async def drain(self, member: str) -> Drained:
        """Place no more sessions in a generator, and hand over those that it has, one after the other."""
        done = Drained(member)
        for _ in range(ROUNDS):
            left = [s for s in await self.fleet.drain(member) if s["session"] not in done.known]
            if not left:
                break
            for session in left:
                await self._empty(done, str(session["session"]), State(session["state"]))
        return done

    async def _pass(self, session: str, to: str) -> bool:
        """Have a session that goes on copied to ``to``, and let it go on there; whether that is done.

        If not, it goes on where it is, and nothing of it is there.
        """
        fleet = self.fleet
        try:
            async with asyncio.timeout(COPY_S):
                await self._copy(session, to)
            await fleet.coming(to, "accept", session, await fleet.leaving("hold", session))
        except (LongtakeError, TimeoutError) as error:
            LOG.info("session could not be copied ahead", extra={"session": session, "reason": repr(error)})
            await self._undo(session, to)
            return False
        try:
            await fleet.hand_over(session, passed=True)
        except SessionMoved as error:  # it took too long, and the session went on where it was
            LOG.warning("session went on before it was passed", extra={"session": session, "reason": str(error)})
            await self._undo(session, to)
            return False
        except ServiceError as error:  # who had it is not there any more; who has it now is in the books
            LOG.warning("session was passed by one that has gone", extra={"session": session, "reason": str(error)})
        return True

    async def _copy(self, session: str, to: str) -> None:
        """Copy until little is left. What comes is fetched while the next is copied; as much is on its way at most."""
        offer: Offer = await self.fleet.leaving("copy_ahead", session)
        came: tuple[Page, ...] = ()
        for _ in range(COPIES):
            fetched = self.fleet.coming(to, "prepare", session, offer)
            following = self.fleet.leaving("copy_ahead", session, came)
            done: Any = await asyncio.gather(fetched, following, return_exceptions=True)
            for one in done:
                if isinstance(one, BaseException):  # and the other one has come to its end too
                    raise one
            came, (records, offer) = offer.pages, done
            if offer.left <= 1 and not records:
                break

    async def _undo(self, session: str, to: str) -> None:
        """A session is not to go on in ``to``: first it goes on where it was, so that ``to`` knows."""
        for undo in (self.fleet.leaving("resume", session), self.fleet.coming(to, "drop", session)):
            try:
                await undo
            except LongtakeError as error:  # they find out by themselves a little later
                LOG.warning("a move could not be undone", extra={"session": session, "reason": str(error)})

    async def undo(self, member: str) -> None:
        """Place sessions in a generator again."""
        await self.fleet.undrain(member)

    async def _empty(self, done: Drained, session: str, state: State) -> None:
        if state in OVER:
            done.ending.append(session)
            return
        try:
            if state is State.PAUSED:
                refuge = await self.fleet.refuge(done.generator)
                await self.fleet.hand_over(session)
                await self.fleet.shelter(session, refuge)
                done.parked[session] = refuge
            else:
                done.moved[session] = (await self.move(session))["to"]
        except LongtakeError as error:
            LOG.warning("session could not be moved", extra={"session": session, "reason": str(error)})
            done.stayed[session] = str(error)

"""Moving sessions between generators while they are watched: one, or all of one generator before it is taken away.

A session is handed over by the one and taken over by the other, the same way as after a loss; its viewers connect again
by themselves. Nothing is handed over before there is a place for it.
"""

import logging
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.live import OVER, State
from errors import LongtakeError

LOG = logging.getLogger("longtake.gateway")
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

    async def hand_over(self, session: str) -> None:
        """See ``Generator.hand_over``; the session is an orphan then."""
        ...

    async def take_over(self, session: str) -> str:
        """Have an orphan taken over where a place is reserved for it, or where there is one; returns where."""
        ...

    async def shelter(self, session: str, member: str) -> None:
        """See ``Generator.shelter``."""
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
    """See the module."""

    fleet: Fleet

    async def move(self, session: str, to: str = "") -> dict[str, Any]:
        """Have another generator, perhaps ``to``, go on with a session; returns which.

        Raises:
            NoCapacity: there is no place elsewhere; it stays.
            BadMessage: ``to`` is no generator, or it is there already.
        """
        target = await self.fleet.reserve(session, to)
        try:
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

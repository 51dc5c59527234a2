"""A generator does what the directory orders: it gives sessions away while they are watched, one after the other, and
has those stopped that nobody came back to.
"""

import asyncio
import logging
from collections.abc import Callable

from actors.movement import Mover
from actors.steering import Orders
from errors import LongtakeError

AGAIN_S = 2.0  # between two attempts to give away what found no place
LOG = logging.getLogger("longtake.generator")


class Follower:
    """Carries orders out on the side, one at a time.

    Args:
        mover: of a fleet whose ``drain`` and ``hand_over`` reach this generator even while Ray Serve stops it.
        member: this generator's name.
        busy: whether it has any sessions.
        leaving: held while sessions are given away; shared with whoever else gives away sessions of this generator, or
            one of two that move the same session would take back the place that the other one has reserved.
    """

    def __init__(self, mover: Mover, member: str, busy: Callable[[], bool], leaving: asyncio.Lock) -> None:
        self.mover, self.member, self.busy, self._one = mover, member, busy, leaving
        self.leaving = False
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._moves: dict[str, str] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing is being carried out."""
        return self._task is None or self._task.done()

    def follow(self, orders: Orders, over: tuple[str, str] | None = None) -> None:
        """Take orders; those before are carried out first, but for moves once all sessions are to go.

        ``over``: a session that is to be stopped, and its owner.
        """
        self.leaving = orders.leave
        self._moves |= dict(orders.moves)
        if over is not None and (self._ending is None or self._ending.done()):  # else the directory asks again
            self._ending = asyncio.create_task(self._end(*over))
        if self.idle:
            if orders.leave and self.busy():
                self._moves.clear()
                self._task = asyncio.create_task(self._leave())
            elif self._moves:
                self._task = asyncio.create_task(self._move())

    async def _end(self, session: str, owner: str) -> None:
        try:
            await self.mover.fleet.stop(session, owner)
            LOG.info("session that nobody came back to was stopped", extra={"session": session})
        except LongtakeError as error:
            LOG.warning("session could not be stopped", extra={"session": session, "reason": str(error)})

    async def _leave(self) -> None:
        """Give everything away; what has no place stays, and is tried again at the next order."""
        try:
            async with self._one:
                done = await self.mover.drain(self.member)
            LOG.info("sessions given away", extra={"moved": len(done.moved), "stayed": len(done.stayed)})
        except LongtakeError as error:
            LOG.warning("sessions could not be given away", extra={"reason": str(error)})
        await asyncio.sleep(AGAIN_S)

    async def _move(self) -> None:
        while self._moves:
            session, to = self._moves.popitem()
            try:
                async with self._one:
                    await self.mover.move(session, to)
            except LongtakeError as error:  # it has ended, or the place is gone: it stays
                LOG.warning("session could not be moved", extra={"session": session, "reason": str(error)})

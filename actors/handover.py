"""A generator that is told to stop, by an upgrade or because there are to be fewer: its sessions go on elsewhere first.

Serve says nothing to a replica that it stops before the last request there has ended, and every viewer is a request
that lasts. But routers are told at once that it is no longer one of those to send requests to, the router in its own
process too: see ``Routes.listed``.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from actors.directory import DOUBT_S
from actors.movement import Mover
from errors import LongtakeError

GRACE_S, LAST_S = 60.0, 10.0
LOG = logging.getLogger("longtake.generator")


@dataclass
class Handover:
    """Moves everything from a generator that is no longer listed.

    Sessions for which there is no place elsewhere stay, and are tried again with every look, as long as Serve waits:
    the replica that is to take them may have to start first. Shortly before the end they are put away beside their
    store, for whoever has a place when somebody asks for them.

    Args:
        generator: its name.
        mover: over a fleet that reaches this generator although requests do not.
        grace_s: how long Serve waits until it ends a process that it told to stop.
        leaving: see ``Follower``.
        clock: monotonic seconds.
    """

    generator: str
    mover: Mover
    leaving: asyncio.Lock
    grace_s: float = GRACE_S
    clock: Callable[[], float] = time.monotonic
    known: bool = False
    since: float | None = None

    async def look(self, listed: Collection[str]) -> None:
        """Do what there is to do now; called with every beat. Who was never listed is still starting."""
        if self.generator in listed:
            await self._stays()
        elif self.known:
            now = self.clock()
            self.since = now if self.since is None else self.since
            if now - self.since >= DOUBT_S:
                await self.leave(last=now - self.since >= self.grace_s - min(LAST_S, self.grace_s / 2))

    async def leave(self, last: bool) -> None:
        """Move what can be moved; with ``last`` what cannot is put away, and goes on when somebody asks for it.

        One at a time: who calls while another is at it waits, and finds what that one left.
        """
        async with self.leaving:
            done = await self.mover.drain(self.generator)
            if done.known:
                told = {"moved": len(done.moved), "parked": len(done.parked), "stayed": len(done.stayed)}
                LOG.info("told to stop", extra={"generator": self.generator, **told})
            for session in done.stayed if last else ():
                with suppress(LongtakeError):  # the vault is full: it is failed over, from its last commit
                    await self.mover.fleet.hand_over(session)

    async def _stays(self) -> None:
        self.known = True
        if self.since is not None:
            self.since = None
            await self.mover.undo(self.generator)

"""Sessions that pass from one generator to another: taken over after a loss or when they are given away, handed over.

A session that goes on while it moves comes by way of ``actors.migration``, and is entered here like any other.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from actors.elsewhere import shelter
from actors.ledger_service import Statement
from actors.takeover import Taken, take_over, taken_over, undone
from actors.worker import FAILURES
from errors import FencedOff, NoCapacity

if TYPE_CHECKING:
    from actors.generator import Generator

Take = Callable[[str, Statement], Taken]
Undo = Callable[[str, Statement, bool], None]
Done = Callable[[str, Statement], None]


class Succession:
    """See the module. Event loop only."""

    def __init__(self, generator: "Generator") -> None:
        self.generator, self.loop = generator, generator.loop
        self._coming: dict[str, asyncio.Task[None]] = {}
        self.leaving: dict[str, dict[str, Any]] = {}  # sessions that are handed over, until the directory knows

    async def take_over(self, session: str) -> dict[str, Any]:
        """Go on with a session that another generator lost or gave away; again is no error.

        Raises:
            UnknownSession: the ledger service knows no such session.
            NoCapacity: every place in the pool is taken.
            LongtakeError: what is left of it cannot be used here.
        """
        coming = self._coming.get(session)
        if coming is not None:
            await asyncio.wait([coming])
        if session not in self.generator.sessions:
            await self.come(session, self._take_over(session))
        await self.generator.migration.confirmed(session)
        return self.generator.describe(session)

    async def come(self, session: str, work: Coroutine[Any, Any, None]) -> None:
        """Do what has a session come here, unless that is under way already; to its end, whoever asked."""
        begun = self._coming.get(session)
        if begun is None:
            begun = self._coming[session] = self.loop.spawn(work)
            begun.add_done_callback(lambda _: self._coming.pop(session, None))
        else:
            work.close()
        await asyncio.shield(begun)

    async def _take_over(self, session: str) -> None:
        await self.generator.migration.drop(session)
        worker = self.generator.worker
        await self.enter_taken(
            session, partial(take_over, worker), partial(undone, worker), partial(taken_over, worker)
        )

    async def enter_taken(
        self,
        session: str,
        take: Take,
        undo: Undo,
        done: Done = lambda session, statement: None,
        number: int | None = None,
    ) -> None:
        """Claim a session's books, have the compute thread ``take`` it, and go on with it; or ``undo`` that.

        Args:
            undo: is told whether the books refused, and so are as they were.
            done: once the books have it here.
            number: of operations that its books must have.
        """
        statement = await self.loop.books.claim(session, number)
        try:
            taken: Taken = await self.loop.between(take, session, statement)
            await self.loop.books.restate(session)
        except BaseException as error:
            self.loop.books.drop(session)
            await self.loop.between(undo, session, statement, isinstance(error, (FencedOff, NoCapacity)))
            raise
        with suppress(FAILURES):  # a store that is gone has nothing left
            await self.loop.between(done, session, statement)
        again = [one.chunk.index for one in taken.shown if one.chunk is not None]
        begin = again[0] if again else self.generator.worker.reels[session].next_chunk
        live = self.generator.begun(session, taken.owner, begin)
        live.shown = True  # its first chunk was somebody else's
        live.pieces.extend(taken.pieces)
        live.header, live.mime = taken.header, taken.mime
        self.loop.show_again(live, taken.shown)
        if live.publishing is not None:
            await asyncio.wait([live.publishing])  # or whoever comes first would be given what it has
        self.loop.meter.add("takeovers")
        if self.generator.worker.reels[session].held:
            with suppress(FAILURES):  # it is here in any case; it goes on, and is put away when nobody watches
                await self.generator.put_away(live, "asked for", held=True)
        self.generator.enter(live)

    async def hand_over(self, session: str, passed: bool = False) -> None:
        """Give a session away, for another generator to take over; its viewers come back by themselves.

        It is ``held`` until ``left`` says that the directory is told. ``passed``: the other one has it already, see
        ``Migration``. Raises ``NoCapacity`` if the vault is full, and then it stays.
        """
        if passed:
            released = self.generator.migration.release(session)
            if released is not None:
                self.leaving[session] = self.generator.told(released)
                await self.loop.give_away(released, whole=True)
            return
        live = self.generator.steerable(session)
        live.moving = True
        try:
            await self.generator.whole(self.generator.put_away(live, "it moves to another generator", held=live.held))
            if live.publishing is not None:
                await asyncio.wait([live.publishing])
            await self.loop.books.restate(session)
            self.leaving[session] = self.generator.told(live)
            await self.loop.give_away(live)
        except BaseException:
            self.leaving.pop(session, None)
            raise
        finally:
            live.moving = False

    def left(self, session: str) -> None:
        """The directory is told that a session was handed over."""
        self.leaving.pop(session, None)

    async def shelter(self, session: str) -> None:
        """Have a session that was handed over and is put away in this node's vault, until somebody asks for it."""
        await self.loop.between(shelter, self.generator.worker, session)

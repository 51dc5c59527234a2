"""Sessions that leave a generator as files and come to one as files, a piece at a time. Event loop only."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from actors.carrying import bring, export
from actors.freight import Freight
from errors import BadMessage

if TYPE_CHECKING:
    from actors.generator import Generator


class Carriage:
    """See the module."""

    def __init__(self, generator: "Generator") -> None:
        self.generator, self.loop = generator, generator.loop
        self.outgoing, self.incoming = Freight(clock=generator.clock), Freight(clock=generator.clock)

    async def export(self, session: str, most_bytes: int) -> dict[str, Any]:
        """A session as a file, which waits to be asked for by ``piece``: its ``ticket``, and how many ``bytes``.

        Raises:
            NoCapacity: enough files are on their way.
            BadMessage: it is larger than ``most_bytes``.
        """
        self.generator.steerable(session)
        ticket = self.outgoing.reserve()
        try:
            data: bytes = await self.loop.between(export, self.generator.worker, session)
            if len(data) > most_bytes:
                raise BadMessage(f"the take has {len(data):,} bytes; expected at most {most_bytes:,}")
        except BaseException:
            self.outgoing.drop(ticket)
            raise
        self.outgoing.put(ticket, data)
        return {"ticket": ticket, "bytes": len(data)}

    async def piece(self, session: str, ticket: str, offset: int) -> bytes:
        """The next piece of an exported session; raises ``BadMessage`` if it was not asked for in time."""
        return self.outgoing.piece(ticket, offset)

    async def bring(self, session: str, owner: str, nbytes: int, pieces: AsyncIterator[bytes]) -> dict[str, Any]:
        """Begin a session with the take of a file; see ``carrying.bring``."""
        ticket, offset = await self.expect(nbytes), 0
        try:
            async for piece in pieces:
                self.incoming.add(ticket, offset, piece)
                offset += len(piece)
            return await self.unpack(session, owner, ticket)
        finally:
            self.incoming.drop(ticket)

    async def expect(self, nbytes: int) -> str:
        """A ticket for a file of so many bytes that is to come; raises ``NoCapacity``."""
        ticket = self.incoming.reserve()
        self.incoming.expect(ticket, nbytes)
        return ticket

    async def unpack(self, session: str, owner: str, ticket: str) -> dict[str, Any]:
        """Begin a session with the file that has come."""
        if session in self.generator.sessions:
            raise BadMessage(f"session {session!r} exists already")
        await self.generator.whole(self._unpack(session, owner, self.incoming.whole(ticket)), session)
        return self.generator.describe(session)

    async def _unpack(self, session: str, owner: str, data: bytes) -> None:
        begin: int = await self.loop.between(bring, self.generator.worker, session, data, owner)
        await self.generator.book(session)
        self.generator.enter(self.generator.begun(session, owner, begin))

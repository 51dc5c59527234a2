"""A generator's side of the ledger service: what a session's newest chunk waits for before it is shown."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from opentelemetry import trace

from actors.ledger_service import Entry, LedgerShard, Statement, Verdict
from actors.metrics import Meter
from errors import FencedOff, JournalDown, LongtakeError, NoCapacity, ServiceError, UnknownSession

LOG, TRACER = logging.getLogger("longtake.ledger"), trace.get_tracer("longtake")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
CALL_S = 10.0  # a call that takes longer is taken for lost; a commit may be repeated
State = Callable[[str], Awaitable[Statement]]


class Ledger(Protocol):
    """The ledger service, as a generator calls it. A shard that does not answer raises ``ServiceError``."""

    def shard(self, session: str) -> int:
        """Which shard has the books of ``session``."""
        ...

    async def open(self, statement: Statement) -> int:
        """See ``LedgerShard.open``."""
        ...

    async def state(self, statement: Statement, epoch: int) -> None:
        """See ``LedgerShard.state``."""
        ...

    async def commit(self, shard: int, entries: Sequence[Entry]) -> list[Verdict]:
        """See ``LedgerShard.commit``."""
        ...

    async def claim(self, session: str, number: int | None = None) -> tuple[int, Statement]:
        """See ``LedgerShard.claim``."""
        ...

    async def close(self, session: str, epoch: int) -> None:
        """See ``LedgerShard.close``; does not wait."""
        ...


class OwnLedger(Ledger):
    """A ledger service of one shard in the generator's own process, where there is no other."""

    def __init__(self, shard: LedgerShard | None = None) -> None:
        self.service = shard or LedgerShard()

    def shard(self, session: str) -> int:
        return 0

    async def open(self, statement: Statement) -> int:
        return self.service.open(statement)

    async def state(self, statement: Statement, epoch: int) -> None:
        self.service.state(statement, epoch)

    async def commit(self, shard: int, entries: Sequence[Entry]) -> list[Verdict]:
        return self.service.commit(entries)

    async def claim(self, session: str, number: int | None = None) -> tuple[int, Statement]:
        return self.service.claim(session, number)

    async def close(self, session: str, epoch: int) -> None:
        self.service.close(session, epoch)


@asynccontextmanager
async def answered() -> AsyncIterator[None]:
    """Raises ``ServiceError`` if the ledger service takes too long."""
    try:
        async with asyncio.timeout(CALL_S):
            yield
    except TimeoutError as error:
        raise ServiceError(f"the ledger service has not answered for {CALL_S:g} s") from error


class Bookkeeper:
    """Epochs of the sessions of one generator, and the confirmation of their commits. Event loop only.

    Args:
        state: whole books of a session, from the compute thread.
        patience_s: how long a commit is tried again while the service does not answer.
        outage_s: how long while it answers that its journal is down. The session stands still then, with the chunks
            that it has; whoever watches sees a pause.
    """

    def __init__(
        self,
        ledger: Ledger,
        state: State,
        meter: Meter,
        patience_s: float = 60.0,
        outage_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ledger, self.state, self.meter, self.clock = ledger, state, meter, clock
        self.patience_s, self.outage_s = patience_s, outage_s
        self.epochs: dict[str, int] = {}

    async def open(self, session: str) -> None:
        """Take a session over. Raises ``ServiceError``, also while its shard does not answer."""
        statement = await self.state(session)
        async with answered():
            self.epochs[session] = await self.ledger.open(statement)

    async def claim(self, session: str, number: int | None = None) -> Statement:
        """Take over a session that another generator lost; its books as they were when it last committed.

        Raises ``UnknownSession``, ``FencedOff`` if there are other than ``number`` operations in them, and
        ``ServiceError`` while its shard does not answer.
        """
        async with answered():
            self.epochs[session], statement = await self.ledger.claim(session, number)
        return statement

    async def restate(self, session: str) -> None:
        """Put the books of a session right. Raises ``FencedOff``, ``NoCapacity`` and ``ServiceError``.

        ``UnknownSession`` or ``FencedOff`` too if it was let go while its books were asked for.
        """
        statement = await self.state(session)
        if session not in self.epochs:
            raise FencedOff(f"{session} was let go meanwhile")
        async with answered():
            await self.ledger.state(statement, self.epochs[session])

    def drop(self, session: str) -> None:
        """A session is somebody else's now."""
        self.epochs.pop(session, None)

    async def close(self, session: str) -> None:
        """Forget a session."""
        epoch = self.epochs.pop(session, None)
        if epoch is not None:
            await self.ledger.close(session, epoch)

    def by_shard(self, entries: Sequence[Entry]) -> list[list[Entry]]:
        """Entries that go in one call, so that a shard that is gone keeps nobody else waiting."""
        groups: defaultdict[int, list[Entry]] = defaultdict(list)
        for entry in entries:
            groups[self.ledger.shard(entry.session)].append(entry)
        return list(groups.values())

    async def confirm(self, entries: Sequence[Entry]) -> dict[str, LongtakeError | None]:
        """Have entries of one shard booked; by session ``None``, or why it may not go on."""
        with TRACER.start_as_current_span("ledger", attributes={"sessions": [entry.session for entry in entries]}):
            began = time.perf_counter()
            found = await self._confirm(entries)
            self.meter.observe("chunk_seconds", time.perf_counter() - began, phase="ledger")
            return found

    async def _confirm(self, entries: Sequence[Entry]) -> dict[str, LongtakeError | None]:
        began, pause = self.clock(), FIRST_PAUSE_S
        shard = self.ledger.shard(entries[0].session)
        settled: dict[str, LongtakeError | None] = {}
        while True:
            left = [e.under(self.epochs.get(e.session, 0)) for e in entries if e.session not in settled]
            try:
                async with answered():
                    verdicts = await self.ledger.commit(shard, left)
                for entry, verdict in zip(left, verdicts, strict=True):
                    settled[entry.session] = await self._settle(entry, verdict)
                return settled
            except ServiceError as error:
                LOG.warning("the ledger service does not answer", extra={"shard": shard, "reason": str(error)})
                patience_s = self.outage_s if isinstance(error, JournalDown) else self.patience_s
                if self.clock() + pause > began + patience_s:
                    return {e.session: settled.get(e.session, error) for e in entries}
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _settle(self, entry: Entry, verdict: Verdict) -> LongtakeError | None:
        """Raises ``ServiceError`` if the shard does not answer."""
        self.meter.add("ledger_entries", verdict=verdict.value)
        try:
            if verdict is Verdict.FENCED:
                raise FencedOff(f"another generator has taken {entry.session} over; chunk {entry.chunk} is not shown")
            if verdict is not Verdict.BOOKED and entry.session in self.epochs:
                await self.restate(entry.session)
        except (FencedOff, NoCapacity, UnknownSession) as error:
            return error
        return None

"""The generator: what gateways ask of a step loop over many sessions. Plain asyncio; ``serve_app`` wraps it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from actors.bookkeeping import Ledger, OwnLedger
from actors.carrying import bring, export
from actors.elsewhere import shelter
from actors.freight import Freight
from actors.ledger_service import Entry, Statement
from actors.live import OVER, Live, State
from actors.metrics import Meter, Tally
from actors.migration import Migration
from actors.order import Order
from actors.pace import Pace
from actors.showing import messages
from actors.step_loop import See, StepLoop
from actors.takeover import Taken, take_over, taken_over, undone
from actors.worker import FAILURES, Direction, Worker
from errors import BadMessage, FencedOff, NoCapacity, RecordLost, SessionMoved, SessionOver, UnknownSession
from streams.snapshot import identity

NEARER_S = 0.01  # between two looks at what is on its way
CALLS = {"control", "pause", "resume", "fork", "stop", "acknowledge", "inspect", "thumbnail", "export", "piece"}
PROMISE_S = 5.0  # how long a control waits for the ledger service
T = TypeVar("T")
Take = Callable[[str, Statement], Taken]
Undo = Callable[[str, Statement, bool], None]
Done = Callable[[str, Statement], None]
LOG = logging.getLogger("longtake.generator")


class Generator:
    """Serves many sessions with one engine.

    Args:
        see: scores a glimpse, elsewhere; without it no subject anchor is harvested.
        ledger: the ledger service; by default one in this process.
        stuck_s: a step that takes longer makes ``check_health`` raise.
        meter: takes metrics; by default they are counted in this process.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        worker: Worker,
        pace: Pace | None = None,
        see: See | None = None,
        ledger: Ledger | None = None,
        stuck_s: float = 120.0,
        meter: Meter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.worker, self.stuck_s, self.clock = worker, stuck_s, clock
        self.loop = StepLoop(worker, pace or Pace(), see, ledger or OwnLedger(), meter or Tally(), clock)
        self.sessions = self.loop.sessions
        self.seconds = float(worker.engine.backbone.geometry.seconds)
        self.capacity = worker.engine.config.sessions
        self.identity = identity(worker.engine)
        self._coming: dict[str, asyncio.Task[None]] = {}
        self.leaving: dict[str, dict[str, Any]] = {}  # sessions that are handed over, until the directory knows
        self.outgoing, self.incoming = Freight(clock=clock), Freight(clock=clock)
        self.migration = Migration(self)

    # -- life

    @property
    def pace(self) -> Pace:
        """How far generation runs ahead, and how long it waits."""
        return self.loop.pace

    def start(self) -> None:
        """Begin to step; call it from the event loop."""
        self.loop.start()

    def repace(self, pace: Pace) -> None:
        """Another pace from now on, for sessions that run too."""
        self.loop.pace = pace
        for live in self.sessions.values():
            live.pace = pace
        self.loop.wake()

    async def close(self) -> None:
        """End every session and the loop; a step in progress is waited for."""
        await self.loop.close()

    def check_health(self) -> None:
        """Raise ``RuntimeError`` if the loop has ended or a step is stuck."""
        task, busy = self.loop.task, self.loop.compute.waits_since
        if task is not None and task.done():
            raise RuntimeError(f"the step loop has ended: {task!r}")
        if busy is not None and self.clock() - busy > self.stuck_s:
            raise RuntimeError(f"a step has been running for more than {self.stuck_s:g} s")

    # -- what gateways ask

    async def ask(self, session: str, owner: str, call: str, *arguments: Any) -> Any:
        """One of ``CALLS`` for a session of ``owner``; raises ``UnknownSession`` for one that is somebody else's."""
        if call not in CALLS:
            raise BadMessage(f"call is {call!r}; expected one of {', '.join(sorted(CALLS))}")
        if self.known(session).owner != owner:
            raise UnknownSession(f"no session {session!r}")
        return await getattr(self, call)(session, *arguments)

    async def create(self, session: str, order: Order, owner: str = "") -> dict[str, Any]:
        """Begin a session.

        Raises:
            NoCapacity: every place in the pool is taken.
            LongtakeError: the order cannot be carried out; nothing was changed.
        """
        if session in self.sessions:
            raise BadMessage(f"session {session!r} exists already")
        await self._whole(self._create(session, order, owner), session)
        return self.describe(session)

    async def _create(self, session: str, order: Order, owner: str) -> None:
        await self.loop.between(self.worker.open, session, order, owner)
        await self._book(session)
        self._enter(Live(session, self.pace, self.seconds, self.clock(), owner))

    async def control(self, session: str, direction: Direction) -> dict[str, Any]:
        """Direct a session; the receipt says from which chunk it holds."""
        live = self._open(session)
        async with live.directing:
            await self._ensure_on(live)
            if direction.do == "return":
                await self._announce(live, direction.scene)
            begin, entry = await self.loop.between(self._directed, session, direction)
            await self._confirmed(live, entry)
        return {"session": session, "do": direction.do, "from": begin}

    async def _announce(self, live: Live, scene: str) -> None:
        """Let a scene come nearer while some more chunks are made, if it is not here already; a few at most."""
        restore = self.worker.engine.config.restore
        last, until = live.made + restore.lead, self.clock() + restore.patience_s
        while not await self.loop.between(self.worker.announce, live.id, scene):
            if not live.goes_on or live.made >= last or self.clock() > until:
                break
            await asyncio.sleep(NEARER_S)

    async def pause(self, session: str) -> dict[str, Any]:
        """Put a session away until ``resume``; idempotent."""
        live = self._open(session)
        await self._whole(self._put_away(live, "asked for", held=True))
        return {"session": session, "do": "pause", "from": live.made}

    async def resume(self, session: str) -> dict[str, Any]:
        """Go on with a session; idempotent. Raises ``NoCapacity`` while the pool is full."""
        live = self._open(session)
        await self._ensure_on(live)
        return {"session": session, "do": "resume", "from": live.made}

    async def fork(self, session: str, child: str, seed: int | None = None) -> dict[str, Any]:
        """A second session with the same past."""
        begin = await self._whole(self._make_fork(session, child, seed), child)
        return {"session": session, "do": "fork", "from": begin, "child": child}

    async def _make_fork(self, session: str, child: str, seed: int | None) -> int:
        if child in self.sessions:
            raise BadMessage(f"session {child!r} exists already")
        live = self._open(session)
        await self._ensure_on(live)
        begin: int = await self.loop.between(self._fork, session, child, seed)
        await self._book(child)
        self._enter(Live(child, self.pace, self.seconds, self.clock(), live.owner, base=begin - 1, next_chunk=begin))
        return begin

    async def stop(self, session: str) -> dict[str, Any]:
        """End a session for good."""
        live = self.known(session)
        self._require_here(live)
        at = live.made
        live.enter(State.STOPPED, self.clock(), "asked for")
        await self._whole(self._forget(live))
        LOG.info("session stopped", extra={"session": session, "chunk": at})
        return {"session": session, "do": "stop", "from": at}

    async def export(self, session: str, most_bytes: int) -> dict[str, Any]:
        """A session as a file, which waits to be asked for by ``piece``: its ``ticket``, and how many ``bytes``.

        Raises:
            NoCapacity: enough files are on their way.
            BadMessage: it is larger than ``most_bytes``.
        """
        self._open(session)
        ticket = self.outgoing.reserve()
        try:
            data: bytes = await self.loop.between(export, self.worker, session)
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
        if session in self.sessions:
            raise BadMessage(f"session {session!r} exists already")
        await self._whole(self._unpack(session, owner, self.incoming.whole(ticket)), session)
        return self.describe(session)

    async def _unpack(self, session: str, owner: str, data: bytes) -> None:
        begin: int = await self.loop.between(bring, self.worker, session, data, owner)
        await self._book(session)
        self._enter(Live(session, self.pace, self.seconds, self.clock(), owner, base=begin - 1, next_chunk=begin))

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
        if session not in self.sessions:
            await self.come(session, self._take_over(session))
        await self.migration.confirmed(session)
        return self.describe(session)

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
        await self.migration.drop(session)
        worker = self.worker
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
        begin = again[0] if again else self.worker.reels[session].next_chunk
        live = Live(session, self.pace, self.seconds, self.clock(), taken.owner, base=begin - 1, next_chunk=begin)
        live.shown = True  # its first chunk was somebody else's
        live.pieces.extend(taken.pieces)
        live.header, live.mime = taken.header, taken.mime
        self.loop.show_again(live, taken.shown)
        if live.publishing is not None:
            await asyncio.wait([live.publishing])  # or whoever comes first would be given what it has
        self.loop.meter.add("takeovers")
        if self.worker.reels[session].held:
            with suppress(FAILURES):  # it is here in any case; it goes on, and is put away when nobody watches
                await self._put_away(live, "asked for", held=True)
        self._enter(live)

    async def hand_over(self, session: str, passed: bool = False) -> None:
        """Give a session away, for another generator to take over; its viewers come back by themselves.

        It is ``held`` until ``left`` says that the directory is told. ``passed``: the other one has it already, see
        ``Migration``. Raises ``NoCapacity`` if the vault is full, and then it stays.
        """
        if passed:
            released = self.migration.release(session)
            if released is not None:
                self.leaving[session] = self._told(released)
                await self.loop.give_away(released, whole=True)
            return
        live = self._open(session)
        live.moving = True
        try:
            await self._whole(self._put_away(live, "it moves to another generator", held=live.held))
            if live.publishing is not None:
                await asyncio.wait([live.publishing])
            await self.loop.books.restate(session)
            self.leaving[session] = self._told(live)
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
        await self.loop.between(shelter, self.worker, session)

    async def watch(
        self, session: str, owner: str, viewer: str, after: int | None, credits: int, from_key: bool = True
    ) -> AsyncIterator[dict[str, Any]]:
        """Messages for a viewer, as many chunks as it has credits for; ends with the take or when it is let go."""
        live = self.known(session)
        if live.owner != owner:
            raise UnknownSession(f"no session {session!r}")
        watching, missed = live.attach(viewer, after, from_key, credits, self.clock())
        try:
            if live.state is State.PAUSED and not live.held:
                await self._ensure_on(live)
            self.loop.wake()
            yield {"type": "hello", **self.describe(session), "first": watching.viewer.acked + 1, "missed": missed}
            async for message in messages(live, watching):
                yield message
        finally:
            if live.watching.get(viewer) is watching:
                live.detach(viewer, self.clock())
            self.loop.wake()

    async def acknowledge(
        self, session: str, viewer: str, chunk: int, credits: int, buffered: float | None = None
    ) -> None:
        """What a viewer has, and how much more it takes. Raises ``BadMessage``, and then nothing was changed."""
        live = self.known(session)
        if viewer not in live.watching:
            raise BadMessage(f"{viewer!r} does not watch {session}")
        watching = live.watching[viewer]
        more = watching.viewer.acknowledge(chunk, credits, buffered, self.clock(), self.pace)
        watching.news.set()
        if more and live.state is State.PAUSED and not live.held and not live.moving:
            with suppress(NoCapacity):  # the step loop tries again
                await self._ensure_on(live)
        self.loop.wake()

    async def inspect(self, session: str) -> dict[str, Any]:
        """What the cache of a session holds and did."""
        self.known(session)
        return {**self.describe(session), **await self.loop.between(self.worker.inspect, session)}

    async def thumbnail(self, session: str, scene: str) -> bytes | None:
        """A JPEG of a scene."""
        self.known(session)
        found: bytes | None = await self.loop.between(self.worker.thumbnail, session, scene)
        return found

    def describe(self, session: str) -> dict[str, Any]:
        """A session in few words."""
        live = self.known(session)
        height, width = self.worker.codecs.frame_size
        return {
            "session": live.id,
            "state": live.state.value,
            "reason": live.reason or (live.blind and f"segmenter: {live.blind}"),
            "next_chunk": live.next_chunk,
            "chunk_seconds": live.seconds,
            "width": width,
            "height": height,
            "fps": float(self.worker.codecs.fps),
            "model": self.worker.model,
            "mime": live.mime,
            "viewers": len(live.watching),
            "misses": live.misses,
        }

    async def listing(self, owner: str) -> list[dict[str, Any]]:
        """All sessions of an owner."""
        return [self.describe(session) for session, live in self.sessions.items() if live.owner == owner]

    def held(self) -> list[dict[str, Any]]:
        """What the directory is told: every session described, whose it is, whether it takes a place, who can go on.

        A session that is being handed over is told of until it is gone, so that it is never nobody's.
        """
        told = {name: self._told(live) for name, live in self.sessions.items()}
        return list((self.leaving | told).values())

    def _told(self, live: Live) -> dict[str, Any]:
        on = live.state is not State.PAUSED
        return {**self.describe(live.id), "owner": live.owner, "on": on, "identity": self.identity}

    def slack_s(self) -> float:
        """How long before their deadlines chunks were published lately, the worst of them; infinite if nobody plays."""
        return self.loop.slack.value(self.clock())

    async def measure(self) -> None:
        """Set all gauges."""
        await self.loop.measure()

    # -- inside

    async def _whole(self, work: Coroutine[Any, Any, T], new: str = "") -> T:
        """Do ``work`` to its end even if whoever asked has gone; a session ``new`` is stopped then."""
        task = self.loop.spawn(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.loop.spawn(self._settled(task, new))
            raise

    async def _settled(self, task: "asyncio.Task[Any]", new: str) -> None:
        with suppress(FAILURES):
            await task
            if new:
                await self.stop(new)

    async def _book(self, session: str) -> None:
        """Enter a new session in the ledger service; if that fails there is no session."""
        try:
            await self.loop.books.open(session)
        except BaseException:
            await self.loop.between(self.worker.close, session)
            raise

    def _enter(self, live: Live) -> None:
        self.sessions[live.id] = live
        self.loop.wake()
        LOG.info("session begins", extra={"session": live.id, "chunk": live.next_chunk})

    def _directed(self, session: str, direction: Direction) -> tuple[int, Entry]:
        begin = self.worker.direct(session, direction)
        return begin, self.worker.reels[session].entry(begin - 1)

    async def _confirmed(self, live: Live, entry: Entry) -> None:
        """What was promised is in the books; if the ledger service does not answer, it is with the next chunk."""
        with suppress(TimeoutError):
            refused = (await asyncio.wait_for(self.loop.books.confirm([entry]), PROMISE_S))[live.id]
            if isinstance(refused, FencedOff):
                await self.loop.give_away(live)
                raise SessionMoved(f"{live.id} is with another generator; ask again")

    def _fork(self, session: str, child: str, seed: int | None) -> int:
        self.worker.fork(session, child, seed)
        return self.worker.reels[child].next_chunk

    async def _ensure_on(self, live: Live) -> None:
        await self._whole(self._bring_back(live))

    async def _bring_back(self, live: Live) -> None:
        async with live.turning:
            self._require_here(live)
            if live.state is State.PAUSED:
                try:
                    await self.loop.between(self.worker.bring_back, live.id)
                except RecordLost as error:
                    live.enter(State.FAILED, self.clock(), str(error))
                    raise
                if live.state is State.PAUSED:
                    live.enter(State.RUNNING, self.clock())
                    self.loop.wake()

    async def _put_away(self, live: Live, reason: str, held: bool) -> None:
        async with live.turning:
            if live.state in OVER:
                return
            before = live.state
            live.enter(State.PAUSED, self.clock(), reason, held)  # first: from now on no step may take it
            try:
                await self.loop.between(self.worker.put_away, live.id, held)
            except FAILURES:
                if live.state is State.PAUSED:
                    live.enter(before, self.clock())
                raise

    async def _forget(self, live: Live) -> None:
        await self.loop.between(self.worker.close, live.id)
        await self.loop.books.close(live.id)
        self.sessions.pop(live.id, None)

    def known(self, session: str) -> Live:
        """A session that is here; raises ``UnknownSession``."""
        if session not in self.sessions:
            raise UnknownSession(f"no session {session!r}")
        return self.sessions[session]

    def _open(self, session: str) -> Live:
        live = self.known(session)
        if live.state in OVER:
            raise SessionOver(f"{session} is {live.state.value}: {live.reason or 'it takes no more directions'}")
        self._require_here(live)
        return live

    def _require_here(self, live: Live) -> None:
        if live.moving:
            raise SessionMoved(f"{live.id} is on its way to another generator; ask again")

"""The generator: what gateways ask of a step loop over many sessions. Plain asyncio; ``serve_app`` wraps it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from actors.bookkeeping import Ledger, OwnLedger
from actors.carriage import Carriage
from actors.ledger_service import Entry
from actors.live import OVER, Live, State
from actors.metrics import Meter, Tally
from actors.migration import Migration
from actors.order import Order
from actors.pace import Pace
from actors.showing import messages
from actors.step_loop import See, StepLoop
from actors.succession import Succession
from actors.worker import FAILURES, Direction, Worker
from errors import BadMessage, FencedOff, NoCapacity, RecordLost, SessionMoved, SessionOver, UnknownSession
from streams.snapshot import identity

NEARER_S = 0.01  # between two looks at what is on its way
FILES = {"export", "piece"}
CALLS = {"control", "pause", "resume", "fork", "stop", "acknowledge", "inspect", "thumbnail", *FILES}
PROMISE_S = 5.0  # how long a control waits for the ledger service
T = TypeVar("T")
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
        self.migration, self.succession, self.carriage = Migration(self), Succession(self), Carriage(self)

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
        return await getattr(self.carriage if call in FILES else self, call)(session, *arguments)

    async def create(self, session: str, order: Order, owner: str = "") -> dict[str, Any]:
        """Begin a session.

        Raises:
            NoCapacity: every place in the pool is taken.
            LongtakeError: the order cannot be carried out; nothing was changed.
        """
        if session in self.sessions:
            raise BadMessage(f"session {session!r} exists already")
        await self.whole(self._create(session, order, owner), session)
        return self.describe(session)

    async def _create(self, session: str, order: Order, owner: str) -> None:
        await self.loop.between(self.worker.open, session, order, owner)
        await self.book(session)
        self.enter(self.begun(session, owner))

    async def control(self, session: str, direction: Direction) -> dict[str, Any]:
        """Direct a session; the receipt says from which chunk it holds."""
        live = self.steerable(session)
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
        live = self.steerable(session)
        await self.whole(self.put_away(live, "asked for", held=True))
        return {"session": session, "do": "pause", "from": live.made}

    async def resume(self, session: str) -> dict[str, Any]:
        """Go on with a session; idempotent. Raises ``NoCapacity`` while the pool is full."""
        live = self.steerable(session)
        await self._ensure_on(live)
        return {"session": session, "do": "resume", "from": live.made}

    async def fork(self, session: str, child: str, seed: int | None = None) -> dict[str, Any]:
        """A second session with the same past."""
        begin = await self.whole(self._make_fork(session, child, seed), child)
        return {"session": session, "do": "fork", "from": begin, "child": child}

    async def _make_fork(self, session: str, child: str, seed: int | None) -> int:
        if child in self.sessions:
            raise BadMessage(f"session {child!r} exists already")
        live = self.steerable(session)
        await self._ensure_on(live)
        begin: int = await self.loop.between(self._fork, session, child, seed)
        await self.book(child)
        self.enter(self.begun(child, live.owner, begin))
        return begin

    async def stop(self, session: str) -> dict[str, Any]:
        """End a session for good."""
        live = self.known(session)
        self._require_here(live)
        at = live.made
        live.enter(State.STOPPED, self.clock(), "asked for")
        await self.whole(self._forget(live))
        LOG.info("session stopped", extra={"session": session, "chunk": at})
        return {"session": session, "do": "stop", "from": at}

    async def bring(self, session: str, owner: str, nbytes: int, pieces: AsyncIterator[bytes]) -> dict[str, Any]:
        """See ``Carriage.bring``."""
        return await self.carriage.bring(session, owner, nbytes, pieces)

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
        told = {name: self.told(live) for name, live in self.sessions.items()}
        return list((self.succession.leaving | told).values())

    def slack_s(self) -> float:
        """How long before their deadlines chunks were published lately, the worst of them; infinite if nobody plays."""
        return self.loop.slack.value(self.clock())

    async def measure(self) -> None:
        """Set all gauges."""
        await self.loop.measure()

    # -- for the parts, and inside

    def known(self, session: str) -> Live:
        """A session that is here; raises ``UnknownSession``."""
        if session not in self.sessions:
            raise UnknownSession(f"no session {session!r}")
        return self.sessions[session]

    def steerable(self, session: str) -> Live:
        """One that takes directions; raises ``SessionOver``, and ``SessionMoved`` while it moves."""
        live = self.known(session)
        if live.state in OVER:
            raise SessionOver(f"{session} is {live.state.value}: {live.reason or 'it takes no more directions'}")
        self._require_here(live)
        return live

    def begun(self, session: str, owner: str, begin: int = 0) -> Live:
        """A session whose next chunk is ``begin``, not entered yet."""
        return Live(session, self.pace, self.seconds, self.clock(), owner, base=begin - 1, next_chunk=begin)

    def enter(self, live: Live) -> None:
        """A session is here, and goes on."""
        self.sessions[live.id] = live
        self.loop.wake()
        LOG.info("session begins", extra={"session": live.id, "chunk": live.next_chunk})

    async def book(self, session: str) -> None:
        """Enter a new session in the ledger service; if that fails there is no session."""
        try:
            await self.loop.books.open(session)
        except BaseException:
            await self.loop.between(self.worker.close, session)
            raise

    async def whole(self, work: Coroutine[Any, Any, T], new: str = "") -> T:
        """Do ``work`` to its end even if whoever asked has gone; a session ``new`` is stopped then."""
        task = self.loop.spawn(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.loop.spawn(self._settled(task, new))
            raise

    async def put_away(self, live: Live, reason: str, held: bool) -> None:
        """Put a session away until somebody watches it again; until ``resume`` if it is ``held``."""
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

    def told(self, live: Live) -> dict[str, Any]:
        """What the directory is told of one session."""
        on = live.state is not State.PAUSED
        return {**self.describe(live.id), "owner": live.owner, "on": on, "identity": self.identity}

    async def _settled(self, task: "asyncio.Task[Any]", new: str) -> None:
        with suppress(FAILURES):
            await task
            if new:
                await self.stop(new)

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
        await self.whole(self._bring_back(live))

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

    async def _forget(self, live: Live) -> None:
        await self.loop.between(self.worker.close, live.id)
        await self.loop.books.close(live.id)
        self.sessions.pop(live.id, None)

    def _require_here(self, live: Live) -> None:
        if live.moving:
            raise SessionMoved(f"{live.id} is on its way to another generator; ask again")

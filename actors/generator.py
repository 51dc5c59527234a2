"""The generator: a step loop over many sessions, and what gateways ask of it. Plain asyncio; ``serve_app`` wraps it.

Only the event loop touches ``Live`` sessions, only the compute thread touches the ``Worker``: between two steps the
loop hands it what was asked for in the meantime, in the order in which it came. Whatever waits is bounded.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from actors.bookkeeping import Bookkeeper, Ledger, OwnLedger
from actors.compute import Compute
from actors.live import OVER, Live, State
from actors.pace import Pace
from actors.reel import Glimpse, Order
from actors.showing import messages
from actors.worker import FAILURES, Direction, Made, Stepped, Worker
from errors import BadMessage, LongtakeError, NoCapacity, SessionOver, UnknownSession
from models.segmenter import Finding

See = Callable[[Glimpse], Awaitable[Finding]]
LONGEST_WAIT = 1.0  # seconds between two looks at who is idle
CONFIRM_S = 0.05  # how long a batch stays together for the ledger service's answers
CALLS = {"control", "pause", "resume", "fork", "stop", "acknowledge", "inspect", "thumbnail"}


class Generator:
    """Serves many sessions with one engine.

    Args:
        see: scores a glimpse, elsewhere; without it no subject anchor is harvested.
        ledger: the ledger service; by default one in this process.
        stuck_s: a step that takes longer makes ``check_health`` raise.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        worker: Worker,
        pace: Pace | None = None,
        see: See | None = None,
        ledger: Ledger | None = None,
        stuck_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.worker, self.pace, self.see, self.stuck_s, self.clock = worker, pace or Pace(), see, stuck_s, clock
        self.seconds = float(worker.engine.backbone.geometry.seconds)
        self.capacity = worker.engine.config.sessions
        self.sessions: dict[str, Live] = {}
        self.compute = Compute(worker, clock)
        self.books = Bookkeeper(ledger or OwnLedger(), partial(self._between, worker.statement), clock=clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None

    # -- life

    def start(self) -> None:
        """Begin to step; call it from the event loop."""
        if self._loop is None:
            self._loop = asyncio.create_task(self._run(), name="step loop")

    def repace(self, pace: Pace) -> None:
        """Another pace from now on, for sessions that run too."""
        self.pace = pace
        for live in self.sessions.values():
            live.pace = pace
        self.compute.wake.set()

    async def close(self) -> None:
        """End every session and the loop; a step in progress is waited for."""
        if self._loop is not None:
            self._loop.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop
        for task in self._tasks:
            task.cancel()
        for live in list(self.sessions.values()):
            await self.compute.now(self.worker.close, live.id)
            live.enter(State.STOPPED, self.clock(), "the generator closes")
        self.compute.close()

    def check_health(self) -> None:
        """Raise ``RuntimeError`` if the loop has ended or a step is stuck."""
        if self._loop is not None and self._loop.done():
            raise RuntimeError(f"the step loop has ended: {self._loop!r}")
        busy = self.compute.busy_since
        if busy is not None and self.clock() - busy > self.stuck_s:
            raise RuntimeError(f"a step has been running for more than {self.stuck_s:g} s")

    # -- what gateways ask

    async def ask(self, session: str, owner: str, call: str, *arguments: Any) -> Any:
        """One of ``CALLS`` for a session of ``owner``; raises ``UnknownSession`` for one that is somebody else's."""
        if call not in CALLS:
            raise BadMessage(f"call is {call!r}; expected one of {', '.join(sorted(CALLS))}")
        if self._known(session).owner != owner:
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
        await self._between(self.worker.open, session, order)
        await self._book(session)
        self.sessions[session] = Live(session, self.pace, self.seconds, self.clock(), owner)
        self.compute.wake.set()
        return self.describe(session)

    async def control(self, session: str, direction: Direction) -> dict[str, Any]:
        """Direct a session; the receipt says from which chunk it holds."""
        live = self._open(session)
        await self._ensure_on(live)
        return {
            "session": session,
            "do": direction.do,
            "from": await self._between(self.worker.direct, session, direction),
        }

    async def pause(self, session: str) -> dict[str, Any]:
        """Put a session away until ``resume``; idempotent."""
        live = self._open(session)
        await self._put_away(live, "asked for", held=True)
        return {"session": session, "do": "pause", "from": live.next_chunk}

    async def resume(self, session: str) -> dict[str, Any]:
        """Go on with a session; idempotent. Raises ``NoCapacity`` while the pool is full."""
        live = self._open(session)
        await self._ensure_on(live)
        return {"session": session, "do": "resume", "from": live.next_chunk}

    async def fork(self, session: str, child: str, seed: int | None = None) -> dict[str, Any]:
        """A second session with the same past."""
        live = self._open(session)
        await self._ensure_on(live)
        begin = await self._between(self._fork, session, child, seed)
        await self._book(child)
        forked = Live(child, self.pace, self.seconds, self.clock(), live.owner, base=begin - 1, next_chunk=begin)
        self.sessions[child] = forked
        self.compute.wake.set()
        return {"session": session, "do": "fork", "from": begin, "child": child}

    async def stop(self, session: str) -> dict[str, Any]:
        """End a session for good."""
        live = self._known(session)
        at = live.next_chunk
        live.enter(State.STOPPED, self.clock(), "asked for")
        await self._forget(live)
        return {"session": session, "do": "stop", "from": at}

    async def watch(
        self, session: str, owner: str, viewer: str, after: int | None, credits: int, from_key: bool = True
    ) -> AsyncIterator[dict[str, Any]]:
        """Messages for a viewer, as many chunks as it has credits for; ends with the take or when it is let go."""
        live = self._known(session)
        if live.owner != owner:
            raise UnknownSession(f"no session {session!r}")
        watching, missed = live.attach(viewer, after, from_key, credits, self.clock())
        try:
            if live.state is State.PAUSED and not live.held:
                await self._ensure_on(live)
            self.compute.wake.set()
            yield {"type": "hello", **self.describe(session), "first": watching.viewer.acked + 1, "missed": missed}
            async for message in messages(live, watching):
                yield message
        finally:
            if live.watching.get(viewer) is watching:
                live.detach(viewer, self.clock())
            self.compute.wake.set()

    async def acknowledge(
        self, session: str, viewer: str, chunk: int, credits: int, buffered: float | None = None
    ) -> None:
        """What a viewer has, and how much more it takes. Raises ``BadMessage``, and then nothing was changed."""
        live = self._known(session)
        if viewer not in live.watching:
            raise BadMessage(f"{viewer!r} does not watch {session}")
        watching = live.watching[viewer]
        watching.viewer.acknowledge(chunk, credits, buffered, self.clock(), self.pace)
        watching.news.set()
        if live.state is State.PAUSED and not live.held:
            with suppress(NoCapacity):  # tried again at its next acknowledgement
                await self._ensure_on(live)
        self.compute.wake.set()

    async def inspect(self, session: str) -> dict[str, Any]:
        """What the cache of a session holds and did."""
        self._known(session)
        return {**self.describe(session), **await self._between(self.worker.inspect, session)}

    async def thumbnail(self, session: str, scene: str) -> bytes | None:
        """A JPEG of a scene."""
        self._known(session)
        found: bytes | None = await self._between(self.worker.thumbnail, session, scene)
        return found

    def describe(self, session: str) -> dict[str, Any]:
        """A session in few words."""
        live = self._known(session)
        height, width = self.worker.codecs.frame_size
        return {
            "session": live.id,
            "state": live.state.value,
            "reason": live.reason,
            "next_chunk": live.next_chunk,
            "chunk_seconds": live.seconds,
            "width": width,
            "height": height,
            "fps": float(self.worker.codecs.fps),
            "mime": live.mime,
            "viewers": len(live.watching),
            "misses": live.misses,
        }

    async def listing(self, owner: str) -> list[dict[str, Any]]:
        """All sessions of an owner."""
        return [self.describe(session) for session, live in self.sessions.items() if live.owner == owner]

    # -- the step loop

    async def _run(self) -> None:
        while True:
            await self.compute.drain()
            await self._tend()
            batch = sorted((live for live in self.sessions.values() if live.due), key=lambda live: live.deadline)
            if batch:
                await self._step(batch[: self.pace.batch])
            elif not self.compute.jobs:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LONGEST_WAIT):  # ``wait_for`` may lose a cancellation
                        await self.compute.wake.wait()
                self.compute.wake.clear()

    async def _step(self, batch: list[Live]) -> None:
        """One chunk of every session; the ledger service books it while it is encoded, and then it is published."""
        stepped: dict[str, Stepped] = await self.compute.now(self.worker.step, [live.id for live in batch])
        entries = [one.entry for one in stepped.values() if one.entry is not None]
        booked = [asyncio.create_task(self.books.confirm(group)) for group in self.books.by_shard(entries)]
        for live in batch:
            failure = stepped[live.id].failure
            live.unconfirmed = failure is None
            if failure is not None:
                live.enter(State.FAILED, self.clock(), str(failure))
        chunks = {session: one.chunk for session, one in stepped.items() if one.chunk is not None}
        made: dict[str, Made] = await self.compute.now(self.worker.show, chunks)
        shown = [self._spawn(self._publish(verdicts, made)) for verdicts in booked]
        if shown:
            await asyncio.wait(shown, timeout=CONFIRM_S)

    async def _publish(self, verdicts: "asyncio.Task[dict[str, LongtakeError | None]]", made: dict[str, Made]) -> None:
        """Give viewers what the ledger service has booked."""
        for session, refused in (await verdicts).items():
            live, one = self.sessions.get(session), made[session]
            if live is None or live.state in OVER:
                continue
            live.unconfirmed = False
            now, failure = self.clock(), refused or one.failure
            if failure is not None or one.piece is None:
                live.enter(State.FAILED, now, str(failure))
                continue
            if one.init is not None:
                live.header, live.mime = one.init.data, one.init.mime
            live.publish(one.piece, now)
            if one.piece.last:
                live.enter(State.FINISHED, now, "the take is over")
            if one.glimpse is not None and self.see is not None and not live.looking:
                self._look(live, one.glimpse, self.see)
        self.compute.wake.set()

    def _look(self, live: Live, glimpse: Glimpse, see: See) -> None:
        """Let the segmenter see a glimpse, without waiting; at most one per session at a time."""

        async def look() -> None:
            try:
                finding = await see(glimpse)
                await self._between(self.worker.offer, live.id, glimpse, finding)
            except FAILURES as error:  # a slow or dead segmenter delays the anchor, never the stream
                live.reason = live.reason or f"segmenter: {error!r}"
            finally:
                live.looking = False

        live.looking = True
        self._spawn(look())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _tend(self) -> None:
        """Let go of viewers that stall others, put away who is idle or waits too long, forget who is over."""
        now = self.clock()
        for live in list(self.sessions.values()):
            stalled = live.stalled(now)
            if stalled and len(stalled) < len(live.watching):
                for name in stalled:
                    live.watching[name].dropped = f"nothing was acknowledged for {self.pace.patience_s:g} s"
                    live.detach(name, now)
            elif stalled:
                await self._put_away_now(live, "its viewers acknowledge nothing")
            elif live.state is State.RUNNING and not live.watching and now - live.since > self.pace.idle_s:
                await self._put_away_now(live, "nobody watches")
            elif live.state in OVER and not live.watching and now - live.since > self.pace.linger_s:
                await self.compute.now(self.worker.close, live.id)
                await self.books.close(live.id)
                self.sessions.pop(live.id, None)

    # -- inside

    async def _between(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.start()
        return await self.compute.between(function, *arguments)

    async def _book(self, session: str) -> None:
        """Enter a new session in the ledger service; if that fails there is no session."""
        try:
            await self.books.open(session)
        except BaseException:
            await self._between(self.worker.close, session)
            raise

    def _fork(self, session: str, child: str, seed: int | None) -> int:
        self.worker.fork(session, child, seed)
        return self.worker.reels[child].next_chunk

    async def _ensure_on(self, live: Live) -> None:
        if live.state is State.PAUSED:
            await self._between(self.worker.bring_back, live.id)
            if live.state is State.PAUSED:
                live.enter(State.RUNNING, self.clock())
                self.compute.wake.set()

    async def _put_away(self, live: Live, reason: str, held: bool) -> None:
        if live.state in OVER:
            return
        before = live.state
        live.enter(State.PAUSED, self.clock(), reason, held)  # first: from now on no step may take it
        try:
            await self._between(self.worker.put_away, live.id)
        except FAILURES:
            live.enter(before, self.clock())
            raise

    async def _put_away_now(self, live: Live, reason: str) -> None:
        """The same from inside the loop; if the vault is full or gone the session stays, and is asked again later."""
        try:
            await self.compute.now(self.worker.put_away, live.id)
        except FAILURES as error:
            live.since, live.reason = self.clock(), str(error)
        else:
            live.enter(State.PAUSED, self.clock(), reason)

    async def _forget(self, live: Live) -> None:
        await self._between(self.worker.close, live.id)
        await self.books.close(live.id)
        self.sessions.pop(live.id, None)

    def _known(self, session: str) -> Live:
        if session not in self.sessions:
            raise UnknownSession(f"no session {session!r}")
        return self.sessions[session]

    def _open(self, session: str) -> Live:
        live = self._known(session)
        if live.state in OVER:
            raise SessionOver(f"{session} is {live.state.value}: {live.reason or 'it takes no more directions'}")
        return live

"""The generator: a step loop over many sessions, and what gateways ask of it. Plain asyncio; ``serve_app`` wraps it.

Only the event loop touches ``Live`` sessions, only the compute thread touches the ``Worker``: between two steps the
loop hands it what was asked for in the meantime, in the order in which it came. Whatever waits is bounded.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from actors.live import OVER, Live, State, Watching
from actors.pace import Pace
from actors.reel import Glimpse, Order, Piece
from actors.worker import FAILURES, Direction, Made, Worker
from errors import BadMessage, NoCapacity, SessionOver, UnknownSession
from models.segmenter import Finding

See = Callable[[Glimpse], Awaitable[Finding]]
LONGEST_WAIT = 1.0  # seconds between two looks at who is idle
JOBS = 256
CALLS = {"control", "pause", "resume", "fork", "stop", "acknowledge", "inspect", "thumbnail"}


@dataclass
class Job:
    """Something for the compute thread, and who waits for it."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    done: "asyncio.Future[Any]"


class Generator:
    """Serves many sessions with one engine.

    Args:
        see: scores a glimpse, elsewhere; without it no subject anchor is harvested.
        stuck_s: a step that takes longer makes ``check_health`` raise.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        worker: Worker,
        pace: Pace | None = None,
        see: See | None = None,
        stuck_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.worker, self.pace, self.see, self.stuck_s, self.clock = worker, pace or Pace(), see, stuck_s, clock
        self.seconds = float(worker.engine.backbone.geometry.seconds)
        self.capacity = worker.engine.config.sessions
        self.sessions: dict[str, Live] = {}
        self._thread = ThreadPoolExecutor(1, "compute")
        self._jobs: deque[Job] = deque()
        self._wake = asyncio.Event()
        self._busy_since: float | None = None
        self._looks: set[asyncio.Task[None]] = set()
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
        self._wake.set()

    async def close(self) -> None:
        """End every session and the loop; a step in progress is waited for."""
        if self._loop is not None:
            self._loop.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop
        for look in self._looks:
            look.cancel()
        for live in list(self.sessions.values()):
            await asyncio.get_running_loop().run_in_executor(self._thread, self.worker.close, live.id)
            live.enter(State.STOPPED, self.clock(), "the generator closes")
        self._thread.shutdown()
        for job in self._jobs:
            if not job.done.done():
                job.done.set_exception(SessionOver("the generator closes"))

    def check_health(self) -> None:
        """Raise ``RuntimeError`` if the loop has ended or a step is stuck."""
        if self._loop is not None and self._loop.done():
            raise RuntimeError(f"the step loop has ended: {self._loop!r}")
        if self._busy_since is not None and self.clock() - self._busy_since > self.stuck_s:
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
        await self._do(self.worker.open, session, order)
        self.sessions[session] = Live(session, self.pace, self.seconds, self.clock(), owner)
        self._wake.set()
        return self.describe(session)

    async def control(self, session: str, direction: Direction) -> dict[str, Any]:
        """Direct a session; the receipt says from which chunk it holds."""
        live = self._open(session)
        await self._ensure_on(live)
        return {"session": session, "do": direction.do, "from": await self._do(self.worker.direct, session, direction)}

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
        begin = await self._do(self._fork, session, child, seed)
        forked = Live(child, self.pace, self.seconds, self.clock(), live.owner, base=begin - 1, next_chunk=begin)
        self.sessions[child] = forked
        self._wake.set()
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
            self._wake.set()
            yield {"type": "hello", **self.describe(session), "first": watching.viewer.acked + 1, "missed": missed}
            async for message in self._messages(live, watching):
                yield message
        finally:
            if live.watching.get(viewer) is watching:
                live.detach(viewer, self.clock())
            self._wake.set()

    async def _messages(self, live: Live, watching: Watching) -> AsyncIterator[dict[str, Any]]:
        told, headed = live.state, False
        while True:
            watching.news.clear()
            for piece in live.take(watching):
                if live.header and not headed:
                    headed = True
                    yield {"type": "init", "data": live.header, "mime": live.mime}
                yield chunk_message(piece)
                if piece.last:
                    yield {"type": "end", "state": State.FINISHED.value, "reason": "the take is over"}
                    return
            if watching.dropped:
                yield {"type": "end", "state": "dropped", "reason": watching.dropped}
                return
            unseen = live.state is State.FINISHED and watching.viewer.sent + 1 < live.next_chunk
            if live.state in OVER and not unseen:
                yield {"type": "end", "state": live.state.value, "reason": live.reason}
                return
            if live.state is not told:
                told = live.state
                yield {"type": "state", "state": live.state.value, "reason": live.reason}
            await watching.news.wait()

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
        self._wake.set()

    async def inspect(self, session: str) -> dict[str, Any]:
        """What the cache of a session holds and did."""
        self._known(session)
        return {**self.describe(session), **await self._do(self.worker.inspect, session)}

    async def thumbnail(self, session: str, scene: str) -> bytes | None:
        """A JPEG of a scene."""
        self._known(session)
        found: bytes | None = await self._do(self.worker.thumbnail, session, scene)
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
            await self._jobs_done()
            await self._tend()
            batch = sorted((live for live in self.sessions.values() if live.due), key=lambda live: live.deadline)
            if batch:
                await self._step(batch[: self.pace.batch])
            elif not self._jobs:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), LONGEST_WAIT)
                self._wake.clear()

    async def _step(self, batch: list[Live]) -> None:
        made: dict[str, Made] = await self._compute(self.worker.step, [live.id for live in batch])
        now = self.clock()
        for live in batch:
            one = made[live.id]
            if live.state in OVER:
                continue
            if one.piece is None:
                live.enter(State.FAILED, now, str(one.failure))
                continue
            if one.init is not None:
                live.header, live.mime = one.init.data, one.init.mime
            live.publish(one.piece, now)
            if one.piece.last:
                live.enter(State.FINISHED, now, "the take is over")
            if one.glimpse is not None and self.see is not None and not live.looking:
                self._look(live, one.glimpse, self.see)

    def _look(self, live: Live, glimpse: Glimpse, see: See) -> None:
        """Let the segmenter see a glimpse, without waiting; at most one per session at a time."""

        async def look() -> None:
            try:
                finding = await see(glimpse)
                await self._do(self.worker.offer, live.id, glimpse, finding)
            except FAILURES as error:  # a slow or dead segmenter delays the anchor, never the stream
                live.reason = live.reason or f"segmenter: {error!r}"
            finally:
                live.looking = False

        live.looking = True
        task = asyncio.create_task(look())
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def _jobs_done(self) -> None:
        while self._jobs:
            job = self._jobs.popleft()
            if job.done.cancelled():
                continue
            try:
                result = await self._compute(job.function, *job.arguments)
            except FAILURES as error:
                if not job.done.cancelled():
                    job.done.set_exception(error)
            else:
                if not job.done.cancelled():
                    job.done.set_result(result)

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
                await self._compute(self.worker.close, live.id)
                self.sessions.pop(live.id, None)

    # -- inside

    async def _compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._busy_since = self.clock()
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self.worker.call, function, *arguments)
        finally:
            self._busy_since = None

    async def _do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have the loop run something between two steps."""
        if len(self._jobs) >= JOBS:
            raise NoCapacity(f"{len(self._jobs)} requests wait for the generator; expected at most {JOBS}")
        self.start()
        job = Job(function, arguments, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._wake.set()
        return await job.done

    def _fork(self, session: str, child: str, seed: int | None) -> int:
        self.worker.fork(session, child, seed)
        return self.worker.reels[child].next_chunk

    async def _ensure_on(self, live: Live) -> None:
        if live.state is State.PAUSED:
            await self._do(self.worker.bring_back, live.id)
            if live.state is State.PAUSED:
                live.enter(State.RUNNING, self.clock())
                self._wake.set()

    async def _put_away(self, live: Live, reason: str, held: bool) -> None:
        if live.state in OVER:
            return
        before = live.state
        live.enter(State.PAUSED, self.clock(), reason, held)  # first: from now on no step may take it
        try:
            await self._do(self.worker.put_away, live.id)
        except FAILURES:
            live.enter(before, self.clock())
            raise

    async def _put_away_now(self, live: Live, reason: str) -> None:
        """The same from inside the loop; if the vault is full or gone the session stays, and is asked again later."""
        try:
            await self._compute(self.worker.put_away, live.id)
        except FAILURES as error:
            live.since, live.reason = self.clock(), str(error)
        else:
            live.enter(State.PAUSED, self.clock(), reason)

    async def _forget(self, live: Live) -> None:
        await self._do(self.worker.close, live.id)
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


def chunk_message(piece: Piece) -> dict[str, Any]:
    """A piece as it goes to a viewer."""
    return {
        "type": "chunk",
        "index": piece.index,
        "scene": piece.scene,
        "start": float(piece.start),
        "drift": round(piece.drift, 4),
        "key": piece.key,
        "data": piece.data,
    }

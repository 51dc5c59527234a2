"""The step loop of a generator: who is due is stepped in one batch, booked while it is encoded, and then published.

Only the event loop touches ``Live`` sessions, only the compute thread touches the ``Worker``: between two steps the
loop hands it what was asked for in the meantime, in the order in which it came. Whatever waits is bounded.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from opentelemetry import trace

from actors.bookkeeping import Bookkeeper, Ledger
from actors.compute import Compute
from actors.ledger_service import Entry
from actors.live import OVER, Live, State
from actors.metrics import Meter
from actors.pace import Pace, deadline
from actors.reel import Glimpse, Note, Piece
from actors.worker import FAILURES, Made, Stepped, Worker
from errors import FencedOff, LongtakeError, RecordLost, SessionOver, StreamError
from models.segmenter import Finding
from scaling.measuring import Least, StepTimes

See = Callable[[Glimpse], Awaitable[Finding]]
T = TypeVar("T")
LONGEST_WAIT = 1.0  # seconds between two looks at who is idle
RETRY_S = 5.0  # between two tries to bring a session back though nobody asks; each takes its snapshot from the vault
SLACK_S = 10.0  # how long the worst slack is remembered
LANDING_S = 5.0  # how long a commit waits for the restore store before it is booked without
ALONE_S = 10.0  # and for how long, after one wait in vain, none is waited for
LOG, TRACER = logging.getLogger("longtake.generator"), trace.get_tracer("longtake")


class StepLoop:
    """Steps all sessions of one generator; ``sessions`` is filled by the generator, and emptied by either."""

    def __init__(
        self, worker: Worker, pace: Pace, see: See | None, ledger: Ledger, meter: Meter, clock: Callable[[], float]
    ) -> None:
        self.worker, self.pace, self.see, self.meter, self.clock = worker, pace, see, meter, clock
        self.sessions: dict[str, Live] = {}
        self.compute = Compute(worker, clock)
        self.books = Bookkeeper(ledger, partial(self.between, worker.statement), meter, clock=clock)
        self.times, self.slack = StepTimes(), Least(SLACK_S)
        self.task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._alone_until = float("-inf")

    def start(self) -> None:
        """Begin to step; again is no error."""
        if self.task is None:
            self.task = asyncio.create_task(self._run(), name="step loop")

    async def close(self) -> None:
        """End the loop and every session; a step in progress is waited for."""
        if self.task is not None:
            self.task.cancel()
            with suppress(FAILURES, asyncio.CancelledError):  # what ended it was said when it ended
                await self.task
        for task in self._tasks:
            task.cancel()
        await self.compute.now(self.worker.shut)
        for live in list(self.sessions.values()):
            live.enter(State.STOPPED, self.clock(), "the generator closes")
        self.compute.close()

    async def between(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have something done by the compute thread between two steps. Raises ``SessionOver`` if the loop has ended."""
        self.start()
        if self.task is not None and self.task.done():
            raise SessionOver("the generator's step loop has ended")
        return await self.compute.between(function, *arguments)

    @property
    def goes_on(self) -> bool:
        """Whether it has not ended."""
        return self.task is not None and not self.task.done()

    def wake(self) -> None:
        """Something has changed that may make a session due."""
        self.compute.wake.set()

    async def _run(self) -> None:
        while True:
            await self.compute.drain()
            await self._tend()
            due = [live for live in self.sessions.values() if live.due]
            batch = sorted(due, key=lambda live: (live.deadline, live.stepped_at))
            if batch:
                await self._step(batch[: self.pace.batch])
            elif self.worker.engine.departures.leaving:  # nothing else to do: whoever waits for it is told at once
                await self.compute.now(self.worker.engine.departures.drain)
            elif not self.compute.jobs:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LONGEST_WAIT):  # ``wait_for`` may lose a cancellation
                        await self.compute.wake.wait()
                self.compute.wake.clear()

    async def _step(self, batch: list[Live]) -> None:
        """One chunk of every session; it is booked and encoded while the next step begins, and then published."""
        with TRACER.start_as_current_span("step", attributes={"sessions": [live.id for live in batch]}):
            began = time.perf_counter()
            stepped: dict[str, Stepped] = await self.compute.now(self.worker.step, [live.id for live in batch])
            seconds = self._lapse("compute", began) - began
            self.times.observe(len(batch), seconds)
            self.meter.add("step_seconds", seconds)
            self.meter.observe("batch_sessions", len(batch))
            entries = [one.entry for one in stepped.values() if one.entry is not None]
            shown = self.spawn(self._shown(self.compute.show(stepped)))
            landed = next((one.landed for one in stepped.values() if one.landed is not None), None)
            booked = {
                entry.session: verdicts
                for group in self.books.by_shard(entries)
                for verdicts in (self.spawn(self._booked(group, landed)),)
                for entry in group
            }
            for verdicts in booked.values():  # who publishes may have gone, with the loop say
                verdicts.add_done_callback(lambda done: done.cancelled() or done.exception())
            for live in batch:
                one = stepped[live.id]
                if one.note is None or one.chunk is None:
                    self._fail(live, one.failure)
                    continue
                live.stepped_at = self.clock()
                live.made, live.ended, live.in_flight = one.chunk.index + 1, one.note.last, live.in_flight + 1
                waits = self._publish(live, one.note, shown, booked[live.id], began, live.publishing)
                live.publishing = self.spawn(waits)

    async def _booked(self, group: list[Entry], landed: "Future[bool] | None") -> dict[str, LongtakeError | None]:
        """Book what the restore store has; if that does not answer, the stream goes on undurable."""
        if landed is not None:
            if not landed.done() and self.clock() >= self._alone_until:
                # ``wait_for`` would cancel what the entries of other shards wait for too.
                done, _ = await asyncio.wait([asyncio.wrap_future(landed)], timeout=LANDING_S)
                if not done:
                    self._alone_until = self.clock() + ALONE_S
            if not landed.done() or not landed.result():
                self.meter.add("undurable", len(group))
        return await self.books.confirm(group)

    def show_again(self, live: Live, stepped: Sequence[Stepped]) -> None:
        """Show and publish what another generator had stepped and booked."""
        for one in stepped:
            if one.note is None or one.chunk is None:
                continue
            shown, began = self.spawn(self._shown(self.compute.show({live.id: one}))), time.perf_counter()
            live.made, live.ended, live.in_flight = one.chunk.index + 1, one.note.last, live.in_flight + 1
            waits = self._publish(live, one.note, shown, self.spawn(_settled(live.id)), began, live.publishing)
            live.publishing = self.spawn(waits)

    async def _shown(self, showing: "asyncio.Future[dict[str, Made]]") -> dict[str, Made]:
        with TRACER.start_as_current_span("encode"):
            began = time.perf_counter()
            made = await showing
            self._lapse("encode", began)
            return made

    def _lapse(self, phase: str, since: float) -> float:
        now = time.perf_counter()
        self.meter.observe("chunk_seconds", now - since, phase=phase)
        return now

    async def _publish(
        self,
        live: Live,
        note: Note,
        shown: "asyncio.Task[dict[str, Made]]",
        booked: "asyncio.Task[dict[str, LongtakeError | None]]",
        began: float,
        before: "asyncio.Task[None] | None",
    ) -> None:
        """Give viewers a chunk when it is encoded, booked, and the one before has been given."""
        try:
            made, refused = (await shown)[live.id], (await booked)[live.id]
        except FAILURES as error:
            LOG.exception("unexpected error", extra={"session": live.id})
            made, refused = Made(None), StreamError(f"the chunk could not be shown: {error!r}")
        if before is not None:
            await asyncio.wait([before])
        live.in_flight -= 1
        if live.state not in OVER:
            if isinstance(refused, FencedOff):
                await self.give_away(live)
            elif refused is not None or made.piece is None:
                self._fail(live, refused or made.failure)
            else:
                self._give(live, made, made.piece, note)
                self._lapse("total", began)
                if made.glimpse is not None and self.see is not None and not live.looking:
                    self._look(live, made.glimpse, self.see)
        self.wake()

    def _give(self, live: Live, made: Made, piece: Piece, note: Note) -> None:
        now = self.clock()
        if made.init is not None:
            live.header, live.mime = made.init.data, made.init.mime
        if not live.shown:
            live.shown = True
            self.meter.observe("first_chunk_seconds", now - live.created)
        self.slack.observe(now, deadline(piece.index, live.viewers, live.seconds) - now)
        self.meter.add("deadline_misses", live.publish(piece, now))
        self.meter.add("chunks")
        self.meter.add("media_seconds", live.seconds)
        self.meter.observe("drift_score", piece.drift)
        for (action, kind), count in note.decisions.items():
            self.meter.add("decisions", count, action=action, type=kind)
        if piece.last:
            live.enter(State.FINISHED, now, "the take is over")

    def _fail(self, live: Live, failure: LongtakeError | None) -> None:
        LOG.error("session failed", extra={"session": live.id, "chunk": live.next_chunk, "reason": str(failure)})
        live.enter(State.FAILED, self.clock(), str(failure))

    async def give_away(self, live: Live, whole: bool = False) -> None:
        """Another generator has the session: its viewers are sent there, and nothing that is theirs is touched.

        ``whole``: nor does it need what this one has in the restore store. Nothing happens if it was let go already: a
        session of that name may have come back meanwhile.
        """
        if self.sessions.get(live.id) is not live:
            return
        del self.sessions[live.id]
        self.books.drop(live.id)
        live.moved = True
        live.tell()
        LOG.info("session given away", extra={"session": live.id, "chunk": live.next_chunk})
        leave = self.worker.close if whole else self.worker.give_away
        await asyncio.shield(self.spawn(self.compute.between(leave, live.id)))  # whoever asks may go

    def _look(self, live: Live, glimpse: Glimpse, see: See) -> None:
        """Let the segmenter see a glimpse, without waiting; at most one per session at a time."""

        async def look() -> None:
            try:
                with TRACER.start_as_current_span("look", attributes={"session": live.id, "chunk": glimpse.chunk}):
                    finding = await see(glimpse)
                await self.between(self.worker.offer, live.id, glimpse, finding)
                live.blind = ""
            except FAILURES as error:  # a slow or dead segmenter delays the anchor, never the stream
                live.blind = str(error)
                said = {"session": live.id, "chunk": glimpse.chunk, "reason": live.blind}
                LOG.warning("the segmenter did not see", extra=said)
            finally:
                live.looking = False

        live.looking = True
        self.spawn(look())

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Do something on the side; it ends with the loop."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _tend(self) -> None:
        """Let go of viewers that stall others, put away who is idle, bring back who is wanted, forget who is over."""
        now = self.clock()
        for live in list(self.sessions.values()):
            stalled = live.stalled(now)
            if stalled and (live.state in OVER or len(stalled) < len(live.watching)):
                for name in stalled:
                    live.watching[name].dropped = f"nothing was acknowledged for {self.pace.patience_s:g} s"
                    live.detach(name, now)
                    self.meter.add("viewer_stalls", outcome="dropped")
            elif stalled:
                self.meter.add("viewer_stalls", outcome="paused")
                await self._put_away(live, "its viewers acknowledge nothing")
            elif live.state is State.RUNNING and not live.watching and now - live.since > self.pace.idle_s:
                await self._put_away(live, "nobody watches")
            elif live.waits and now - live.tried_at > RETRY_S:
                await self._bring_back(live)
            elif live.state is State.PAUSED and not live.watching and now - live.since > self.pace.away_s:
                live.enter(State.STOPPED, now, f"nobody came back for {self.pace.away_s:g} s")
            elif live.state in OVER and not live.watching and now - live.since > self.pace.linger_s:
                self.sessions.pop(live.id, None)
                try:
                    await self.compute.now(self.worker.close, live.id)
                    await self.books.close(live.id)
                except FAILURES:
                    LOG.exception("a session could not be closed", extra={"session": live.id})

    async def _put_away(self, live: Live, reason: str) -> None:
        """If the vault is full or gone the session stays, and is asked again later."""
        try:
            await self.compute.now(self.worker.put_away, live.id)
        except FAILURES as error:
            live.since, live.reason = self.clock(), str(error)
            LOG.warning("session could not be put away", extra={"session": live.id, "reason": live.reason})
        else:
            if live.state is State.RUNNING:
                live.enter(State.PAUSED, self.clock(), reason)
            LOG.info("session put away", extra={"session": live.id, "chunk": live.next_chunk, "reason": reason})

    async def _bring_back(self, live: Live) -> None:
        """Its viewers are there and wait; if there is no place yet it is tried again later."""
        state, reason = State.RUNNING, ""
        live.tried_at = self.clock()
        try:
            await self.compute.now(self.worker.bring_back, live.id)
        except RecordLost as error:
            state, reason = State.FAILED, str(error)
        except FAILURES as error:
            LOG.info("session could not be brought back", extra={"session": live.id, "reason": str(error)})
            return
        if live.state is State.PAUSED and not live.turning.locked():  # else somebody has asked for something meanwhile
            live.enter(state, self.clock(), reason)

    async def measure(self) -> None:
        """Set all gauges of this generator."""
        for state in State:
            self.meter.set("sessions", sum(live.state is state for live in self.sessions.values()), state=state)
        now, starting = self.clock(), (x.state is State.RUNNING and not x.shown for x in self.sessions.values())
        self.meter.set("starting", sum(starting))
        self.meter.set("stalled", sum(live.owes(now) for live in self.sessions.values()))
        self.meter.set("viewers", sum(len(live.watching) for live in self.sessions.values()))
        self.meter.set("unpublished", sum(live.in_flight > 0 for live in self.sessions.values()))
        for name, tags, value in await self.between(self.worker.measures):
            self.meter.set(name, value, **tags)


async def _settled(session: str) -> dict[str, LongtakeError | None]:
    return {session: None}

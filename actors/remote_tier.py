"""A restore store in another process, as a generator's cache sees it: ``cache.tiers.RestoreTier``.

What goes there is sent and not waited for, unless too much is on its way (then briefly, or it is not kept); what the
store has is answered from an index here, which follows what was sent, and is asked for anew when the store says that
it had to drop something or has begun anew. Only what comes back is waited for. If the store has gone, so have its
chunks, and streams go on without them.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from actors.cargo import Goods
from actors.landing import Followed
from actors.restore_store import Answer
from actors.staging import Landing, Staging, StagingConfig
from actors.worker import FAILURES
from cache.records import Plain, parse_record
from cache.spec import AttentionType
from cache.tiers import NOTHING, Held, KeyValues, Latents, Record, RestoreTier, Room
from cache.transfer import Lease
from errors import RecordCorrupt, RecordLost, ServiceError, TransferFailed, TransferPending
from streams.arrivals import attend

Index = dict[str, dict[int, Held]]
Found = dict[str, dict[int, tuple[list[str], bool]]]
Call = Callable[..., "Future[Answer]"]
LOG = logging.getLogger("longtake.store")
ELSEWHERE = "store"
PATIENCE_S = 5.0
AWAY_S = 10.0  # after a call that was not answered in time nothing is asked for
CALLS = 4096  # on their way at most
BRIEFLY_S = 0.05
IN_FLIGHT = 64 << 20


@dataclass(frozen=True)
class Sent:
    """A call that was not waited for: what it does to the index, bytes on their way, or that it asks for holdings.

    ``lease``: of the slot that has what it carries; ``greets``: it asks whether the store reaches our slots.
    """

    number: int
    answer: "Future[Answer]"
    change: Callable[[Index], Any]
    nbytes: int = 0
    asks: bool = False
    greets: bool = False
    lease: Lease | None = None


@dataclass(frozen=True)
class Begun:
    """A fetch that is not waited for: its call, what whoever asked is told, and the slot that it comes back through."""

    number: int
    answer: "Future[Answer]"
    told: "Future[Any]"
    landing: Landing | None


class RemoteTier(RestoreTier):
    """See the module. For one thread.

    Args:
        call: ``call(name, *arguments)`` sends a call to ``RestoreStore``; calls are carried out in the order in which
            they are sent. The future raises ``ServiceError`` if the store does not answer.
        in_flight: bytes on their way at most; what does not fit is not kept (``refused`` counts it).
        staging: the slots through which payloads go one-sided; by default they go as bytes within calls.
    """

    def __init__(
        self,
        call: Call,
        patience_s: float = PATIENCE_S,
        in_flight: int = IN_FLIGHT,
        clock: Callable[[], float] = time.monotonic,
        staging: Staging | None = None,
    ) -> None:
        self.staging = Staging(None, StagingConfig(), clock) if staging is None else staging
        self.call, self.patience_s, self.in_flight, self.clock = call, patience_s, in_flight, clock
        self._away_until = float("-inf")
        self.index: Index = {}
        self.refused = 0
        self.failures = 0
        self._unsaid = 0  # refused and failed calls that ``landed`` told of
        self._sent: deque[Sent] = deque()
        self._begun: list[Begun] = []
        self._known: tuple[str, int] | None = None  # incarnation and losses
        self._greet()

    # -- what the cache asks

    def holds(self, session: str, chunk: int) -> Held:
        self._settle()
        return self.index.get(session, {}).get(chunk, NOTHING)

    def keep_latents(self, session: str, chunk: int, latents: Latents) -> None:
        adds, goods = Held(latents=True), Goods.of_latents(latents)
        self._keep(session, chunk, adds, goods, "keep_latents")

    def offload(self, session: str, chunk: int, type: AttentionType, payload: KeyValues) -> None:
        adds = Held(frozenset({type}))
        self._keep(session, chunk, adds, Goods.of_key_values(payload), "offload", type.value)

    def fetch(self, session: str, chunk: int, type: AttentionType, into: Room | None = None) -> KeyValues:
        return self._bring("fetch", session, chunk, type.value, into=into).key_values()

    def latents(self, session: str, chunk: int) -> Latents:
        found = self._bring("latents", session, chunk).latents()  # kept for long, and a slot is not
        return replace(found, video=found.video.clone(), audio=found.audio.clone())

    def begin_fetch(
        self, session: str, chunk: int, type: AttentionType, into: Room | None = None
    ) -> "Future[KeyValues]":
        return self._begin(Goods.key_values, "fetch", session, chunk, type.value, into=into)

    def begin_latents(self, session: str, chunk: int) -> "Future[Latents]":
        return self._begin(Goods.latents, "latents", session, chunk)

    def where(self, session: str, chunk: int) -> str:
        return ELSEWHERE

    def records(self, session: str) -> dict[int, Record]:
        found: dict[int, Plain] = self._wait("records", session)
        return {chunk: parse_record(plain) for chunk, plain in found.items()}

    def chunks(self, session: str) -> list[int]:
        """Chunks of ``session`` with a record, in media order. Raises ``RecordLost`` if the store does not answer."""
        self._settle()
        found: Found = self._wait("holdings", [session])
        self.index |= held_of(found)
        return sorted(self.index[session])

    def forget(self, session: str, chunk: int) -> None:
        if chunk in self.index.get(session, {}):
            self._send(lambda index: index.get(session, {}).pop(chunk, None), "forget", session, chunk)

    def fork(self, parent: str, child: str) -> None:
        def change(index: Index) -> None:
            index[child] = dict(index.get(parent, {}))

        self._send(change, "fork", parent, child)

    def adopt(self, parent: str, child: str) -> None:
        self.fork(parent, child)
        self._settle()
        found: Found = self._wait("holdings", [child])
        self.index |= held_of(found)

    def introduce(self, session: str, owner: str, model: str) -> None:
        self._send(lambda index: None, "introduce", session, owner, model)

    def close(self, session: str) -> None:
        self._send(lambda index: index.pop(session, None), "close", session)

    def landed(self) -> "Future[bool]":
        """Answers come in the order of the calls, so the newest call's tells of all."""
        told: Future[bool] = Future()
        failed = self.refused + self.failures
        lost, self._unsaid = failed > self._unsaid, failed

        def tell(done: "Future[Answer]") -> None:
            told.set_result(not lost and done.exception() is None)

        if self._sent:
            self._sent[-1].answer.add_done_callback(tell)
        else:
            told.set_result(not lost)
        return told

    # -- inside

    def _keep(self, session: str, chunk: int, adds: Held, goods: Goods, call: str, *arguments: Any) -> None:
        self._settle()
        while self._sent and self._crowded(goods.nbytes):
            if self.clock() < self._away_until or not self._oldest(BRIEFLY_S):
                self.refused += 1
                return

        def change(index: Index) -> None:
            chunks = index.setdefault(session, {})
            held = chunks.get(chunk, NOTHING)
            chunks[chunk] = replace(held, types=held.types | adds.types, latents=held.latents or adds.latents)

        cargo, lease = self.staging.load(goods)
        self._send(change, call, session, chunk, *arguments, cargo, nbytes=cargo.nbytes, lease=lease)

    def _crowded(self, nbytes: int) -> bool:
        return len(self._sent) >= CALLS or sum(s.nbytes for s in self._sent) + nbytes > self.in_flight

    def _send(
        self,
        change: Callable[[Index], Any],
        call: str,
        *arguments: Any,
        nbytes: int = 0,
        lease: Lease | None = None,
    ) -> None:
        change(self.index)
        number, answer = self.staging.called(), self.call(call, *arguments)
        self._sent.append(Sent(number, answer, change, nbytes, lease=lease))
        self._settle()

    def _greet(self) -> None:
        """Ask whether the store reaches our slots, through which nothing goes before it said so."""
        self.staging.open = False
        if self.staging.region is not None:
            number, answer = self.staging.called(), self.call("greet", self.staging.region.ticket)
            self._sent.append(Sent(number, answer, lambda index: None, greets=True))

    def _settle(self) -> None:
        """Take the answers that have come, without waiting."""
        if self.staging.due() and not any(sent.greets for sent in self._sent):
            self._greet()
        while self._sent and self._sent[0].answer.done():
            self._oldest(0)
        self._heed_begun()

    def _oldest(self, seconds: float) -> bool:
        """Take the oldest answer; whether it came within ``seconds``."""
        sent = self._sent[0]
        try:
            answer = sent.answer.result(seconds)
        except TimeoutError:
            return False
        except FAILURES as error:  # whatever the store raised, it does not have what was sent
            self._sent.popleft()
            self.staging.failed(error)
            self._over(sent.number, sent.lease, error)
            self._lost(error)
        else:
            self._sent.popleft()
            self._over(sent.number, sent.lease)
            if sent.greets:
                self.staging.reachable(sent.number, answer.result)
            if sent.asks:
                self._believe(answer)
            else:
                self._heed(answer)
        return True

    def _over(self, number: int, lease: Lease | None, error: BaseException | None = None) -> None:
        """A call has come to its end; who raised ``ServiceError`` may be dead, or only far away."""
        unknown = isinstance(error, (ServiceError, TimeoutError))
        if lease is not None:
            if unknown:
                self.staging.bury(lease)
            elif isinstance(error, TransferPending):
                self.staging.abandon(lease)
            else:
                self.staging.release(lease)
        if not unknown:
            self.staging.answered(number)

    def _bring(self, call: str, *arguments: Any, into: Room | None = None) -> Goods:
        """What a call brings back. Raises ``RecordLost``.

        While it comes, if there is a room for it; if that fails, through a slot; if that fails, within the call.
        """
        landing = self.staging.landing(into)
        if landing is not None:
            try:
                cargo = self._wait(call, *arguments, landing.offer, landing=landing)
            except TransferFailed as error:
                self.staging.failed(error)
            else:
                try:
                    return self.staging.unload(cargo, landing)
                except (TransferFailed, RecordCorrupt) as error:
                    self.staging.failed(error)
            if landing.follower is not None:
                return self._bring(call, *arguments)
        cargo = self._wait(call, *arguments)
        try:
            return self.staging.unload(cargo, None)
        except RecordCorrupt as error:
            self.staging.failed(error)
            raise

    def _begin(
        self, part: Callable[[Goods], Any], call: str, *arguments: Any, into: Room | None = None
    ) -> "Future[Any]":
        """The result of a call, when it comes; whoever asks bounds how much is on its way."""
        told: Future[Any] = Future()
        if self.clock() < self._away_until:
            told.set_exception(RecordLost("the restore store did not answer a moment ago"))
            return told
        landing = self.staging.landing(into)
        place = () if landing is None else (landing.offer,)
        number, asked = self.staging.called(), self.call(call, *arguments, *place)

        def again() -> None:  # through a slot
            self._begin(part, call, *arguments).add_done_callback(lambda done: settle(told, done))

        def take(done: "Future[Answer]", landing: Landing | None) -> None:
            try:
                try:
                    told.set_result(part(self.staging.copied(done.result().result, landing)))
                except (TransferFailed, RecordCorrupt):
                    if landing is None:
                        raise
                    if landing.follower is not None:
                        return again()
                    self.call(call, *arguments).add_done_callback(lambda inline: take(inline, None))
            except RecordLost as error:
                told.set_exception(error)
            except FAILURES as error:
                told.set_exception(RecordLost(f"the restore store has gone: {error}"))

        if landing is not None and landing.follower is not None:
            told = Followed(asked, landing.follower, lambda done: take(done, landing), again)
        else:
            asked.add_done_callback(lambda done: take(done, landing))
        self._begun.append(Begun(number, asked, told, landing))
        self._settle()
        return told

    def _heed_begun(self) -> None:
        """Take note of the fetches that have come, and free their slots; nobody reads these any more."""
        begun_before, self._begun = self._begun, []
        for begun in begun_before:
            if not begun.told.done() or not begun.answer.done():
                self._begun.append(begun)
                continue
            error = begun.answer.exception()
            if isinstance(error, Exception):
                self.staging.failed(error)
            self._over(begun.number, None if begun.landing is None else begun.landing.lease, error)
            if error is None:
                self.staging.counted(begun.answer.result().result)
                self._heed(begun.answer.result())
            elif isinstance(error, ServiceError):
                self._lost(error)

    def _wait(self, call: str, *arguments: Any, landing: Landing | None = None) -> Any:
        """The result of a call; ``landing`` is released or buried if there is none. Raises ``RecordLost``."""
        lease = None if landing is None else landing.lease
        if self.clock() < self._away_until:
            if lease is not None:
                self.staging.release(lease)
            raise RecordLost("the restore store did not answer a moment ago")
        number = self.staging.called()
        try:
            asked, until = self.call(call, *arguments), time.monotonic() + self.patience_s
            if landing is not None and landing.follower is not None:
                attend([asked], landing.follower.follow, self.patience_s)
            answer = asked.result(max(0.0, until - time.monotonic()))
        except ServiceError as error:
            self._over(number, lease, error)
            self._lost(error)
            raise RecordLost(f"the restore store has gone: {error}") from error
        except TimeoutError as error:
            self._over(number, lease, error)
            self._away_until = self.clock() + AWAY_S
            raise RecordLost(f"the restore store has not answered for {self.patience_s:g} s") from error
        except RecordLost as error:
            self._over(number, lease, error)
            raise
        self.staging.answered(number)
        self._settle()
        self._heed(answer)
        return answer.result

    def _heed(self, answer: Answer) -> None:
        """Ask what the store holds, if it has dropped something or begun anew since it was last asked."""
        known, self._known = self._known, (answer.incarnation, answer.losses)
        if known is not None and known[0] != answer.incarnation:
            self._greet()
        if (known or (answer.incarnation, 0)) == self._known or any(sent.asks for sent in self._sent):
            return  # an answer that is on its way tells of this too
        number, answered = self.staging.called(), self.call("holdings", list(self.index))
        self._sent.append(Sent(number, answered, lambda index: None, asks=True))

    def _believe(self, answer: Answer) -> None:
        """Make the index what the store said, and what was sent since."""
        self._known = (answer.incarnation, answer.losses)
        self.index = held_of(answer.result)
        for sent in self._sent:
            sent.change(self.index)

    def _lost(self, error: Exception) -> None:
        """A call failed: perhaps the store has gone with all that it held; the next answer tells."""
        LOG.warning("the restore store failed", extra={"reason": str(error)})
        self.failures += 1
        self.index = {session: {} for session in self.index}
        self._known = ("", -1)


def settle(told: "Future[Any]", done: "Future[Any]") -> None:
    """Tell what another call was told."""
    error = done.exception()
    if error is None:
        told.set_result(done.result())
    else:
        told.set_exception(error)


def held_of(found: Found) -> Index:
    """What ``RestoreStore.holdings`` answered."""
    return {
        session: {chunk: Held(frozenset(map(AttentionType, types)), has) for chunk, (types, has) in held.items()}
        for session, held in found.items()
    }

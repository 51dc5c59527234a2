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

from actors.restore_store import Answer
from actors.worker import FAILURES
from cache.records import (
    Plain,
    parse_key_values,
    parse_latents,
    parse_record,
    plain_key_values,
    plain_latents,
)
from cache.spec import AttentionType
from cache.tiers import NOTHING, Held, KeyValues, Latents, Record, RestoreTier
from errors import RecordLost, ServiceError

Index = dict[str, dict[int, Held]]
Found = dict[str, dict[int, tuple[list[str], bool]]]
Call = Callable[..., "Future[Answer]"]
LOG = logging.getLogger("longtake.store")
PATIENCE_S = 5.0
AWAY_S = 10.0  # after a call that was not answered in time nothing is asked for
CALLS = 4096  # on their way at most
BRIEFLY_S = 0.05
IN_FLIGHT = 64 << 20


@dataclass(frozen=True)
class Sent:
    """A call that was not waited for: what it does to the index, bytes on their way, or that it asks for holdings."""

    answer: "Future[Answer]"
    change: Callable[[Index], Any]
    nbytes: int = 0
    asks: bool = False


class RemoteTier(RestoreTier):
    """See the module. For one thread.

    Args:
        call: ``call(name, *arguments)`` sends a call to ``RestoreStore``; calls are carried out in the order in which
            they are sent. The future raises ``ServiceError`` if the store does not answer.
        in_flight: bytes on their way at most; what does not fit is not kept (``refused`` counts it).
    """

    def __init__(
        self,
        call: Call,
        patience_s: float = PATIENCE_S,
        in_flight: int = IN_FLIGHT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.call, self.patience_s, self.in_flight, self.clock = call, patience_s, in_flight, clock
        self._away_until = float("-inf")
        self.index: Index = {}
        self.refused = 0
        self.failures = 0
        self._unsaid = 0  # refused and failed calls that ``landed`` told of
        self._sent: deque[Sent] = deque()
        self._known: tuple[str, int] | None = None  # incarnation and losses

    # -- what the cache asks

    def holds(self, session: str, chunk: int) -> Held:
        self._settle()
        return self.index.get(session, {}).get(chunk, NOTHING)

    def keep_latents(self, session: str, chunk: int, latents: Latents) -> None:
        self._keep(
            session, chunk, Held(latents=True), latents.nbytes, "keep_latents", lambda: (plain_latents(latents),)
        )

    def offload(self, session: str, chunk: int, type: AttentionType, payload: KeyValues) -> None:
        adds = Held(frozenset({type}))
        self._keep(session, chunk, adds, payload.nbytes, "offload", lambda: (type.value, plain_key_values(payload)))

    def fetch(self, session: str, chunk: int, type: AttentionType) -> KeyValues:
        return parse_key_values(self._wait("fetch", session, chunk, type.value))

    def latents(self, session: str, chunk: int) -> Latents:
        return parse_latents(self._wait("latents", session, chunk))

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

    def _keep(
        self, session: str, chunk: int, adds: Held, nbytes: int, call: str, pack: Callable[[], tuple[Any, ...]]
    ) -> None:
        self._settle()
        while self._sent and self._crowded(nbytes):
            if self.clock() < self._away_until or not self._oldest(BRIEFLY_S):
                self.refused += 1
                return

        def change(index: Index) -> None:
            chunks = index.setdefault(session, {})
            held = chunks.get(chunk, NOTHING)
            chunks[chunk] = replace(held, types=held.types | adds.types, latents=held.latents or adds.latents)

        self._send(change, call, session, chunk, *pack(), nbytes=nbytes)

    def _crowded(self, nbytes: int) -> bool:
        return len(self._sent) >= CALLS or sum(s.nbytes for s in self._sent) + nbytes > self.in_flight

    def _send(self, change: Callable[[Index], Any], call: str, *arguments: Any, nbytes: int = 0) -> None:
        change(self.index)
        self._sent.append(Sent(self.call(call, *arguments), change, nbytes))
        self._settle()

    def _settle(self) -> None:
        """Take the answers that have come, without waiting."""
        while self._sent and self._sent[0].answer.done():
            self._oldest(0)

    def _oldest(self, seconds: float) -> bool:
        """Take the oldest answer; whether it came within ``seconds``."""
        sent = self._sent[0]
        try:
            answer = sent.answer.result(seconds)
        except TimeoutError:
            return False
        except FAILURES as error:  # whatever the store raised, it does not have what was sent
            self._sent.popleft()
            self._lost(error)
        else:
            self._sent.popleft()
            if sent.asks:
                self._believe(answer)
            else:
                self._heed(answer)
        return True

    def _wait(self, call: str, *arguments: Any) -> Any:
        """The result of a call. Raises ``RecordLost``."""
        if self.clock() < self._away_until:
            raise RecordLost("the restore store did not answer a moment ago")
        try:
            answer = self.call(call, *arguments).result(self.patience_s)
        except ServiceError as error:
            self._lost(error)
            raise RecordLost(f"the restore store has gone: {error}") from error
        except TimeoutError as error:
            self._away_until = self.clock() + AWAY_S
            raise RecordLost(f"the restore store has not answered for {self.patience_s:g} s") from error
        self._settle()
        self._heed(answer)
        return answer.result

    def _heed(self, answer: Answer) -> None:
        """Ask what the store holds, if it has dropped something or begun anew since it was last asked."""
        known, self._known = self._known, (answer.incarnation, answer.losses)
        if (known or (answer.incarnation, 0)) == self._known or any(sent.asks for sent in self._sent):
            return  # an answer that is on its way tells of this too
        self._sent.append(Sent(self.call("holdings", list(self.index)), lambda index: None, asks=True))

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


def held_of(found: Found) -> Index:
    """What ``RestoreStore.holdings`` answered."""
    return {
        session: {chunk: Held(frozenset(map(AttentionType, types)), has) for chunk, (types, has) in held.items()}
        for session, held in found.items()
    }

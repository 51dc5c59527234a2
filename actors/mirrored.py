"""A restore store whose clean latents are kept by a second one too, on another node; so are streams that are put away.

What is written goes to both, what is read comes from the own store first. The mirror is waited for briefly: a commit is
booked without it when it does not answer, and that is counted. What it has missed it is sent later, a few chunks with
every step, as is everything when it is another store or has begun anew.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from threading import Lock, Timer
from typing import Any

from actors.worker import FAILURES, Stocked, Vault
from cache.spec import AttentionType
from cache.tiers import NOTHING, Held, KeyValues, Latents, Record, Room
from errors import RecordLost, ServiceError

MIRROR_S = 1.0  # a commit waits so long for the mirror; streams run further ahead than that
AWAY_S = 10.0  # and then, for so long, not at all
REFILL, LOOK_EVERY = 4, 16  # chunks that are sent later with a step, and steps between two looks at what is missing
LOG = logging.getLogger("longtake.store")


class MirroredTier(Stocked):
    """See the module. For one thread.

    Args:
        own: this node's.
        patience_s: how long the mirror is waited for.
    """

    def __init__(self, own: Stocked, patience_s: float = MIRROR_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.own, self.patience_s, self.clock = own, patience_s, clock
        self.mirror: Stocked | None = None
        self.unmirrored = 0  # steps whose latents the mirror had not taken in time
        self.missing: deque[tuple[str, int]] = deque()
        self._latents: dict[str, set[int]] = {}  # given here or adopted, by stream
        self._steps = 0
        self._away_until = float("-inf")
        self._counting = Lock()

    def mirror_to(self, mirror: Stocked | None) -> None:
        """Another mirror, or none; it is sent all that there is."""
        self.mirror, self._away_until = mirror, float("-inf")
        self._look()

    @property
    def refused(self) -> int:
        """Payloads that were not kept because too much was on its way to the own store."""
        return int(getattr(self.own, "refused", 0))

    @property
    def failures(self) -> int:
        """Calls that the own store did not answer."""
        return int(getattr(self.own, "failures", 0))

    @property
    def staging(self) -> Any:
        """The slots through which the own store is reached, if there are any."""
        return getattr(self.own, "staging", None)

    # -- what the cache asks

    def introduce(self, session: str, owner: str, model: str) -> None:
        self.own.introduce(session, owner, model)
        if self.mirror is not None:
            self.mirror.introduce(session, owner, model)

    def holds(self, session: str, chunk: int) -> Held:
        found = self.own.holds(session, chunk)
        if found.latents or self.mirror is None:
            return found
        return replace(found, latents=self.mirror.holds(session, chunk).latents)

    def keep_latents(self, session: str, chunk: int, latents: Latents) -> None:
        self.own.keep_latents(session, chunk, latents)
        self._latents.setdefault(session, set()).add(chunk)
        if self.mirror is not None:
            self.mirror.keep_latents(session, chunk, latents)

    def offload(self, session: str, chunk: int, type: AttentionType, payload: KeyValues) -> None:
        self.own.offload(session, chunk, type, payload)

    def fetch(self, session: str, chunk: int, type: AttentionType, into: Room | None = None) -> KeyValues:
        return self.own.fetch(session, chunk, type, into)

    def latents(self, session: str, chunk: int) -> Latents:
        try:
            return self.own.latents(session, chunk)
        except RecordLost:
            if self.mirror is None:
                raise
            return self.mirror.latents(session, chunk)

    def begin_fetch(
        self, session: str, chunk: int, type: AttentionType, into: Room | None = None
    ) -> "Future[KeyValues]":
        return self.own.begin_fetch(session, chunk, type, into)

    def begin_latents(self, session: str, chunk: int) -> "Future[Latents]":
        return self._of(session, chunk).begin_latents(session, chunk)

    def where(self, session: str, chunk: int) -> str:
        return self._of(session, chunk).where(session, chunk)

    def records(self, session: str) -> dict[int, Record]:
        return self.own.records(session)

    def chunks(self, session: str) -> list[int]:
        return self.own.chunks(session)

    def forget(self, session: str, chunk: int) -> None:
        self.own.forget(session, chunk)
        self._latents.get(session, set()).discard(chunk)
        if self.mirror is not None:
            self.mirror.forget(session, chunk)

    def fork(self, parent: str, child: str) -> None:
        self.own.fork(parent, child)
        self._latents[child] = set(self._latents.get(parent, ()))
        if self.mirror is not None:
            self.mirror.fork(parent, child)

    def adopt(self, parent: str, child: str) -> None:
        self.own.adopt(parent, child)
        self._latents[child] = {c for c in self.own.chunks(child) if self.own.holds(child, c).latents}
        self._look()

    def close(self, session: str) -> None:
        self.own.close(session)
        self._latents.pop(session, None)
        if self.mirror is not None:
            self.mirror.close(session)

    def landed(self) -> "Future[bool]":
        """As of the own store; the mirror is waited for as long as there is patience."""
        self._refill()
        own = self.own.landed()
        if self.mirror is None:
            self._count(False)
            return own
        patience = self.patience_s if self.clock() > self._away_until else 0.0
        return Landing(own, self.mirror.landed(), patience, self._count).told

    # -- inside

    def _of(self, session: str, chunk: int) -> Stocked:
        """The mirror for a chunk of which the own store has nothing, else the own one."""
        lost = self.own.holds(session, chunk) == NOTHING
        return self.mirror if lost and self.mirror is not None else self.own

    def _count(self, mirrored: bool) -> None:
        with self._counting:
            self.unmirrored += not mirrored
            if not mirrored and self.clock() > self._away_until:
                self._away_until = self.clock() + AWAY_S

    def _look(self) -> None:
        """Note what the mirror should have and has not."""
        self.missing.clear()
        if self.mirror is not None:
            for session, chunks in self._latents.items():
                self.missing += [(session, c) for c in sorted(chunks) if not self.mirror.holds(session, c).latents]

    def _refill(self) -> None:
        self._steps += 1
        if not self.missing and self._steps % LOOK_EVERY == 0:
            self._look()
        for _ in range(min(REFILL, len(self.missing))):
            session, chunk = self.missing.popleft()
            if self.mirror is None or chunk not in self._latents.get(session, ()):
                continue
            try:
                self.mirror.keep_latents(session, chunk, self.own.latents(session, chunk))
            except RecordLost:
                self._latents[session].discard(chunk)


@dataclass
class Landing:
    """Done with what ``own`` says, when ``mirror`` is done too or ``patience_s`` are over; ``tell``: whether it was."""

    own: "Future[bool]"
    mirror: "Future[bool]"
    patience_s: float
    tell: Callable[[bool], None]
    told: "Future[bool]" = field(default_factory=Future)
    _lock: Lock = field(default_factory=Lock)
    _late: bool = False

    def __post_init__(self) -> None:
        self._timer = Timer(self.patience_s, self._give_up)
        self._timer.daemon = True
        self._late = self.patience_s <= 0
        if not self._late:
            self._timer.start()
        self.own.add_done_callback(self._look)
        self.mirror.add_done_callback(self._look)

    def _give_up(self) -> None:
        self._late = True
        self._look(self.own)

    def _look(self, _: "Future[bool]") -> None:
        with self._lock:
            if self.told.done() or not self.own.done() or not (self.mirror.done() or self._late):
                return
            self._timer.cancel()
            self.tell(self.mirror.done() and self.mirror.exception() is None and self.mirror.result())
            self.told.set_result(self.own.result())


class MirroredVault(Vault):
    """Streams that are put away: in the own vault, and in a second one, if that has room and is there."""

    def __init__(self, own: Vault) -> None:
        self.own = own
        self.mirror: Vault | None = None

    def put(self, session: str, data: bytes) -> None:
        self.own.put(session, data)
        if self.mirror is not None:
            try:
                self.mirror.put(session, data)
            except FAILURES as error:  # whatever it was: the stream is in the own vault
                LOG.warning("a stream was put away without a mirror", extra={"session": session, "reason": str(error)})

    def take(self, session: str) -> bytes:
        try:
            return self.own.take(session)
        except (RecordLost, ServiceError) as lost:
            if self.mirror is None:
                raise
            try:
                return self.mirror.take(session)
            except (RecordLost, ServiceError):
                raise lost from None

    def drop(self, session: str) -> None:
        self.own.drop(session)
        if self.mirror is not None:
            self.mirror.drop(session)

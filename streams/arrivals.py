"""What a plan brings back, and by which way: loaded if it is here in time, else encoded from latents if that fits.

A stream waits as long as its slack allows and no longer. What can neither be loaded nor encoded by then is late: it is
taken off the plan, goes on coming, and is asked for again when it is here.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from typing import Any

from cache.keep_set import Role
from cache.plan import Encoding, Plan
from cache.spec import AttentionType
from cache.staging import Staging, of
from cache.tiers import Arriving, KeyValues, Latents, Room
from cache.way_back import WayBack
from streams.paging import Paging
from streams.session import Session
from streams.slack import Slack

Wait = Callable[[Collection["Future[Any]"], float], Any]
EAGER_S, IDLE_S = 0.002, 0.0005  # for so long after something came more is looked for at once, then so often
FIRST_WANTED = (Role.SCENE_SINK, Role.SCENE_ANCHOR, Role.RESTORED)


def first_of(answers: Collection["Future[Any]"], seconds: float) -> None:
    """Wait until one more of ``answers`` is there, or so long; what arrives meanwhile is put into its page."""
    arriving = [answer for answer in answers if isinstance(answer, Arriving)]
    if arriving:
        attend(answers, lambda: any(answer.follow() for answer in arriving), seconds)
    else:
        wait_for(answers, seconds, FIRST_COMPLETED)


def attend(answers: Collection["Future[Any]"], follow: Callable[[], bool], seconds: float) -> None:
    """``follow`` what comes, which says whether there was anything, until one of ``answers`` is there or so long."""
    now = time.monotonic()
    until, eager = now + seconds, now + EAGER_S
    while now < until and not any(answer.done() for answer in answers):
        if follow():
            eager = time.monotonic() + EAGER_S
        elif now < eager:
            time.sleep(0)
        else:
            wait_for(answers, min(IDLE_S, until - now), FIRST_COMPLETED)
        now = time.monotonic()


@dataclass
class Arrivals:
    """What became of all that a plan brings back.

    Args:
        key_values: what was loaded.
        encode: what is to be encoded, in media order, whether that was planned or not.
        late: what is to be postponed: its types, and why.
        lost: what is not to be had any more, and why.
    """

    key_values: dict[tuple[AttentionType, int], KeyValues] = field(default_factory=dict)
    encode: list[Encoding] = field(default_factory=list)
    late: dict[int, tuple[tuple[AttentionType, ...], str]] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)


@dataclass
class Expected:
    """One chunk on its way back.

    Args:
        types: what is to be written.
        loads: types whose keys and values were asked for; the others are encoded by plan.
        latents: the answer, or ``None`` where the session has them.
        must: whether there is no going on without it: a page that was written before is written anew.
    """

    chunk: int
    types: tuple[AttentionType, ...]
    role: Role
    loads: "dict[AttentionType, Future[KeyValues]]"
    latents: "Future[Latents] | None"
    must: bool = False

    @property
    def pending(self) -> "list[Future[Any]]":
        """What has not been answered yet."""
        answers: list[Future[Any]] = [*self.loads.values()]
        if self.latents is not None:
            answers.append(self.latents)
        return [answer for answer in answers if not answer.done()]

    @property
    def has_latents(self) -> bool:
        """Whether it could be encoded now."""
        return self.latents is None or of(self.latents) is not None

    @property
    def missing(self) -> tuple[AttentionType, ...]:
        """Types whose keys and values are not here, be it that they are late, lost or to be encoded by plan."""
        return tuple(t for t in self.types if t not in self.loads or of(self.loads[t]) is None)


@dataclass
class Restored:
    """What came back since the engine began: chunks by tier and verdict; seconds that plans were to take, and took."""

    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    predicted_s: float = 0.0
    taken_s: float = 0.0


@dataclass
class Fetcher:
    """Brings back what plans ask for, within the slack of its engine; into its page where that is free already."""

    paging: Paging
    staging: Staging
    way_back: WayBack
    slack: Slack
    clock: Callable[[], float]
    wait: Wait = first_of
    restored: Restored = field(default_factory=Restored)

    def bring(self, session: Session, plan: Plan) -> Arrivals:
        """Wait for what ``plan`` brings back as long as may be, and say which way each chunk takes.

        Latents that came are retained by ``session`` then.
        """
        expected = self._ask(session, plan)
        arrivals = Arrivals(encode=list(plan.encode))
        if expected:
            begun, within = self.clock(), self.slack.within_s
            self._wait(expected, begun + within)
            tiers = {e.chunk: self.staging.where(session.id, e.chunk) for e in expected}
            self._let_go(expected)
            self._sort(session, expected, arrivals, begun, within)
            for chunk in arrivals.late:
                self.staging.drop_landed(session.id, chunk)
            for e in expected:
                self.restored.verdicts[tiers[e.chunk], self._verdict(e, arrivals)] += 1
                if e.chunk not in arrivals.late or not e.pending:
                    self.staging.release(session.id, e.chunk)
        return arrivals

    def _ask(self, session: Session, plan: Plan) -> list[Expected]:
        """Ask for everything at once, most wanted first: latents, which are small, before all keys and values."""
        ledgers = session.manager.ledgers
        types: dict[int, list[AttentionType]] = {}
        roles: dict[int, Role] = {}
        for restoration in plan.restorations:
            types.setdefault(restoration.chunk, []).append(restoration.type)
            roles[restoration.chunk] = restoration.role
        planned = {encoding.chunk: encoding.types for encoding in plan.encode}
        for chunk, written in planned.items():
            roles[chunk] = next(ledgers[t].entries[chunk].role for t in written)
        order = sorted({*types, *planned}, key=lambda c: (FIRST_WANTED.index(roles[c]) if roles[c] in FIRST_WANTED else
                                                          len(FIRST_WANTED), c))  # fmt: skip
        latents = {c: self.staging.begin_latents(session.id, c) for c in order if c not in session.retained}
        left = {(e.type, e.place) for e in plan.evictions}
        expected = []
        for chunk in order:
            written = planned.get(chunk, tuple(types.get(chunk, ())))
            places = {(t, ledgers[t].entries[chunk].place) for t in written}
            must = any(place in session.lease.tables[t] and (t, place) not in left for t, place in places)
            loads = {}
            for t in types.get(chunk, ()):
                room = self._room(session, t, ledgers[t].entries[chunk].place)
                loads[t] = self.staging.begin_fetch(session.id, chunk, t, room)
            expected.append(Expected(chunk, written, roles[chunk], loads, latents.get(chunk), must))
        return expected

    def _room(self, session: Session, type: AttentionType, place: int) -> Room | None:
        """The page of an empty place, claimed; none where it is not host memory, or has a chunk to be evicted first."""
        if place in session.lease.tables[type] or self.paging.pool.device.type != "cpu":
            return None
        return self.paging.room(type, self.paging.pool.claim(session.lease, type, place))

    def _let_go(self, expected: list[Expected]) -> None:
        """Nobody writes pages any more: whose chunk did not come gets another content, or is another's."""
        for e in expected:
            for answer in e.loads.values():
                if isinstance(answer, Arriving):
                    answer.let_go()

    def _wait(self, expected: list[Expected], until: float) -> None:
        """Until all is here, or until there is just time left to encode what is not."""
        fits = self.way_back.fits(until - self.clock()) if self.slack.hurried else 0
        while pending := [answer for e in expected for answer in e.pending]:
            due = sum(bool(e.missing) and e.has_latents for e in expected)
            deadline = until - self.way_back.rebuild_s(min(fits, due))
            now = self.clock()
            if deadline <= now:
                return
            self.wait(pending, deadline - now)

    def _sort(
        self, session: Session, expected: list[Expected], arrivals: Arrivals, begun: float, within: float
    ) -> None:
        """Which way each chunk takes now; most wanted first, as long as there is room for encoding."""
        room = self.way_back.fits(begun + within - self.clock()) if self.slack.hurried else len(expected)
        room -= sum(e.must for e in expected)
        waited = f"within {within * 1e3:.0f} ms"
        for e in expected:
            missing, here = e.missing, e.has_latents
            encodes = bool(missing) and here and (e.must or room > 0)
            gone = next((a.exception() for a in e.loads.values() if a.done() and a.exception()), None)
            if e.latents is not None and e.latents.done() and not here:
                arrivals.lost[e.chunk] = str(e.latents.exception())
            elif here and not missing:
                pass
            elif encodes:
                room -= not e.must
                if e.loads:
                    arrivals.encode.append(Encoding(e.chunk, missing))
                    self._tell(session, e.chunk, str(gone) if gone else f"keys and values were not back {waited}")
            elif self.slack.hurried and session.tries.get(e.chunk, 0) + 1 < self.slack.config.tries:
                session.tries[e.chunk] = session.tries.get(e.chunk, 0) + 1
                arrivals.late[e.chunk] = (e.types, f"{self._what(e)} {waited}")
            else:
                arrivals.lost[e.chunk] = f"{self._what(e)} {waited}, nor before"
            if e.latents is not None and e.chunk not in (*arrivals.late, *arrivals.lost):
                session.retained[e.chunk] = e.latents.result()
            for t, answer in e.loads.items():
                payload = of(answer)
                if payload is not None and t not in missing:
                    arrivals.key_values[t, e.chunk] = payload
        arrivals.encode = sorted(
            (e for e in arrivals.encode if e.chunk not in arrivals.late and e.chunk not in arrivals.lost),
            key=lambda encoding: session.manager.positions.slots[encoding.chunk],
        )

    def _what(self, e: Expected) -> str:
        if not e.has_latents:
            return "neither keys and values nor latents were back" if e.loads else "latents were not back"
        return f"not back, and to encode it in {self.way_back.rebuild_s(1) * 1e3:.0f} ms does not fit"

    def _tell(self, session: Session, chunk: int, reason: str) -> None:
        session.manager.log.add(session.manager.next_chunk, "rebuild", f"{reason}; encoded from latents", chunk)

    @staticmethod
    def _verdict(e: Expected, arrivals: Arrivals) -> str:
        if e.chunk in arrivals.lost:
            return "lost"
        if e.chunk in arrivals.late:
            return "postponed"
        if not e.loads:
            return "rebuilt"
        return "rebuilt instead" if any(x.chunk == e.chunk for x in arrivals.encode) else "loaded"

    def spent(self, predicted_s: float, taken_s: float) -> None:
        """A plan that brought something back has been carried out."""
        self.slack.use(taken_s)
        self.restored.predicted_s += predicted_s
        self.restored.taken_s += taken_s

    # -- what was postponed

    def tend(self, session: Session) -> tuple[list[int], list[int]]:
        """Postponed chunks that may be asked for again, and those that have not come for too long."""
        ready, hopeless = [], []
        waiting = session.manager.waiting
        session.tries = {chunk: n for chunk, n in session.tries.items() if chunk in waiting}
        now = self.clock()
        self.staging.settle()
        for chunk in waiting:
            parcels = self.staging.coming(session.id, chunk)
            pending = [p for p in parcels if not p.answer.done()]
            encodes = any(p.key[2] is None and p.here for p in parcels) and self.way_back.fits(self.slack.within_s)
            if not pending or encodes:
                ready.append(chunk)
            elif now - min(p.begun for p in pending) > self.slack.config.patience_s:
                hopeless.append(chunk)
        return ready, hopeless

"""The session directory: which generator has which session, and who has room for another. One per cluster.

Generators say every few seconds what they hold; what was placed since then is counted on top, so that two gateways
cannot promise the same place twice. A generator that was not heard of for ``silence_s`` is taken for gone, and after
``DOUBT_S`` one that the cluster says is dead: on a busy machine a living generator is late with a beat, or said to be
dead for a moment, but hardly both. Its sessions are orphans then, for another to take over when somebody asks for them.
A directory that begins anew hears of the living within a beat or two, and says of nobody before that there is none; of
those whose generator was lost with it the books know.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.steering import Load, Orders, Steering
from errors import BadMessage, NoCapacity, ServiceError, UnknownSession

GOES_ON = {"running", "paused"}
WAITS = "its generator has gone; it goes on when somebody asks for it"
BEAT_S = 1.0  # how often a generator reports
DOUBT_S, SILENCE_S = 2 * BEAT_S, 10.0
FIRST_S = 5 * BEAT_S  # a new directory has heard of everybody after that
PROMISE_S = 60.0  # how long a place is kept for a session that does not turn up
ORPHANS, ORPHAN_S = 4096, 86_400.0  # sessions without a generator that are remembered, and for how long
END_AGAIN_S, ENDS = 600.0, 10  # how often a generator is asked to end one that is over, and how many are asked


@dataclass
class Member:
    """One generator: its places, when it was heard of, and its sessions, described, by name.

    ``actor`` is its name as an actor, by which one can see whether it lives; ``store``: that of its restore store. One
    that is ``draining`` gets no sessions; those of another ``identity`` cannot go on there: see ``streams.snapshot``.
    """

    capacity: int
    heard: float
    actor: str = ""
    store: str = ""
    draining: bool = False
    identity: str = ""
    sessions: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    promised: dict[str, float] = field(default_factory=dict)
    load: Load = field(default_factory=Load)

    @property
    def taken(self) -> int:
        """Places in use or promised; who is put away takes none."""
        on = sum(bool(s.get("on")) for s in self.sessions.values())
        return on + len(self.promised)


@dataclass(frozen=True)
class Standing:
    """What a generator is told: whether it is drained, the restore stores of others, the one to mirror to first, and
    what it is to do.

    ``over``: a session that nobody came back to, and its owner; it is to be stopped, so that nothing of it is left.
    """

    draining: bool
    stores: tuple[str, ...]
    orders: Orders = field(default_factory=Orders)
    over: tuple[str, str] | None = None


class SessionDirectory:
    """Plain state; ``serve_app`` makes a named actor of it."""

    def __init__(
        self,
        silence_s: float = SILENCE_S,
        clock: Callable[[], float] = time.monotonic,
        lives: Callable[[str], bool] = lambda _: True,
        booked: Callable[[str], bool] = lambda _: False,
        first_s: float = 0.0,
    ) -> None:
        """``lives``: whether an actor of that name does; asked only about those that are silent.

        ``booked``: whether the ledger service has books of a session that nobody reports. Raises ``ServiceError``.
        ``first_s``: how long it waits for everybody's first report.
        """
        self.silence_s, self.clock, self.lives, self.booked = silence_s, clock, lives, booked
        self.heard_from = clock() + first_s
        self.members: dict[str, Member] = {}
        self.home: dict[str, str] = {}  # session → member
        self.orphans: dict[str, tuple[float, Mapping[str, Any]]] = {}  # since when, and described
        self.ends: dict[str, tuple[float, int]] = {}  # orphans that are over: when somebody was asked, how often
        self.steering = Steering(silence_s)

    def report(
        self,
        member: str,
        capacity: int,
        sessions: Sequence[Mapping[str, Any]],
        actor: str = "",
        store: str = "",
        draining: bool = False,
        identity: str = "",
        load: Load | None = None,
    ) -> Standing:
        """What a generator holds now; each session has ``session``, ``owner``, ``on`` and what is listed of it.

        What another generator has taken over meanwhile is not its own any more, whatever it believes. Whether it is
        ``draining`` is for the directory to say, unless that has just begun.
        """
        now = self.clock()
        before = self.members.get(member)
        held = {str(s["session"]): s for s in sessions if self.home.get(str(s["session"]), member) == member}
        promised = {} if before is None else before.promised
        kept = {s: t for s, t in promised.items() if s not in held and now - t < PROMISE_S}
        for session in set(() if before is None else before.sessions) - set(held):
            self.home.pop(session, None)
        for session in set(promised) - set(kept) - set(held):
            if self.home.get(session) == member:  # else a place was reserved, and the session stayed where it was
                del self.home[session]
        self.home |= dict.fromkeys(held, member)
        for session in held:
            self.orphans.pop(session, None)
        drains = draining if before is None else before.draining
        self.members[member] = Member(capacity, now, actor, store, drains, identity, held, kept, load or Load())
        self._bury(now)
        self.steering.steer(now, self.members)
        over = None if self.members[member].draining else self._over(now, identity)
        return Standing(self.members[member].draining, self._stores(store), self.steering.orders(member), over)

    def stops(self, member: str) -> None:
        """Ray Serve no longer sends requests to a generator: it has ended, or gives its sessions away and ends."""
        self.steering.stops(member, self.members)

    def goes_on(self, member: str) -> None:
        """Ray Serve sends requests to a generator again."""
        self.steering.goes_on(member, self.members)

    def place(self, session: str) -> str:
        """Promise ``session`` a place where it makes the slowest chunk least slow; returns the generator.

        Raises ``NoCapacity``.
        """
        self._bury(self.clock())
        best = self._reserved(session) or self._freest(self.members, self._identity(session))
        self.members[best].promised[session] = self.clock()
        self.home[session] = best
        return best

    def reserve(self, session: str, to: str = "") -> str:
        """Promise ``session`` a place in another generator than it is in, perhaps in ``to``; returns which.

        It is still where it was; when it is an orphan, it is placed there. Raises ``UnknownSession``, ``NoCapacity``,
        and ``BadMessage`` for a generator that there is not or that it is in already.
        """
        home = self.find(session)
        if home is None or home == session:
            raise UnknownSession(f"no session {session!r}")
        if to and (to not in self.members or to == home):
            raise BadMessage(
                f"to is {to!r}; expected a generator other than {home!r}: {', '.join(sorted(self.members))}"
            )
        self.unreserve(session)
        others = [to] if to else [name for name in self.members if name != home]
        best = self._freest(others, self._identity(session))
        self.members[best].promised[session] = self.clock()
        return best

    def unreserve(self, session: str) -> None:
        """``session`` stays where it is; unknown ones are no error."""
        for name, member in self.members.items():
            if name != self.home.get(session):
                member.promised.pop(session, None)

    def _reserved(self, session: str) -> str | None:
        return next((name for name, m in self.members.items() if session in m.promised and not m.draining), None)

    def _identity(self, session: str) -> str:
        """Of the generator that has a session, or had it; nothing if nobody knows."""
        home = self.members.get(self.home.get(session, ""))
        _, orphan = self.orphans.get(session, (0.0, {}))
        return str(orphan.get("identity", "")) if home is None else home.identity

    def _freest(self, among: Iterable[str], identity: str) -> str:
        """``identity``: of the generators that can take it; by default any can."""
        members = {name: self.members[name] for name in among if identity in ("", self.members[name].identity)}
        free = {name: m.capacity - m.taken for name, m in members.items() if not m.draining}
        if not free:
            can = "can go on with it; those of another model or configuration cannot" if identity else "takes sessions"
            raise NoCapacity(f"no generator has reported that {can}; they may be starting, or be drained")
        best = self.steering.place(members)
        if best is None:
            self.steering.refused(self.clock())
            places = sum(members[name].capacity for name in free)
            raise NoCapacity(f"all {places} places of {len(free)} generators are taken; stop a session or come back")
        return best

    def drain(self, member: str) -> list[dict[str, Any]]:
        """Place no more sessions in a generator; returns those that it has. Raises ``BadMessage``."""
        found = self._member(member)
        found.draining = True
        return [dict(session) for session in found.sessions.values()]

    def undrain(self, member: str) -> None:
        """Place sessions in a generator again. Raises ``BadMessage``."""
        self._member(member).draining = False
        self.steering.opened(member, self.members)

    def refuge(self, member: str) -> str:
        """Another generator, for what takes no place; raises ``NoCapacity`` if there is none that is not drained."""
        alike = self.members[member].identity if member in self.members else ""
        among = {n: m for n, m in self.members.items() if n != member and not m.draining and alike in ("", m.identity)}
        others = {n: m.taken - m.capacity for n, m in among.items()}
        if not others:
            raise NoCapacity("no other generator takes sessions")
        return min(sorted(others), key=lambda name: others[name])

    def generators(self) -> list[dict[str, Any]]:
        """Every generator: name, places and how many are taken, sessions, its restore store, whether it is drained."""
        self._bury(self.clock())
        return [
            {"generator": name, "capacity": m.capacity, "taken": m.taken, "sessions": len(m.sessions), "store": m.store,
             "draining": m.draining}
            for name, m in sorted(self.members.items())
        ]  # fmt: skip

    def _member(self, member: str) -> Member:
        self._bury(self.clock())
        if member not in self.members:
            raise BadMessage(f"no generator {member!r}; there are: {', '.join(sorted(self.members)) or 'none'}")
        return self.members[member]

    def _stores(self, but: str) -> tuple[str, ...]:
        """The restore stores of all generators but one, from the one on whose name follows; so all get a share."""
        names = sorted({m.store for m in self.members.values()} - {but, ""})
        return (*(n for n in names if n > but), *(n for n in names if n < but))

    def renew(self, session: str) -> None:
        """The place that ``session`` was promised is still wanted; unknown ones are no error."""
        member = self.members.get(self.home.get(session, ""))
        if member is not None and session in member.promised:
            member.promised[session] = self.clock()

    def find(self, session: str) -> str | None:
        """The generator that has ``session``; by its own name one finds a generator."""
        now = self.clock()
        home = self.home.get(session, "")
        member = self.members.get(home)
        if member is not None and member.actor and now - member.heard > DOUBT_S and not self.lives(member.actor):
            self.bury(home)
        self._bury(now)
        return session if session in self.members else self.home.get(session)

    def rescue(self, session: str) -> tuple[str, bool]:
        """The generator that has a session, or shall take it over: then it was promised a place there.

        Raises ``UnknownSession`` if it is no orphan either and in no books, ``NoCapacity``, and ``ServiceError`` before
        everybody has reported.
        """
        home = self.find(session)
        if home is not None:
            return home, session in self.members[home].promised
        if session not in self.orphans:
            if self.clock() < self.heard_from:
                raise ServiceError("the session directory has just begun; ask again")
            if not self._booked(session):
                raise UnknownSession(f"no session {session!r}")
        return self.place(session), True

    def _booked(self, session: str) -> bool:
        """While it waits for an answer it hears nobody: that is nobody's silence. Raises ``ServiceError``."""
        began = self.clock()
        try:
            return self.booked(session)
        finally:
            for member in self.members.values():
                member.heard += self.clock() - began

    def desert(self, session: str) -> None:
        """A generator gives a session away: it is an orphan until somebody asks for it."""
        member = self.members.get(self.home.pop(session, ""))
        if member is not None:
            member.promised.pop(session, None)
            self._orphan(session, member.sessions.pop(session, None))

    def adopt(self, session: str, member: str) -> None:
        """``session`` came to be in ``member`` by itself: a fork."""
        self.home[session] = member

    def release(self, session: str) -> None:
        """``session`` did not begin, or is over; unknown ones are no error."""
        self.orphans.pop(session, None)
        self.unplace(session)

    def unplace(self, session: str) -> None:
        """``session`` could not be taken over where it was placed; it is as before."""
        self.unreserve(session)
        member = self.members.get(self.home.pop(session, ""))
        if member is not None:
            member.promised.pop(session, None)
            member.sessions.pop(session, None)

    def listing(self, owner: str) -> list[dict[str, Any]]:
        """All sessions of an owner, as they were last reported."""
        self._bury(self.clock())
        held = [s for m in self.members.values() for s in m.sessions.values()]
        held += [{**s, "state": "paused", "reason": WAITS} for _, s in self.orphans.values()]
        return [
            {k: v for k, v in s.items() if k not in ("owner", "on", "identity")}
            for s in held
            if s.get("owner") == owner
        ]

    def places(self) -> dict[str, dict[str, int]]:
        """Capacity and places taken, by generator."""
        self._bury(self.clock())
        return {name: {"capacity": m.capacity, "taken": m.taken} for name, m in self.members.items()}

    def _bury(self, now: float) -> None:
        """Forget generators that are silent."""
        for name in [n for n, m in self.members.items() if now - m.heard > self.silence_s]:
            self.bury(name)

    def _over(self, now: float, identity: str) -> tuple[str, str] | None:
        """An orphan that nobody asked for, to be ended by a generator that can go on with it; at last it is forgotten.

        What it left in books, stores and vaults would stay for ever.
        """
        self.ends = {session: asked for session, asked in self.ends.items() if session in self.orphans}
        for session, (since, described) in list(self.orphans.items()):
            asked, times = self.ends.get(session, (float("-inf"), 0))
            if now - since <= ORPHAN_S or now - asked <= END_AGAIN_S:
                continue
            if times == ENDS:
                del self.orphans[session]
            elif str(described.get("identity", "")) in ("", identity):
                self.ends[session] = now, times + 1
                return session, str(described.get("owner", ""))
        return None

    def bury(self, member: str) -> None:
        """A generator has gone; its sessions are orphans."""
        gone = self.members.pop(member, None)
        self.home = {session: home for session, home in self.home.items() if home != member}
        if gone is not None:
            for session, described in gone.sessions.items():
                self._orphan(session, described)

    def _orphan(self, session: str, described: Mapping[str, Any] | None) -> None:
        if described is None or described.get("state") not in GOES_ON:
            return
        while len(self.orphans) >= ORPHANS:
            del self.orphans[next(iter(self.orphans))]
        self.orphans[session] = self.clock(), described

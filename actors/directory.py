"""The session directory: which generator has which session, and who has room for another. One per cluster.

Generators say every few seconds what they hold; what was placed since then is counted on top, so that two gateways
cannot promise the same place twice. A generator that was not heard of for ``silence_s`` is taken for gone. Its sessions
are orphans then, for another generator to take over when somebody asks for them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from errors import NoCapacity, UnknownSession

GOES_ON = {"running", "paused"}
WAITS = "its generator has gone; it goes on when somebody asks for it"
SILENCE_S = 10.0
PROMISE_S = 60.0  # how long a place is kept for a session that does not turn up
ORPHANS, ORPHAN_S = 4096, 86_400.0  # sessions without a generator that are remembered, and for how long


@dataclass
class Member:
    """One generator: its places, when it was heard of, and its sessions, described, by name.

    ``actor`` is its name as an actor, by which one can see whether it lives.
    """

    capacity: int
    heard: float
    actor: str = ""
    sessions: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    promised: dict[str, float] = field(default_factory=dict)

    @property
    def taken(self) -> int:
        """Places in use or promised; who is put away takes none."""
        on = sum(bool(s.get("on")) for s in self.sessions.values())
        return on + len(self.promised)


class SessionDirectory:
    """Plain state; ``serve_app`` makes a named actor of it."""

    def __init__(self, silence_s: float = SILENCE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.silence_s, self.clock = silence_s, clock
        self.members: dict[str, Member] = {}
        self.home: dict[str, str] = {}  # session → member
        self.orphans: dict[str, tuple[float, Mapping[str, Any]]] = {}  # since when, and described

    def report(self, member: str, capacity: int, sessions: Sequence[Mapping[str, Any]], actor: str = "") -> None:
        """What a generator holds now; each session has ``session``, ``owner``, ``on`` and what is listed of it.

        What another generator has taken over meanwhile is not its own any more, whatever it believes.
        """
        now = self.clock()
        before = self.members.get(member)
        held = {str(s["session"]): s for s in sessions if self.home.get(str(s["session"]), member) == member}
        promised = {} if before is None else before.promised
        kept = {s: t for s, t in promised.items() if s not in held and now - t < PROMISE_S}
        for session in set(() if before is None else before.sessions) - set(held):
            self.home.pop(session, None)
        for session in set(promised) - set(kept) - set(held):
            self.home.pop(session, None)
        self.home |= dict.fromkeys(held, member)
        for session in held:
            self.orphans.pop(session, None)
        self.members[member] = Member(capacity, now, actor, held, kept)
        self._bury(now)

    def place(self, session: str) -> str:
        """Promise ``session`` a place where most are free; returns the generator. Raises ``NoCapacity``."""
        self._bury(self.clock())
        free = {name: m.capacity - m.taken for name, m in self.members.items()}
        best = max(sorted(free), key=lambda name: free[name], default=None)
        if best is None:
            raise NoCapacity("no generator has reported yet; they may be starting")
        if free[best] < 1:
            places = sum(m.capacity for m in self.members.values())
            raise NoCapacity(f"all {places} places of {len(free)} generators are taken; stop a session or come back")
        self.members[best].promised[session] = self.clock()
        self.home[session] = best
        return best

    def renew(self, session: str) -> None:
        """The place that ``session`` was promised is still wanted; unknown ones are no error."""
        member = self.members.get(self.home.get(session, ""))
        if member is not None and session in member.promised:
            member.promised[session] = self.clock()

    def find(self, session: str) -> str | None:
        """The generator that has ``session``."""
        self._bury(self.clock())
        return self.home.get(session)

    def rescue(self, session: str) -> tuple[str, bool]:
        """The generator that has a session, or shall take it over: then it was promised a place there.

        Raises ``UnknownSession`` if it is no orphan either, and ``NoCapacity``.
        """
        home = self.find(session)
        if home is not None:
            return home, session in self.members[home].promised
        if session not in self.orphans:
            raise UnknownSession(f"no session {session!r}")
        return self.place(session), True

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
        member = self.members.get(self.home.pop(session, ""))
        if member is not None:
            member.promised.pop(session, None)
            member.sessions.pop(session, None)

    def listing(self, owner: str) -> list[dict[str, Any]]:
        """All sessions of an owner, as they were last reported."""
        self._bury(self.clock())
        held = [s for m in self.members.values() for s in m.sessions.values()]
        held += [{**s, "state": "paused", "reason": WAITS} for _, s in self.orphans.values()]
        return [{k: v for k, v in s.items() if k not in ("owner", "on")} for s in held if s.get("owner") == owner]

    def places(self) -> dict[str, dict[str, int]]:
        """Capacity and places taken, by generator."""
        self._bury(self.clock())
        return {name: {"capacity": m.capacity, "taken": m.taken} for name, m in self.members.items()}

    def _bury(self, now: float) -> None:
        """Forget generators that are silent, and orphans that nobody asked for."""
        for name in [n for n, m in self.members.items() if now - m.heard > self.silence_s]:
            self.bury(name)
        for session in [s for s, (since, _) in self.orphans.items() if now - since > ORPHAN_S]:
            del self.orphans[session]

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

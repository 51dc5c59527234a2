"""A snapshot on which decisions are tried: loads and free places that change as sessions are put down or taken up."""

from collections.abc import Iterable
from dataclasses import dataclass

from scaling.snapshot import Generator, Session, latency


@dataclass
class Seat:
    """A generator while it is decided."""

    name: str
    base_s: float
    load_s: float
    free: int
    draining: bool
    sessions: dict[str, Session]
    moving: bool = False

    @property
    def latency_s(self) -> float:
        """See ``Generator.latency_s``."""
        return latency(self.base_s, self.load_s)

    def with_one(self, session: Session) -> float:
        """What its steps would take with a session more."""
        return latency(self.base_s, self.load_s + session.load_s)

    def without(self, session: Session) -> float:
        """What its steps would take with a session less."""
        return latency(self.base_s, max(0.0, self.load_s - session.load_s))

    def put(self, session: Session) -> None:
        """The session is here now, or will be."""
        self.sessions[session.name] = session
        self.load_s += session.load_s
        self.free -= 1

    def take(self, session: Session) -> None:
        """The session has gone, or will have."""
        del self.sessions[session.name]
        self.load_s = sum(s.load_s for s in self.sessions.values())  # summed anew, or rounding would pile up
        self.free += 1


class Board:
    """All seats by name, in the order of names."""

    def __init__(self, generators: Iterable[Generator]) -> None:
        self.seats = {
            g.name: Seat(
                g.name,
                g.base_s,
                sum(s.load_s for s in g.sessions),
                g.free,
                g.draining,
                {s.name: s for s in g.sessions},
                g.moving,
            )
            for g in sorted(generators, key=lambda g: g.name)
        }

    def open(self, but: str = "") -> list[Seat]:
        """Those with a free place that take sessions."""
        return [s for s in self.seats.values() if s.free > 0 and not s.draining and s.name != but]

    def best(self, session: Session, but: str = "", still: bool = False) -> Seat | None:
        """Where a session makes the slowest chunk least slow; among equals where most places are free.

        ``still``: only where no other is on its way.
        """
        seats = [seat for seat in self.open(but) if not (still and seat.moving)]
        return min(seats, key=lambda seat: (seat.with_one(session), -seat.free), default=None)

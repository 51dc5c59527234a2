"""Who goes where: sessions that wait, sessions of generators that are drained, and sessions that are too many.

The objective is the slowest chunk of all generators (TurboServe, arXiv 2606.19271); how it is followed is ours.
"""

from dataclasses import dataclass

from scaling.board import Board, Seat
from scaling.rules import Balance
from scaling.snapshot import Session, Snapshot


@dataclass(frozen=True)
class Placed:
    """A session that waited gets a place."""

    session: str
    to: str


@dataclass(frozen=True)
class Move:
    """A session goes from one generator to another."""

    session: str
    source: str
    to: str


def seat(board: Board, waiting: tuple[Session, ...]) -> tuple[Placed, ...]:
    """Places for those that wait, the costliest first; who gets none waits on."""
    placed = []
    for session in sorted(waiting, key=lambda s: (-s.cost_s, s.name)):
        best = board.best(session)
        if best is not None:
            best.put(session)
            placed.append(Placed(session.name, best.name))
    return tuple(placed)


def empty(board: Board, rules: Balance, budget: int) -> list[Move]:
    """At most ``budget`` moves out of generators that are drained, the emptiest first: so one is rid of soonest.

    A session that moves is copied first, which lengthens the steps of both generators: each has one move at a time.
    """
    moves: list[Move] = []
    drained = [s for s in board.seats.values() if s.draining and not s.moving]
    for source in sorted(drained, key=lambda s: (len(s.sessions), s.name)):
        session = next(iter(_settled(source, rules)), None)
        best = None if session is None else board.best(session, source.name, still=True)
        if session is not None and best is not None and len(moves) < budget:
            moves.append(_move(session, source, best))
    return moves


def even_out(board: Board, rules: Balance, chunk_s: float, budget: int) -> list[Move]:
    """At most ``budget`` moves that pay, each out of one of the slowest generators: within ``gain`` of the slowest.

    A move pays if what it takes off the slower of the two, over the chunks of ``horizon_s``, is more than the time
    that the session stands still, and at least the share ``gain``. Both are faster then than the slower was, so that
    moves come to an end while the load stays as it is.
    """
    moves: list[Move] = []
    while len(moves) < budget:
        sources = sorted((s for s in board.seats.values() if not s.draining), key=lambda s: (-s.latency_s, s.name))
        enough = (1 - rules.gain) * sources[0].latency_s if sources else 0.0
        for source in (s for s in sources if s.latency_s >= enough and not s.moving):
            found = _relief(board, source, rules, chunk_s, {move.session for move in moves})
            if found is not None:
                moves.append(_move(found[0], source, found[1]))
                break
        else:
            break
    return moves


def _relief(board: Board, source: Seat, rules: Balance, chunk_s: float, moved: set[str]) -> tuple[Session, Seat] | None:
    """The session whose going takes most off the slower of two generators, and the fastest with room for it."""
    open_ = [seat for seat in board.open(source.name) if not seat.moving]
    coolest = min(open_, key=lambda s: (s.latency_s, -s.free), default=None)
    slow = source.latency_s
    if coolest is None or coolest.latency_s >= slow:
        return None
    best: Session | None = None
    most = 0.0
    for session in _settled(source, rules):
        gain = slow - max(source.without(session), coolest.with_one(session))
        if session.name not in moved and gain > most:
            best, most = session, gain
    pays = most >= rules.gain * slow and most * rules.horizon_s / chunk_s >= rules.move_s
    return (best, coolest) if best is not None and pays else None


def _settled(source: Seat, rules: Balance) -> list[Session]:
    return [s for s in source.sessions.values() if s.settled_s >= rules.settle_s]


def _move(session: Session, source: Seat, to: Seat) -> Move:
    source.take(session)
    to.put(session)
    source.moving = to.moving = True
    return Move(session.name, source.name, to.name)


def place(snapshot: Snapshot, session: Session) -> str | None:
    """The generator for a session that comes now; ``None`` if no place is free."""
    best = Board(snapshot.generators).best(session)
    return None if best is None else best.name

"""One decision on one snapshot: the same in the session directory and in the simulator."""

from dataclasses import dataclass, replace

from scaling.board import Board
from scaling.fleet import Resized, resize
from scaling.placement import Move, Placed, empty, even_out, seat
from scaling.rules import Rules
from scaling.snapshot import Snapshot


@dataclass(frozen=True)
class Decisions:
    """What is to be done now, in this order."""

    fleet: Resized
    placed: tuple[Placed, ...]
    moves: tuple[Move, ...]


def decide(snapshot: Snapshot, rules: Rules) -> Decisions:
    """How many generators, who goes where, who moves; nothing is changed by it."""
    fleet = resize(snapshot, rules)
    generators = tuple(
        replace(g, draining=g.name in fleet.drain or (g.draining and g.name not in fleet.reopen))
        for g in snapshot.generators
        if g.name not in fleet.remove
    )
    board = Board(generators)
    placed = seat(board, snapshot.waiting)
    budget = max(0, rules.balance.moves - snapshot.moving)
    moves = empty(board, rules.balance, budget)
    moves += even_out(board, rules.balance, snapshot.chunk_s, budget - len(moves))
    return Decisions(fleet, placed, tuple(moves))

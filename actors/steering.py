"""How the session directory is steered: what generators say becomes a snapshot, and what is decided becomes orders.

``scaling`` decides; here is what lies between two decisions. The directory's clock is passed in.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from scaling.board import Board
from scaling.decide import Decisions, decide
from scaling.fleet import Resized
from scaling.measuring import Trend
from scaling.rules import Rules
from scaling.snapshot import Generator, Session, Snapshot

LOG = logging.getLogger("longtake.directory")
PERIOD_S = 1.0  # between two decisions
REFUSED_S, REFUSED = 5.0, 16  # who found no place is waited for that long; so many at most
GONE_S = 60.0  # a move that was not carried out by then is forgotten
TREND_S = 10.0


@dataclass(frozen=True)
class Load:
    """What a generator says of itself besides its sessions.

    Args:
        base_s, each_s: what a step takes whoever is in it, and what each session adds; 0 if it has made none.
        slack_s: how long before their deadlines its chunks came lately, the worst of them.
        node: where it is; ``head``: whether that is the head of the cluster; ``began``: when it did, by any clock.
        leaving: it was told to give its sessions away, perhaps by a directory that has begun anew since.
        rules: what it was configured with.
    """

    base_s: float = 0.0
    each_s: float = 0.0
    slack_s: float = float("inf")
    node: str = ""
    head: bool = False
    began: float = 0.0
    leaving: bool = False
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True)
class Orders:
    """What a generator is told to do: give all its sessions away, or some of them, each to another.

    ``generators``: how many there are to be; 0 while that is not decided. ``decision``: which this is, counted.
    """

    leave: bool = False
    moves: tuple[tuple[str, str], ...] = ()
    generators: int = 0
    decision: int = 0


class Known(Protocol):
    """A generator as the directory has it."""

    capacity: int
    draining: bool
    load: Load

    @property
    def sessions(self) -> Mapping[str, Mapping[str, Any]]:
        """Described, by name."""
        ...

    @property
    def promised(self) -> Mapping[str, float]:
        """Sessions that have a place kept for them."""
        ...


@dataclass
class Steering:
    """State between decisions.

    Args:
        settle_s: how long it is only listened to generators before anything is decided.
        leaving: generators whose sessions go elsewhere; of these, ``stopping`` are being stopped by Ray Serve, and of
            the others the ``removed`` are empty and no longer counted.
        wanted: how many generators there are to be, those in ``stopping`` and ``removed`` not counted; it was changed
            ``decision`` times.
    """

    settle_s: float
    leaving: set[str] = field(default_factory=set)
    stopping: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    wanted: int = 0
    decision: int = 0
    _moves: dict[str, dict[str, str]] = field(default_factory=dict)
    _moved: dict[str, float] = field(default_factory=dict)
    _going: dict[str, str] = field(default_factory=dict)
    _refused: list[float] = field(default_factory=list)
    _trend: Trend = field(default_factory=lambda: Trend(TREND_S))
    _began: float | None = None
    _last: float = float("-inf")
    _out: float = float("-inf")
    _in: float = float("-inf")

    # -- what the directory says

    def refused(self, now: float) -> None:
        """A session found no place."""
        self._refused = [*self._refused, now][-REFUSED:]

    def stops(self, member: str, members: Mapping[str, Known]) -> None:
        """Ray Serve takes a generator away. If another was to go, that one stays in its stead."""
        if member not in self.stopping and member in members:
            self.stopping.add(member)
            LOG.info("a generator is being stopped", extra={"generator": member})
            spared = sorted((self.removed or self.leaving - self.stopping) - {member})
            if member not in self.removed and spared and self._kept(members) < self.wanted:
                self._reopen(spared[0], members)
        self._leave(member, members)

    def goes_on(self, member: str, members: Mapping[str, Known]) -> None:
        """It is not taken away after all."""
        if member in self.stopping:
            self.stopping.discard(member)
            self._reopen(member, members)

    def opened(self, member: str, members: Mapping[str, Known]) -> None:
        """A person opens it again, whoever had it drained."""
        if member in self.removed:
            self._want(self.wanted + 1)
        self._reopen(member, members)

    def orders(self, member: str) -> Orders:
        """What a generator is to do now; moves are told once."""
        moves = tuple(sorted(self._moves.pop(member, {}).items()))
        return Orders(member in self.leaving, moves, self.wanted, self.decision)

    # -- what is decided

    def place(self, among: Mapping[str, Known]) -> str | None:
        """Where a session that comes now makes the slowest chunk least slow; ``None`` if there is no free place.

        Where nothing moves afterwards, all are taken for equal: a generator's first steps are slow, and a place is for
        as long as the session lasts.
        """
        cost = _mean_cost(among)
        generators = self._generators(among, 0.0)
        if not any(m.load.rules.balance.moves for m in among.values()):
            even = [tuple(replace(s, cost_s=cost) for s in g.sessions) for g in generators]
            generators = [replace(g, base_s=0.0, sessions=s) for g, s in zip(generators, even, strict=True)]
        best = Board(generators).best(Session("", cost))
        return None if best is None else best.name

    def steer(self, now: float, members: Mapping[str, Known]) -> None:
        """Decide, if it is time to."""
        self._forget(now, members)
        if self._began is None:
            self._began = now
        if not members or now < self._began + self.settle_s or now < self._last + PERIOD_S:
            return
        self._last = now
        rules = next(iter(members.values())).load.rules
        if not self.wanted:
            self._want(min(max(rules.least, self._kept(members)), rules.most))
        self._carry_out(decide(self._snapshot(now, members), rules), now, members)

    def _snapshot(self, now: float, members: Mapping[str, Known]) -> Snapshot:
        away = self.removed | self.stopping | {n for n, m in members.items() if m.draining and n not in self.leaving}
        counted = {n: m for n, m in members.items() if n not in away}  # what a person drains, a person opens again
        cost = _mean_cost(members)
        waiting = [t for t in self._refused if now - t < REFUSED_S]
        generators = tuple(self._generators(counted, now))
        load = sum(s.load_s for g in generators for s in g.sessions)
        return Snapshot(
            _chunk_s(members),
            generators,
            tuple(Session(f"refused {i}", cost) for i in range(len(waiting))),
            max(0, self.wanted - self._kept(members)),
            len(self._going),
            self._trend.observe(now, load),
            now - self._out,
            now - self._in,
        )

    def _generators(self, members: Mapping[str, Known], now: float) -> list[Generator]:
        ranks = {name: rank for rank, name in enumerate(order_of_leaving(members))}
        mean = _mean_cost(members)
        return [
            Generator(
                name,
                member.capacity,
                member.load.base_s,
                self._sessions(name, member, now, mean),
                draining=member.draining,
                leaves=ranks[name],
                slack_s=member.load.slack_s,
                moving=name in self._going.values() or bool(self._going.keys() & member.sessions.keys()),
            )
            for name, member in members.items()
        ]

    def _sessions(self, member: str, known: Known, now: float, mean: float) -> tuple[Session, ...]:
        """Those that take a place, and those that were promised one: these too will be in the next steps.

        Who is on its way to another generator has its place until it has gone, and will be in that one's steps.
        """
        cost = known.load.each_s or mean
        here = [
            Session(
                name, cost, float(self._going.get(name, member) == member), now - self._moved.get(name, float("-inf"))
            )
            for name, said in known.sessions.items()
            if said.get("on")
        ]
        return (*here, *(Session(name, cost, settled_s=0.0) for name in known.promised))

    def _carry_out(self, decided: Decisions, now: float, members: Mapping[str, Known]) -> None:
        fleet = decided.fleet
        if fleet.add or fleet.reopen:
            self._out = now
        if fleet.drain:
            self._in = now
        self._want(self.wanted + fleet.add)
        for name in fleet.reopen:
            self._reopen(name, members)
        for name in fleet.drain:
            self._leave(name, members)
        for name in fleet.remove:
            self.removed.add(name)
            self._want(self.wanted - 1)
        for move in decided.moves:
            if not members[move.source].draining:  # who leaves sees to its sessions itself
                self._moves.setdefault(move.source, {})[move.session] = move.to
                self._moved[move.session], self._going[move.session] = now, move.to
        if fleet != Resized() or decided.moves:
            LOG.info("decided", extra={"fleet": repr(fleet), "moves": len(decided.moves), "generators": self.wanted})

    # -- inside

    def _want(self, generators: int) -> None:
        self.decision += generators != self.wanted
        self.wanted = generators

    def _kept(self, members: Mapping[str, Known]) -> int:
        return len(set(members) - self.removed - self.stopping)

    def _leave(self, member: str, members: Mapping[str, Known]) -> None:
        if member in members:
            self.leaving.add(member)
            members[member].draining = True

    def _reopen(self, member: str, members: Mapping[str, Known]) -> None:
        self.leaving.discard(member)
        self.removed.discard(member)
        if member in members:
            members[member].draining = False

    def _forget(self, now: float, members: Mapping[str, Known]) -> None:
        """Who has gone, and moves of long ago."""
        for names in (self.leaving, self.stopping, self.removed):
            names.intersection_update(members)
        for name, member in members.items():
            if member.load.leaving and member.draining and name not in self.leaving and self._last == float("-inf"):
                self.leaving.add(name)  # a directory before this one had said so
        held = set(self._going) | {session for member in members.values() for session in member.sessions}
        self._moved = {s: t for s, t in self._moved.items() if s in held or now - t < GONE_S}
        self._moves = {name: moves for name, moves in self._moves.items() if name in members}
        self._going = {
            session: to
            for session, to in self._going.items()
            if to in members and session not in members[to].sessions and now - self._moved[session] < GONE_S
        }


def _mean_cost(members: Mapping[str, Known]) -> float:
    """What a session adds to a step, where a generator has not made any yet."""
    known = [m.load.each_s for m in members.values() if m.load.each_s > 0]
    return sum(known) / len(known) if known else 0.0


def _chunk_s(members: Mapping[str, Known]) -> float:
    said = [s.get("chunk_seconds") for m in members.values() for s in m.sessions.values()]
    return max((float(s) for s in said if s), default=1.0)


def order_of_leaving(members: Mapping[str, Known]) -> list[str]:
    """In which order Ray Serve 2.60 would most likely stop them, as it tells its own rule.

    Nodes other than the head first, of these the ones with the fewest replicas, and on a node the newest. It counts
    replicas of all kinds, which are not known here: whom it takes is a guess, and nothing depends on it but how many
    sessions move twice.
    """
    on_node: dict[str, int] = {}
    for member in members.values():
        on_node[member.load.node] = on_node.get(member.load.node, 0) + 1
    return sorted(
        members,
        key=lambda n: (members[n].load.head, on_node[members[n].load.node], -members[n].load.began, n),
    )

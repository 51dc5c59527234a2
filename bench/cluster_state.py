"""The state of a simulated cluster: sessions and GPUs, and who decides about them."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.cluster_costs import Costs
from bench.cluster_trace import ARRIVE, AWAY, END, REST, WAKE, Floats, Trace
from scaling.board import Board
from scaling.decide import Decisions, decide
from scaling.measuring import Trend
from scaling.placement import seat
from scaling.rules import Rules
from scaling.snapshot import Generator, Session, Snapshot

GPUS = 64
IDLE = 0.3  # share of the next steps that a session which rests is expected in
TREND_S = 10.0
OFF, STARTING, OPEN, DRAINING = range(4)


@dataclass(frozen=True)
class Contender:
    """Who decides.

    Args:
        fixed: GPUs of a cluster that stays as it is, and whose sessions stay where they came; 0 for rules.
        by: where a session of a fixed cluster comes: by ``hash``, to the fewest ``sessions``, or to the least ``load``.
        rules: of placement and of the number of GPUs, otherwise.
        moves: whether sessions that have a place move.
    """

    name: str
    fixed: int = 0
    by: str = "sessions"
    rules: Rules | None = None
    moves: bool = True


@dataclass(frozen=True)
class Chunks:
    """A chunk's time: steps by GPU; who made a chunk, in what step, after what wait; how many were due, and late."""

    step: Floats
    made: NDArray[np.int64]
    took: Floats
    waited: Floats
    due: int
    late: int


class Cluster:
    """The state of a run: arrays by session and by GPU."""

    def __init__(self, trace: Trace, costs: Costs, who: Contender, seed: int) -> None:
        self.costs, self.who, self.rng = costs, who, np.random.default_rng(seed)
        count = len(trace.cost)
        self.cost = trace.cost * costs.each_s
        self.home = np.full(count, -1)
        self.here, self.active, self.alive = (np.zeros(count, bool) for _ in range(3))
        self.ahead = np.zeros(count)
        self.still_until, self.moved_at = np.zeros(count), np.full(count, -np.inf)
        self.to, self.passed_at = np.full(count, -1), np.full(count, -np.inf)  # of who is copied: where to, until when
        self.state, self.ready_at = np.full(GPUS, OFF), np.zeros(GPUS)
        self.waiting: dict[int, None] = {}
        self.trend, self.out, self.into = Trend(TREND_S), -math.inf, -math.inf
        self.moves, self.standing_s = 0, 0.0
        self.state[: who.fixed or (who.rules.least if who.rules else 1)] = OPEN

    @property
    def count(self) -> int:
        """GPUs that make chunks."""
        return len(self._on())

    # -- what happens

    def happen(self, what: int, who: int) -> None:
        """One event of the trace."""
        if what == ARRIVE:
            self.alive[who] = self.active[who] = True
            if self.who.fixed:
                self.home[who] = self._fixed_home()
            self.waiting[who] = None
        elif what == WAKE:
            self.active[who] = True
            self.ahead[who] = self.costs.chunk_s
            if not self.here[who]:
                self.waiting[who] = None
        elif what == REST:
            self.active[who] = False
            self.waiting.pop(who, None)
        elif what in (AWAY, END):
            self.here[who], self.to[who], self.passed_at[who] = False, -1, -np.inf
            if what == END:
                self.alive[who] = self.active[who] = False
                self.waiting.pop(who, None)

    def _fixed_home(self) -> int:
        count = self.who.fixed
        if self.who.by == "hash":
            return int(self.rng.integers(count))
        on = self.alive & (self.home >= 0)
        weights = None if self.who.by == "sessions" else (self.cost * (self.here & self.active))[on]
        return int(np.argmin(np.bincount(self.home[on], weights, count)[:count]))

    def settle(self, now: float) -> None:
        """Give places to those that wait."""
        if not self.waiting:
            return
        taken = self._taken()
        if self.who.fixed:
            for who in list(self.waiting):
                home = self.home[who]
                if taken[home] < self.costs.places:
                    taken[home] += 1
                    self._enter(who, home, now)
            return
        board = Board(self._sums(taken))
        waiting = tuple(Session(str(who), float(self.cost[who])) for who in self.waiting)
        for placed in seat(board, waiting):
            self._enter(int(placed.session), int(placed.to), now)

    def _enter(self, who: int, home: int, now: float) -> None:
        del self.waiting[who]
        back = 0.0 if self.home[who] < 0 else self.costs.near_s if self.home[who] == home else self.costs.far_s
        self.home[who], self.here[who], self.still_until[who] = home, True, now + back
        self.ahead[who] = self.costs.chunk_s + back  # playing begins with the first chunk

    # -- what is decided

    def _taken(self) -> NDArray[np.int64]:
        """Places by GPU; who is copied has two."""
        copied = self.to[self.to >= 0]
        return np.bincount(self.home[self.here], minlength=GPUS) + np.bincount(copied, minlength=GPUS)

    def _bound(self) -> NDArray[np.int64]:
        """Where everybody is, or will be soon."""
        return np.where(self.to >= 0, self.to, self.home)

    def _on(self) -> list[int]:
        return [int(g) for g in np.flatnonzero((self.state == OPEN) | (self.state == DRAINING))]

    def _sums(self, taken: NDArray[np.int64]) -> list[Generator]:
        """All GPUs that are there, with one session that stands for all: enough to place by."""
        load = np.bincount(self._bound()[self.here], self._expected()[self.here], GPUS)
        costs, drained = self.costs, self.state == DRAINING
        return [
            Generator(
                f"{g:02d}", costs.places, costs.base_s, (Session("all", float(load[g])),), int(taken[g]) - 1,
                bool(drained[g]),
            )
            for g in self._on()
        ]  # fmt: skip

    def _generators(self, now: float) -> list[Generator]:
        """All GPUs that are there, with their sessions."""
        by_gpu: dict[int, list[Session]] = {g: [] for g in self._on()}
        bound = self._bound()
        for who in np.flatnonzero(self.here):
            activity, settled = 1.0 if self.active[who] else IDLE, float(now - self.moved_at[who])
            by_gpu[int(bound[who])].append(Session(str(who), float(self.cost[who]), activity, settled))
            if self.to[who] >= 0:  # its place is taken until it has gone
                by_gpu[int(self.home[who])].append(Session(f"{who} goes", float(self.cost[who]), 0.0, 0.0))
        copying = {*self.home[self.to >= 0], *self.to[self.to >= 0]}
        costs, drained = self.costs, self.state == DRAINING
        return [
            Generator(
                f"{g:02d}", costs.places, costs.base_s, tuple(held), 0, bool(drained[g]), moving=g in copying
            )
            for g, held in by_gpu.items()
        ]  # fmt: skip

    def _expected(self) -> Floats:
        return np.asarray(self.cost * np.where(self.active, 1.0, IDLE))

    def steer(self, now: float) -> None:
        """Decide by the rules, and begin what was decided."""
        if self.who.rules is None:
            return
        self.state[(self.state == STARTING) & (self.ready_at <= now)] = OPEN
        decided = decide(self._snapshot(now), self.who.rules)
        for placed in decided.placed:
            self._enter(int(placed.session), int(placed.to), now)
        self._resize(decided, now)
        for move in decided.moves if self.who.moves else ():
            self._move(int(move.session), int(move.to), now)

    def _snapshot(self, now: float) -> Snapshot:
        moving = self.here & (self.moved_at + self.costs.copy_s + self.costs.move_s > now)
        return Snapshot(
            self.costs.chunk_s,
            tuple(self._generators(now)),
            tuple(Session(str(who), float(self.cost[who])) for who in self.waiting),
            int((self.state == STARTING).sum()),
            int(moving.sum()),
            self.trend.observe(now, float(self._expected()[self.here].sum())),
            now - self.out,
            now - self.into,
        )

    def _resize(self, decided: Decisions, now: float) -> None:
        fleet = decided.fleet
        self.state[[int(name) for name in fleet.reopen]] = OPEN
        self.state[[int(name) for name in fleet.drain]] = DRAINING
        self.state[[int(name) for name in fleet.remove]] = OFF
        begun = np.flatnonzero(self.state == OFF)[: fleet.add]
        self.state[begun], self.ready_at[begun] = STARTING, now + self.costs.start_s
        self.out = now if fleet.add or fleet.reopen else self.out
        self.into = now if fleet.drain else self.into

    def _move(self, who: int, to: int, now: float) -> None:
        self.to[who], self.moved_at[who], self.passed_at[who] = to, now, now + self.costs.copy_s
        self.moves += 1

    def _pass(self, now: float) -> None:
        """Who has been copied goes, and stands still for that."""
        gone = np.flatnonzero((self.to >= 0) & (self.passed_at <= now))
        self.home[gone], self.to[gone], self.passed_at[gone] = self.to[gone], -1, now
        self.still_until[gone] = now + self.costs.move_s
        self.standing_s += self.costs.move_s * int(self.active[gone].sum())

    # -- chunks

    def chunk(self, now: float) -> "Chunks":
        """One chunk of every session that generates and does not stand still."""
        costs = self.costs
        self._pass(now)
        there, copied = self.active & self.here, self.to >= 0
        made = np.flatnonzero(there & (self.still_until <= now))
        load = np.bincount(self.home[made], self.cost[made], GPUS)
        copies = np.bincount(self.home[copied], minlength=GPUS) + np.bincount(self.to[copied], minlength=GPUS)
        step = np.where(load > 0, costs.base_s + load + copies * costs.copy_step_s, 0.0)
        took = step[self.home[made]]
        gained = costs.chunk_s * (costs.chunk_s / took - 1)  # of media, while a chunk's time goes by
        self.ahead[made] = np.minimum(self.ahead[made] + gained, costs.lead * costs.chunk_s)
        idle = np.concatenate([np.flatnonzero(there & (self.still_until > now)), np.array([*self.waiting], int)])
        self.ahead[idle] -= costs.chunk_s
        due = np.concatenate([made, idle])
        late = due[self.ahead[due] < 0]
        self.ahead[late] = 0.0
        gone = (self.to[made] < 0) & (self.passed_at[made] + costs.move_s > now - costs.chunk_s)  # just now
        return Chunks(step, made, took, took + gone * costs.move_s, len(due), len(late))

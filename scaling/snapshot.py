"""What is decided on: generators with their sessions, who waits, and when something was last changed.

Times are seconds. What a step takes is a line: so much whoever is in it, and so much for each session.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Session:
    """One session that has a place, or wants one.

    Args:
        cost_s: what its chunk adds to a step of its generator.
        activity: the share of steps that it will be in; 1 for one that is watched, less for one that is idle.
        settled_s: how long it has been where it is; infinite for one that was never moved.
    """

    name: str
    cost_s: float
    activity: float = 1.0
    settled_s: float = math.inf

    @property
    def load_s(self) -> float:
        """What it adds to a step, as is to be expected."""
        return self.cost_s * self.activity


@dataclass(frozen=True)
class Generator:
    """One generator.

    Args:
        places: sessions that it has memory for; ``promised`` of them are kept for sessions that are not there yet.
        base_s: what a step takes whoever is in it.
        draining: it gets no sessions, and those that it has go elsewhere.
        leaves: who goes first when one is to go; among equals the one with the least load.
        slack_s: how long before their deadlines its chunks came lately, the worst of them; infinite if nobody waits.
        moving: whether a session is on its way from it or to it, which lengthens its steps.
    """

    name: str
    places: int
    base_s: float
    sessions: tuple[Session, ...] = ()
    promised: int = 0
    draining: bool = False
    leaves: int = 0
    slack_s: float = math.inf
    moving: bool = False

    @property
    def free(self) -> int:
        """Places that nobody has and nobody was promised."""
        return self.places - len(self.sessions) - self.promised

    @property
    def latency_s(self) -> float:
        """What its next steps take, as is to be expected; 0 with nobody in them."""
        return latency(self.base_s, sum(session.load_s for session in self.sessions))


def latency(base_s: float, load_s: float) -> float:
    """A step with so much load; a generator without any makes none."""
    return base_s + load_s if load_s > 0 else 0.0


@dataclass(frozen=True)
class Snapshot:
    """All of it at one moment.

    Args:
        chunk_s: media time of a chunk: a step that takes longer makes viewers wait.
        waiting: sessions that want a place.
        starting: generators that were asked for and are not there yet.
        moving: sessions that are on their way from one generator to another.
        growth: how fast load comes, in seconds of a step per second.
        since_out_s, since_in_s: since when a generator was last asked for, or last given up.
    """

    chunk_s: float
    generators: tuple[Generator, ...]
    waiting: tuple[Session, ...] = ()
    starting: int = 0
    moving: int = 0
    growth: float = 0.0
    since_out_s: float = math.inf
    since_in_s: float = math.inf

    @property
    def open(self) -> tuple[Generator, ...]:
        """Those that take sessions."""
        return tuple(g for g in self.generators if not g.draining)

    @property
    def worst_s(self) -> float:
        """The slowest chunk, as is to be expected."""
        return worst(self.generators)


def worst(generators: Sequence[Generator]) -> float:
    """The slowest step of all."""
    return max((g.latency_s for g in generators), default=0.0)

"""Writers of a journal that are killed with SIGKILL, at random moments or at each call of the system in turn."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from actors.ledger_service import LedgerShard
from bench.lives import Books, Life, books_of
from cache import compaction, file_journal
from cache.journal import Journal

MOST_STEPS, LONGEST_WAIT_S = 40, 0.004
ACKNOWLEDGED = b"."
MakeShard = Callable[[], LedgerShard]


def nothing() -> None:
    """No preparation."""


def end(child: int) -> None:
    """SIGKILL."""
    os.kill(child, signal.SIGKILL)


@dataclass(frozen=True)
class Death:
    """How a writer comes to its end.

    Args:
        prepare: done in the writer before its first step.
        steps: after which it ends by itself, if nothing ends it before; ``None``: it is ended at a random moment,
        kill: by this, which is given its process.
    """

    prepare: Callable[[], None] = nothing
    steps: int | None = None
    kill: Callable[[int], None] = end


@dataclass
class Tally:
    """What came of so many kills. ``lost``: acknowledged calls that a replay did not have; ``wrong``: other books."""

    kills: int = 0
    acknowledged: int = 0
    half_done: int = 0
    lost: int = 0
    wrong: int = 0
    torn: int = 0


@dataclass
class Rounds:
    """A journal that writers are killed over, one after the other; what it must have grows with each."""

    make: Callable[[], Journal]
    seed: int = 0
    tally: Tally = field(default_factory=Tally)
    kept: Books = field(default_factory=dict)

    def shard(self) -> LedgerShard:
        """A shard that begins anew, and writes whole books often."""
        return LedgerShard(journal=self.make(), whole_every=8)

    def round(self, number: int, death: Death = Death(), repair: Callable[[], None] = nothing) -> int:
        """Let a writer work until its death, then look at what is left; calls that were acknowledged.

        ``repair``: done before looking.
        """
        draw = random.Random(self.seed * 1_000_003 + number)
        target, wait_s = draw.randrange(MOST_STEPS), draw.uniform(0, LONGEST_WAIT_S)
        names = tuple(f"r{number}-{i}" for i in range(3))
        acknowledged = self._written(number, names, death, target, wait_s)
        repair()
        before, after = self._expected(number, names, acknowledged)
        shard = self.shard()
        replay = books_of(shard)
        shard.journal.close()
        self._judge(replay, before, after)
        self.kept = replay
        self.tally.kills += 1
        self.tally.acknowledged += acknowledged
        return acknowledged

    def _written(self, number: int, names: tuple[str, ...], death: Death, target: int, wait_s: float) -> int:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(reading)
                shard, life = self.shard(), Life(self._life_seed(number), names)
                shard.tend()
                death.prepare()
                done = 0
                while death.steps is None or done < death.steps:
                    life.step(shard)
                    os.write(writing, ACKNOWLEDGED)
                    done += 1
            finally:
                os._exit(0)
        os.close(writing)
        acknowledged = 0
        while acknowledged < target and os.read(reading, 1):
            acknowledged += 1
        if death.steps is None:
            time.sleep(wait_s)
            death.kill(child)
        while os.read(reading, 1):
            acknowledged += 1
        os.waitpid(child, 0)
        os.close(reading)
        return acknowledged

    def _life_seed(self, number: int) -> int:
        return self.seed * 7919 + number

    def _expected(self, number: int, names: tuple[str, ...], acknowledged: int) -> tuple[Books, Books]:
        """Books after the acknowledged calls, and after one more, which may have been written."""
        oracle, life = LedgerShard(), Life(self._life_seed(number), names)
        for _ in range(acknowledged):
            life.step(oracle)
        before = books_of(oracle)
        life.step(oracle)
        return before, books_of(oracle)

    def _judge(self, replay: Books, before: Books, after: Books) -> None:
        for session in {*self.kept, *replay, *before, *after}:
            found = replay.get(session)
            if session in self.kept:
                right = found == self.kept[session]
            else:
                right = found in (before.get(session), after.get(session))
                self.tally.half_done += found != before.get(session) and right
            if not right:
                floor = self.kept.get(session) or before.get(session)
                older = floor is not None and (found is None or found[1] < floor[1])
                self.tally.lost += older
                self.tally.wrong += not older


class Deadly:
    """``os`` for the file journal, with a death at the ``at``-th call that changes a disk.

    Args:
        moment: ``before`` the call, ``after`` it, or ``amid`` a write, of which some bytes are written then.
    """

    CALLS = ("open", "pwrite", "fsync", "fdatasync", "rename", "ftruncate", "close")

    def __init__(self, at: int, moment: str, draw: random.Random) -> None:
        self.at, self.moment, self.draw, self.calls = at, moment, draw, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.CALLS:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                if self.moment == "amid" and name == "pwrite":
                    fd, data, offset = arguments
                    os.pwrite(fd, data[: self.draw.randrange(len(data))], offset)
                if self.moment == "after":
                    real(*arguments, **options)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    def set(self) -> None:
        """From here on, in this process."""
        for module in (file_journal, compaction):
            vars(module)["os"] = self

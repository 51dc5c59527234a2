"""Sessions that live at random, by seed: the calls that a ledger shard gets, the same ones again for whoever asks."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import msgpack
import numpy as np

from actors.ledger_service import LedgerShard
from actors.statements import Entry, Statement, Verdict
from cache.books import CacheConfig
from cache.drift import ChannelStatistics, DriftConfig
from cache.keep_set import Budgets, RoleBudget
from cache.manager import CacheManager
from cache.plan import Cut, PromptChange, ReturnTo
from cache.policies import ALL
from cache.replica import digest
from cache.scenes import SceneConfig
from cache.spec import TYPES, AttentionSpec
from cache.state import dump
from cache.terms import Terms
from cache.tiers import Held

SPECS = {t: AttentionSpec(t, 2, 8, 16, 4) for t in TYPES}
CONFIG = CacheConfig(
    scenes=SceneConfig(max_scenes=3, anchor_every=2, anchors=3),
    drift=DriftConfig(warmup_chunks=2, patience=1, reference_threshold=0.5),
)
BUDGETS = Budgets.uniform(RoleBudget(1, 1, 2, 2, 3))
Books = dict[str, tuple[int, int, bytes, bytes]]


class Everything:
    """A restore store that has whatever it is asked for."""

    def holds(self, session: str, chunk: int) -> Held:
        """All of it."""
        return Held(frozenset(TYPES), True)


@dataclass
class Live:
    """One session as its generator has it."""

    manager: CacheManager
    terms: Terms
    epoch: int = 0


class Life:
    """Calls of a shard, one a ``step``: commits of several sessions, claims, restatements, ends, and late generators.

    Two lives of the same seed and names do the same to shards that answer the same.
    """

    def __init__(self, seed: int, names: tuple[str, ...]) -> None:
        self.random, self.names = random.Random(seed), names
        self.live: dict[str, Live] = {}
        self.scenes = 0

    def step(self, shard: LedgerShard) -> None:
        """One call; returns when it is acknowledged."""
        absent = [name for name in self.names if name not in self.live]
        if absent and (not self.live or self.random.random() < 0.3):
            self._open(shard, absent[0])
            return
        steps: list[Callable[[LedgerShard, str], None]] = [self._claim, self._state, self._close, self._late]
        if self.random.random() < 0.8:
            self._commit(shard)
        else:
            self.random.choice(steps)(shard, self.random.choice(sorted(self.live)))

    def _open(self, shard: LedgerShard, name: str) -> None:
        terms = Terms(SPECS, self.random.choice(ALL).of(BUDGETS), CONFIG)
        manager = CacheManager(name, terms.specs, terms.policy, terms.config, Everything())
        manager.open_scene("opening", "p")
        live = self.live[name] = Live(manager, terms)
        live.epoch = shard.open(self._statement(name))

    def _commit(self, shard: LedgerShard) -> None:
        some = [name for name in sorted(self.live) if self.random.random() < 0.7] or sorted(self.live)[:1]
        verdicts = shard.commit([self._entry(name) for name in some])
        assert verdicts == [Verdict.BOOKED] * len(some), verdicts

    def _entry(self, name: str) -> Entry:
        live, draw = self.live[name], self.random
        manager = live.manager
        self._direct(manager)
        if draw.random() < 0.9:
            chunk = manager.next_chunk
            manager.begin()
            manager.judge({"video": ChannelStatistics(np.full(2, draw.uniform(-2, 2)), np.ones(2))})
            kept = [*manager.kept(), chunk]
            mass = {t: {c: draw.random() for c in kept} for t in TYPES} if manager.policy.wants_mass else None
            manager.commit(chunk, mass)
        number, operations = manager.recorder.take()
        aside = draw.randbytes(draw.randrange(200))
        return Entry(name, manager.next_chunk - 1, number, operations, digest(manager), live.epoch, aside)

    def _direct(self, manager: CacheManager) -> None:
        chance = self.random.random()
        if chance < 0.05:
            self.scenes += 1
            manager.direct(Cut(f"scene {self.scenes}", "p", keep_subject=chance < 0.02))
        elif chance < 0.1:
            others = [n for n in manager.scenes.scenes if n != manager.scenes.current_name]
            if others:
                manager.direct(ReturnTo(self.random.choice(others)))
        elif chance < 0.12:
            manager.direct(PromptChange("q", "keep"))
        elif chance < 0.15 and manager.next_chunk and not manager.subject_chunks():
            chunk = manager.next_chunk - 1
            manager.set_subject(chunk, dict.fromkeys(TYPES, 1), self.random.random())

    def _claim(self, shard: LedgerShard, name: str) -> None:
        live = self.live[name]
        live.epoch, statement = shard.claim(name)
        assert statement.number == live.manager.recorder.noted

    def _state(self, shard: LedgerShard, name: str) -> None:
        self._entry(name)  # which the shard is not told of otherwise
        shard.state(self._statement(name), self.live[name].epoch)

    def _close(self, shard: LedgerShard, name: str) -> None:
        shard.close(name, self.live.pop(name).epoch)

    def _late(self, shard: LedgerShard, name: str) -> None:
        live = self.live[name]
        entry = Entry(name, 0, live.manager.recorder.noted, [], digest(live.manager), live.epoch - 1, b"late")
        assert shard.commit([entry]) == [Verdict.FENCED]

    def _statement(self, name: str) -> Statement:
        live = self.live[name]
        number = live.manager.recorder.noted
        return Statement(name, live.terms, dump(live.manager), number, b"", self.random.randbytes(20))


def books_of(shard: LedgerShard) -> Books:
    """All that a shard answers with, by session, as plain values that are equal only if the books are."""
    shard.tend()
    found: Books = {}
    for session in sorted(shard.books):
        epoch, s = shard.read(session)
        found[session] = epoch, s.number, s.aside, msgpack.packb([s.state, s.order], use_bin_type=True)
    return found

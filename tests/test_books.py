"""The books as properties over random sequences of operations, and other books that follow them."""

import copy
from itertools import pairwise

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cache.books import CacheConfig
from cache.drift import ChannelStatistics, DriftConfig
from cache.host_tier import HostTier
from cache.keep_set import CHUNK_ROLES, Budgets, Role, RoleBudget
from cache.manager import CacheManager
from cache.operations import Operation
from cache.plan import Cut, PromptChange, ReturnTo
from cache.policies import ALL, SceneMemory
from cache.positions import PositionConfig
from cache.replica import Answers, apply, digest
from cache.scenes import SceneConfig
from cache.spec import TYPES, Modality
from cache.state import dump, load
from cache.tiers import KeyValues, Latents
from tests.builders import tiny_backbone
from wire import seal, unseal

SIZES = st.integers(0, 3)


@st.composite
def budgets(draw: st.DrawFn) -> Budgets:
    """Any legal budgets: audio reaches at least as far as video."""
    video = [draw(SIZES) for _ in range(3)]
    audio = [v + draw(st.integers(0, 2)) for v in video]
    recent = draw(st.integers(2, 4))
    heard = recent + draw(st.integers(0, 3))
    subject = [draw(st.integers(0, 1)) for _ in range(4)]
    made = {}
    for t, anchor in zip(TYPES, subject, strict=True):
        roles = video if t.keyed_by is Modality.VIDEO else audio
        made[t.value] = RoleBudget(anchor, *roles, recent if t.keyed_by is Modality.VIDEO else heard)
    return Budgets(**made)


class Books(RuleBasedStateMachine):
    """The manager alone, with a store that keeps what it is told by the plans."""

    @initialize(
        data=st.data(),
        policy=st.sampled_from(ALL),
        memory=st.sampled_from([("pinned", "relocate"), ("following", "relocate"), ("pinned", "rebuild")]),
        slack=st.integers(0, 6),
    )
    def open(self, data: st.DataObject, policy: type, memory: tuple, slack: int) -> None:
        drawn = policy.of(data.draw(budgets()))
        slots = max(3, sum(drawn.budgets.widest(role) for role in Role) + 1 + slack)
        self.config = CacheConfig(
            positions=PositionConfig(slots, *memory),
            scenes=SceneConfig(max_scenes=3, sink_chunks=2, anchor_every=2, anchors=3, last_chunks=3),
            drift=DriftConfig(warmup_chunks=2, patience=1, reference_threshold=0.5),
        )
        self.tier = HostTier(1 << 20)
        self.manager = CacheManager("s", tiny_backbone().specs(), drawn, self.config, self.tier)
        self.manager.open_scene("opening", "p")
        self.answers = Answers()
        self.follower = CacheManager("other", tiny_backbone().specs(), drawn, self.config, self.answers)
        self.follower.open_scene("opening", "p")
        self.scene_count = 0
        self.attended_sinks: dict[str, int] = {}

    def carry_out(self, plan: object) -> None:
        payload = torch.zeros(1)
        for eviction in plan.evictions:
            if eviction.offload:
                self.tier.offload("s", eviction.chunk, eviction.type, KeyValues(payload, eviction.slot, eviction.role))
                self.tier.keep_latents("s", eviction.chunk, Latents(payload, payload, "p"))
        for restoration in plan.restorations:
            self.tier.fetch("s", restoration.chunk, restoration.type)
        for chunk in plan.forget:
            self.tier.forget("s", chunk)

    @rule(shift=st.floats(-2, 2), masses=st.floats(0, 1))
    def commit(self, shift: float, masses: float) -> None:
        manager = self.manager
        manager.begin()
        manager.check_integrity()
        manager.judge({"video": ChannelStatistics(np.full(2, shift), np.ones(2))})
        shares = {
            t: {c: masses * (c % 5) for c in [*ledger.entries, manager.next_chunk]}
            for t, ledger in manager.ledgers.items()
        }
        chunk = manager.next_chunk
        plan = manager.commit(chunk, shares if manager.policy.wants_mass else None)
        assert manager.commit(chunk) is plan, "a commit is idempotent per chunk"
        self.carry_out(plan)

    @rule()
    def abort(self) -> None:
        before = dump(self.manager)
        self.manager.begin()
        self.manager.abort()
        after = dump(self.manager)
        assert {k: v for k, v in after.items() if k != "log"} == {k: v for k, v in before.items() if k != "log"}

    @rule(keep=st.booleans())
    def cut(self, keep: bool) -> None:
        self.scene_count += 1
        self.carry_out(self.manager.direct(Cut(f"scene {self.scene_count}", "p", keep)))

    @rule(data=st.data())
    def return_to(self, data: st.DataObject) -> None:
        names = [n for n in self.manager.scenes.scenes if n != self.manager.scenes.current_name]
        if names:
            name = data.draw(st.sampled_from(names))
            held = set(self.tier.chunks("s"))
            scene = copy.deepcopy(self.manager.scenes.scenes[name])
            self.carry_out(self.manager.direct(ReturnTo(name)))
            if isinstance(self.manager.policy, SceneMemory):
                for t, ledger in self.manager.ledgers.items():
                    back = scene.last[::-1][: ledger.budget.restored]
                    gone = {c for kind, c in self.manager.books.lost if kind is t} | set(self.manager.waiting)
                    found = {c for c in back if c in held and c not in gone}
                    assert found <= set(ledger.entries), (t, back)

    @rule(data=st.data())
    def the_store_loses_something(self, data: st.DataObject) -> None:
        """A full tier drops keys and values of some types, or a whole record."""
        for key, record in list(self.tier._records.items()):
            lost = data.draw(st.sampled_from(["nothing", "audio", "latents", "all"]))
            if lost == "all":
                self.tier.forget(*key)
            if lost == "latents" and record.latents is not None:
                self.tier._release(record.latents)
                record.latents = None
            if lost in ("audio", "latents"):
                for t in [t for t in record.key_values if t.keyed_by is Modality.AUDIO]:
                    self.tier._release(record.key_values.pop(t))

    @rule(mode=st.sampled_from(["keep", "recache"]))
    def switch(self, mode: str) -> None:
        self.manager.direct(PromptChange("q", mode))

    @rule(score=st.floats(0, 1), data=st.data())
    def harvest(self, score: float, data: st.DataObject) -> None:
        manager = self.manager
        chunks = set.intersection(*(set(ledger.entries) for ledger in manager.ledgers.values()))
        types = [t for t in TYPES if manager.policy.budgets[t].subject_anchor]
        if chunks and types:
            chunk = data.draw(st.sampled_from(sorted(chunks)))
            plan = manager.set_subject(chunk, dict.fromkeys(types, 1), score)
            if plan is not None:
                self.carry_out(plan)

    @rule()
    def pause_and_resume(self) -> None:
        plain = dump(self.manager)
        policy, recorder = self.manager.policy, self.manager.recorder
        self.manager = load(plain, "s", tiny_backbone().specs(), policy, self.config, self.tier)
        self.manager.record(recorder)
        assert dump(self.manager) == plain

    @rule(chunk=st.integers(0, 30))
    def give_up(self, chunk: int) -> None:
        if chunk in self.manager.kept() and chunk not in self.manager.subject_chunks():
            self.manager.give_up(chunk, "lost")

    @rule(chunk=st.integers(0, 30), kept=st.booleans())
    def postpone(self, chunk: int, kept: bool) -> None:
        """Of a chunk that comes back for all types, or for those that are keyed by video where audio was kept."""
        types = [t for t in TYPES if t.keyed_by is Modality.VIDEO or not kept]
        back = [t for t in types if chunk in self.manager.ledgers[t].entries]
        if back:
            self.manager.postpone(chunk, back, "late")

    @rule(data=st.data())
    def welcome(self, data: st.DataObject) -> None:
        waiting = self.manager.waiting
        if waiting:
            chunks = data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique=True))
            self.carry_out(self.manager.welcome(chunks))
            assert not set(chunks) & set(self.manager.waiting)

    @rule()
    def books_elsewhere_follow(self) -> None:
        number, operations = self.manager.recorder.take()
        assert number + len(operations) == self.manager.recorder.noted
        for operation in operations:
            crossed = unseal(seal("operation", 1, [operation.do, operation.arguments, operation.held]), "operation", 1)
            apply(self.follower, self.answers, Operation(*crossed))
        assert digest(self.follower) == digest(self.manager)
        mine, theirs = dump(self.manager), dump(self.follower)
        assert {k: v for k, v in theirs.items() if "log" not in k} == {k: v for k, v in mine.items() if "log" not in k}

    @invariant()
    def the_books_hold(self) -> None:
        if not hasattr(self, "manager"):
            return
        manager = self.manager
        manager.check_integrity()
        self.tier.check_integrity()
        needed = manager.policy.remembered(manager.scenes) | set(manager.kept()) | manager.subject_chunks()
        assert set(self.tier.chunks("s")) <= manager.books.stored
        assert len(manager.books.stored - needed) <= 16, "what nobody can ask for is forgotten soon"
        for t, ledger in manager.ledgers.items():
            assert ledger.bytes_held() <= ledger.spec.maximum_bytes(ledger.budget.places)
            slots = [ledger.entries[c].slot for c in sorted(ledger.entries)]
            assert all(a < b for a, b in pairwise(slots))
            assert all(ledger.by_role()[r] <= ledger.budget.of(r) for r in CHUNK_ROLES), t
        if isinstance(manager.policy, SceneMemory):
            for t, ledger in manager.ledgers.items():
                first = manager.scenes.current.sink[: ledger.budget.scene_sink]
                sink = [c for c in first if (t, c) not in manager.books.lost and c not in manager.waiting]
                assert set(sink) <= set(ledger.entries), "the sink is attended in every step once it exists"


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)

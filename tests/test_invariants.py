"""The invariants of the design, as properties over random sequences of operations.

``Books`` runs long sequences on the manager alone. ``Tensors`` runs shorter ones on an engine with real pages, forks,
snapshots and aborted chunks, and compares every chunk with a dense replay of each stream's own history.
"""

import copy
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache.books import CacheConfig
from cache.drift import ChannelStatistics, DriftConfig
from cache.keep_set import CHUNK_ROLES, Budgets, Role, RoleBudget
from cache.manager import CacheManager
from cache.plan import Cut, PromptChange, ReturnTo
from cache.policies import ALL, SceneMemory
from cache.pool import PageAllocator
from cache.positions import PositionConfig
from cache.scenes import SceneConfig
from cache.spec import TYPES, Modality
from cache.state import dump, load
from cache.tiers import HostTier, KeyValues, Latents
from errors import PoolExhausted
from models.backbone import random_transformer
from models.sampler import denoise, noise
from streams.stream import Stream
from tests.builders import FAMILIES, TINY, backbone, engine, poison, sharpen, tiny_backbone, visible
from tests.oracle import Replay

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
                    found = {c for c in back if c in held and (t, c) not in self.manager.books.lost}
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
        policy = self.manager.policy
        self.manager = load(plain, "s", tiny_backbone().specs(), policy, self.config, self.tier)
        assert dump(self.manager) == plain

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
                sink = [c for c in first if (t, c) not in manager.books.lost]
                assert set(sink) <= set(ledger.entries), "the sink is attended in every step once it exists"


class Tensors(RuleBasedStateMachine):
    """An engine with three streams at most, every chunk of which is compared with a dense replay."""

    @initialize(
        policy=st.sampled_from(ALL),
        memory=st.sampled_from(["pinned", "following"]),
        host=st.sampled_from([0, 12_000, 1 << 20]),
    )
    def build(self, policy: type, memory: str, host: int) -> None:
        self.model = backbone(height=32, width=32, frames=1, factor=4.0, **TINY)
        keep = Budgets.uniform(RoleBudget(1, 1, 1, 2, 2))
        cache = CacheConfig(
            positions=PositionConfig(9, memory),
            scenes=SceneConfig(max_scenes=3, anchor_every=2, anchors=1, last_chunks=2, recent_across_cut=1),
            drift=DriftConfig(warmup_chunks=2, patience=2, reference_threshold=1.0),
        )
        self.engine = engine(self.model, policy.of(keep), cache=cache, sessions=3, host_bytes=host)
        self.streams: list[Stream] = []
        self.replays: dict[int, Replay] = {}
        self.cuts = 0
        self.add()

    def add(self) -> None:
        self.track(Stream.open(self.engine, f"prompt {len(self.streams)}", seed=len(self.streams)), {})

    def track(self, stream: Stream, history: dict) -> None:
        transformer = random_transformer(seed=1, **{**FAMILIES["ltx-2.0-split"], **TINY})
        sharpen(transformer, 4.0)
        self.replays[id(stream)] = Replay(transformer.eval(), self.model.geometry, dict(history))
        self.streams.append(stream)

    @rule(data=st.data(), count=st.integers(1, 6))
    def steps(self, data: st.DataObject, count: int) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.streams), min_size=1, max_size=3, unique_by=id))
        for _ in range(count):
            self.step(chosen)

    def step(self, chosen: list[Stream]) -> None:
        sessions = [s.session for s in chosen]
        before = [(s.manager.next_chunk, s.manager.positions.next_slot, visible(s), s.prompt) for s in sessions]
        poison(self.engine)
        published = self.engine.step(sessions)
        for stream, chunk, (n, slot, seen, prompt) in zip(chosen, published, before, strict=True):
            replay, seed = self.replays[id(stream)], stream.session.seed

            def draw(number: int, n: int = n, seed: int = seed) -> tuple:
                geometry, model = self.model.geometry, self.model
                return tuple(noise(seed, n, number, m, geometry.tokens(m), model.channels(m))[None] for m in Modality)

            expected = denoise(
                self.engine.config.schedule,
                lambda x, sigma, r=replay, p=prompt, k=slot, s=seen, n=n: r.run(p, x, sigma, k, n == 0, s, None),
                draw,
            )
            torch.testing.assert_close(chunk.video, expected[0][0], atol=5e-5, rtol=0)
            torch.testing.assert_close(chunk.audio, expected[1][0], atol=5e-5, rtol=0)
            given = stream.session.retained[n]
            replay.run(prompt, (given.video[None], given.audio[None]), 0.0, slot, n == 0, seen, store_as=n)

    @rule(data=st.data(), away=st.integers(1, 4))
    def leave_and_return(self, data: st.DataObject, away: int) -> None:
        stream = data.draw(st.sampled_from(self.streams))
        here = stream.session.manager.scenes.current_name
        self.step([stream])
        self.cuts += 1
        stream.cut(f"scene {self.cuts}", f"place {self.cuts}")
        for _ in range(away):
            self.step([stream])
        self.try_return(stream, here)
        self.step([stream])

    @rule(data=st.data())
    def a_step_that_fails_changes_nothing(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.streams))
        before = {k: v for k, v in dump(stream.session.manager).items() if k != "log"}
        forward, calls, limit = self.model.forward, [0], data.draw(st.integers(0, 2))

        def failing(*args: object, **kwargs: object) -> object:
            calls[0] += 1
            if calls[0] > limit:
                raise RuntimeError("out of memory")
            return forward(*args, **kwargs)

        self.model.forward = failing
        try:
            stream.next()
        except RuntimeError:
            pass
        else:
            raise AssertionError("three passes make a chunk")
        finally:
            del self.model.forward
        assert {k: v for k, v in dump(stream.session.manager).items() if k != "log"} == before

    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        self.cuts += 1
        data.draw(st.sampled_from(self.streams)).cut(f"scene {self.cuts}", f"place {self.cuts}")

    @rule(data=st.data())
    def return_to(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.streams))
        manager = stream.session.manager
        names = [n for n in stream.scenes if n != manager.scenes.current_name]
        if names:
            self.try_return(stream, data.draw(st.sampled_from(names)))

    def try_return(self, stream: Stream, name: str) -> None:
        """Chunks that come back as latents are encoded anew; their keys are no longer those of the replay."""
        session = stream.session
        for chunk in session.manager.scenes.scenes[name].memory:
            held = self.engine.tier.holds(session.id, chunk)
            missing = {t for t in TYPES if chunk not in session.manager.ledgers[t].entries} - set(held.types)
            if missing and (
                held.latents or chunk in session.retained
            ):  # retained: of a subject that outlived its chunk
                return
        stream.return_to(name)

    @rule(data=st.data())
    def harvest(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.streams))
        chunks = stream.session.manager.kept()
        audio = torch.zeros(self.model.geometry.audio_tokens, dtype=torch.bool)
        audio[data.draw(st.integers(0, len(audio) - 1)) :] = True
        masks = {Modality.VIDEO: torch.ones(self.model.geometry.video_tokens, dtype=torch.bool), Modality.AUDIO: audio}
        if chunks and self.engine.policy.budgets[TYPES[0]].subject_anchor:
            stream.harvest(data.draw(st.sampled_from(chunks)), masks, data.draw(st.floats(0, 1)))

    @precondition(lambda self: len(self.streams) < 3)
    @rule()
    def open_another(self) -> None:
        self.add()

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from(self.streams))
        try:
            child = parent.fork(seed=100 + len(self.streams))
        except PoolExhausted:
            assert len(self.streams) == 3
            return
        self.track(child, self.replays[id(parent)].history)

    @rule(data=st.data())
    def pause_and_resume(self, data: st.DataObject) -> None:
        i = data.draw(st.integers(0, len(self.streams) - 1))
        paused = self.streams.pop(i)
        saved = paused.pause()
        self.engine.check_integrity()
        self.track(Stream.resume(self.engine, saved), self.replays.pop(id(paused)).history)

    @precondition(lambda self: len(self.streams) > 1)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        stream = self.streams.pop(data.draw(st.integers(0, len(self.streams) - 1)))
        del self.replays[id(stream)]
        stream.close()

    @invariant()
    def pages_books_and_records_agree(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.check_integrity()
        self.engine.tier.check_integrity()
        held, leased = (getattr(self.engine.pool.statistics(), f"{kind}_bytes") for kind in ("held", "leased"))
        assert all(held[t] <= leased[t] for t in TYPES)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for stream in self.streams:
                stream.close()
            assert not any(self.engine.pool.statistics().held_bytes.values()), "no leak after any sequence"
            assert self.engine.tier.statistics().records == 0


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestTensors = Tensors.TestCase
TestTensors.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@given(st.lists(st.tuples(st.sampled_from(["lease", "end", "take", "drop", "share"]), st.integers(1, 5)), max_size=80))
def test_the_allocator_never_runs_out_within_its_leases(steps: list) -> None:
    """Leases are promises: whoever holds one gets its pages, in whatever order others come and go."""
    allocator = PageAllocator(12)
    held: dict[int, list[int]] = {}
    owner = 0
    for action, size in steps:
        if action == "lease":
            owner += 1
            try:
                allocator.lease(owner, size)
                held[owner] = []
            except PoolExhausted:
                assert sum(allocator.leased.values()) + size > 12
        elif held:
            who = sorted(held)[size % len(held)]
            if action == "take" and len(held[who]) < allocator.leased[who]:
                held[who].append(allocator.allocate(who, len(held[who])))
            elif action == "drop" and held[who]:
                allocator.release(held[who].pop())
            elif action == "end":
                for page in held.pop(who):
                    allocator.release(page)
                allocator.end_lease(who)
    assert allocator.used == sum(len(pages) for pages in held.values())
    assert len({p for pages in held.values() for p in pages}) == allocator.used

"""The invariants of the design, as properties over random sequences of operations.

An engine with real pages, forks, snapshots and aborted chunks; every chunk is compared with a dense replay of its
stream's own history. ``test_books`` has longer sequences on the books alone.
"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache.books import CacheConfig
from cache.drift import DriftConfig
from cache.keep_set import Budgets, RoleBudget
from cache.policies import ALL
from cache.pool import PageAllocator
from cache.positions import PositionConfig
from cache.scenes import SceneConfig
from cache.spec import TYPES, Modality, PageFormat
from cache.state import dump
from errors import PoolExhausted
from models.backbone import random_transformer
from models.sampler import denoise, noise
from streams.stream import Stream
from tests.builders import FAMILIES, PAGES, TINY, backbone, engine, examples, poison, sharpen, visible
from tests.oracle import Replay

# Of codes, several times what a stream of 36 chunks with cuts and returns showed: 0.015 and 0.08; see ``test_replay``.
TOLERANCE: dict[PageFormat, float] = {"exact": 5e-5, "int8": 0.1, "fp8": 0.5}


class Tensors(RuleBasedStateMachine):
    """An engine with three streams at most, every chunk of which is compared with a dense replay."""

    @initialize(
        policy=st.sampled_from(ALL),
        memory=st.sampled_from(["pinned", "following"]),
        host=st.sampled_from([0, 12_000, 1 << 20]),
        pages=st.sampled_from([PAGES] if PAGES != "exact" else ["exact", "exact", "int8", "fp8"]),
    )
    def build(self, policy: type, memory: str, host: int, pages: PageFormat) -> None:
        self.model = backbone(height=32, width=32, frames=1, factor=4.0, **TINY)
        keep = Budgets.uniform(RoleBudget(1, 1, 1, 2, 2))
        cache = CacheConfig(
            positions=PositionConfig(9, memory),
            scenes=SceneConfig(max_scenes=3, anchor_every=2, anchors=1, last_chunks=2, recent_across_cut=1),
            drift=DriftConfig(warmup_chunks=2, patience=2, reference_threshold=1.0),
        )
        self.engine = engine(self.model, policy.of(keep), cache=cache, sessions=3, host_bytes=host, pages=pages)
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
            tolerance = TOLERANCE[self.engine.config.pages]
            torch.testing.assert_close(chunk.video, expected[0][0], atol=tolerance, rtol=0)
            torch.testing.assert_close(chunk.audio, expected[1][0], atol=tolerance, rtol=0)
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


TestTensors = Tensors.TestCase
TestTensors.settings = settings(max_examples=examples(25), stateful_step_count=30, deadline=None)


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

"""Policies: exact kept sets, pure and explained, and heavy hitters equal to dense accumulated attention."""

import copy

import pytest

from cache.books import CacheConfig
from cache.host_tier import HostTier
from cache.keep_set import Budgets, RoleBudget, select
from cache.manager import CacheManager
from cache.planner import view
from cache.policies import ALL, HeavyHitter, SceneMemory, SinkRecent, SlidingWindow
from cache.policies.base import View
from cache.scenes import SceneConfig, crowded
from cache.spec import TYPES, AttentionType
from cache.tiers import NOTHING
from models.backbone import random_transformer
from streams.stream import Stream
from tests.builders import SMALL_KEEP_SET, architecture, backbone, engine, kept, sharpen, visible
from tests.oracle import Replay


def manager(policy: type, budget: RoleBudget = SMALL_KEEP_SET, **scenes: int) -> CacheManager:
    specs = backbone().specs()
    config = CacheConfig(scenes=SceneConfig(**{"anchor_every": 3, **scenes}))
    made = CacheManager("s", specs, policy.of(Budgets.uniform(budget)), config, HostTier(0))
    made.open_scene("opening", "p")
    return made


def run(made: CacheManager, chunks: int) -> list[list[int]]:
    history = []
    for _ in range(chunks):
        made.begin()
        made.commit(made.next_chunk)
        made.check_integrity()
        history.append(made.kept())
    return history


def test_the_sliding_window_keeps_exactly_the_newest_chunks() -> None:
    history = run(manager(SlidingWindow, RoleBudget(0, 0, 0, 0, 3)), 6)
    assert history == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]


def test_sink_and_recent_keep_the_first_chunk_for_ever() -> None:
    history = run(manager(SinkRecent, RoleBudget(0, 1, 0, 0, 3)), 7)
    assert history[3:] == [[0, 1, 2, 3], [0, 2, 3, 4], [0, 3, 4, 5], [0, 4, 5, 6]]


def test_scene_memory_keeps_sink_spread_anchors_and_recent_chunks() -> None:
    history = run(manager(SceneMemory, RoleBudget(0, 1, 2, 0, 3)), 14)
    assert history[6] == [0, 3, 4, 5, 6]
    assert history[9] == [0, 3, 6, 7, 8, 9]
    assert history[12] == [0, 3, 9, 10, 11, 12]  # chunk 9 takes the place of anchor 6: old and new stay represented


def test_crowded_anchors_go_first_and_the_newest_never() -> None:
    assert crowded([3, 6]) == 3
    assert crowded([3, 4, 9]) == 4
    assert crowded([0, 10, 12, 14]) == 12


@pytest.mark.parametrize("policy", ALL)
def test_a_policy_is_pure_and_every_type_keeps_a_prefix_of_its_ranking(policy: type) -> None:
    made = manager(policy)
    run(made, 12)
    seen = view(made.books, made.drift.rung)
    before = copy.deepcopy((seen.scene, dict(seen.mass), dict(seen.drift)))
    first, second = made.policy.rank(seen), made.policy.rank(seen)
    assert first == second
    assert before == (seen.scene, dict(seen.mass), dict(seen.drift))
    for t in TYPES:
        assert set(select(first, made.policy.budgets[t])) == set(made.ledgers[t].entries)


@pytest.mark.parametrize("policy", ALL)
def test_every_eviction_is_explained_per_chunk_and_type(policy: type) -> None:
    made = manager(policy)
    run(made, 20)
    evicted = {c for c in range(20) if c not in made.kept()}
    assert evicted
    for chunk in evicted:
        lines = [d for d in made.log.about(chunk) if d.action == "evict"]
        assert {d.type for d in lines} == set(TYPES)
        assert all(d.reason for d in lines)


@pytest.mark.parametrize("policy", ALL)
def test_policies_split_the_same_number_of_memory_slots(policy: type) -> None:
    budgets = Budgets.uniform(RoleBudget(1, 1, 2, 3, 9))
    assert [policy.of(budgets).budgets[t].chunks for t in TYPES] == [15] * 4


def test_heavy_hitters_are_ranked_by_mass_per_exposure_not_by_age() -> None:
    policy = HeavyHitter.of(Budgets.uniform(RoleBudget(0, 0, 2, 0, 2)))
    seen = View(
        9,
        dict.fromkeys([1, 2, 3, 8, 9], 4),
        manager(HeavyHitter).scenes.current,
        0,
        {},
        {1: 0.5, 2: 2.0, 3: 1.0},
        0,
        1.0,
    )
    assert policy.rank(seen)["scene_anchor"] == [2, 3, 1]


def test_heavy_hitters_are_kept_by_video_too_where_audio_reaches_farther() -> None:
    budgets = Budgets(*(RoleBudget(0, 0, 3, 0, recent) for recent in (2, 6, 6, 2)))
    made = engine(policy=HeavyHitter(budgets), cache=CacheConfig())
    stream = Stream.open(made, "a ball", seed=1)
    stream.take(30)
    made.check_integrity()
    assert [len(held["scene_anchor"]) for held in stream.keep_set().values()] == [3, 3, 3, 3]


def test_heavy_hitters_equal_those_of_dense_accumulated_attention() -> None:
    """Per-page log-sum-exp, decayed, per token and exposure, against sums over the full softmax matrix.

    Queries and keys are scaled by 6, or random attention is flat and every policy looks the same. Sets are compared
    where the margin at the cut is larger than rounding, which it must be nearly always.
    """
    family, factor, decay = "ltx-2.0-split", 6.0, 0.95
    model = backbone(family, factor=factor)
    budget = RoleBudget(subject_anchor=0, scene_sink=0, scene_anchor=3, restored=0, recent=3)
    made = engine(model, HeavyHitter(Budgets.uniform(budget)), cache=CacheConfig(mass_decay=decay))
    stream = Stream.open(made, "a ball", seed=2)
    transformer = random_transformer(seed=1, **architecture(family))
    sharpen(transformer, factor)
    replay = Replay(transformer.eval(), model.geometry)
    totals: dict[int, float] = {}
    exposures: dict[int, float] = {}
    agreed, heavy = 0, set()
    for n in range(40):
        session = stream.session
        seen, slot, prompt = visible(session), session.manager.positions.next_slot, session.prompt
        before = kept(session)[AttentionType.VIDEO_SELF]
        stream.next()
        given = session.retained[n]
        replay.run(prompt, (given.video[None], given.audio[None]), 0.0, slot, n == 0, seen, store_as=n)
        for chunk in [*before, n]:
            lift = sum(replay.mass[t][chunk] * len(replay.mass[t]) for t in TYPES) / len(TYPES)
            totals[chunk] = decay * totals.get(chunk, 0.0) + lift
            exposures[chunk] = decay * exposures.get(chunk, 0.0) + 1.0
        older = sorted((c for c in before if c <= n - 3), key=lambda c: -totals[c] / exposures[c])
        scores = [totals[c] / exposures[c] for c in older]
        if len(older) <= 3 or scores[2] - scores[3] > 1e-4:
            assert set(kept(session)[AttentionType.VIDEO_SELF]) == {*older[:3], *range(max(0, n - 2), n + 1)}, n
            agreed += 1
        heavy.add(tuple(older[:3]))
    assert agreed >= 38
    ages = [n - c for n, c in zip([39] * 3, kept(stream.session)[AttentionType.VIDEO_SELF][:3], strict=True)]
    assert max(ages) > 6, "heavy hitters are no window"
    assert len(heavy) > 5, "the choice changes over time"


def test_a_store_that_holds_nothing_is_asked_once_and_the_log_says_so() -> None:
    made = manager(SceneMemory)

    class Empty:
        asked = 0

        def holds(self, session: str, chunk: int) -> object:
            self.asked += 1
            return NOTHING

    made.recorder.holdings = Empty()
    run(made, 6)
    made.direct(cut("b"))
    run(made, 10)
    made.direct(back("opening"))
    asked = Empty.asked = made.recorder.holdings.asked
    assert asked > 0
    run(made, 5)
    assert made.recorder.holdings.asked == asked
    assert {d.action for d in made.log if d.action == "not restored"}


def cut(name: str) -> object:
    from cache.plan import Cut

    return Cut(name, "p")


def back(name: str) -> object:
    from cache.plan import ReturnTo

    return ReturnTo(name)

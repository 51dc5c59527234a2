"""Budgets: hard by construction, checked before anything is opened, and refused with what to change."""

import pytest

from cache.books import CacheConfig
from cache.host_tier import HostTier
from cache.keep_set import Budgets, Role, RoleBudget, select
from cache.policies import SceneMemory
from cache.scenes import SceneConfig
from cache.spec import TYPES, AttentionSpec, AttentionType
from errors import BudgetError, ConfigError
from tests.builders import backbone, engine

SPEC = backbone().specs()[AttentionType.VIDEO_SELF]


def test_a_type_keeps_the_first_of_each_role_and_books_a_chunk_once() -> None:
    ranking = {
        Role.SCENE_SINK: [0, 1],
        Role.SCENE_ANCHOR: [5, 9],
        Role.RESTORED: [4, 3],
        Role.RECENT: [9, 8, 7],
    }
    assert select(ranking, RoleBudget(1, 1, 2, 1, 2)) == {
        0: Role.SCENE_SINK, 5: Role.SCENE_ANCHOR, 9: Role.SCENE_ANCHOR, 4: Role.RESTORED, 8: Role.RECENT,
    }  # fmt: skip


def test_a_richer_budget_keeps_a_superset() -> None:
    ranking = {role: [hash((role, i)) % 12 for i in range(8)] for role in (*Role,)}
    poor, rich = RoleBudget(0, 1, 0, 2, 3), RoleBudget(0, 2, 3, 2, 5)
    assert set(select(ranking, poor)) <= set(select(ranking, rich))


def test_a_budget_smaller_than_sink_anchor_and_one_chunk_is_refused_in_bytes() -> None:
    size = SPEC.bytes_per_chunk
    tight = RoleBudget(1, 1, 0, 0, 1, max_bytes=3 * size - 1)
    with pytest.raises(BudgetError, match=f"sink, subject anchor and one chunk need {3 * size:,}"):
        engine(policy=SceneMemory(Budgets.uniform(tight)))


def test_memory_slots_beyond_the_byte_budget_are_refused_with_how_many_to_drop() -> None:
    size = SPEC.bytes_per_chunk
    wide = RoleBudget(1, 1, 2, 2, 8, max_bytes=10 * size)
    with pytest.raises(BudgetError, match=r"15 memory slots need .* lower a role by 5 chunks or raise max_bytes"):
        Budgets.uniform(wide).check(dict.fromkeys(TYPES, SPEC), 31)
    Budgets.uniform(RoleBudget(1, 1, 2, 2, 3, max_bytes=10 * size)).check(dict.fromkeys(TYPES, SPEC), 31)


def test_audio_memory_must_reach_as_far_as_video_memory() -> None:
    with pytest.raises(BudgetError, match=r"audio_self\.recent is 7 chunks but a video-keyed type keeps 8"):
        Budgets(audio_self=RoleBudget(recent=7))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RoleBudget(recent=0), "recent is 0; expected at least 1"),
        (lambda: RoleBudget(scene_sink=-1), "scene_sink is -1; expected 0 or more"),
        (lambda: RoleBudget(subject_anchor=2), "expected 0 or 1 reference block"),
        (lambda: AttentionSpec(AttentionType.VIDEO_SELF, 0, 1, 1, 1), "layers is 0; expected at least 1"),
        (lambda: HostTier(-1), "budget_bytes is -1; expected 0 or more"),
        (lambda: SceneConfig(max_scenes=1), "expected at least 2"),
        (lambda: SceneConfig(anchor_every=0), "expected at least 1 chunk"),
        (lambda: CacheConfig(log_capacity=0), "expected room for at least 1 decision"),
        (lambda: CacheConfig(mass_decay=-3), "expected a factor between 0 and 1"),
        (lambda: engine(sessions=0), "expected room for at least 1 stream"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_statistics_tell_bytes_by_type_and_role() -> None:
    made = engine(cache=CacheConfig(scenes=SceneConfig(anchor_every=3)))
    session = made.open("a ball")
    for _ in range(9):
        made.step([session])
    statistics = session.manager.statistics()
    for t in TYPES:
        held = statistics.types[t]
        assert held.bytes_held == sum(held.bytes_by_role.values()) == made.specs[t].bytes_per_chunk * held.chunks
    pool = made.pool.statistics()
    assert sum(pool.held_bytes.values()) == statistics.bytes_held
    assert all(pool.leased_bytes[t] * 3 == pool.capacity_bytes[t] for t in TYPES)

"""The in-process restore store, and what a stream does when it is full, shared, stale or broken."""

import pytest
import torch

from cache.books import CacheConfig
from cache.drift import Rung
from cache.host_tier import HostTier
from cache.keep_set import Budgets, Role, RoleBudget
from cache.policies import SceneMemory
from cache.positions import PositionConfig
from cache.scenes import SceneConfig
from cache.spec import TYPES, AttentionType, Modality
from cache.tiers import KeyValues, Latents
from errors import RecordLost, StreamFailed
from streams.engine import Engine
from streams.stream import Stream
from tests.builders import engine

KIND = AttentionType.VIDEO_SELF


def payload(role: Role) -> KeyValues:
    return KeyValues(torch.rand(25), 0, role)  # 100 bytes


def masks(made: Engine) -> dict[Modality, torch.Tensor]:
    chosen = torch.zeros(made.backbone.geometry.video_tokens, dtype=torch.bool)
    chosen[2:5] = True
    return {Modality.VIDEO: chosen}


def test_a_full_tier_drops_recent_then_anchors_then_sinks_then_latents_oldest_first() -> None:
    tier = HostTier(10_000)
    roles = [Role.SCENE_SINK, Role.SCENE_ANCHOR, Role.RECENT, Role.RESTORED, Role.SCENE_SINK]
    for chunk, role in enumerate(roles):
        tier.offload("s", chunk, KIND, payload(role))
        tier.keep_latents("s", chunk, Latents(torch.rand(1), torch.rand(1), "p"))  # 8 bytes
    seen = []
    for budget in (450, 350, 250, 150, 50, 30, 20, 0):
        tier.budget_bytes = budget
        tier._shrink()
        tier.check_integrity()
        held = [tier.holds("s", chunk) for chunk in range(5)]
        seen.append(("".join("k" if h.types else "-" for h in held), "".join("l" if h.latents else "-" for h in held)))
    assert seen == [
        ("kk-kk", "lllll"),
        ("kk--k", "lllll"),
        ("k---k", "lllll"),
        ("----k", "lllll"),
        ("-----", "lllll"),
        ("-----", "--lll"),
        ("-----", "---ll"),
        ("-----", "-----"),
    ]
    with pytest.raises(RecordLost, match="chunk 3 of 's' is not in host memory"):
        tier.fetch("s", 3, KIND)


@pytest.mark.parametrize("move", ["rebuild", "relocate"])
def test_the_sink_comes_back_although_the_subject_was_harvested_from_it(move: str) -> None:
    made = engine(positions=PositionConfig(20, "pinned", move))
    stream = Stream.open(made, "a ball", seed=2)
    stream.take(10)
    stream.harvest(0, masks(made), 0.5)
    stream.cut("kitchen", "a kitchen")
    stream.take(8)
    for record in made.tier._records.values():
        for t in list(record.key_values):
            made.tier._release(record.key_values.pop(t))
    stream.return_to("opening")
    made.check_integrity()
    assert stream.keep_set()["video_self"]["scene_sink"] == [0]
    assert stream.keep_set()["video_self"]["subject_anchor"] == [0]


def test_keys_without_latents_in_the_store_are_given_up_once() -> None:
    """Audio comes back with keys, video would have to be encoded, and nobody has the latents."""
    made = engine()
    stream = Stream.open(made, "a ball", seed=2)
    stream.take(10)
    stream.cut("kitchen", "a kitchen")
    stream.take(8)
    record = made.tier._records[stream.session.id, 0]
    for t in (AttentionType.VIDEO_SELF, AttentionType.VIDEO_TO_AUDIO):
        made.tier._release(record.key_values.pop(t))
    made.tier._release(record.latents)
    record.latents = None
    stream.return_to("opening")
    stream.take(5)
    made.check_integrity()
    told = [d for d in stream.decisions if d.chunk == 0 and d.action in ("not restored", "give up")]
    assert {d.type for d in told if d.action == "not restored"} == {KIND, AttentionType.VIDEO_TO_AUDIO}
    assert len(told) == 3


def test_rebuild_encodes_the_subject_anchor_at_its_slot_instead_of_rotating_it() -> None:
    """After the harvest and at every epoch the anchor equals its source encoded alone at the reserved slot."""
    made = engine(positions=PositionConfig(14, "pinned", "rebuild"))
    stream = Stream.open(made, "a ball", seed=2)
    stream.take(5)
    stream.harvest(3, masks(made), 0.5)
    session = stream.session
    for _ in range(20):
        slot = session.manager.positions.subject
        assert slot is not None
        assert slot >= 0
        places = {t: session.manager.ledgers[t].free[0] for t in TYPES}
        for t, place in places.items():
            made.pool.claim(session.lease, t, place)
        made.executor.encode(session, 3, session.retained[3], slot, places)
        for t in (AttentionType.VIDEO_SELF, AttentionType.VIDEO_TO_AUDIO):
            storage = made.pool.storage[t]
            anchor, alone = storage[:, :, session.page(t, 0), -3:], storage[:, :, session.page(t, places[t]), 2:5]
            assert torch.equal(anchor, alone)
        for t, place in places.items():
            made.pool.release(session.lease, t, place)
        stream.next()
        made.check_integrity()
    assert stream.statistics().epoch >= 1


def test_a_stored_chunk_is_encoded_under_the_prompt_that_it_was_made_under() -> None:
    made = engine(positions=PositionConfig(20, "pinned", "rebuild"))
    stream = Stream.open(made, "a ball", seed=2)
    stream.take(10)
    first = stream.session.prompt.key
    stream.change_prompt("snow", "keep")
    stream.take(9)
    stream.cut("kitchen", "a kitchen")
    stream.take(8)
    stream.return_to("opening")
    assert stream.session.retained[0].prompt == first
    assert first in stream.session.prompts


def test_recache_leaves_nothing_of_the_old_prompt_in_the_store() -> None:
    """Where audio reaches farther than video, the store may have video keys of chunks that audio still holds."""
    video, audio = RoleBudget(0, 1, 0, 3, 2), RoleBudget(0, 1, 0, 3, 6)
    cache = CacheConfig(scenes=SceneConfig(recent_across_cut=0))
    made = engine(policy=SceneMemory(Budgets(video, audio, audio, video)), cache=cache)
    stream = Stream.open(made, "a ball", seed=2)
    stream.take(8)
    assert made.tier.holds(stream.session.id, 5).types
    stream.change_prompt("snow", "recache")
    assert not made.tier.holds(stream.session.id, 5).types
    stream.cut("kitchen", "a kitchen")
    stream.take(3)
    stream.return_to("opening")
    made.check_integrity()
    assert stream.keep_set()["video_self"]["restored"] == [5, 6, 7]


def lived(made: Engine, seed: int) -> Stream:
    stream = Stream.open(made, f"prompt {seed}", seed=seed)
    stream.take(10)
    stream.cut("kitchen", "a kitchen")
    stream.take(8)
    return stream


def test_engines_that_share_a_store_never_share_a_stream_s_records() -> None:
    alone = lived(engine(), 2)
    alone.return_to("opening")
    tier = HostTier(1 << 28)
    config, policy, model = engine().config, engine().policy, engine().backbone
    one, other = (Engine(model, policy, config, tier=tier) for _ in range(2))
    first, second = lived(one, 1), lived(other, 2)
    first.close()
    second.return_to("opening")
    assert torch.equal(second.next().video, alone.next().video)


def test_a_plan_that_cannot_be_carried_out_ends_its_own_stream_only_and_loses_no_chunk() -> None:
    made = engine()
    broken, other = Stream.open(made, "a ball", seed=1), Stream.open(made, "a cube", seed=2)
    for _ in range(8):
        made.step([broken.session, other.session])
    saved = broken.snapshot()
    broken.cut("kitchen", "a kitchen")
    offload = made.tier.offload

    def full(*given: object) -> None:
        raise OSError("no space left on device")

    made.tier.offload = full  # type: ignore[method-assign]
    done = []
    while broken.session.failure is None:
        done.append([chunk.index for chunk in made.step([broken.session, other.session])])
    made.tier.offload = offload  # type: ignore[method-assign]
    assert done == [[8 + i, 8 + i] for i in range(len(done))]
    with pytest.raises(StreamFailed, match="no space left on device"):
        made.step([broken.session, other.session])
    with pytest.raises(StreamFailed, match="resume it from its last snapshot"):
        broken.next()
    assert other.take(3)[0].index == 8 + len(done)
    broken.close()
    made.check_integrity()
    assert Stream.resume(made, saved).take(2)


def test_a_refresh_asked_for_by_the_repair_ladder_takes_any_score() -> None:
    made = engine()
    stream = Stream.open(made, "a ball", seed=1)
    stream.take(3)
    assert stream.harvest(1, masks(made), 0.9)
    assert not stream.wants_subject
    assert not stream.harvest(2, masks(made), 0.2)
    stream.session.manager.drift.rung = Rung.REFRESH_SUBJECT
    assert stream.wants_subject
    assert stream.harvest(2, masks(made), 0.2)

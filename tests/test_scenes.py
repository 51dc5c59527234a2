"""Cuts and returns: a scene's chunks come back in media order, within budget, in all four ledgers; subjects stay."""

from itertools import pairwise

import pytest
import torch

from cache.books import CacheConfig
from cache.host_tier import HostTier
from cache.keep_set import CHUNK_ROLES, Budgets, RoleBudget
from cache.policies import SceneMemory
from cache.scenes import SceneConfig
from cache.spec import TYPES, Modality
from errors import SceneExists, StreamError, UnknownScene
from streams.batch import Batch
from streams.stream import Stream
from tests.builders import TINY, backbone, engine, teacher_force


def opened(**options: object) -> Stream:
    return Stream.open(engine(**options), "a ball", seed=2)


def away(stream: Stream, chunks: int = 8) -> dict:
    """Ten chunks in the opening, then ``chunks`` in a kitchen; returns the opening's keep-set."""
    stream.take(10)
    held = stream.keep_set()
    stream.cut("kitchen", "a kitchen")
    stream.take(chunks)
    return held


def test_revisit_restores_the_scene_in_media_order_within_budget_on_every_type() -> None:
    stream = opened()
    away(stream)
    scene = stream.session.manager.scenes.scenes["opening"]
    remembered = (scene.sink, scene.anchors, scene.last)
    assert not set(stream.session.manager.kept()) & scene.memory
    stream.return_to("opening")
    stream.engine.check_integrity()
    for t in TYPES:
        ledger = stream.session.manager.ledgers[t]
        held = stream.keep_set()[t.value]
        assert held["scene_sink"] == remembered[0]
        assert set(remembered[1]) <= {*held.get("scene_anchor", []), *held["restored"]}
        assert held["restored"] == [c for c in remembered[2] if c not in remembered[1]][-2:]
        slots = [ledger.entries[c].slot for c in sorted(ledger.entries)]
        assert all(a < b for a, b in pairwise(slots))
        assert all(ledger.by_role()[role] <= ledger.budget.of(role) for role in CHUNK_ROLES)


def test_restored_keys_and_values_are_those_that_were_evicted_up_to_their_rotation() -> None:
    stream = opened()
    stream.take(10)
    manager, lease, pool = stream.session.manager, stream.session.lease, stream.engine.pool
    before = {}
    for t in TYPES:
        (page,) = pool.pages(lease, t, [manager.ledgers[t].entries[0].place])
        before[t] = (pool.storage[t][:, :, page].clone(), manager.ledgers[t].entries[0].slot)
    stream.cut("kitchen", "a kitchen")
    stream.take(8)
    stream.return_to("opening")
    for t in TYPES:
        entry = manager.ledgers[t].entries[0]
        (page,) = pool.pages(lease, t, [entry.place])
        keys, values = pool.storage[t][:, 0, page], pool.storage[t][:, 1, page]
        assert torch.equal(values, before[t][0][:, 1])
        expected = before[t][0][:, 0].clone()
        from models.rope import KEY_KIND

        rope = stream.engine.backbone.ropes[KEY_KIND[t]]
        stream.engine.ops.relocate(expected, *rope.delta(before[t][1], entry.slot), rope.layout)
        torch.testing.assert_close(keys, expected, atol=1e-5, rtol=0)


def test_a_return_without_keys_in_the_store_is_encoded_from_latents() -> None:
    """At a full host tier keys and values go first and latents last; the scene still comes back, on all types."""
    stream = opened()
    away(stream)
    tier = stream.engine.tier
    assert isinstance(tier, HostTier)
    latents_only = sum(tier.latents(stream.session.id, c).nbytes for c in tier.chunks(stream.session.id))
    tier.budget_bytes = latents_only
    tier._shrink()
    tier.check_integrity()
    assert all(not tier.holds(stream.session.id, c).types for c in tier.chunks(stream.session.id))
    stream.return_to("opening")
    stream.engine.check_integrity()
    assert stream.keep_set()["video_self"]["scene_sink"] == [0]
    assert any("encoded from latents" in d.reason for d in stream.decisions)
    stream.take(4)
    stream.engine.check_integrity()


def test_a_return_with_nothing_in_the_store_goes_on_and_says_so() -> None:
    stream = opened(host_bytes=0)
    away(stream)
    stream.return_to("opening")
    stream.engine.check_integrity()
    assert "scene_sink" not in stream.keep_set()["video_self"]
    assert {d.action for d in stream.decisions} >= {"not restored"}
    assert len(stream.take(6)) == 6
    stream.engine.check_integrity()


def test_a_record_that_vanishes_between_plan_and_fetch_is_given_up_without_a_stall() -> None:
    stream = opened()
    away(stream)
    tier = stream.engine.tier
    holds = tier.holds
    tier.forget(stream.session.id, 0)

    def lying(session: str, chunk: int) -> object:
        from cache.tiers import Held

        return Held(frozenset(TYPES), True) if chunk == 0 else holds(session, chunk)

    tier.holds = lying  # type: ignore[method-assign]
    stream.return_to("opening")
    tier.holds = holds  # type: ignore[method-assign]
    stream.engine.check_integrity()
    assert 0 not in stream.session.manager.kept()
    assert [d.reason for d in stream.decisions if d.action == "give up"]
    stream.take(3)
    stream.engine.check_integrity()


def test_the_host_tier_is_bounded_and_degrades_in_the_stated_order() -> None:
    room = 5 * sum(spec.bytes_per_chunk for spec in backbone().specs().values())
    stream = opened(host_bytes=room)
    for i in range(6):
        stream.take(7)
        stream.cut(f"scene {i}", "a place")
        stream.engine.tier.check_integrity()
    statistics = stream.engine.tier.statistics()
    assert statistics.bytes_held <= room
    assert statistics.dropped_key_values > 0


def test_scenes_beyond_the_limit_are_forgotten_with_their_records() -> None:
    made = engine(cache=CacheConfig(scenes=SceneConfig(max_scenes=3)))
    stream = Stream.open(made, "a ball", seed=1)
    sizes = []
    for i in range(8):
        stream.take(6)
        stream.cut(f"scene {i}", f"place {i}")
        sizes.append(len(made.tier.chunks(stream.session.id)))
    assert stream.scenes == ["scene 5", "scene 6", "scene 7"]
    assert max(sizes[3:]) <= max(sizes[:3])
    assert len(stream.session.prompts) <= 4


def test_recent_chunks_of_the_scene_left_fade_out_after_a_cut() -> None:
    stream = opened()
    stream.take(10)
    stream.cut("kitchen", "a kitchen")
    assert stream.keep_set()["video_self"] == {"recent": [8, 9]}
    stream.take(6)
    assert stream.keep_set()["video_self"]["recent"] == [12, 13, 14, 15]


def test_the_subject_anchor_is_attended_in_every_scene_until_it_is_dropped() -> None:
    stream = opened()
    stream.take(5)
    mask = torch.zeros(stream.engine.backbone.geometry.video_tokens, dtype=torch.bool)
    mask[3:6] = True
    assert stream.harvest(4, {Modality.VIDEO: mask}, score=0.6)
    assert not stream.harvest(3, {Modality.VIDEO: mask}, score=0.6)
    assert stream.harvest(3, {Modality.VIDEO: mask}, score=0.7)
    assert stream.keep_set()["video_self"]["subject_anchor"] == [3]
    stream.take(30)
    stream.cut("kitchen", "a kitchen")
    stream.take(3)
    reads = next_reads(stream)
    for t in TYPES:
        subject = stream.session.manager.ledgers[t].subject
        assert (subject is not None) == (t.keyed_by is Modality.VIDEO)
        if subject is not None:
            assert reads[t][0].skip_tokens == stream.engine.specs[t].tokens_per_chunk - 3
    stream.cut("garden", "no subject here", keep_subject=False)
    stream.engine.check_integrity()
    assert "subject_anchor" not in stream.keep_set()["video_self"]
    stream.take(2)
    stream.engine.check_integrity()


def next_reads(stream: Stream) -> dict:
    """The block tables that the next chunk would read."""
    stream.session.manager.begin()
    for t in TYPES:
        stream.engine.pool.claim(stream.session.lease, t, stream.session.staged(t))
    batch = Batch(stream.engine.backbone, stream.engine.pool, stream.engine.ops, [stream.session])
    stream.engine._abort(stream.session)
    return batch.rows.reads


def test_reading_is_one_view_without_copies_in_the_steady_state() -> None:
    """Kept chunks stay where they are and the next chunk takes the vacated place, so the read stays one range."""
    stream = opened()
    stream.take(3)
    mask = torch.ones(stream.engine.backbone.geometry.video_tokens, dtype=torch.bool)
    stream.harvest(2, {Modality.VIDEO: mask}, score=0.6)
    places: dict = {}
    for _ in range(25):
        stream.next()
        reads = next_reads(stream)
        assert all(reads[t][0].consecutive for t in TYPES)
        for chunk, entry in stream.session.manager.ledgers[TYPES[0]].entries.items():
            assert places.setdefault(chunk, entry.place) == entry.place


def test_a_prompt_switch_takes_effect_and_keeps_or_encodes_the_history_as_asked() -> None:
    model = backbone(**{**TINY, "num_layers": 2})  # what the first layer attends to does not know the prompt yet
    takes = {}
    for mode in ("keep", "recache", "cut"):
        stream = opened(model=model)
        stream.take(6)
        page = stream.engine.pool.storage[TYPES[0]].view(torch.int32).clone()  # bits: unused pages may hold NaN
        sink = stream.keep_set()["video_self"]["scene_sink"]
        stream.change_prompt("a cube in snow", mode)
        stream.engine.check_integrity()
        changed = not torch.equal(stream.engine.pool.storage[TYPES[0]].view(torch.int32), page)
        assert changed == (mode == "recache")
        assert ("scene_sink" in stream.keep_set()["video_self"]) == (mode != "cut"), "a switch never zeroes the sink"
        assert mode == "cut" or stream.keep_set()["video_self"]["scene_sink"] == sink
        takes[mode] = stream.next().video
        stream.take(3)
        stream.engine.check_integrity()
    stream = opened(model=model)
    stream.take(6)
    takes["unchanged"] = stream.next().video
    values = list(takes.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])


def test_recache_encodes_under_the_new_prompt_what_a_stream_with_that_prompt_would_hold() -> None:
    """Not under the previous prompt: the recent keys equal those of the same latents committed under the new one."""
    budget = RoleBudget(subject_anchor=0, scene_sink=0, scene_anchor=0, restored=0, recent=5)
    made = engine(policy=SceneMemory(Budgets.uniform(budget)), cache=CacheConfig(scenes=SceneConfig(sink_chunks=0)))
    stream = Stream.open(made, "a ball", seed=2)
    stream.take(4)
    stream.change_prompt("a cube in snow", "recache")

    fresh = made.open("a cube in snow", seed=2)
    for chunk in range(4):
        given = stream.session.retained[chunk]
        clean = (given.video[None], given.audio[None])
        teacher_force(made, [fresh], clean, clean, 0.5)
    for t in TYPES:
        pages = [
            made.pool.pages(s.lease, t, [s.manager.ledgers[t].entries[c].place for c in range(4)])
            for s in (stream.session, fresh)
        ]
        here, there = (made.pool.storage[t][:, :, list(p)] for p in pages)
        torch.testing.assert_close(here, there, atol=1e-5, rtol=0)


def test_directives_that_make_no_sense_change_nothing() -> None:
    stream = opened()
    stream.take(3)
    before = stream.keep_set()
    with pytest.raises(UnknownScene, match="no scene 'attic' in this stream; known: 'opening'"):
        stream.return_to("attic")
    with pytest.raises(StreamError, match="is on air already"):
        stream.return_to("opening")
    with pytest.raises(SceneExists, match="scene 'opening' exists since chunk 0; return to it instead"):
        stream.cut("opening", "again")
    with pytest.raises(StreamError, match="the prompt is empty"):
        stream.cut("kitchen", "  ")
    with pytest.raises(StreamError, match="mode is 'swap'; expected 'keep', 'recache' or 'cut'"):
        stream.change_prompt("a cube", "swap")  # type: ignore[arg-type]
    assert stream.keep_set() == before
    assert stream.scenes == ["opening"]


def test_wrong_subject_masks_are_refused_before_anything_is_written() -> None:
    stream = opened()
    stream.take(2)
    good = torch.ones(stream.engine.backbone.geometry.video_tokens, dtype=torch.bool)
    with pytest.raises(StreamError, match=r"video mask has shape \(3,\)"):
        stream.harvest(1, {Modality.VIDEO: torch.ones(3, dtype=torch.bool)}, 1.0)
    with pytest.raises(StreamError, match="0 chosen tokens"):
        stream.harvest(1, {Modality.VIDEO: torch.zeros_like(good)}, 1.0)
    with pytest.raises(StreamError, match=r"chunk 9 is not in the cache; harvest from one of \[0, 1\]"):
        stream.harvest(9, {Modality.VIDEO: good}, 1.0)
    none = engine(policy=SceneMemory(Budgets.uniform(RoleBudget(subject_anchor=0))))
    refused = Stream.open(none, "a ball")
    refused.take(1)
    with pytest.raises(StreamError, match="subject_anchor budget is 0"):
        refused.harvest(0, {Modality.VIDEO: good}, 1.0)
    stream.engine.check_integrity()

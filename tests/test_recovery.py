"""A stream that lost its generator: bit-equal from keys and values, whole from latents, never wrong from neither."""

from dataclasses import asdict

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.host_tier import HostTier
from cache.keep_set import Budgets
from cache.policies import ALL
from cache.positions import PositionConfig
from cache.spec import TYPES, AttentionType, Modality
from cache.state import Plain, dump
from errors import PoolExhausted
from streams.durability import PUBLISHED, Durability, Footing, shelves
from streams.engine import Engine
from streams.recovery import forget_lost, published, recover
from streams.stream import Stream
from tests.builders import SMALL_KEEP_SET, backbone, engine, examples
from tests.test_snapshot import equal, go_on, lived

POSITIONS = [("pinned", "relocate"), ("following", "relocate"), ("pinned", "rebuild")]


def made(durability: Durability, tier: HostTier | None = None, **options: object) -> Engine:
    return engine(backbone(), tier=tier or HostTier(1 << 30), durability=durability, **options)  # type: ignore[arg-type]


def left(stream: Stream) -> tuple[Plain, Footing]:
    """What is left of a stream whose generator is gone, by way of bytes."""
    packed = msgpack.packb([dump(stream.session.manager), asdict(Footing.of(stream.session))])
    books, footing = msgpack.unpackb(packed, strict_map_key=False)
    return books, Footing.parse(footing)


def taken_over(stream: Stream, **options: object) -> Stream:
    """The stream in another engine with the same store; the old engine knows nothing of it."""
    tier = stream.engine.tier
    assert isinstance(tier, HostTier)
    other = made(stream.engine.config.durability, tier, **options)
    books, footing = left(stream)
    found = Stream(other, recover(other, books, footing))
    forget_lost(other, footing.stream)
    found.engine.check_integrity()
    return found


def page_of(stream: Stream, type: AttentionType, chunk: int) -> torch.Tensor:
    place = stream.session.manager.ledgers[type].entries[chunk].place
    return stream.engine.ops.pack(stream.engine.pool.storage[type], stream.session.page(type, place)).flatten()


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("positions", POSITIONS)
def test_with_keys_and_values_a_recovered_stream_equals_one_that_was_never_lost(policy: type, positions: tuple) -> None:
    options = {"policy": policy(Budgets.uniform(SMALL_KEEP_SET)), "positions": PositionConfig(31, *positions)}
    expected = go_on(lived(made("kv", **options)))
    assert equal(go_on(taken_over(lived(made("kv", **options)), **options)), expected)


def test_a_stream_can_be_lost_again_and_again() -> None:
    expected = go_on(lived(made("kv")))
    stream = lived(made("kv"))
    for _ in range(3):
        stream = taken_over(stream)
    assert equal(go_on(stream), expected)


def test_a_fork_and_a_resumed_stream_can_be_lost_too() -> None:
    expected = go_on(lived(made("kv")))
    assert equal(go_on(taken_over(lived(made("kv")).fork())), expected)
    tier = HostTier(1 << 30)
    saved = lived(made("kv", tier)).pause()
    assert equal(go_on(taken_over(Stream.resume(made("kv", tier), saved))), expected)


def test_with_latents_the_memory_is_computed_anew_and_the_stream_goes_on_close_to_what_it_was() -> None:
    expected = go_on(lived(made("latents")))
    stream = taken_over(lived(made("latents")))
    stranger = go_on(lived(made("latents")).fork(seed=10))
    found = go_on(stream)
    assert not equal(found, expected)

    def apart(other: list[torch.Tensor]) -> float:
        return float(sum((a - b).square().mean() for a, b in zip(other[:2], expected[:2], strict=True)))

    assert apart(found) < 0.02 * apart(stranger)


def test_a_stream_that_was_recovered_in_vain_is_recovered_once_more_and_is_the_same() -> None:
    stream = lived(made("kv"))
    expected, tier = go_on(lived(made("kv"))), stream.engine.tier
    assert isinstance(tier, HostTier)
    held = tier.statistics()
    other = made("kv", tier)
    Stream(other, recover(other, *left(stream))).close()
    assert tier.statistics() == held
    assert equal(go_on(taken_over(stream)), expected)


def test_the_old_records_are_the_recovered_streams_and_nothing_is_left_when_it_ends() -> None:
    stream = lived(made("kv"))
    tier, old = stream.engine.tier, stream.session.id
    assert isinstance(tier, HostTier)
    found = taken_over(stream)
    assert not any(tier.chunks(name) for name in shelves(old))
    assert tier.chunks(found.session.id)
    found.close()
    assert tier.statistics().bytes_held == 0
    tier.check_integrity()


def test_what_was_published_last_is_there_without_a_gap_and_bounded() -> None:
    stream = Stream.open(made("latents"), "a ball", seed=9)
    chunks = stream.take(PUBLISHED + 5)
    found = taken_over(stream)
    again = published(found.engine, found.session, 8)
    assert [c.index for c in again] == [c.index for c in chunks[-8:]]
    assert all(torch.equal(a.video, b.video) for a, b in zip(again, chunks[-8:], strict=True))
    assert len(published(found.engine, found.session, 100)) == PUBLISHED


def test_what_was_written_after_the_newest_acknowledged_commit_is_not_believed() -> None:
    stream = lived(made("kv"))
    books, footing = left(stream)
    mask = torch.zeros(stream.engine.backbone.geometry.video_tokens, dtype=torch.bool)
    mask[5:8] = True
    stream.harvest(stream.session.manager.next_chunk - 1, {Modality.VIDEO: mask}, score=0.9)
    stream.change_prompt("a square", "recache")
    tier = stream.engine.tier
    other = made("kv", tier)  # type: ignore[arg-type]
    found = Stream(other, recover(other, books, footing))
    other.check_integrity()
    subject = found.session.manager.ledgers[TYPES[0]].subject
    assert subject is not None
    assert subject.score == 0.5
    assert "a square" not in {p.text for p in found.session.prompts.values()}
    expected = taken_over(lived(made("latents")))  # everything from latents, under the old prompt
    for t in TYPES:
        for chunk, entry in found.session.manager.ledgers[t].entries.items():
            pages = [
                s.engine.ops.pack(
                    s.engine.pool.storage[t], s.session.page(t, s.session.manager.ledgers[t].entries[chunk].place)
                )
                for s in (found, expected)
            ]
            assert entry.slot == expected.session.manager.ledgers[t].entries[chunk].slot
            assert torch.nn.functional.cosine_similarity(pages[0].flatten(), pages[1].flatten(), 0) > 0.9


@settings(max_examples=examples(12))
@given(st.data())
def test_whatever_the_store_lost_the_stream_goes_on_whole(data: st.DataObject) -> None:
    stream = lived(made(data.draw(st.sampled_from(["kv", "latents"]))))
    tier = stream.engine.tier
    assert isinstance(tier, HostTier)
    for name in shelves(stream.session.id):
        for chunk in tier.chunks(name):
            if data.draw(st.booleans()):
                if data.draw(st.booleans()):
                    tier.forget(name, chunk)
                else:
                    record = tier.records(name)[chunk]
                    for t in list(record.key_values):
                        if data.draw(st.booleans()):
                            tier._release(record.key_values.pop(t))
    found = taken_over(stream)
    chunks = found.take(4)
    assert all(torch.isfinite(c.video).all() for c in chunks)
    found.engine.check_integrity()
    found.close()
    assert not found.engine.pool.statistics().held_bytes[TYPES[0]]


def test_no_room_or_another_model_costs_nothing() -> None:
    stream = lived(made("kv"))
    tier = stream.engine.tier
    assert isinstance(tier, HostTier)
    full = made("kv", tier, sessions=1)
    Stream.open(full, "a ball")
    with pytest.raises(PoolExhausted):
        recover(full, *left(stream))
    books, footing = left(stream)
    wrong = Footing(footing.stream, footing.seed, {"k": " "}, footing.prompt_of, footing.subject_tokens)
    with pytest.raises(Exception, match="prompt"):
        recover(made("kv", tier), books, wrong)
    assert equal(go_on(taken_over(stream)), go_on(lived(made("kv"))))

"""Pause, resume and fork: bit-equal continuations, shared pages counted once, and bytes that cannot be resumed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cache.books import CacheConfig
from cache.drift import DriftConfig
from cache.keep_set import Budgets
from cache.policies import ALL, SlidingWindow
from cache.positions import PositionConfig
from cache.spec import TYPES, Modality
from errors import PoolExhausted, SnapshotCorrupt, SnapshotMismatch, StreamClosed, TransactionError
from models.sampler import Schedule
from streams.engine import Engine
from streams.snapshot import KIND, VERSION
from streams.stream import Stream
from tests.builders import SMALL_KEEP_SET, backbone, engine

ROOT = Path(__file__).parent.parent


def lived(made: Engine) -> Stream:
    """A stream with a past: a subject anchor, evictions, an epoch, two scenes, restored chunks, stored records."""
    stream = Stream.open(made, "a ball", seed=9)
    stream.take(14)
    if made.policy.budgets[TYPES[0]].subject_anchor:
        mask = torch.zeros(made.backbone.geometry.video_tokens, dtype=torch.bool)
        mask[2:5] = True
        stream.harvest(13, {Modality.VIDEO: mask}, score=0.5)
    stream.take(8)
    stream.cut("kitchen", "a kitchen")
    stream.take(7)
    stream.return_to("opening")
    stream.take(3)
    return stream


def go_on(stream: Stream) -> list[torch.Tensor]:
    """What comes after, with a directive that needs the store."""
    chunks = stream.take(3)
    stream.return_to("kitchen")
    chunks += stream.take(12)
    stream.engine.check_integrity()
    return [x for c in chunks for x in (c.video, c.audio)]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


RESUME = """
import sys, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from tests.builders import engine, backbone
from tests.test_snapshot import go_on
from streams.snapshot import KIND, VERSION
from streams.stream import Stream
stream = Stream.resume(engine(backbone()), open({source!r}, "rb").read())
torch.save(go_on(stream), {target!r})
"""


def test_resuming_in_another_process_is_bit_equal_to_not_pausing(tmp_path: Path) -> None:
    stream = lived(engine(backbone()))
    source, target = tmp_path / "take", tmp_path / "chunks"
    source.write_bytes(stream.snapshot())
    expected = go_on(stream)
    script = RESUME.format(root=str(ROOT), source=str(source), target=str(target))
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=120)
    assert equal(torch.load(target), expected)


@pytest.mark.parametrize("policy", ALL)
@pytest.mark.parametrize("positions", [("pinned", "relocate"), ("following", "relocate"), ("pinned", "rebuild")])
def test_pausing_frees_all_memory_and_resuming_beside_others_is_bit_equal(policy: type, positions: tuple) -> None:
    config = PositionConfig(20, *positions)
    made = engine(policy=policy.of(Budgets.uniform(SMALL_KEEP_SET)), positions=config)
    stream = lived(made)
    fork = stream.fork()
    data = stream.pause()
    expected = go_on(fork)
    fork.close()
    assert not any(made.pool.statistics().held_bytes.values())
    assert made.tier.statistics().records == 0
    other = Stream.open(made, "someone else", seed=1)
    other.take(3)
    assert equal(go_on(Stream.resume(made, data)), expected)


def test_a_fork_with_the_same_seed_is_bit_equal_and_with_another_is_not() -> None:
    stream = lived(engine())
    same, other = stream.fork(), stream.fork(seed=77)
    expected = go_on(stream)
    assert equal(go_on(same), expected)
    assert not equal(go_on(other), expected)


def test_a_fork_shares_pages_until_the_two_diverge_and_shared_bytes_count_once() -> None:
    no_anchors = DriftConfig(reference_threshold=0.0)
    made = engine(sessions=2, cache=CacheConfig(drift=no_anchors))
    stream = Stream.open(made, "a ball", seed=1)
    stream.take(8)
    alone = sum(made.pool.statistics().held_bytes.values())
    fork = stream.fork(seed=2)
    assert sum(made.pool.statistics().held_bytes.values()) == alone
    per_chunk = sum(spec.bytes_per_chunk for spec in made.specs.values())
    for i in range(1, 4):
        made.step([stream.session, fork.session])
        made.check_integrity()
        # Each adds a page of its own, and both give up the same shared one.
        assert sum(made.pool.statistics().held_bytes.values()) == alone + i * per_chunk
    stream.close()
    made.check_integrity()
    fork.take(3)
    fork.close()
    assert not any(made.pool.statistics().held_bytes.values())


def test_writing_in_place_copies_a_shared_page_first() -> None:
    """Relocating the sink of one fork must not rotate the other's."""
    made = engine(sessions=2, positions=PositionConfig(slots=12))
    stream = Stream.open(made, "a ball", seed=1)
    stream.take(8)
    fork = stream.fork()
    expected = Stream.resume(engine(sessions=1, positions=PositionConfig(slots=12)), fork.snapshot()).take(10)
    stream.take(10)
    assert made.pool.copied_on_write > 0
    assert equal([c.video for c in fork.take(10)], [c.video for c in expected])


def test_a_full_pool_refuses_streams_forks_and_resumes_and_changes_nothing() -> None:
    made = engine(sessions=1)
    stream = lived(made)
    data = stream.snapshot()
    before = made.pool.statistics()
    for attempt in (lambda: Stream.open(made, "x"), stream.fork, lambda: Stream.resume(made, data)):
        with pytest.raises(PoolExhausted, match="close or pause a stream, or make the pool larger"):
            attempt()
        assert made.pool.statistics() == before
        assert list(made.sessions) == [stream.session.id]
        made.check_integrity()
    assert stream.take(2)


@pytest.mark.parametrize("damage", ["empty", "foreign", "flipped", "truncated", "appended"])
def test_damaged_bytes_are_refused_and_nothing_is_opened(damage: str) -> None:
    made = engine()
    data = bytearray(Stream.open(made, "a ball").pause())
    broken = {
        "empty": b"",
        "foreign": b"PK\x03\x04" + bytes(data[4:]),
        "flipped": bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]),
        "truncated": bytes(data[:-1]),
        "appended": bytes(data + b"\0"),
    }[damage]
    with pytest.raises(SnapshotCorrupt):
        Stream.resume(made, broken)
    assert not made.sessions


@pytest.mark.parametrize("change", ["weights", "geometry", "policy", "positions", "schedule"])
def test_a_snapshot_of_another_model_or_configuration_is_refused_by_name(change: str) -> None:
    stream = Stream.open(engine(), "a ball")
    stream.take(2)
    data = stream.pause()
    other, named = {
        "weights": (lambda: engine(backbone("ltx-2.0-split", factor=2.5)), "weights, configuration or chunk geometry"),
        "geometry": (lambda: engine(backbone(height=32)), "weights, configuration or chunk geometry"),
        "policy": (lambda: engine(policy=SlidingWindow.of(Budgets.uniform(SMALL_KEEP_SET))), "policy: SceneMemory"),
        "positions": (lambda: engine(positions=PositionConfig(slots=20)), "positions: PositionConfig"),
        "schedule": (lambda: engine(schedule=Schedule((1.0,))), "schedule: "),
    }[change]
    with pytest.raises(SnapshotMismatch, match=named):
        Stream.resume(other(), data)


def test_a_snapshot_of_another_format_version_is_refused() -> None:
    from wire import seal, unseal

    data = Stream.open(engine(), "a ball").pause()
    newer = seal(KIND, VERSION + 1, unseal(data, KIND, VERSION))
    with pytest.raises(SnapshotMismatch, match=f"format version {VERSION + 1}; this release reads version {VERSION}"):
        Stream.resume(engine(), newer)
    with pytest.raises(SnapshotMismatch, match="this is a Longtake receipt; expected a snapshot"):
        Stream.resume(engine(), seal("receipt", 1, {}))
    with pytest.raises(SnapshotCorrupt, match="does not hold what a stream needs"):
        Stream.resume(engine(), seal(KIND, VERSION, {"cache": 3}))


def test_a_closed_stream_says_so() -> None:
    stream = Stream.open(engine(), "a ball")
    stream.pause()
    for call in (stream.next, stream.fork, stream.close, lambda: stream.cut("b", "p"), stream.snapshot):
        with pytest.raises(StreamClosed, match="is closed; open a stream or resume one from its snapshot"):
            call()


def test_a_chunk_in_progress_cannot_be_dumped() -> None:
    stream = Stream.open(engine(), "a ball")
    stream.session.manager.begin()
    with pytest.raises(TransactionError, match="commit or abort before"):
        stream.snapshot()

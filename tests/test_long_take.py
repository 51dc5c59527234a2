"""A take of 45 minutes and more: memory, positions and books stay bounded past every table's end."""

import pytest

from cache.keep_set import Budgets
from cache.policies import SceneMemory
from cache.positions import PositionConfig
from cache.spec import TYPES
from models.sampler import Schedule
from streams.stream import Stream
from tests.builders import SMALL_KEEP_SET, engine, tiny_backbone

CHUNKS_A_MINUTE = 60 * 25 / 16  # of 0.64 s


@pytest.mark.parametrize(
    ("minutes", "memory", "move"),
    [(45, "pinned", "relocate"), (8, "following", "relocate"), (8, "pinned", "rebuild")],
)
def test_a_long_take_holds_constant_bytes_inside_the_trained_range(minutes: int, memory: str, move: str) -> None:
    positions = PositionConfig(31, memory, move)
    policy = SceneMemory(Budgets.uniform(SMALL_KEEP_SET))
    made = engine(tiny_backbone(), policy, positions, sessions=1, schedule=Schedule((1.0,)))
    stream = Stream.open(made, "a ball", seed=1)
    manager = stream.session.manager
    warm, held, farthest = 64, set(), 0
    for chunk in stream.chunks(round(minutes * CHUNKS_A_MINUTE)):
        if chunk.index >= warm:
            statistics = stream.statistics()
            held.add(tuple(statistics.types[t].bytes_held for t in TYPES))
            farthest = max(farthest, statistics.farthest_distance)
        if chunk.index % 500 == 0:
            made.check_integrity()
    made.check_integrity()
    assert len(held) <= 2, "one size without, one with both anchors"
    assert farthest <= 30
    assert len(manager.books.stored) <= 64
    assert made.tier.statistics().records <= 8
    assert len(stream.session.retained) <= SMALL_KEEP_SET.chunks
    assert len(stream.decisions) <= stream.decisions.capacity
    assert minutes < 45 or stream.decisions.dropped > 0
    assert chunk.video.isfinite().all()
    assert (manager.positions.next_slot < 31) == (move == "rebuild")

"""What relocation over many epochs does to stored keys, against keys encoded at the last slot directly.

Two ways: rotating in place move by move, and from the keys as first written at every move, which Longtake does.

The moves are those that a position map gives to the sink of a stream that runs for that many epochs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from bench.bare_session import BareSession, tiny_specs
from bench.contenders import MEASURED, statistics
from cache.books import CacheConfig
from cache.keep_set import Budgets
from cache.policies import SceneMemory
from cache.positions import PositionConfig
from kernels.relocate import relocate
from kernels.rotary import rotate
from models.backbone import random_transformer
from models.rope import RopeTable, tables
from models.shapes import ChunkGeometry

Layout = Literal["split", "interleaved"]
Memory = Literal["pinned", "following"]
LAYOUTS: tuple[Layout, ...] = ("split", "interleaved")
MEMORIES: tuple[Memory, ...] = ("pinned", "following")
DTYPES = (torch.bfloat16, torch.float32)
# LTX-2's widths; one layer is enough to make its rotary table.
WIDTHS = {
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "cross_attention_dim": 4096,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 2048,
    "num_layers": 1,
}
SINK = 0


@dataclass(frozen=True)
class Rounding:
    """Errors of the sink's keys after ``epochs``, relative root mean square against keys encoded where they ended.

    ``error``: rotated in place; ``from_origin``: rotated once from the keys as first written, as Longtake does.
    ``once``: what storing keys in this type costs in the first place, against the same keys in float32.
    """

    layout: Layout
    dtype: str
    memory: str
    epochs: int
    moves: int
    error: float
    from_origin: float
    once: float


def rope_table(layout: Layout) -> RopeTable:
    """The table of video self-attention at LTX-2's widths for 0.64 s chunks of 16 tokens."""
    with torch.device("meta"):
        config = random_transformer(**WIDTHS, rope_type=layout).config
    geometry = ChunkGeometry.of_model(config, frames=2, height=64, width=128, fps=25)
    return tables(config, geometry, torch.device("cpu"))["video"]


def sink_slots(memory: Memory, epochs: int) -> Iterator[list[int]]:
    """Per epoch, the slots that the sink's keys are brought to, one after the other; the first begins with its own."""
    config = CacheConfig(positions=PositionConfig(31, memory))
    session = BareSession(tiny_specs(torch.bfloat16), SceneMemory(Budgets()), config, torch.bfloat16)
    seen = statistics(4, 0.0)
    slots = [session.manager.positions.next_slot]
    for _ in range(epochs):
        ended = False
        while not ended:
            plan = session.commit(seen)
            slots += [move.to_slot for move in plan.moves.get(MEASURED, ()) if move.chunk == SINK]
            ended = plan.epoch_ended
        yield slots
        slots = []


def rounding(layout: Layout, memory: Memory, marks: set[int]) -> Iterator[Rounding]:
    """Relocate in every type through the same epochs; yields the error at each of ``marks``."""
    rope = rope_table(layout)
    torch.manual_seed(0)
    exact = torch.randn(rope.base.shape[1], 2 * rope.base.shape[2])
    stored: dict[torch.dtype, torch.Tensor] = {}
    origins: dict[torch.dtype, torch.Tensor] = {}
    slot = first = moves = 0
    for epoch, slots in enumerate(sink_slots(memory, max(marks)), start=1):
        if not stored:
            slot = first = slots[0]
            slots = slots[1:]
            stored = {dtype: encoded(exact, rope, slot).to(dtype) for dtype in DTYPES}
            origins = {dtype: keys.clone() for dtype, keys in stored.items()}
        for target in slots:
            for keys in stored.values():
                relocate(keys, *rope.delta(slot, target), rope.layout)
            slot, moves = target, moves + 1
        if epoch in marks:
            direct = encoded(exact, rope, slot)
            for dtype, keys in stored.items():
                ours = origins[dtype].clone()
                relocate(ours, *rope.delta(first, slot), rope.layout)
                expected, name = direct.to(dtype), str(dtype).removeprefix("torch.")
                errors = [relative_rms(a, b) for a, b in ((keys, expected), (ours, expected), (expected, direct))]
                yield Rounding(layout, name, memory, epoch, moves, *errors)


def encoded(keys: torch.Tensor, rope: RopeTable, slot: int) -> torch.Tensor:
    """Keys as the sink, a stream's first chunk, is encoded at ``slot``; float32."""
    cos, sin = rope.at([slot], [True])
    return rotate(keys, cos[0], sin[0], rope.layout)


def relative_rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference, in units of what was expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())

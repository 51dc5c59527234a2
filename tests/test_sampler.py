"""The sampler: schedules as configuration, noise from (seed, chunk) alone, exact on a known flow."""

import pytest
import torch

from cache.spec import Modality
from errors import ConfigError
from models.sampler import Schedule, denoise, noise
from streams.engine import Engine
from streams.engine_config import EngineConfig
from streams.stream import Stream
from tests.builders import backbone, engine


def test_shift_five_gives_the_levels_of_released_checkpoints() -> None:
    """Timesteps 1000, 750, 500, 250 warped by shift 5 (Self-Forcing on Wan 2.1)."""
    assert Schedule.even(4, shift=5.0).levels == pytest.approx((1.0, 0.9375, 0.8333, 0.625), abs=1e-4)
    assert Schedule.even(4).levels == (1.0, 0.75, 0.5, 0.25)


@pytest.mark.parametrize("step", ["renoise", "euler"])
def test_a_perfect_model_reaches_the_clean_chunk_in_any_schedule(step: str) -> None:
    target = (torch.randn(1, 5, 3), torch.randn(1, 4, 2))

    def velocity(x: tuple, sigma: float) -> tuple:
        return tuple((a - b) / sigma for a, b in zip(x, target, strict=True))

    draws = []

    def draw(number: int) -> tuple:
        draws.append(number)
        return tuple(torch.randn_like(x) for x in target)

    got = denoise(Schedule((1.0, 0.9, 0.4), step), velocity, draw)
    for a, b in zip(got, target, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert draws == ([0, 1, 2] if step == "renoise" else [0])


def test_noise_depends_on_seed_chunk_draw_and_modality_alone() -> None:
    first = noise(7, 3, 0, Modality.VIDEO, 10, 4)
    torch.manual_seed(99)
    assert torch.equal(first, noise(7, 3, 0, Modality.VIDEO, 10, 4))
    others = [noise(8, 3, 0, Modality.VIDEO, 10, 4), noise(7, 4, 0, Modality.VIDEO, 10, 4),
              noise(7, 3, 1, Modality.VIDEO, 10, 4), noise(7, 3, 0, Modality.AUDIO, 10, 4)]  # fmt: skip
    assert all(not torch.equal(first, other) for other in others)
    assert first.mean().abs() < 0.5


def test_a_stream_is_a_function_of_weights_prompt_and_seed() -> None:
    takes = [Stream.open(engine(), "a ball", seed=5).take(5) for _ in range(2)]
    assert all(torch.equal(a.video, b.video) and torch.equal(a.audio, b.audio) for a, b in zip(*takes, strict=True))
    other = Stream.open(engine(), "a ball", seed=6).take(1)
    assert not torch.equal(other[0].video, takes[0][0].video)


def test_a_stream_in_a_batch_equals_the_stream_alone() -> None:
    """Different lengths, scenes and keep-sets in one pass; batch shapes differ, so up to rounding."""
    alone = Stream.open(engine(), "a ball", seed=5)
    expected = alone.take(8)
    alone.cut("kitchen", "a kitchen")
    expected += alone.take(6)
    made = engine(sessions=3)
    stream, other, third = (Stream.open(made, p, seed=s) for p, s in (("a ball", 5), ("a cube", 6), ("rain", 7)))
    other.take(11)
    got = [made.step([stream.session, other.session])[0] for _ in range(8)]
    stream.cut("kitchen", "a kitchen")
    third.cut("elsewhere", "a desert")
    got += [made.step([third.session, stream.session, other.session])[1] for _ in range(6)]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.video, b.video, atol=2e-5, rtol=0)
        torch.testing.assert_close(a.audio, b.audio, atol=2e-5, rtol=0)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    """At equal batch shape bit-equal: whoever shares the batch, with whatever keep-set, changes not one bit."""
    takes = []
    for neighbour, warm in (("a cube", 0), ("rain in a garden", 13)):
        made = engine(sessions=2)
        stream, other = Stream.open(made, "a ball", seed=5), Stream.open(made, neighbour, seed=warm)
        other.take(warm)
        takes.append([made.step([stream.session, other.session])[0] for _ in range(12)])
    assert all(torch.equal(a.video, b.video) and torch.equal(a.audio, b.audio) for a, b in zip(*takes, strict=True))


def test_the_first_chunk_can_have_a_schedule_of_its_own_in_a_mixed_batch() -> None:
    config = EngineConfig(schedule=Schedule((1.0, 0.5)), first_schedule=Schedule.even(6), sessions=2)
    made = Engine(backbone(), engine().policy, config)
    calls: list[int] = []
    forward = made.backbone.forward
    made.backbone.forward = lambda rows, video, *rest: calls.append(len(video)) or forward(rows, video, *rest)
    try:
        first = Stream.open(made, "a ball", seed=1)
        first.next()
        assert calls == [1] * 7
        calls.clear()
        second = Stream.open(made, "a cube", seed=2)
        chunks = made.step([first.session, second.session])
    finally:
        del made.backbone.forward
    assert [c.index for c in chunks] == [1, 0]
    assert calls == [1] * 7 + [1] * 3


def test_a_failure_in_one_group_of_a_mixed_batch_leaves_all_groups_as_they_were() -> None:
    config = EngineConfig(schedule=Schedule((1.0, 0.5)), first_schedule=Schedule.even(6), sessions=2)
    made = Engine(backbone(), engine().policy, config)
    first = Stream.open(made, "a ball", seed=1)
    first.next()
    second = Stream.open(made, "a cube", seed=2)
    forward, calls = made.backbone.forward, []

    def fails_in_the_second_group(rows: object, video: object, *rest: object) -> object:
        calls.append(1)
        if len(calls) > 8:
            raise RuntimeError("out of memory")
        return forward(rows, video, *rest)

    made.backbone.forward = fails_in_the_second_group
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            made.step([second.session, first.session])
    finally:
        del made.backbone.forward
    assert [s.session.manager.next_chunk for s in (first, second)] == [1, 0]
    made.check_integrity()
    assert [c.index for c in made.step([first.session, second.session])] == [1, 0]


@pytest.mark.parametrize("sigmas", [(), (0.9, 0.5), (1.0, 1.0), (1.0, 0.5, 0.7), (1.0, 0.0)])
def test_schedules_that_do_not_fall_from_one_are_refused(sigmas: tuple) -> None:
    with pytest.raises(ConfigError, match="expected strictly decreasing levels"):
        Schedule(sigmas)
    with pytest.raises(ConfigError, match="shift is 0"):
        Schedule(shift=0.0)
    with pytest.raises(ConfigError, match="at least one step"):
        Schedule.even(0)

"""The toy world: closed form, sound at every touch of the floor, and secrets that captions keep."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.world import (
    CHUNK_FRAMES,
    CHUNK_SAMPLES,
    COLOURS,
    DECAY,
    FPS,
    ROOMS,
    SAMPLE_RATE,
    SHAPES,
    SIDE,
    Layout,
    Scene,
    chunk_times,
)

seeds = st.integers(0, 10**6)


def scene(seed: int) -> Scene:
    return Scene.draw(random.Random(seed))


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(0, 5000))
def test_a_frame_depends_on_its_time_alone(seed: int, chunk: int) -> None:
    drawn = scene(seed)
    together = drawn.chunk_frames(chunk)
    alone = drawn.frames(chunk_times(chunk)[3:4])
    assert torch.equal(together[3:4], alone)
    assert together.shape == (CHUNK_FRAMES, 3, SIDE, SIDE)
    assert 0.0 <= float(together.min()) <= float(together.max()) <= 1.0


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(1, 5000))
def test_sound_is_the_same_however_it_is_cut(seed: int, chunk: int) -> None:
    drawn = scene(seed)
    whole = drawn.sound((chunk - 1) * CHUNK_SAMPLES, 2 * CHUNK_SAMPLES)
    assert torch.allclose(torch.cat([drawn.chunk_sound(chunk - 1), drawn.chunk_sound(chunk)]), whole, atol=1e-4)
    assert float(whole.abs().max()) < 1.0


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(0, 3600))
def test_the_subject_sounds_when_it_touches_the_floor_and_only_then(seed: int, begin: float) -> None:
    drawn = scene(seed)
    contacts = drawn.contacts(begin, begin + 5)
    assert contacts
    _, low = drawn.position(torch.tensor(contacts, dtype=torch.float64))
    assert torch.allclose(low, torch.full_like(low, drawn.layout.floor - drawn.layout.radius), atol=1e-6)
    quiet = replace(drawn, layout=replace(drawn.layout, drone_level=0.0))
    for contact in contacts:
        first = round(contact * SAMPLE_RATE)
        after = quiet.sound(first, int(0.02 * SAMPLE_RATE)).abs().max()
        before = quiet.sound(first - int(0.02 * SAMPLE_RATE), int(0.02 * SAMPLE_RATE)).abs().max()
        assert after > 10 * before
        assert before < torch.exp(torch.tensor(-(drawn.motion.period - 0.03) / DECAY)) * 0.5


def test_phases_are_those_of_the_media_clock_so_that_equal_sounds_have_equal_samples() -> None:
    drawn = scene(3)
    still = replace(drawn, motion=replace(drawn.motion, period=1e9, phase=0.5))
    assert torch.allclose(still.sound(0, 320), still.sound(320 * 777, 320), atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_the_caption_tells_subject_colour_and_room_and_nothing_of_the_layout(seed: int) -> None:
    drawn = scene(seed)
    other = replace(drawn, layout=Layout.draw(random.Random(seed + 1)))
    caption = drawn.caption(random.Random(1))
    assert caption == other.caption(random.Random(1))
    assert drawn.colour in caption
    assert drawn.room in caption
    assert any(word in caption for word in SHAPES[drawn.shape])
    assert float((drawn.background() - other.background()).abs().mean()) > 0.01


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_subject_stands_out_of_every_room(shape: str, colour: str) -> None:
    for i, room in enumerate(ROOMS):
        drawn = replace(scene(i), shape=shape, colour=colour, room=room)
        times = torch.tensor([0.3])
        inside = drawn.coverage(times)[0] > 0.99
        difference = (drawn.frames(times)[0] - drawn.background()).abs().amax(0)
        assert float(difference[inside].mean()) > 0.1


def test_chunks_are_whole_frames_and_samples() -> None:
    assert CHUNK_FRAMES / FPS * SAMPLE_RATE == CHUNK_SAMPLES

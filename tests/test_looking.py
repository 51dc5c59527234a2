"""The reading of films: on the world's own films it must read what is there, or nothing it reads elsewhere counts."""

import random

import pytest
import torch

from bench.looking import f1, look
from training.world import CHUNK_SAMPLES, Scene


@pytest.mark.parametrize("seed", range(8))
def test_the_worlds_own_film_is_read_as_it_was_made(seed: int) -> None:
    scene = Scene.draw(random.Random(seed))
    chunks = range(40, 62)
    frames = torch.cat([(scene.chunk_frames(c) * 255).byte().permute(0, 2, 3, 1) for c in chunks])
    sound = scene.sound(40 * CHUNK_SAMPLES, len(chunks) * CHUNK_SAMPLES)
    seen = look(frames, sound, scene.shape, scene.colour)
    assert seen.found > 0.9
    assert seen.colour > 0.9
    assert seen.shape > 0.85
    assert seen.synchrony > 0.9
    assert seen.pitch_cents < 30
    room = torch.from_numpy(seen.room).permute(2, 0, 1)
    assert float((room - scene.background()).abs().mean()) < 0.02


def test_another_subject_is_not_taken_for_the_right_one() -> None:
    scene = Scene.draw(random.Random(2))
    frames = torch.cat([(scene.chunk_frames(c) * 255).byte().permute(0, 2, 3, 1) for c in range(10)])
    wrong_shape = next(s for s in ("ball", "box", "cone", "ring") if s != scene.shape)
    wrong_colour = next(c for c in ("red", "blue") if c != scene.colour)
    seen = look(frames, scene.sound(0, 10 * CHUNK_SAMPLES), wrong_shape, wrong_colour)
    assert seen.shape < 0.15
    assert seen.colour < 0.1
    assert seen.pitch_cents > 200


def test_times_agree_only_within_the_tolerance() -> None:
    assert f1([1.0, 2.0], [1.05, 2.05]) == 1.0
    assert f1([1.0, 2.0], [1.5, 2.5]) == 0.0
    assert f1([1.0], [1.0, 2.0]) == pytest.approx(2 / 3)

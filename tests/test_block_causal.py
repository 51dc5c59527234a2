"""Chunk by chunk through the cache equals one pass of the unmodified diffusers model with explicit masks."""

import copy

import pytest
import torch

from cache.keep_set import Budgets, RoleBudget
from cache.policies import SinkRecent, SlidingWindow
from cache.spec import AttentionType
from models.backbone import random_transformer
from tests.builders import FAMILIES, architecture, backbone, engine, kept, latents, poison, sharpen, teacher_force
from tests.oracle import Masked

TOLERANCE = 1e-5
SIGMA = 0.7


def unmodified(family: str, **extra: object) -> object:
    """The same weights in a model that was never touched."""
    transformer = random_transformer(seed=1, **architecture(family, **extra))
    sharpen(transformer, 2.0)
    return transformer.eval()


def worst(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert torch.isfinite(got).all()
    return (got - expected).abs().max().item()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frames", [1, 2])
def test_a_stream_with_nothing_evicted_equals_one_block_causal_pass(family: str, frames: int) -> None:
    """Twelve chunks and more, three streams of different length in one batch, all four types, clean and noisy."""
    model = backbone(family, frames=frames)
    whole = Budgets.uniform(RoleBudget(subject_anchor=0, scene_sink=0, scene_anchor=0, restored=0, recent=16))
    made = engine(model, SlidingWindow(whole))
    poison(made)
    # LTX-2.3's prompt adaln takes one noise level for a whole pass, so its noisy copies have to be clean too; streams
    # with real noise levels are compared chunk by chunk in test_replay.
    sigma = 0.0 if model.text_depends_on_sigma else SIGMA
    starts, length = (0, 3, 5), 14
    clean = [latents(model, 3, seed=i) for i in range(length)]
    noisy = [latents(model, 3, seed=100 + i) for i in range(length)]
    sessions, got = [], {0: [], 1: [], 2: []}
    for i in range(length):
        while len(sessions) < 3 and starts[len(sessions)] == i:
            sessions.append(made.open(f"prompt {len(sessions)}", seed=len(sessions)))
        rows = range(len(sessions))
        given = [tuple(x[: len(sessions)] for x in pair) for pair in (clean[i], noisy[i])]
        denoised, committed = teacher_force(made, sessions, *given, sigma)
        for row in rows:
            got[row].append([pair[k][row] for pair in (committed, denoised) for k in range(2)])
    for row, start in enumerate(starts):
        own = [[tuple(x[row : row + 1] for x in pair) for pair in pairs[start:]] for pairs in (clean, noisy)]
        oracle = Masked(unmodified(family), model.geometry)
        expected = oracle.run(sessions[row].prompt, *own, sigma, lambda t, i, j: True)
        n = length - start
        for i in range(n):
            for k in range(2):
                assert worst(got[row][i][k], expected[i][k][0]) <= TOLERANCE, (row, i, k, "clean")
                assert worst(got[row][i][2 + k], expected[n + i][k][0]) <= TOLERANCE, (row, i, k, "noisy")


@pytest.mark.parametrize("policy", [SlidingWindow, SinkRecent])
def test_an_evicting_stream_equals_dense_history_masked_by_time_of_eviction(policy: type) -> None:
    """Kept chunks were computed while the evicted ones were still visible; recomputing without them would differ."""
    model = backbone("ltx-2.0")
    video = RoleBudget(subject_anchor=0, scene_sink=1, scene_anchor=0, restored=0, recent=3)
    audio = RoleBudget(subject_anchor=0, scene_sink=1, scene_anchor=0, restored=0, recent=6)
    made = engine(model, policy.of(Budgets(video, audio, audio, video)))
    poison(made)
    session = made.open("a prompt", seed=1)
    length = 16
    clean = [latents(model, 1, seed=i) for i in range(length)]
    noisy = [latents(model, 1, seed=100 + i) for i in range(length)]
    got, seen = [], []
    for i in range(length):
        seen.append(copy.deepcopy(kept(session)))
        got.append(teacher_force(made, [session], clean[i], noisy[i], SIGMA))
        poison(made)
    assert len(seen[-1][AttentionType.VIDEO_SELF]) < len(seen[-1][AttentionType.AUDIO_SELF]) < length - 1
    oracle = Masked(unmodified("ltx-2.0"), model.geometry)
    expected = oracle.run(session.prompt, clean, noisy, SIGMA, lambda t, i, j: j in seen[i][t])
    for i in range(length):
        for k in range(2):
            assert worst(got[i][1][k], expected[i][k]) <= TOLERANCE, (i, k, "clean")
            assert worst(got[i][0][k], expected[length + i][k]) <= TOLERANCE, (i, k, "noisy")


def test_the_oracle_notices_a_single_wrong_mask_entry() -> None:
    """The comparison can fail: hiding one chunk from one attention type moves the output by far more than rounding."""
    model = backbone("ltx-2.0")
    clean = [latents(model, 1, seed=i) for i in range(4)]
    oracle = Masked(unmodified("ltx-2.0"), model.geometry)
    prompt = engine(model).prompt("a prompt")
    every = oracle.run(prompt, clean, [], 0.0, lambda t, i, j: True)
    for t in AttentionType:
        fewer = oracle.run(prompt, clean, [], 0.0, lambda u, i, j, t=t: (u, i, j) != (t, 3, 1))
        assert max(worst(a, b) for a, b in zip(every[3], fewer[3], strict=True)) > 20 * TOLERANCE, t

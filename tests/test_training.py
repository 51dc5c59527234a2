"""Training sees what inference sees, repeats itself exactly, and goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.pool import Pool
from cache.spec import TYPES, AttentionType, Modality
from kernels.attention import BlockTable
from kernels.ops import ops
from models.backbone import Backbone
from models.processors import Rows
from models.prompt import Prompt, hashed_prompt
from models.rope import tables
from training.backbone import ClipLoss, toy_geometry, toy_transformer
from training.clips import CLEAN, MEMORY, RECENT, RUN, SLOTS, START_CHUNKS, Batch, Clips, draw, scene_of
from training.loop import FitConfig, fit, rate_at
from training.teacher import ROWS, install, row_mask, text_batch, token_masks

SCENES = 6


@pytest.fixture(scope="module")
def clips() -> Clips:
    made = torch.Generator().manual_seed(1)
    video, audio = (torch.randn(SCENES, 16, n, 128, generator=made) for n in (64, 8))
    return Clips(
        video, audio, torch.rand(SCENES, 16, 64, generator=made), torch.full((SCENES,), 5), torch.arange(SCENES)
    )


def prompt(text: str) -> Prompt:
    """The same embedding for video and audio, as the text encoder of the toy model gives it."""
    embedding = hashed_prompt(text, 384, 384).video
    return Prompt(text, embedding, embedding)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_a_clip_looks_back_only_at_what_the_cache_would_show(clips: Clips, step: int) -> None:
    batch = draw(clips, 0, step, 2)
    for row in range(2):
        slots = batch.slots[row].tolist()
        assert sorted(set(slots)) == slots
        assert slots[-1] - slots[0] < SLOTS
        for i in range(RUN):
            seen = batch.sees[row, i].nonzero()[:, 0].tolist()
            assert all(j < MEMORY + i for j in seen)
            own, memory = batch.caption[row, MEMORY + i], [j for j in seen if j < MEMORY]
            assert not memory or own == batch.caption[row, 0]
            recent = [j - MEMORY for j in seen if j >= MEMORY]
            sinks = [j for j in recent if j < i - max(RECENT)]
            assert len(sinks) <= 1
            assert all(batch.caption[row, MEMORY + j] == own for j in sinks)
        assert not batch.knows[row].triu(1).any()


def test_a_batch_is_a_function_of_seed_and_step(clips: Clips) -> None:
    first, again, other = (draw(clips, 0, step, 4) for step in (7, 7, 8))
    assert first.captions == again.captions
    assert torch.equal(first.video, again.video)
    assert torch.equal(first.sees, again.sees)
    assert first.captions != other.captions


def test_captions_of_a_clip_are_those_of_its_scenes(clips: Clips) -> None:
    batch = draw(clips, 0, 3, 2)
    scenes = [scene_of(5, n) for n in range(SCENES)]
    for text in batch.captions:
        assert any(s.colour in text and s.room in text for s in scenes)


class Inference:
    """The rows of one clip through ``Backbone.forward``, page by page, as the engine does it."""

    def __init__(self, transformer: Any, batch: Batch) -> None:
        self.backbone, self.batch = Backbone(transformer, toy_geometry(transformer)), batch
        pages = dict.fromkeys(TYPES, ROWS)
        self.pool = Pool(self.backbone.specs(), pages, torch.float32, torch.device("cpu"))
        self.mask = row_mask(batch)[0]

    def forward(self, row: int, video: torch.Tensor, audio: torch.Tensor, sigma: float) -> list[torch.Tensor]:
        member = row if row < CLEAN else row - CLEAN + MEMORY
        rows = Rows(
            self.pool,
            ops("torch"),
            self.backbone.angles([int(self.batch.slots[0, member])], [False]),
            {t: [self._reads(row)] for t in TYPES},
            {t: [row] for t in TYPES},
            [prompt(self.batch.captions[int(self.batch.caption[0, member])])],
        )
        return [x[0] for x in self.backbone.forward(rows, video[None], audio[None], sigma)]

    def _reads(self, row: int) -> BlockTable:
        seen = self.mask[row].nonzero()[:, 0].tolist()
        return BlockTable(tuple(seen))


@pytest.mark.parametrize("step", [0, 3, 5])
def test_a_pass_over_a_clip_predicts_what_inference_predicts_chunk_by_chunk(clips: Clips, step: int) -> None:
    batch = draw(clips, 0, step, 1)
    batch.anchor[:] = False  # an anchor's page holds its subject's tokens only, which the engine makes by itself
    torch.manual_seed(2)
    transformer = toy_transformer(layers=2)
    loss = ClipLoss(transformer, clips, prompt, 0, 1, 99)
    loss._look(batch)
    loss.scope.masks = {t: m.float() for t, m in token_masks(batch, 64, 8).items()}
    clean = {Modality.VIDEO: batch.video, Modality.AUDIO: batch.audio}
    levels = torch.linspace(0.2, 1.0, RUN)[None]
    context = {m: x[:, :CLEAN] for m, x in clean.items()}
    noise = torch.Generator().manual_seed(9)
    with torch.no_grad():
        made = loss._predict(batch, context, clean, levels, noise)
    noise.manual_seed(9)
    t = levels[:, :, None, None]
    noisy = {
        m: (1 - t) * x[:, MEMORY:] + t * torch.randn(x[:, MEMORY:].shape, generator=noise) for m, x in clean.items()
    }
    inference = Inference(transformer, batch)
    for row in range(CLEAN):
        inference.forward(row, batch.video[0, row], batch.audio[0, row], 0.0)
    for i in range(RUN):
        sigma = float(levels[0, i])
        velocity = inference.forward(CLEAN + i, *(noisy[m][0, i] for m in Modality), sigma)
        for m, v in zip(Modality, velocity, strict=True):
            assert torch.allclose(noisy[m][0, i] - sigma * v, made[m][0, i], atol=2e-4), (m, i)


def test_only_the_subject_of_an_anchor_is_seen_and_nothing_of_its_sound(clips: Clips) -> None:
    batch = next(b for b in (draw(clips, 0, step, 1) for step in range(99)) if b.anchor[0] and b.sees[0, -1, 0])
    masks = token_masks(batch, 64, 8)
    last = slice(-64, None)
    shown = masks[AttentionType.VIDEO_SELF][0, 0, last, :64] == 0
    assert torch.equal(shown[0], batch.subject[0, 0] >= 0.02)
    assert not (masks[AttentionType.AUDIO_TO_VIDEO][0, 0, last, :8] == 0).any()


def test_padding_of_a_caption_is_never_read() -> None:
    prompts = [hashed_prompt("a", 384, 384, 4), hashed_prompt("b", 384, 384, 9)]
    texts, mask = text_batch(prompts, torch.zeros(1, MEMORY + RUN, dtype=torch.int64))
    assert texts.shape[0] == mask.shape[0] == ROWS
    assert (mask[0, 0, 0] == 0).sum() == 4


def small(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Conv1d(8, 2, 1))


def loss_of(model: torch.nn.Module, stop_at: int | None = None) -> Any:
    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        linear, act, conv = model.children()
        return (conv(act(linear(x)).T[None]).float() - 1).square().mean(), {}

    return loss


def test_a_resumed_training_is_the_one_that_was_not_interrupted(tmp_path: Path) -> None:
    config = FitConfig(12, matrix_rate=0.02, checkpoint_seconds=0.0)
    whole, broken = small(1), small(1)
    fit("a", whole, loss_of(whole), config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit("a", broken, loss_of(broken, stop_at=7), config, tmp_path / "broken")
    resumed = small(2)
    fit("a", resumed, loss_of(resumed), config, tmp_path / "broken")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    lines = [json.loads(line) for line in (tmp_path / "whole" / "a.log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 11]


def test_the_learning_rate_rises_holds_and_falls_to_nothing() -> None:
    config = FitConfig(100, warmup=0.1, decay=0.5)
    rates = [rate_at(config, step) for step in range(100)]
    assert rates[9] == rates[50] == 1.0
    assert rates == sorted(rates[:10]) + rates[10:51] + sorted(rates[51:], reverse=True)
    assert 0 < rates[-1] < 0.03


def test_installing_training_processors_leaves_the_weights_alone() -> None:
    transformer = toy_transformer(layers=1)
    before = {k: v.clone() for k, v in transformer.state_dict().items()}
    geometry = toy_geometry(transformer)
    install(transformer, tables(transformer.config, geometry, torch.device("cpu")))
    assert all(torch.equal(v, before[k]) for k, v in transformer.state_dict().items())
    assert (geometry.video_tokens, geometry.audio_tokens, START_CHUNKS) == (64, 8, 7)

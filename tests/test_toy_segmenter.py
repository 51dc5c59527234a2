"""The small segmenter that ships: its file, what it finds, and its training."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from errors import CheckpointError
from models.segmenter import Finding
from models.toy_segmenter import SegmenterConfig, SegmenterNet, ToySegmenter
from tests.test_segmenter import hashed, noise
from training.segmenter import SegmenterLoss, evaluate, soften
from training.world import COLOURS, SHAPES

SHIPPED = Path(__file__).parent.parent / "models" / "toy" / "segmenter"


def test_a_saved_network_comes_back_in_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = SegmenterNet(SegmenterConfig(text_channels=16, widths=(16, 24, 32), text_encoder="package:none"))
    net.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = SegmenterNet.from_pretrained(tmp_path)
    assert loaded.config == net.config
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float())
    finding = ToySegmenter.load(tmp_path, hashed).score(noise(), "red ball")
    wanted = ToySegmenter(net.eval(), hashed).score(noise(), "red ball")
    torch.testing.assert_close(finding.masks, wanted.masks, rtol=0, atol=1e-2)
    with pytest.raises(CheckpointError, match="no text encoder in 'package:none'"):
        ToySegmenter.load(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "config", "weights", "other"])
def test_a_damaged_network_is_refused(tmp_path: Path, damage: str) -> None:
    if damage != "missing":
        SegmenterNet(SegmenterConfig(text_channels=16)).save_pretrained(tmp_path)
    if damage == "config":
        (tmp_path / "config.json").write_text('{"widths": [8, 8, 8], "colour": 1}')
    if damage == "weights":
        (tmp_path / "model.safetensors").write_bytes(b"short")
    if damage == "other":
        save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)no toy segmenter in .*expected config.json and model.safetensors"):
        SegmenterNet.from_pretrained(tmp_path)


def test_another_text_encoder_is_refused() -> None:
    segmenter = ToySegmenter(SegmenterNet(SegmenterConfig()).eval(), hashed)
    with pytest.raises(CheckpointError, match=r"gives \(16,\) channels; expected 384 of package:"):
        segmenter.score(noise(), "red ball")


def test_the_shipped_segmenter_finds_the_subject_and_nothing_else() -> None:
    """A tenth of the scenes of the full evaluation, on frames as the world draws them and as a codec blurs them."""
    segmenter = ToySegmenter.load(SHIPPED)
    assert sum(p.numel() for p in segmenter.net.parameters()) < 400_000
    assert (SHIPPED / "model.safetensors").stat().st_size < 800_000
    for blur, grain in ((0.0, 0.0), (1.0, 0.03)):
        found = evaluate(segmenter, seed=5, scenes=8, blur=blur, noise=grain)
        assert found.iou > 0.85
        assert found.match > 0.9


# -- its training


def test_a_step_draws_its_examples_from_its_number_and_wrong_sentences_have_no_mask() -> None:
    net = SegmenterNet(SegmenterConfig(text_channels=16))
    a, b, other = (SegmenterLoss(net, hashed, seed=3, batch=24).sample(step) for step in (7, 7, 8))
    assert torch.equal(a.frames, b.frames)
    assert a.texts == b.texts
    assert a.texts != other.texts
    assert a.frames.shape == (24, 3, 128, 128)
    assert a.frames.abs().max() <= 1
    assert set(a.present.sum(1).tolist()) == {0.0, 2.0}  # an empty room, or two right sentences of six
    first = a.present[:, 0]
    assert 8 < int(first.sum()) < 24
    assert not a.masks[first == 0].any()
    assert (a.masks[first == 1].amax((1, 2)) == 1).all()


def test_every_weight_learns_from_a_step() -> None:
    torch.manual_seed(0)
    net = SegmenterNet(SegmenterConfig(text_channels=16, widths=(8, 8, 8)))
    value, figures = SegmenterLoss(net, hashed, seed=3, batch=4)(0)
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())
    assert set(figures) == {"iou", "match"}


def test_softening_keeps_the_mean_and_spreads_an_edge() -> None:
    frames = torch.zeros(2, 3, 32, 32)
    frames[..., 16:] = 0.5
    soft = soften(frames, torch.tensor([0.0, 2.0]), 0.0, torch.Generator().manual_seed(0))
    assert len(soft[0].unique()) == 4  # black and one tinted grey per channel
    assert 5 < len(soft[1, 0, 16].unique()) <= 10
    assert (soft.mean((1, 2, 3)) / frames.mean((1, 2, 3)) - 1).abs().max() < 0.17


class Yes:
    """Finds everything everywhere."""

    def score(self, frames: torch.Tensor, description: str) -> Finding:
        colour, shape = description.removeprefix("a ").split()
        assert colour in COLOURS
        assert shape in SHAPES
        return Finding(torch.ones(len(frames)), torch.ones(frames.shape[:3]))


def test_a_segmenter_that_always_says_yes_matches_by_chance_only() -> None:
    found = evaluate(Yes(), seed=0, scenes=3)
    assert (found.found, found.refused_colour, found.refused_shape, found.refused_empty) == (1, 0, 0, 0)
    assert found.match == 0.5
    assert (found.colour, found.shape) == (0, 0)
    assert 0 < found.iou < 0.1

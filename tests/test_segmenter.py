"""The segmenters: what all of them promise, and real classes of the library with small random weights."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from errors import CheckpointError, StreamError
from models.prompt import Prompt, hashed_prompt
from models.segmenter import ClipSegSegmenter, Finding, Preparation, Sam3Segmenter, Segmenter
from models.toy_segmenter import SegmenterConfig, SegmenterNet, ToySegmenter

TOKENS = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase)]
TEXT = {
    "vocab_size": len(TOKENS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
DETR = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "dropout": 0.0}


def lively(model: Any) -> Any:
    """``model`` with weights that keep the spread of what they read; as initialised, small ones tell nothing apart."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 1.5 / parameter[0].numel() ** 0.5, generator=generator)
    return model


def save_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(TOKENS)}, merges=[])
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIPSeg as its checkpoints lie on disk."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("clipseg")
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = CLIPSegConfig(
        text_config={**TEXT, "max_position_embeddings": 12},
        vision_config=vision,
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    lively(CLIPSegForImageSegmentation(config)).save_pretrained(folder)
    pictures = ViTImageProcessorPil(size={"height": 32, "width": 32})
    CLIPSegProcessor(pictures, save_tokenizer(folder)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sam3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SAM 3 as its checkpoints lie on disk; its own processor class cannot be made without torchvision."""
    from transformers import Sam3Config, Sam3Model

    folder = tmp_path_factory.mktemp("sam3")
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "pretrain_image_size": 28,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    config = Sam3Config(
        vision_config={
            "backbone_config": backbone,
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={"model_type": "clip_text_model", **TEXT, "max_position_embeddings": 12},
        geometry_encoder_config=DETR,
        detr_encoder_config=DETR,
        detr_decoder_config={**DETR, "num_queries": 5},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    lively(Sam3Model(config)).save_pretrained(folder)
    save_tokenizer(folder)
    pictures = {
        "image_processor_type": "Sam3ImageProcessor",
        "size": {"height": 56, "width": 56},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 2,
    }
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "Sam3Processor", "image_processor": pictures})
    )
    return folder


@pytest.fixture
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    if request.param == "toy":
        torch.manual_seed(0)
        return ToySegmenter(SegmenterNet(SegmenterConfig(text_channels=16)).eval(), hashed)
    folder = str(request.getfixturevalue(request.param))
    return Sam3Segmenter.load(folder) if request.param == "sam3" else ClipSegSegmenter.load(folder)


def hashed(text: str) -> Prompt:
    return hashed_prompt(text, 16, 16)


def noise(count: int = 3, height: int = 70, width: int = 90) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (count, 3, 7, 9), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, (height, width)).to(torch.uint8).permute(0, 2, 3, 1)


EVERY = pytest.mark.parametrize("segmenter", ["toy", "clipseg", "sam3"], indirect=True)


@EVERY
def test_scores_and_masks_are_shares_and_masks_have_the_size_of_the_frames(segmenter: Segmenter) -> None:
    for frames in (noise(3, 70, 90), noise(1, 16, 200)):
        before = frames.clone()
        finding = segmenter.score(frames, "red ball")
        assert finding.scores.shape == frames.shape[:1]
        assert finding.masks.shape == frames.shape[:3]
        assert finding.scores.dtype == finding.masks.dtype == torch.float32
        for shares in (finding.scores, finding.masks):
            assert shares.min() >= 0
            assert shares.max() <= 1
        assert finding.masks.std() > 0
        assert torch.equal(frames, before)


@EVERY
def test_a_frame_is_judged_by_itself_and_by_the_text(segmenter: Segmenter) -> None:
    frames = noise()
    together = segmenter.score(frames, "red ball")
    for i in range(3):
        alone = segmenter.score(frames[i : i + 1], "red ball")
        torch.testing.assert_close(alone.scores[0], together.scores[i], rtol=0, atol=1e-4)
        torch.testing.assert_close(alone.masks[0], together.masks[i], rtol=0, atol=1e-4)
    other = segmenter.score(frames, "blue cube")
    assert (other.masks - together.masks).abs().max() > 1e-3
    assert (other.scores - together.scores).abs().max() > 1e-3


@EVERY
def test_a_text_longer_than_the_model_reads_is_cut_and_bad_requests_are_refused(segmenter: Segmenter) -> None:
    assert segmenter.score(noise(1), "red ball " * 50).scores.shape == (1,)
    with pytest.raises(StreamError, match="the description is empty"):
        segmenter.score(noise(), "  ")
    with pytest.raises(StreamError, match=r"frames are torch.float32 of shape \(3, 70, 90, 3\); expected uint8"):
        segmenter.score(noise().float(), "red ball")
    with pytest.raises(StreamError, match="expected uint8"):
        segmenter.score(noise().permute(0, 3, 1, 2), "red ball")


# -- checkpoints of the library


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("size", [(40, 30), (20, 24), (100, 90)])
def test_frames_are_prepared_as_the_librarys_processor_does(
    tmp_path: Path, resample: int, size: tuple[int, int]
) -> None:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    height, width = size
    processor = ViTImageProcessorPil(
        size={"height": height, "width": width},
        resample=resample,
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.4],
    )
    processor.save_pretrained(tmp_path)
    frames = 60 + noise() // 2  # less contrast: PIL cuts off between the two axes what a bicubic filter overshoots
    wanted = processor(list(frames.numpy()), return_tensors="pt")["pixel_values"]
    made = Preparation.load(str(tmp_path))(frames, torch.zeros(1))
    # The library rounds to whole grey levels after each of the two axes.
    torch.testing.assert_close(made, wanted, rtol=0, atol=1.6 / 255 / 0.2)


def test_sam3_takes_the_union_of_sure_instances_and_always_the_best(sam3: Path) -> None:
    segmenter, frames = Sam3Segmenter.load(str(sam3)), noise()
    instances: dict[str, torch.Tensor] = {}
    segmenter.model.register_forward_hook(lambda _m, _a, out: instances.update(out))
    findings: dict[float, Finding] = {}
    for threshold in (1.0, 0.0):
        segmenter.instance_threshold = threshold
        findings[threshold] = segmenter.score(frames, "red ball")
    sure = instances["pred_logits"].sigmoid() * instances["presence_logits"].sigmoid()
    assert sure.shape == (3, 5)
    torch.testing.assert_close(findings[1.0].scores, sure.amax(1))
    masks = torch.nn.functional.interpolate(instances["pred_masks"].sigmoid(), (70, 90), mode="bilinear")
    best = masks[torch.arange(3), sure.argmax(1)]
    torch.testing.assert_close(findings[1.0].masks, best, rtol=0, atol=1e-5)
    assert (findings[0.0].masks >= findings[1.0].masks - 1e-6).all()
    assert (findings[0.0].masks > findings[1.0].masks + 1e-3).any()


def test_clipseg_scores_a_frame_by_its_surest_percent(clipseg: Path) -> None:
    segmenter, frames = ClipSegSegmenter.load(str(clipseg)), noise()
    seen: dict[str, torch.Tensor] = {}
    segmenter.model.register_forward_hook(lambda _m, _a, out: seen.update(logits=out.logits))
    finding = segmenter.score(frames, "red ball")
    surest = seen["logits"].sigmoid().flatten(1).sort(dim=1).values[:, -10:]  # of 32 × 32
    torch.testing.assert_close(finding.scores, surest.mean(1))


def copy_without(folder: Path, to: Path, *left_out: str) -> str:
    for path in folder.iterdir():
        if path.name not in left_out:
            (to / path.name).write_bytes(path.read_bytes())
    return str(to)


@pytest.mark.parametrize("loader", [Sam3Segmenter, ClipSegSegmenter])
def test_what_a_checkpoint_lacks_is_said(loader: Any, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue("sam3" if loader is Sam3Segmenter else "clipseg")
    foreign = request.getfixturevalue("clipseg" if loader is Sam3Segmenter else "sam3")
    nowhere = str(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no segmenter in '.*nowhere': .*expected a checkpoint of type"):
        loader.load(nowhere)
    with pytest.raises(CheckpointError, match=r"has a model of type '(sam3|clipseg)'; expected"):
        loader.load(str(foreign))
    for number, lacking in enumerate(("model.safetensors", "processor_config.json")):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(CheckpointError, match="no segmenter in"):
            loader.load(copy_without(folder, tmp_path / str(number), lacking))
    (tmp_path / "torn").mkdir()
    torn = copy_without(folder, tmp_path / "torn", "model.safetensors")
    weights = load_file(folder / "model.safetensors")
    dropped = sorted(weights)[0]
    del weights[dropped]
    save_file(weights, tmp_path / "torn" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks 1 weights, {dropped} first"):
        loader.load(torn)

"""Open-vocabulary segmenters: whether what a description names is in a frame, and where.

The two adapters wrap the models of ``transformers`` and take everything from the checkpoint, the numbers for resizing
and normalising frames included. Its image processors themselves are not used: the one of SAM 3 needs torchvision, whose
build must match torch's exactly, and both would bring tensors back to the host.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import interpolate

from errors import CheckpointError, StreamError

RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as checkpoints have them
SURE_SHARE = 0.01


@dataclass(frozen=True)
class Finding:
    """What a segmenter says about frames; on the host, float32.

    Args:
        scores: [frames] in [0, 1], how sure it is that the frame shows what was described.
        masks: [frames, height, width] in [0, 1], where it is; to be read where the score is high only.
    """

    scores: torch.Tensor
    masks: torch.Tensor


class Segmenter(Protocol):
    """Finds in frames what a description names. It holds no state of any stream."""

    def score(self, frames: torch.Tensor, description: str) -> Finding:
        """Look for ``description`` ("red ball") in ``frames``, uint8 [frames, height, width, 3]; both are only read.

        Raises:
            StreamError: frames of another type or shape, or an empty description.
        """
        ...


def check_request(frames: torch.Tensor, description: str) -> None:
    """Raise ``StreamError`` unless frames and description are as ``Segmenter.score`` takes them."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.numel():
        raise StreamError(
            f"frames are {frames.dtype} of shape {tuple(frames.shape)}; expected uint8 [frames, height, width, 3]"
        )
    if not description.strip():
        raise StreamError("the description is empty; expected what to look for, such as 'red ball'")


@dataclass(frozen=True)
class Preparation:
    """How a checkpoint wants its pictures: resized to ``size`` (height, width), scaled, and normalised per channel."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str = "bilinear"
    scale: float = 1 / 255

    @classmethod
    def load(cls, source: str) -> "Preparation":
        """As the processor's configuration in ``source`` (a hub id or a folder) says.

        Raises:
            OSError: there is none; KeyError, ValueError: it asks for what is not done here.
        """
        from transformers.image_processing_base import ImageProcessingMixin

        plain, _ = ImageProcessingMixin.get_image_processor_dict(source)
        size, resample = plain["size"], plain.get("resample", 2)
        if resample not in RESAMPLE:
            raise ValueError(f"the image processor's resample is {resample}; expected one of {sorted(RESAMPLE)}")
        height, width = (size, size) if isinstance(size, int) else (size["height"], size["width"])
        return cls(
            size=(height, width),
            mean=tuple(plain["image_mean"]),
            std=tuple(plain["image_std"]),
            mode=RESAMPLE[resample],
            scale=plain.get("rescale_factor", 1 / 255),
        )

    def __call__(self, frames: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """uint8 [frames, height, width, 3] to [frames, 3, *size], of the device and type of ``like``."""
        pictures = frames.to(like.device).permute(0, 3, 1, 2).float()
        pictures = interpolate(pictures, self.size, mode=self.mode, antialias=True).clamp(0, 255)
        mean, std = (torch.tensor(v, device=like.device)[:, None, None] for v in (self.mean, self.std))
        return ((pictures * self.scale - mean) / std).to(like.dtype)


def at_frame_size(masks: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Masks [frames, h, w] in [0, 1] at the size of ``frames`` [frames, height, width, 3], on the host, float32."""
    height, width = frames.shape[1:3]
    resized = interpolate(masks[:, None].float(), (height, width), mode="bilinear", antialias=True)
    return resized[:, 0].clamp(0, 1).cpu()


@dataclass(frozen=True)
class _Checkpoint:
    model: Any
    tokenizer: Any
    preparation: Preparation


def _load(model_class: Any, types: set[str], source: str, device: str, dtype: torch.dtype) -> _Checkpoint:
    """All of a checkpoint, by hub id or folder; raises ``CheckpointError`` if anything is missing or foreign."""
    from transformers import AutoTokenizer, PreTrainedConfig

    wanted = f"expected a checkpoint of type {' or '.join(sorted(types))}: configuration, weights, tokenizer, processor"
    try:
        found = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
        if found not in types:
            raise CheckpointError(f"{source!r} has a model of type {found!r}; {wanted}")
        model, report = model_class.from_pretrained(source, dtype=dtype, output_loading_info=True)
        tokenizer, preparation = AutoTokenizer.from_pretrained(source), Preparation.load(source)
    except (ImportError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"no segmenter in {source!r}: {error}; {wanted}") from error
    if report["missing_keys"]:
        lacking = sorted(report["missing_keys"])
        raise CheckpointError(f"{source!r} lacks {len(lacking)} weights, {lacking[0]} first; {wanted}")
    return _Checkpoint(model.to(device).eval().requires_grad_(False), tokenizer, preparation)


class Sam3Segmenter:
    """SAM 3 (Meta, "SAM 3: Segment Anything with Concepts"): text to instances and masks in one model.

    A frame's score is that of its best instance, presence included, as the library's post-processing computes it; its
    mask is the union of the instances with at least ``instance_threshold``, the best one always among them.
    """

    def __init__(self, model: Any, tokenizer: Any, preparation: Preparation, instance_threshold: float = 0.5) -> None:
        self.model, self.tokenizer, self.preparation = model, tokenizer, preparation
        self.instance_threshold = instance_threshold

    @classmethod
    def load(cls, source: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> "Sam3Segmenter":
        """From a hub id (``facebook/sam3``) or a folder; raises ``CheckpointError`` if it is no such checkpoint."""
        from transformers import Sam3Model

        checkpoint = _load(Sam3Model, {"sam3", "sam3_video"}, source, device, dtype)
        return cls(checkpoint.model, checkpoint.tokenizer, checkpoint.preparation)

    @torch.inference_mode()
    def score(self, frames: torch.Tensor, description: str) -> Finding:
        """See ``Segmenter.score``."""
        check_request(frames, description)
        like = next(self.model.parameters())
        length = self.model.config.text_config.max_position_embeddings
        text = self.tokenizer(
            description, return_tensors="pt", padding="max_length", truncation=True, max_length=length
        ).to(like.device)
        seen = self.model(
            pixel_values=self.preparation(frames, like),
            input_ids=text["input_ids"].expand(len(frames), -1),
            attention_mask=text["attention_mask"].expand(len(frames), -1),
        )
        instances = seen.pred_logits.float().sigmoid() * seen.presence_logits.float().sigmoid()
        best = instances.amax(1, keepdim=True)
        chosen = (instances >= self.instance_threshold) | (instances == best)
        union = (seen.pred_masks.float().sigmoid() * chosen[:, :, None, None]).amax(1)
        return Finding(best[:, 0].cpu(), at_frame_size(union, frames))


class ClipSegSegmenter:
    """CLIPSeg (Lüddecke and Ecker, "Image Segmentation Using Text and Image Prompts"): a heat map for a text.

    It has no score of its own; a frame's is the mean of its surest percent of pixels.
    """

    def __init__(self, model: Any, tokenizer: Any, preparation: Preparation) -> None:
        self.model, self.tokenizer, self.preparation = model, tokenizer, preparation

    @classmethod
    def load(cls, source: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> "ClipSegSegmenter":
        """From a hub id (``CIDAS/clipseg-rd64-refined``) or a folder; raises ``CheckpointError`` if it is none."""
        from transformers import CLIPSegForImageSegmentation

        checkpoint = _load(CLIPSegForImageSegmentation, {"clipseg"}, source, device, dtype)
        return cls(checkpoint.model, checkpoint.tokenizer, checkpoint.preparation)

    @torch.inference_mode()
    def score(self, frames: torch.Tensor, description: str) -> Finding:
        """See ``Segmenter.score``."""
        check_request(frames, description)
        like = next(self.model.parameters())
        length = self.model.config.text_config.max_position_embeddings
        text = self.tokenizer(description, return_tensors="pt", truncation=True, max_length=length).to(like.device)
        seen = self.model(
            pixel_values=self.preparation(frames, like),
            input_ids=text["input_ids"].expand(len(frames), -1),
            attention_mask=text["attention_mask"].expand(len(frames), -1),
        )
        heat = seen.logits.float().sigmoid()
        surest = heat.flatten(1).topk(max(1, round(SURE_SHARE * heat[0].numel()))).values.mean(1)
        return Finding(surest.cpu(), at_frame_size(heat, frames))

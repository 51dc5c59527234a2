"""The backbone: diffusers' ``LTX2VideoTransformer3DModel``, unmodified, with the cache behind its attention."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cache.spec import TYPES, AttentionSpec, AttentionType, Modality
from errors import CheckpointError
from kernels.copies import upload
from models.processors import Angles, Door, Pass, Rows, TextCapture, install
from models.prompt import Prompt
from models.rope import Kind, RopeTable, tables
from models.shapes import ChunkGeometry
from models.text_cache import TextCache, TextEntry

FAMILY = "LTX2VideoTransformer3DModel"


class Backbone:
    """A transformer of the LTX-2 family and the geometry of its chunks.

    The weights are shared by all streams; everything that belongs to a stream comes in with the call.
    """

    def __init__(
        self,
        transformer: Any,
        geometry: ChunkGeometry,
        text_budget_bytes: int = 4 << 30,
    ) -> None:
        """Put the cache behind the attention of ``transformer``, which then serves this backbone only.

        ``text_budget_bytes`` bounds the keys and values of prompts (1.2 GB for 1,024 tokens at LTX-2's size); with less
        than the prompts of one batch need, they are computed again in every pass.
        """
        if type(transformer).__name__ != FAMILY:
            raise CheckpointError(f"the model is a {type(transformer).__name__}; expected diffusers' {FAMILY}")
        config = transformer.config
        self.transformer = transformer.eval().requires_grad_(False)
        self.config = config
        self.geometry = geometry
        # Prompt adaln (LTX-2.3) makes text keys and values depend on the noise level; LTX-2.0 and 2.5 do not.
        self.text_depends_on_sigma = bool(transformer.prompt_modulation and config.use_prompt_adaln_single)
        self.device, self.dtype = transformer.device, transformer.dtype
        self.ropes: dict[Kind, RopeTable] = tables(config, geometry, self.device)
        self.text_cache = TextCache(text_budget_bytes)
        self.fingerprint = fingerprint(transformer, geometry)
        self._door = Door({kind: rope.layout for kind, rope in self.ropes.items()})
        install(transformer, self._door)

    def specs(self) -> dict[AttentionType, AttentionSpec]:
        """Sizes of a chunk in the cache, per attention type."""
        video = self.config.num_attention_heads * self.config.attention_head_dim
        audio = self.config.audio_num_attention_heads * self.config.audio_attention_head_dim
        return {
            t: AttentionSpec(
                t,
                layers=self.config.num_layers,
                tokens_per_chunk=self.geometry.tokens(t.keyed_by),
                width=video if t is AttentionType.VIDEO_SELF else audio,
                element_bytes=self.dtype.itemsize,
            )
            for t in TYPES
        }

    def channels(self, modality: Modality) -> int:
        """Latent channels per token."""
        return int(self.config.in_channels if modality is Modality.VIDEO else self.config.audio_in_channels)

    def text_channels(self, modality: Modality) -> int:
        """Channels of the text embeddings that ``Prompt`` must have."""
        if self.config.use_prompt_embeddings:
            return int(self.config.caption_channels)
        video = modality is Modality.VIDEO
        return int(self.config.cross_attention_dim if video else self.config.audio_cross_attention_dim)

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise ``CheckpointError`` if the embeddings were made for another model."""
        for modality, tensor in ((Modality.VIDEO, prompt.video), (Modality.AUDIO, prompt.audio)):
            if tensor.shape[1] != self.text_channels(modality):
                raise CheckpointError(
                    f"{modality} text embeddings have {tensor.shape[1]} channels but the model reads "
                    f"{self.text_channels(modality)}; encode the prompt with the text encoder of this model"
                )

    def text(self, prompt: Prompt, sigma: float) -> TextEntry:
        """Text keys and values of ``prompt`` at noise level ``sigma``, computed once and shared by content."""
        level = sigma if self.text_depends_on_sigma else None
        return self.text_cache.get((prompt.key, level), lambda: self._encode(prompt, sigma))

    def angles(self, slots: Sequence[int], lead: Sequence[bool]) -> dict[Kind, Angles]:
        """cos and sin of chunks at ``slots``, the same for every pass over them; ``lead``: a stream's first chunk."""
        return {kind: rope.at(slots, lead) for kind, rope in self.ropes.items()}

    @torch.inference_mode()
    def forward(
        self,
        rows: Rows,
        video: torch.Tensor,
        audio: torch.Tensor,
        sigma: float,
        mass: dict[AttentionType, list[torch.Tensor]] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the velocity of a batch of chunks and leave their keys and values in the pages ``rows.writes``.

        Args:
            video, audio: noisy latents as tokens [rows, tokens, channels].
            sigma: noise level in [0, 1], the same for all rows; 0 is the clean pass of a commit.
            mass: receives each page's share of the attention, averaged over layers, where wanted.
        """
        step = Pass(rows, [self.text(prompt, sigma) for prompt in rows.prompts], mass)
        with self._through(step):
            # The text processors read their cache; the embeddings passed here are never looked at.
            empty = torch.zeros(len(video), 1, self.text_channels(Modality.VIDEO), device=self.device, dtype=self.dtype)
            silent = torch.zeros(
                len(video), 1, self.text_channels(Modality.AUDIO), device=self.device, dtype=self.dtype
            )
            velocity = self._call(video, audio, empty, silent, sigma)
        if mass is not None:
            for t, shares in mass.items():
                mass[t] = [share / self.config.num_layers for share in shares]
        return velocity

    @torch.inference_mode()
    def _encode(self, prompt: Prompt, sigma: float) -> TextEntry:
        """Text keys and values by a pass with one token of video and audio, whose output nobody reads."""
        capture = TextCapture()
        with self._through(capture):
            video = torch.zeros(1, 1, self.channels(Modality.VIDEO), device=self.device, dtype=self.dtype)
            audio = torch.zeros(1, 1, self.channels(Modality.AUDIO), device=self.device, dtype=self.dtype)
            text, audio_text = (upload(x[None].to(self.dtype), self.device) for x in (prompt.video, prompt.audio))
            self._call(video, audio, text, audio_text, sigma)
        return TextEntry(capture.layers)

    def _call(
        self, video: torch.Tensor, audio: torch.Tensor, text: torch.Tensor, audio_text: torch.Tensor, sigma: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = len(video)
        # Both modalities are at the same level, so the family's use_cross_timestep makes no difference.
        timestep = torch.full((rows,), sigma * self.config.timestep_scale_multiplier, device=self.device)
        # The library's own angles are computed from these and ignored; one position for all keeps that cheap.
        video_coords = torch.zeros(rows, 3, 1, device=self.device)
        audio_coords = torch.zeros(rows, 1, 1, device=self.device)
        predicted: tuple[torch.Tensor, torch.Tensor] = self.transformer(
            video,
            audio,
            text,
            audio_text,
            timestep,
            sigma=timestep,
            video_coords=video_coords,
            audio_coords=audio_coords,
            return_dict=False,
        )
        return predicted

    @contextmanager
    def _through(self, step: Pass | TextCapture) -> Iterator[None]:
        before, self._door.current = self._door.current, step
        try:
            yield
        finally:
            self._door.current = before


def fingerprint(transformer: Any, geometry: ChunkGeometry) -> str:
    """Identifies configuration, geometry and weights (name, shape, type and 16 evenly spread values of each tensor)."""
    digest = hashlib.blake2b(digest_size=16)
    public = {k: v for k, v in transformer.config.items() if not k.startswith("_")}
    digest.update(json.dumps(public, sort_keys=True, default=str).encode())
    digest.update(repr(geometry).encode())
    for name, tensor in sorted(transformer.state_dict().items()):
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 16)][:16].float().cpu()
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def load_transformer(
    source: str, dtype: torch.dtype = torch.bfloat16, device: str = "cpu", config: str | None = None
) -> Any:
    """Weights from a hub id, a local folder in diffusers' layout, or one safetensors file.

    Args:
        source: hub id, a pipeline's or transformer's folder, or a ``.safetensors`` file.
        config: for a single file, the folder or hub id with the transformer's ``config.json``; by default the
            ``config.json`` beside the file, else what the library infers.

    Raises:
        CheckpointError: nothing there, damaged, or of another family.
    """
    from diffusers import LTX2VideoTransformer3DModel  # seconds and 250 MB, for processes that load a model

    path = Path(source)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise CheckpointError(f"no file {source!r}; expected a .safetensors checkpoint of the LTX-2 family")
        beside = str(path.parent) if (path.parent / "config.json").is_file() else None
        options: dict[str, Any] = {"config": config or beside} if config or beside else {}
        return _loaded(source, dtype, device, LTX2VideoTransformer3DModel.from_single_file, path=source, **options)
    options = {}
    if path.is_dir():
        options = {"subfolder": "transformer"} if (path / "transformer" / "config.json").is_file() else {}
        _check_family(path / options.get("subfolder", "") / "config.json")
    elif path.is_absolute() or source.startswith("."):
        raise CheckpointError(f"no folder {source!r}; expected a model folder, a .safetensors file or a hub id")
    else:
        options = {"subfolder": "transformer"}
    return _loaded(source, dtype, device, LTX2VideoTransformer3DModel.from_pretrained, path=source, **options)


def _loaded(source: str, dtype: torch.dtype, device: str, load: Any, path: str, **options: Any) -> Any:
    try:
        transformer = load(path, torch_dtype=dtype, **options)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"cannot load a transformer of the LTX-2 family from {source!r}: {error}; expected diffusers' layout "
            f"(config.json with _class_name {FAMILY} and safetensors) or one safetensors file"
        ) from error
    if type(transformer).__name__ != FAMILY:
        raise CheckpointError(f"{source!r} holds a {type(transformer).__name__}; expected {FAMILY}")
    return transformer.to(device)


def _check_family(config: Path) -> None:
    try:
        found = json.loads(config.read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{str(config)!r} is not a readable model configuration: {error}") from error
    if found != FAMILY:
        raise CheckpointError(
            f"{str(config)!r} is of class {found!r}; expected {FAMILY} (LTX-2, LTX-2.3, LTX-2.5 or distilled from them)"
        )


def random_transformer(seed: int = 0, **overrides: Any) -> Any:
    """A small transformer with random weights, for tests and for trying the server without a checkpoint.

    ``overrides`` are arguments of the class. About 0.3 million parameters by default.
    """
    from diffusers import LTX2VideoTransformer3DModel

    options: dict[str, Any] = {
        "in_channels": 16,
        "out_channels": 16,
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "cross_attention_dim": 64,
        "audio_in_channels": 8,
        "audio_out_channels": 8,
        "audio_num_attention_heads": 4,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 32,
        "num_layers": 2,
        "caption_channels": 24,
        "rope_type": "split",
    }
    options.update(overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LTX2VideoTransformer3DModel(**options)

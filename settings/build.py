"""From settings to the objects that do the work."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from actors.worker import Vault, Worker
from cache.tiers import RestoreTier
from errors import ConfigError
from models.backbone import Backbone, load_transformer, random_transformer
from models.decoders import Codecs, load_codecs
from models.gemma import GemmaEncoder
from models.segmenter import ClipSegSegmenter, Sam3Segmenter, Segmenter
from models.shapes import ChunkGeometry
from models.text_encoder import Encoder, SentenceEncoder
from models.toy_segmenter import ToySegmenter
from settings.tree import POLICIES, RANDOM, TOY, ModelSettings, SegmenterSettings, Settings
from streams.engine import Engine
from streams.subject import SubjectKeeper


@dataclass(frozen=True)
class Studio:
    """All that a production needs besides its script."""

    engine: Engine
    codecs: Codecs
    segmenter: Segmenter | None
    settings: SegmenterSettings

    def keeper(self) -> SubjectKeeper | None:
        """Somebody who looks after a stream's subject, if there is a segmenter, here or elsewhere."""
        chosen = self.settings
        if chosen.kind == "none":
            return None
        return SubjectKeeper(self.segmenter, chosen.every, chosen.threshold, coverage=chosen.coverage)


def build_studio(settings: Settings) -> Studio:
    """Engine, decoders and segmenter of these settings.

    Raises:
        ConfigError: the model has random weights, for which there are no decoders.
        CheckpointError: a component is missing or does not fit.
    """
    return _studio(settings, segmenter_here=True)


def _studio(settings: Settings, segmenter_here: bool, tier: RestoreTier | None = None) -> Studio:
    if settings.model.source == RANDOM:
        raise ConfigError("model.source is 'random', which nothing can decode; expected a model with its decoders")
    encoder = _encoder(settings.model)
    engine = _engine(settings, encoder, tier)
    backbone = engine.backbone
    codecs = load_codecs(settings.model.path, backbone.config, backbone.geometry, settings.model.device, backbone.dtype)
    segmenter = _segmenter(settings, encoder) if segmenter_here else None
    return Studio(engine, codecs, segmenter, settings.segmenter)


def build_worker(settings: Settings, vault: Vault, tier: RestoreTier | None = None) -> Worker:
    """What a generator works with; runs in the generator's process. The segmenter works elsewhere.

    ``tier``: the restore store; by default one in this process.
    """
    service = settings.service
    restore = replace(settings.engine.restore, share=service.restore_share)
    settings = replace(settings, engine=replace(settings.engine, durability=service.durability, restore=restore))
    studio = _studio(settings, segmenter_here=False, tier=tier)
    return Worker(
        studio.engine, studio.codecs, vault, studio.keeper(), settings.service.encoding, settings.model.source
    )


def build_segmenter(settings: Settings) -> Segmenter:
    """The segmenter of these settings; raises ``ConfigError`` if they want none."""
    found = _segmenter(settings, None)
    if found is None:
        raise ConfigError("segmenter.kind is 'none'; expected toy, sam3 or clipseg")
    return found


def build_engine(settings: Settings) -> Engine:
    """The engine of these settings, weights loaded; sets torch's threads if asked to."""
    return _engine(settings, _encoder(settings.model))


def _engine(settings: Settings, encoder: Encoder | None, tier: RestoreTier | None = None) -> Engine:
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    transformer, chunk = _transformer(settings.model), settings.geometry
    geometry = ChunkGeometry.of_model(transformer.config, chunk.frames, chunk.height, chunk.width, chunk.fps)
    policy = POLICIES[settings.policy].of(settings.budgets)
    return Engine(Backbone(transformer, geometry), policy, settings.engine, encoder, tier)


def _transformer(model: ModelSettings) -> Any:
    try:
        torch.zeros(1, device=model.device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"model.device is {model.device!r}; expected a device of this machine: {error}") from None
    dtype = {} if model.dtype is None else {"dtype": getattr(torch, model.dtype)}
    if model.source == RANDOM:
        return random_transformer(model.seed).to(device=model.device, **dtype)
    return load_transformer(model.path, device=model.device, config=model.config, **dtype)


def _encoder(model: ModelSettings) -> Encoder | None:
    """The text encoder of a checkpoint; none for random weights and for a transformer alone."""
    if model.source == RANDOM or Path(model.path).suffix == ".safetensors":
        return None
    folder = Path(model.path)
    if not folder.is_dir():
        return GemmaEncoder.load(model.path, model.device)
    index = folder / "model_index.json"
    if not index.is_file():
        return None
    try:
        library, name = json.loads(index.read_text(encoding="utf-8"))["text_encoder"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{index} names no text_encoder: {error!r}; expected diffusers' model_index.json") from error
    if library == "package":
        return SentenceEncoder.load(f"package:{name}")
    return GemmaEncoder.load(model.path, model.device)


def _segmenter(settings: Settings, encoder: Encoder | None) -> Segmenter | None:
    """``encoder``: the model's own; the toy segmenter reads the same embeddings, and need not load them again."""
    chosen = settings.segmenter
    source = chosen.source or str(Path(settings.model.path) / "segmenter")
    if chosen.kind == "toy":
        shared = encoder if settings.model.source == TOY else None
        return ToySegmenter.load(source, shared, settings.model.device)
    if chosen.kind == "sam3":
        return Sam3Segmenter.load(chosen.source, settings.model.device)
    if chosen.kind == "clipseg":
        return ClipSegSegmenter.load(chosen.source, settings.model.device)
    return None

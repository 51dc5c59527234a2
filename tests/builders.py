"""Small models, engines and chunks for tests.

``TEST_IMPL=triton`` in the environment runs any test of an engine on Triton's kernels, in Triton's interpreter, and of
the whole suite those of the cache (``tests/conftest.py``);
``TEST_PAGES=int8`` or ``fp8`` with pages of codes, where tests that compare pages or outputs to rounding do not hold.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import torch

from cache.books import CacheConfig
from cache.keep_set import Budgets, RoleBudget
from cache.policies import SceneMemory
from cache.policies.base import Policy
from cache.positions import PositionConfig
from cache.scenes import SceneConfig
from cache.spec import TYPES, AttentionType, Modality, PageFormat
from cache.tiers import Latents, RestoreTier
from models.backbone import Backbone, random_transformer
from models.sampler import Pair, Schedule
from models.shapes import ChunkGeometry
from streams.batch import Batch
from streams.durability import Durability
from streams.engine import Engine
from streams.engine_config import EngineConfig
from streams.session import Session
from streams.slack import RestoreConfig
from tests.interpreter import quicken

LTX_2_0 = {"rope_type": "interleaved"}
LTX_2_0_SPLIT = {"rope_type": "split"}
LTX_2_3 = {
    "rope_type": "split",
    "gated_attn": True,
    "audio_gated_attn": True,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
}
LTX_2_5 = {
    **LTX_2_3,
    "use_prompt_adaln_single": False,
    "ff_bias": False,
    "use_keyframes_abs_pos_embedding": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "ltx-2.0": LTX_2_0,
    "ltx-2.0-split": LTX_2_0_SPLIT,
    "ltx-2.3": LTX_2_3,
    "ltx-2.5": LTX_2_5,
}
# Odd on purpose: 64 channels leave two padded pairs on the three video axes, 2 × 3 latents, 5 heads nowhere even.
ODD = {
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 8,
}
TINY = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 6, "cross_attention_dim": 16, "audio_cross_attention_dim": 12}  # fmt: skip
IMPL = os.environ.get("TEST_IMPL", "torch")
if IMPL == "triton":
    from kernels import attention_triton

    quicken()
    np.seterr(invalid="ignore", over="ignore")  # what nobody reads of an anchor's page is turned with the rest of it
    attention_triton.PROCESSORS = 4  # few programs share the pages of a row, as each costs its beginning
PAGES = cast(PageFormat, os.environ.get("TEST_PAGES", "exact"))
SMALL_KEEP_SET = RoleBudget(subject_anchor=1, scene_sink=1, scene_anchor=2, restored=2, recent=4)


def examples(count: int) -> int:
    """How many examples of a property are tried: ``count``, or few where each takes minutes."""
    return count if IMPL == "torch" else 1 + count // 25


def sharpen(transformer: Any, factor: float) -> None:
    """Scale query and key norms, so that random attention is not flat and memory makes a visible difference."""
    for name, parameter in transformer.named_parameters():
        if name.endswith(("norm_q.weight", "norm_k.weight")):
            parameter.data.mul_(factor)


def architecture(family: str, **extra: Any) -> dict[str, Any]:
    """A configuration of a family. Where every chunk takes seconds it has one layer, unless sizes are asked for."""
    return {**FAMILIES[family], **(extra or (TINY if IMPL == "triton" else {}))}


@cache
def backbone(
    family: str = "ltx-2.0-split", height: int = 64, width: int = 96, frames: int = 2, **extra: Any
) -> Backbone:
    """A small random model; ``factor`` scales queries and keys each (6 makes random attention peaked)."""
    factor = extra.pop("factor", 2.0)
    transformer = random_transformer(seed=1, **architecture(family, **extra))
    sharpen(transformer, factor)
    geometry = ChunkGeometry.of_model(transformer.config, frames=frames, height=height, width=width, fps=25)
    return Backbone(transformer, geometry)


def tiny_backbone() -> Backbone:
    """The smallest model that has all parts: one layer, one latent per frame; for thousands of chunks."""
    return backbone(height=32, width=32, frames=1, **TINY)


def engine(
    model: Backbone | None = None,
    policy: Policy | None = None,
    positions: PositionConfig | None = None,
    sessions: int = 3,
    schedule: Schedule | None = None,
    cache: CacheConfig | None = None,
    host_bytes: int = 1 << 28,
    tier: RestoreTier | None = None,
    durability: Durability = "none",
    impl: str = IMPL,
    restore: RestoreConfig | None = None,
    pages: PageFormat = PAGES,
    coded_queries: bool = False,
    **time: Any,
) -> Engine:
    """An engine of small sizes; every part can be given."""
    config = EngineConfig(
        cache=cache or CacheConfig(positions=positions or PositionConfig(), scenes=SceneConfig(anchor_every=3)),
        schedule=schedule or Schedule((1.0, 0.6)),
        sessions=sessions,
        host_bytes=host_bytes,
        durability=durability,
        restore=restore or RestoreConfig(),
        impl=impl,
        pages=pages,
        coded_queries=coded_queries,
    )
    return Engine(
        model or backbone(), policy or SceneMemory(Budgets.uniform(SMALL_KEEP_SET)), config, tier=tier, **time
    )


def latents(model: Backbone, rows: int, seed: int) -> Pair:
    """Random latents [rows, tokens, channels] of both modalities."""
    generator = torch.Generator().manual_seed(seed)
    video, audio = (
        torch.randn(rows, model.geometry.tokens(m), model.channels(m), generator=generator)
        for m in (Modality.VIDEO, Modality.AUDIO)
    )
    return video, audio


def poison(engine: Engine) -> None:
    """Fill every page that nobody uses with NaN: whoever reads one is found out."""
    for t, allocator in engine.pool.allocators.items():
        free = [page for page, references in enumerate(allocator.references) if not references]
        if t in engine.pool.ends:
            engine.pool.storage[t].view(torch.uint8)[:, :, free] = 0x7F  # NaN of fp8, the largest of int8
            for ends in engine.pool.ends[t].tensors:
                ends[:, free] = float("nan")
        else:
            engine.pool.storage[t][:, :, free] = float("nan")


def teacher_force(
    engine: Engine, sessions: Sequence[Session], clean: Pair, noisy: Pair, sigma: float
) -> tuple[Pair, Pair]:
    """One chunk of each session with given latents: velocities at ``sigma`` of the noisy and at 0 of the clean."""
    for session in sessions:
        session.manager.begin()
        for t in TYPES:
            engine.pool.claim(session.lease, t, session.staged(t))
    batch = Batch(engine.backbone, engine.pool, engine.ops, sessions)
    denoising = batch.forward(noisy, sigma)
    committing = batch.forward(clean, 0.0)
    for row, session in enumerate(sessions):
        chunk = session.manager.next_chunk
        session.retained[chunk] = Latents(clean[0][row], clean[1][row], session.prompt.key)
        engine.executor.carry_out(session, session.manager.commit(chunk))
    return denoising, committing


def visible(session: Session) -> dict[AttentionType, list[tuple[int, int, list[int] | None]]]:
    """What the next chunk will attend to besides itself: (chunk, slot, chosen tokens or ``None`` for all), by type."""
    seen: dict[AttentionType, list[tuple[int, int, list[int] | None]]] = {}
    for t, ledger in session.manager.ledgers.items():
        seen[t] = [(c, e.slot, None) for c, e in ledger.entries.items()]
        if ledger.subject is not None:
            seen[t].append((ledger.subject.chunk, ledger.subject.slot, session.subject_tokens[t].tolist()))
    return seen


def kept(session: Session) -> Mapping[AttentionType, list[int]]:
    """Kept chunks by type, in media order."""
    return {t: sorted(ledger.entries) for t, ledger in session.manager.ledgers.items()}

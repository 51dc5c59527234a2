"""How the next chunk of several streams is made: denoised, published, corrected and committed, in one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from cache.drift import ChannelStatistics, Correction
from cache.policies.base import Policy
from cache.pool import Pool
from cache.spec import Modality
from cache.tiers import Latents
from kernels.copies import Landing, upload
from kernels.ops import Ops
from models.backbone import Backbone
from models.sampler import Schedule
from streams.batch import Batch, Shares
from streams.session import Session


@dataclass(frozen=True)
class Chunk:
    """One published chunk: clean latents as tokens [tokens, channels], float32. Never written after publication.

    ``start`` and ``seconds`` are exact times of the chunk's slot; a causal decoder makes fewer frames of the very first
    latent frame, so what it shows runs ahead of the slot by a constant. ``drift``: score against the scene's reference.
    """

    index: int
    scene: str
    video: torch.Tensor
    audio: torch.Tensor
    start: Fraction
    seconds: Fraction
    drift: float


Made = tuple[Chunk, Latents, Shares | None]


@dataclass(frozen=True)
class Maker:
    """See the module.

    Args:
        context_sigma: noise level of the commit pass.
        meanwhile: what the host does after each pass, which a GPU has still before it.
        passed: is told how many seconds a pass took, for one chunk.
        clock: seconds.
    """

    backbone: Backbone
    policy: Policy
    pool: Pool
    ops: Ops
    context_sigma: float
    meanwhile: Callable[[], None]
    passed: Callable[[float], None]
    clock: Callable[[], float]

    def make(self, sessions: Sequence[Session], schedule: Schedule) -> list[Made]:
        """Denoise, publish, correct, and leave the corrected copies' keys and values in the staged pages."""
        batch, began = Batch(self.backbone, self.pool, self.ops, sessions, self.meanwhile), self.clock()
        clean = batch.denoise(schedule)
        statistics = Landing([torch.cat(self.ops.channel_statistics(x), -1) for x in clean]).wait()
        self.passed((self.clock() - began) / (len(schedule.sigmas) * len(sessions)))
        verdicts = [session.manager.judge(_seen(statistics, row)) for row, session in enumerate(sessions)]
        rows = list(enumerate(sessions))
        chunks = [self._publish(s, clean[0][row], clean[1][row], verdicts[row].score) for row, s in rows]
        video, audio = (
            self._corrected(x, [verdict.corrections.get(m.value) for verdict in verdicts])
            for m, x in zip(Modality, clean, strict=True)
        )
        # Of each its own copy: they are kept for as long as their session wants them.
        committed = [
            Latents(video[row].clone(), audio[row].clone(), s.prompt.key, s.manager.scenes.current_name)
            for row, s in rows
        ]
        shares = batch.commit(committed, self.context_sigma, self.policy.wants_mass)
        return list(zip(chunks, committed, shares, strict=True))

    def _publish(self, session: Session, video: torch.Tensor, audio: torch.Tensor, drift: float) -> Chunk:
        """The chunk as the viewers get it: copies that nobody else holds."""
        seconds, index = self.backbone.geometry.seconds, session.manager.next_chunk
        scene = session.manager.scenes.current_name
        return Chunk(index, scene, video.clone(), audio.clone(), index * seconds, seconds, drift)

    def _corrected(self, x: torch.Tensor, corrections: Sequence[Correction | None]) -> torch.Tensor:
        """The copies [rows, tokens, channels] that the cache gets, each corrected as it is to be, if it is."""
        if not any(corrections):
            return x
        rows, channels = len(x), x.shape[-1]
        nothing = Correction(np.zeros(channels), np.ones(channels), 0.0)
        given = [nothing if correction is None else correction for correction in corrections]
        numbers = np.concatenate([*(c.mean for c in given), *(c.std for c in given), [c.strength for c in given]])
        mean, std, strength = upload(torch.from_numpy(numbers), x.device).split([rows * channels] * 2 + [rows])
        return self.ops.correct(x, mean.view(rows, channels), std.view(rows, channels), strength).x


def _seen(statistics: Sequence[torch.Tensor], row: int) -> dict[str, ChannelStatistics]:
    """What the books judge one row by; ``statistics`` [rows, 2 · channels] by modality: means, then spreads."""
    halves = {m: statistics[i][row].chunk(2) for i, m in enumerate(Modality)}
    return {m.value: ChannelStatistics(mean.numpy(), std.numpy()) for m, (mean, std) in halves.items()}

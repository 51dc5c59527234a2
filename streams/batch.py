"""The forward passes over the chunks in progress of several streams: keep-sets, positions and noise side by side."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from cache.pool import Pool
from cache.spec import TYPES, AttentionType, Modality
from cache.tiers import Latents
from kernels.attention import BlockTable
from kernels.copies import Landing, upload
from kernels.ops import Ops
from models.backbone import Backbone
from models.processors import Rows
from models.sampler import Pair, Schedule, denoise, noise
from streams.session import Session

Shares = dict[AttentionType, dict[int, float]]


class Batch:
    """Streams of different length, scene and keep-set, each with a chunk begun and a page staged in every ledger.

    What a chunk reads does not change between its passes, so it is looked up once. Denoising uses the staged page, or
    none where pages are codes, and leaves all others as they are.
    """

    def __init__(
        self,
        backbone: Backbone,
        pool: Pool,
        ops: Ops,
        sessions: Sequence[Session],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """``meanwhile``: what the host does after each pass, which a GPU has still before it."""
        self.backbone, self.sessions, self.meanwhile = backbone, sessions, meanwhile
        managers = [session.manager for session in sessions]
        self.rows = Rows(
            pool=pool,
            ops=ops,
            angles=backbone.angles([m.positions.next_slot for m in managers], [m.next_chunk == 0 for m in managers]),
            reads={t: [self._reads(session, t) for session in sessions] for t in TYPES},
            writes={t: [session.page(t, session.staged(t)) for session in sessions] for t in TYPES},
            prompts=[session.prompt for session in sessions],
        )

    def denoise(self, schedule: Schedule) -> Pair:
        """Clean latents [rows, tokens, channels] of the chunks in progress, float32."""
        passing = replace(self.rows, keeps=False)
        return denoise(schedule, lambda x, sigma: self._pass(passing, x, sigma, None), self._noise)

    def commit(self, committed: Sequence[Latents], sigma: float, wants_mass: bool) -> list[Shares | None]:
        """Leave the keys and values of the committed copies in the staged pages; ``sigma`` 0 is the clean pass.

        Returns each row's shares of attention by chunk and type where wanted, else ``None``.
        """
        mass: dict[AttentionType, list[torch.Tensor]] | None = {} if wants_mass else None
        x = (torch.stack([c.video for c in committed]), torch.stack([c.audio for c in committed]))
        self.forward(x, sigma, mass)
        if mass is None:
            return [None] * len(self.sessions)
        told = iter(_told([share for t in TYPES for share in mass[t]]))
        by_type = {t: [next(told) for _ in self.sessions] for t in TYPES}
        rows = enumerate(self.sessions)
        return [{t: _by_chunk(session, t, by_type[t][row]) for t in TYPES} for row, session in rows]

    def forward(self, x: Pair, sigma: float, mass: dict[AttentionType, list[torch.Tensor]] | None = None) -> Pair:
        """Velocities of ``x`` at noise level ``sigma``, float32; keys and values stay in the staged pages."""
        return self._pass(self.rows, x, sigma, mass)

    def _pass(self, rows: Rows, x: Pair, sigma: float, mass: dict[AttentionType, list[torch.Tensor]] | None) -> Pair:
        video, audio = (part.to(self.backbone.dtype) for part in x)
        velocity = self.backbone.forward(rows, video, audio, sigma, mass)
        self.meanwhile()
        return velocity[0].float(), velocity[1].float()

    def _noise(self, draw: int) -> Pair:
        video, audio = (
            upload(
                torch.stack(
                    [
                        noise(s.seed, s.manager.next_chunk, draw, m, self.backbone.geometry.tokens(m), channels)
                        for s in self.sessions
                    ]
                ),
                self.backbone.device,
            )
            for m, channels in ((m, self.backbone.channels(m)) for m in (Modality.VIDEO, Modality.AUDIO))
        )
        return video, audio

    @staticmethod
    def _reads(session: Session, type: AttentionType) -> BlockTable:
        return session.block_table(type, session.manager.ledgers[type].places(), see_subject=True)


def _told(shares: Sequence[torch.Tensor]) -> list[list[float]]:
    """The numbers of several vectors, by one copy to the host."""
    (numbers,) = Landing([torch.cat(list(shares))]).wait()
    return [part.tolist() for part in numbers.split([len(share) for share in shares])]


def _by_chunk(session: Session, type: AttentionType, shares: list[float]) -> dict[int, float]:
    """Shares in the order of places, by chunk; the subject anchor's own share, which comes first, is left out."""
    ledger = session.manager.ledgers[type]
    chunk_at = {entry.place: chunk for chunk, entry in ledger.entries.items()}
    chunk_at[session.staged(type)] = session.manager.next_chunk
    own = shares[1:] if ledger.subject is not None else shares
    return {chunk_at[place]: share for place, share in zip(ledger.places(), own, strict=True)}

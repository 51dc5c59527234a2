"""Harvests the subject anchor: looks at published chunks and keeps the tokens that show the described subject."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakSet

import torch
from torch.nn.functional import avg_pool2d

from cache.spec import TYPES, AttentionType, Modality
from errors import ConfigError, LongtakeError, StreamError
from models.segmenter import Finding, Segmenter
from models.shapes import ChunkGeometry
from streams.session import Session
from streams.stream import Stream

Heard = Literal["nothing", "while_seen"]
FAILURES = (LongtakeError, RuntimeError, ValueError, OSError, MemoryError)


def time_steps(at: Sequence[int], count: int, geometry: ChunkGeometry) -> torch.Tensor:
    """The time step of tokens that each of the decoded frames ``at`` belongs to, int64 [frames].

    ``count``: how many frames the chunk was decoded to. A stream's first chunk may have fewer: its first latent frame
    decodes to ``causal_offset`` frames. Raises ``StreamError`` if ``count`` is neither.
    """
    full = geometry.frames * geometry.temporal_scale
    lead = full - geometry.temporal_scale + geometry.causal_offset
    if count not in (full, lead):
        raise StreamError(f"the chunk has {count} frames; expected {full}, or {lead} where a stream begins")
    latent_frames = (torch.tensor(at) + full - count) // geometry.temporal_scale
    return latent_frames // geometry.patch_t


def video_token_mask(
    masks: torch.Tensor, steps: torch.Tensor, geometry: ChunkGeometry, coverage: float
) -> torch.Tensor:
    """Which video tokens the subject covers: bool [tokens], in the order of ``models.latents.pack_video``.

    A token is chosen if the mean of the masks over its pixels and over its time is at least ``coverage``; tokens of a
    time step that has no mask are not.

    Args:
        masks: [looks, height, width] in [0, 1], at the size of the decoded frames.
        steps: [looks], the time step of tokens that each mask belongs to, see ``time_steps``.

    Raises:
        StreamError: masks of another size.
    """
    size = (geometry.height * geometry.spatial_scale, geometry.width * geometry.spatial_scale)
    if masks.shape != (len(steps), *size):
        raise StreamError(f"masks have shape {tuple(masks.shape)}; expected {(len(steps), *size)}")
    covered = avg_pool2d(masks[:, None], geometry.patch * geometry.spatial_scale)[:, 0]
    count = geometry.frames // geometry.patch_t
    looks = torch.bincount(steps, minlength=count)[:, None, None]
    total = covered.new_zeros(count, *covered.shape[1:]).index_add_(0, steps, covered)
    return ((looks > 0) & (total >= coverage * looks)).flatten()


def audio_token_mask(steps: torch.Tensor, geometry: ChunkGeometry) -> torch.Tensor:
    """Audio tokens whose middle lies in one of the time steps ``steps`` of video tokens: bool [tokens]."""
    count = geometry.frames // geometry.patch_t
    middles = 2 * torch.arange(geometry.audio_tokens) + 1
    return torch.isin(middles * count // (2 * geometry.audio_tokens), steps)


@dataclass(frozen=True)
class KeeperStatistics:
    """What a keeper did: chunks looked at, anchors taken, segmenter failures and the newest failure's text."""

    looked: int
    taken: int
    failures: int
    last_failure: str


class SubjectKeeper:
    """Offers chunks to streams as their subject anchor. One keeper may serve many streams; it keeps none alive.

    A chunk's score is that of its best frame. Only frames that reach ``threshold`` give tokens, and the stream takes
    them only if they beat its present anchor, or once per repair if its repair ladder asks for a fresh one.

    By default only the types with video keys (``video_self``, ``video_to_audio``) get an anchor: a mask of the picture
    does not tell which of the sound is the subject's. With ``heard="while_seen"`` the types with audio keys get the
    audio tokens of the time in which the subject is seen.

    A segmenter that fails costs the stream nothing: the failure is counted, kept as text, and noted in the stream's
    decisions. What the stream itself raises is passed on.
    """

    def __init__(
        self,
        segmenter: Segmenter | None,
        every: int = 8,
        threshold: float = 0.5,
        looks: int = 4,
        coverage: float = 0.3,
        heard: Heard = "nothing",
    ) -> None:
        """Look at every ``every``-th chunk, at ``looks`` of its frames.

        ``segmenter``: ``None`` for one that answers elsewhere, by ``offer``.
        ``threshold``: lowest score of a frame to be used; ``coverage``: lowest share of a token that the subject fills.

        Raises:
            ConfigError: a value out of range.
        """
        for name, value in (("every", every), ("looks", looks)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1")
        for name, share in (("threshold", threshold), ("coverage", coverage)):
            if not 0 < share <= 1:
                raise ConfigError(f"{name} is {share}; expected more than 0 and at most 1")
        if heard not in ("nothing", "while_seen"):
            raise ConfigError(f"heard is {heard!r}; expected 'nothing' or 'while_seen'")
        self.segmenter, self.every, self.threshold = segmenter, every, threshold
        self.looks, self.coverage = looks, coverage
        self.modalities = (Modality.VIDEO,) if heard == "nothing" else (Modality.VIDEO, Modality.AUDIO)
        self._refreshed: WeakSet[Session] = WeakSet()  # whose present repair has had its fresh anchor
        self._looked = self._taken = self._failures = 0
        self._last_failure = ""

    def consider(self, stream: Stream, chunk: int, frames: torch.Tensor, description: str) -> bool:
        """Look for ``description`` in a published chunk, if it is due; returns whether it became the subject anchor.

        Args:
            frames: all frames that ``chunk`` was decoded to, uint8 [frames, height, width, 3]; only read.

        Raises:
            StreamError: frames that are not of the model's geometry, or what ``Stream.harvest`` raises.
        """
        if not self.due(stream, chunk):
            return False
        at = self.frames_to_see(len(frames))
        time_steps(at, len(frames), stream.engine.backbone.geometry)
        self._looked += 1
        try:
            finding = self._see(frames[at], description)
        except FAILURES as error:
            self._failures += 1
            self._last_failure = f"chunk {chunk} of {stream.session.id}: {error!r}"
            return self._pass_over(stream, chunk, f"the segmenter failed: {error!r}")
        return self.offer(stream, chunk, finding, at, len(frames))

    def due(self, stream: Stream, chunk: int) -> bool:
        """Whether to look at ``chunk``: it is its turn or a fresh anchor is wanted, and all types concerned hold it."""
        if not stream.wants_subject:
            self._refreshed.discard(stream.session)
        urgent = stream.wants_subject and stream.session not in self._refreshed
        types = self._types(stream)
        ledgers = stream.session.manager.ledgers
        return (urgent or chunk % self.every == 0) and bool(types) and all(chunk in ledgers[t].entries for t in types)

    def frames_to_see(self, count: int) -> list[int]:
        """The frames of a chunk of ``count`` that are looked at: the middles of equal parts."""
        looks = min(self.looks, count)
        return [(2 * i + 1) * count // (2 * looks) for i in range(looks)]

    def offer(self, stream: Stream, chunk: int, finding: Finding, at: Sequence[int], count: int) -> bool:
        """Harvest from a kept ``chunk`` what a segmenter found in its frames ``at`` of ``count``; see ``consider``.

        For a segmenter that answers later: the chunk must be ``due`` still.
        """
        geometry = stream.engine.backbone.geometry
        good = finding.scores >= self.threshold
        if not bool(good.any()):
            return self._pass_over(stream, chunk, f"best score {float(finding.scores.max()):.3f} < {self.threshold}")
        score = float(finding.scores[good].max())
        if stream.session in self._refreshed and score <= self._present_score(stream):
            return self._pass_over(stream, chunk, f"score {score:.3f} does not beat the anchor of this repair")
        steps = time_steps(at, count, geometry)[good]
        video = video_token_mask(finding.masks[good], steps, geometry, self.coverage)
        if not bool(video.any()):
            return self._pass_over(stream, chunk, f"the subject fills {self.coverage:.0%} of no token")
        seen = video.unflatten(0, (geometry.frames // geometry.patch_t, -1)).any(1).nonzero()[:, 0]
        masks = {Modality.VIDEO: video, Modality.AUDIO: audio_token_mask(seen, geometry)}
        granted = {t.keyed_by for t in self._types(stream)}
        taken = stream.harvest(chunk, {m: masks[m] for m in granted}, score)
        self._taken += taken
        if taken and stream.wants_subject:
            self._refreshed.add(stream.session)
        return taken

    def statistics(self) -> KeeperStatistics:
        """A frozen summary over all streams."""
        return KeeperStatistics(self._looked, self._taken, self._failures, self._last_failure)

    def _see(self, frames: torch.Tensor, description: str) -> Finding:
        if self.segmenter is None:
            raise StreamError("this keeper has no segmenter of its own; expected its findings by offer")
        finding = self.segmenter.score(frames, description)
        if finding.scores.shape != frames.shape[:1] or finding.masks.shape != frames.shape[:3]:
            raise StreamError(
                f"the segmenter gave scores {tuple(finding.scores.shape)} and masks {tuple(finding.masks.shape)} for "
                f"frames {tuple(frames.shape)}"
            )
        return finding

    def _types(self, stream: Stream) -> list[AttentionType]:
        """The attention types that would get the anchor."""
        budgets = stream.engine.policy.budgets
        return [t for t in TYPES if t.keyed_by in self.modalities and budgets[t].subject_anchor]

    def _present_score(self, stream: Stream) -> float:
        subjects = (stream.session.manager.ledgers[t].subject for t in self._types(stream))
        return max((s.score for s in subjects if s is not None), default=float("-inf"))

    @staticmethod
    def _pass_over(stream: Stream, chunk: int, reason: str) -> bool:
        stream.decisions.add(stream.session.manager.next_chunk, "subject passed over", reason, chunk)
        return False

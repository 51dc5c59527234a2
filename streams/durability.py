"""What of a stream survives its generator: written to the restore store with every commit, not only at eviction.

Beside a stream's own records the store then has two small shelves under its name: the subject anchor as it stands, and
the newest published latents, from which the media that a lost generator still owed its viewers are made once more.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch

from cache.keep_set import Role
from cache.pool import Pool
from cache.spec import TYPES, AttentionType
from cache.tiers import KeyValues, Latents, RestoreTier
from kernels.ops import Ops
from streams.session import Session

PUBLISHED = 12  # newest chunks whose published latents are kept; our own choice: the lead, and what decoders look back


class Durability(StrEnum):
    """``none``: a stream ends with its generator. ``latents``: its memory is computed anew. ``kv``: bit for bit."""

    NONE = "none"
    LATENTS = "latents"
    KV = "kv"


def subject_shelf(stream: str) -> str:
    """Where the keys and values of a stream's subject anchor are kept."""
    return f"{stream}#subject"


def published_shelf(stream: str) -> str:
    """Where a stream's newest published latents are kept."""
    return f"{stream}#published"


def shelves(stream: str) -> tuple[str, str, str]:
    """All names under which the store has something of a stream."""
    return stream, subject_shelf(stream), published_shelf(stream)


@dataclass(frozen=True)
class WriteThrough:
    """Writes to the restore store what must not be lost; between two chunks of a session only."""

    durability: Durability
    pool: Pool
    ops: Ops
    tier: RestoreTier

    def committed(self, session: Session, chunk: int, video: torch.Tensor, audio: torch.Tensor) -> None:
        """A chunk was committed, and its plan carried out; ``video`` and ``audio`` are its published latents."""
        if self.durability is Durability.NONE:
            return
        shelf = published_shelf(session.id)
        self.tier.keep_latents(shelf, chunk, Latents(video.cpu(), audio.cpu(), session.prompt.key))
        self.tier.forget(shelf, chunk - PUBLISHED)
        self.encoded(session, chunk, TYPES)

    def encoded(self, session: Session, chunk: int, types: tuple[AttentionType, ...]) -> None:
        """Keys and values of a kept chunk were written anew; what the store had of it may have been forgotten."""
        if self.durability is Durability.NONE:
            return
        if chunk in session.retained and not self.tier.holds(session.id, chunk).latents:
            self.tier.keep_latents(session.id, chunk, on_host(session.retained[chunk]))
        if self.durability is Durability.LATENTS:
            return
        for t in types:
            entry = session.manager.ledgers[t].entries.get(chunk)
            if entry is not None:
                payload = self.payload(session, t, chunk, entry.place, entry.slot, entry.role)
                self.tier.offload(session.id, chunk, t, payload)

    def subject(self, session: Session, type: AttentionType) -> None:
        """The subject anchor was written anew."""
        found = session.manager.ledgers[type].subject
        if self.durability is Durability.KV and found is not None:
            payload = self.payload(session, type, None, 0, found.slot, Role.SUBJECT_ANCHOR)
            self.tier.offload(subject_shelf(session.id), 0, type, payload)

    def payload(
        self, session: Session, type: AttentionType, chunk: int | None, place: int, slot: int, role: Role
    ) -> KeyValues:
        """A copy of what is at ``place``, with keys as they were first written: rotating rounds."""
        packed = self.ops.pack(self.pool.storage[type], session.page(type, place)).cpu()
        origin = session.origins.get((type, chunk))
        if origin is not None:
            packed[:, 0], slot = origin.keys, origin.slot
        return KeyValues(packed, slot, role, session.manager.recorder.noted)


def on_host(latents: Latents) -> Latents:
    """A copy in host memory, or the same if they are there."""
    return replace(latents, video=latents.video.cpu(), audio=latents.audio.cpu())


@dataclass(frozen=True)
class Footing:
    """What a stream stands on beside its books and its records; plain, small, and up to date at every commit.

    Args:
        stream: its name in the restore store.
        prompts: texts by the keys that books know them by.
        prompt_of: which prompt each chunk is encoded under, as runs [first chunk, last chunk, key].
        subject_tokens: token indices of the subject anchor in its source chunk, by attention type.
    """

    stream: str
    seed: int
    prompts: dict[str, str]
    prompt_of: list[tuple[int, int, str]]
    subject_tokens: dict[str, list[int]]

    @classmethod
    def of(cls, session: Session) -> "Footing":
        """Of a session between two chunks."""
        runs: list[tuple[int, int, str]] = []
        for chunk, key in sorted(session.prompt_of.items()):
            if runs and runs[-1][1] == chunk - 1 and runs[-1][2] == key:
                runs[-1] = (runs[-1][0], chunk, key)
            else:
                runs.append((chunk, chunk, key))
        tokens = {t.value: chosen.tolist() for t, chosen in session.subject_tokens.items()}
        return cls(session.id, session.seed, {k: p.text for k, p in session.prompts.items()}, runs, tokens)

    @classmethod
    def parse(cls, plain: dict[str, Any]) -> "Footing":
        """What ``dataclasses.asdict`` made of one, perhaps by way of msgpack."""
        return cls(**{**plain, "prompt_of": [tuple(run) for run in plain["prompt_of"]]})

"""What of a stream survives its generator: written to the restore store with every commit, not only at eviction.

Beside a stream's own records the store then has two small shelves under its name: the subject anchor as it stands, and
the newest published latents, from which the media that a lost generator still owed its viewers are made once more.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from cache.keep_set import Role
from cache.spec import TYPES, AttentionType
from cache.tiers import KeyValues, Latents, RestoreTier
from kernels.copies import upload
from streams.paging import Paging
from streams.session import Session

# ``none``: a stream ends with its generator. ``latents``: its memory is computed anew. ``kv``: bit for bit.
Durability = Literal["none", "latents", "kv"]
UNBOOKED = 2  # commits at most of which the ledger service may not know yet
PUBLISHED = 12  # newest chunks whose published latents are kept; our own choice: the lead, and what decoders look back


def subject_shelf(stream: str) -> str:
    """Where the keys and values of a stream's subject anchor are kept."""
    return f"{stream}#subject"


def published_shelf(stream: str) -> str:
    """Where a stream's newest published latents are kept."""
    return f"{stream}#published"


def moving_shelf(stream: str) -> str:
    """Where pages of a stream that is to move wait until they are fetched; see ``streams.migration``."""
    return f"{stream}#moving"


def shelves(stream: str) -> tuple[str, str, str]:
    """All names under which the store has something of a stream that must last."""
    return stream, subject_shelf(stream), published_shelf(stream)


def everything(stream: str) -> tuple[str, ...]:
    """All names under which the store may have something of a stream."""
    return *shelves(stream), moving_shelf(stream)


@dataclass(frozen=True)
class WriteThrough:
    """Writes to the restore store what must not be lost; between two chunks of a session only."""

    durability: Durability
    paging: Paging
    tier: RestoreTier

    def committed(
        self, session: Session, chunk: int, latents: Latents, video: torch.Tensor, audio: torch.Tensor
    ) -> None:
        """A chunk was committed, and its plan carried out; ``video`` and ``audio`` are as ``latents`` was published."""
        if self.durability == "none":
            return
        shelf = published_shelf(session.id)
        self.tier.keep_latents(shelf, chunk, replace(latents, video=video, audio=audio))
        self.tier.forget(shelf, chunk - PUBLISHED)
        self.encoded(session, chunk, TYPES)

    def forget(self, session: Session, chunks: tuple[int, ...]) -> None:
        """Nobody can ask for these again, once the commit is booked; until then they are needed for a recovery."""
        session.forgetting.append(chunks)
        while len(session.forgetting) > (0 if self.durability == "none" else UNBOOKED):
            for chunk in session.forgetting.popleft():
                self.tier.forget(session.id, chunk)

    def encoded(self, session: Session, chunk: int, types: tuple[AttentionType, ...]) -> None:
        """Keys and values of a kept chunk were written anew; what the store had of it may have been forgotten."""
        if self.durability == "none":
            return
        if chunk in session.retained and not self.tier.holds(session.id, chunk).latents:
            self.tier.keep_latents(session.id, chunk, session.retained[chunk])
        if self.durability == "latents":
            return
        for t in types:
            entry = session.manager.ledgers[t].entries.get(chunk)
            if entry is not None:
                payload = self.payload(session, t, chunk, entry.place, entry.slot, entry.role)
                self.tier.offload(session.id, chunk, t, payload)

    def subject(self, session: Session, type: AttentionType) -> None:
        """The subject anchor was written anew."""
        found = session.manager.ledgers[type].subject
        if self.durability == "kv" and found is not None:
            payload = self.payload(session, type, None, 0, found.slot, Role.SUBJECT_ANCHOR)
            self.tier.offload(subject_shelf(session.id), 0, type, payload)

    def payload(
        self, session: Session, type: AttentionType, chunk: int | None, place: int, slot: int, role: Role
    ) -> KeyValues:
        """A copy of what is at ``place``, where the pool is, with keys as they were first written: rotating rounds."""
        packed = self.paging.pack(type, session.page(type, place))
        origin = session.origins.get((type, chunk))
        if origin is not None:
            keys, slot = upload(origin.near, packed.device), origin.slot
            self.paging.keys_of(type, packed).copy_(keys)
        return KeyValues(packed, slot, role, session.manager.recorder.noted, self.paging.format(type))


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

"""The handle that a person drives.

engine = Engine(backbone, SceneMemory(Budgets()))
stream = Stream.open(engine, "a red ball bouncing in a blue room", seed=7)
for chunk in stream.chunks(40):
    show(chunk.video, chunk.audio)
stream.cut("kitchen", "a green cube sliding in a kitchen")
stream.take(20)
stream.return_to("opening")
saved = stream.pause()
stream = Stream.resume(engine, saved)
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Literal

import torch

from cache.books import CacheStatistics
from cache.decisions import DecisionLog
from cache.plan import Cut, PromptChange, ReturnTo
from cache.spec import TYPES, Modality
from errors import StreamError
from models.prompt import Prompt
from streams import snapshot
from streams.engine import Engine
from streams.making import Chunk
from streams.session import Session


class Stream:
    """One uninterrupted take. Not thread-safe: one caller drives an engine and its streams."""

    def __init__(self, engine: Engine, session: Session) -> None:
        self.engine, self.session = engine, session

    @classmethod
    def open(cls, engine: Engine, prompt: str | Prompt, seed: int = 0, scene: str = "opening") -> "Stream":
        """Begin a take with ``prompt`` in a first scene."""
        return cls(engine, engine.open(prompt, seed, scene))

    @classmethod
    def resume(cls, engine: Engine, data: bytes) -> "Stream":
        """Go on with a take that ``pause`` or ``snapshot`` wrote, bit-equal to never having paused."""
        return cls(engine, snapshot.resume(engine, data))

    def next(self) -> Chunk:
        """Generate, publish and commit one chunk."""
        return self.engine.step([self.session])[0]

    def take(self, chunks: int) -> list[Chunk]:
        """The next ``chunks`` chunks."""
        return list(self.chunks(chunks))

    def chunks(self, limit: int | None = None) -> Iterator[Chunk]:
        """Chunks one by one, ``limit`` of them or without end."""
        for _ in count() if limit is None else range(limit):
            yield self.next()

    def cut(self, scene: str, prompt: str | Prompt, keep_subject: bool = True) -> None:
        """Enter a new scene with the next chunk."""
        embedded = self.engine.prompt(prompt)
        self.engine.direct(self.session, Cut(scene, embedded.key, keep_subject), embedded)

    def return_to(self, scene: str) -> None:
        """Enter a known scene again: its sink, anchors and last chunks come back from the restore store."""
        self.engine.direct(self.session, ReturnTo(scene))

    def announce(self, scene: str) -> bool:
        """A return to ``scene`` comes soon: prefetch what it brings back; returns whether all of it is here."""
        return self.engine.announce(self.session, scene)

    def change_prompt(self, prompt: str | Prompt, mode: Literal["keep", "recache", "cut"] = "keep") -> None:
        """Another prompt from the next chunk on.

        ``keep`` leaves the history as it is (it still argues for the old prompt); ``recache`` encodes the recent
        latents again under the new one; ``cut`` enters a new scene, named after its first chunk.
        """
        embedded = self.engine.prompt(prompt)
        if mode == "cut":
            names = (f"scene-{i}" for i in count(self.session.manager.next_chunk))
            self.cut(next(name for name in names if name not in self.scenes), embedded)
        elif mode in ("keep", "recache"):
            self.engine.direct(self.session, PromptChange(embedded.key, mode), embedded)
        else:
            raise StreamError(f"mode is {mode!r}; expected 'keep', 'recache' or 'cut'")

    def harvest(self, chunk: int, masks: Mapping[Modality, torch.Tensor], score: float) -> bool:
        """Make the subject anchor of the tokens of a kept chunk that ``masks`` choose; returns whether it was taken."""
        return self.engine.harvest(self.session, chunk, masks, score)

    @property
    def wants_subject(self) -> bool:
        """Whether the repair ladder asks for a fresh subject anchor, which ``harvest`` then takes at any score."""
        return self.session.manager.wants_subject

    def fork(self, seed: int | None = None) -> "Stream":
        """A second take with the same past, sharing memory until the two diverge."""
        return Stream(self.engine, self.engine.fork(self.session, seed))

    def snapshot(self) -> bytes:
        """The stream as bytes; it goes on."""
        return snapshot.save(self.engine, self.session)

    def pause(self) -> bytes:
        """The stream as bytes; its memory is released."""
        data = self.snapshot()
        self.close()
        return data

    def close(self) -> None:
        """End the take and release its memory."""
        self.engine.close(self.session)

    @property
    def scenes(self) -> list[str]:
        """Names of the scenes that the stream remembers."""
        return list(self.session.manager.scenes.scenes)

    @property
    def decisions(self) -> DecisionLog:
        """What the cache did, chunk by chunk and type by type, and why."""
        return self.session.manager.log

    def statistics(self) -> CacheStatistics:
        """What the cache holds now."""
        return self.session.manager.statistics()

    def keep_set(self) -> dict[str, dict[str, Sequence[int]]]:
        """Kept chunks by attention type and role, in media order."""
        found: dict[str, dict[str, Sequence[int]]] = {}
        for t in TYPES:
            roles: dict[str, list[int]] = {}
            for chunk, entry in sorted(self.session.manager.ledgers[t].entries.items()):
                roles.setdefault(entry.role.value, []).append(chunk)
            subject = self.session.manager.ledgers[t].subject
            found[t.value] = {**({"subject_anchor": [subject.chunk]} if subject else {}), **roles}
        return found

"""Long takes of the toy model under several memories, side by side, with windows of them decoded and read back."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from bench.looking import Window, look
from cache.drift import DriftConfig
from cache.keep_set import Budgets, RoleBudget
from cache.spec import Modality
from models.decoders import StreamDecoder
from settings import Settings, Studio, build_studio, load
from streams.making import Chunk
from streams.stream import Stream
from streams.subject import SubjectKeeper
from training.world import CHUNK_SECONDS, Scene

WINDOW = 94  # chunks, a minute
UNCORRECTED = DriftConfig(strength={}, strong={}, raise_threshold=1e9, lower_threshold=1e8)


@dataclass(frozen=True)
class Contender:
    """A memory to be compared: policy, budget, drift control, and whether the subject is looked after."""

    name: str
    policy: str
    budget: RoleBudget
    drift: DriftConfig
    subject: bool = False

    def settings(self, sessions: int) -> Settings:
        """The shipped settings with this memory."""
        shipped = load(environ={"LONGTAKE_ENGINE__SESSIONS": str(sessions)})
        engine = replace(shipped.engine, cache=replace(shipped.engine.cache, drift=self.drift))
        kind = shipped.segmenter.kind if self.subject else "none"
        return replace(
            shipped,
            policy=self.policy,
            budgets=Budgets.uniform(self.budget),
            engine=engine,
            segmenter=replace(shipped.segmenter, kind=kind),
        )


@dataclass(frozen=True)
class Role:
    """Whom a stream shows: the caption's subject, colour and room, and the words for them."""

    scene: Scene
    caption: str

    @classmethod
    def draw(cls, seed: int, number: int = 0) -> "Role":
        """Scene ``number`` of the script of ``seed``."""
        rng = random.Random(f"{seed}/take/{number}")
        scene = Scene.draw(rng)
        return cls(scene, f"a {scene.colour} {scene.shape} bouncing in a {scene.room} room")

    @property
    def subject(self) -> str:
        """What the segmenter is asked for."""
        return f"{self.scene.colour} {self.scene.shape}"


@dataclass
class Reading:
    """What one window of one stream showed; statistics are [channels] of the latents by modality."""

    chunk: int
    window: Window
    mean: Mapping[str, NDArray[np.float64]]
    std: Mapping[str, NDArray[np.float64]]
    drift: float


@dataclass
class Crowd:
    """Streams of several seeds with one memory, batched in one engine; ``sessions``: room for so many, with forks."""

    contender: Contender
    roles: Sequence[Role]
    seeds: Sequence[int]
    sessions: int = 0
    studio: Studio = field(init=False)
    streams: list[Stream] = field(init=False)
    keeper: SubjectKeeper | None = field(init=False)

    def __post_init__(self) -> None:
        self.studio = build_studio(self.contender.settings(self.sessions or len(self.seeds)))
        self.keeper = self.studio.keeper()
        self.streams = [
            Stream.open(self.studio.engine, role.caption, seed)
            for role, seed in zip(self.roles, self.seeds, strict=True)
        ]

    def step(self) -> list[Chunk]:
        """The next chunk of all streams."""
        chunks = self.studio.engine.step([stream.session for stream in self.streams])
        keeper = self.keeper
        if keeper is not None:
            for stream, chunk, role in zip(self.streams, chunks, self.roles, strict=True):
                if keeper.due(stream, chunk.index):
                    frames = StreamDecoder(self.studio.codecs).push(chunk.video, chunk.audio).frames
                    keeper.consider(stream, chunk.index, frames, role.subject)
        return chunks

    def skip(self, chunks: int) -> Iterator[int]:
        """Go on without looking; yields after each chunk."""
        for i in range(chunks):
            self.step()
            yield i

    def read(self, chunks: int = WINDOW) -> list[Reading]:
        """The next ``chunks`` chunks of all streams, read back."""
        made = [self.step() for _ in range(chunks)]
        by_stream = zip(*made, strict=True)
        return [self._reading(list(c), role) for c, role in zip(by_stream, self.roles, strict=True)]

    def _reading(self, chunks: list[Chunk], role: Role) -> Reading:
        decoder = StreamDecoder(self.studio.codecs)
        media = [decoder.push(c.video, c.audio) for c in chunks] + [decoder.flush()]
        frames, samples = (torch.cat(parts) for parts in zip(*media, strict=True))
        latents = {m.value: torch.cat([getattr(c, m.value) for c in chunks]).double().numpy() for m in Modality}
        return Reading(
            chunk=chunks[0].index,
            window=look(frames, samples[:, 0], role.scene.shape, role.scene.colour),
            mean={m: x.mean(0) for m, x in latents.items()},
            std={m: x.std(0) for m, x in latents.items()},
            drift=float(np.median([c.drift for c in chunks])),
        )


def chunks_in(minutes: float) -> int:
    """Chunks of a stretch of media."""
    return round(minutes * 60 / float(CHUNK_SECONDS))


def contenders() -> list[Contender]:
    """The ladder of memories, poorest first; all may hold ten chunks, and the last two a subject anchor besides."""
    make = partial(RoleBudget, subject_anchor=1)
    window = make(scene_sink=0, scene_anchor=0, restored=0, recent=10)
    sink = make(scene_sink=1, scene_anchor=0, restored=0, recent=9)
    full = make(scene_sink=1, scene_anchor=2, restored=2, recent=5)
    corrected = DriftConfig()
    return [
        Contender("window only", "sliding_window", window, UNCORRECTED),
        Contender("sink + recent", "sink_recent", sink, UNCORRECTED),
        Contender("+ AdaStat", "sink_recent", sink, corrected),
        Contender("+ subject anchor", "sink_recent", sink, corrected, subject=True),
        Contender("full manager", "scene_memory", full, corrected, subject=True),
    ]

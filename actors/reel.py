"""The compute side of sessions: streams, which the compute thread steps, and decoders and encoders, which the media
thread runs behind it.

A reel is one take as the generator holds it. While it is on, its stream has pages in the pool; while it is put away,
the stream is bytes in a vault, and decoder and encoder wait as they are. ``show`` is the media thread's; what it needs
to know of the stream it is told in a ``Note``, for the stream may be a chunk ahead by then.
"""

import io
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from PIL import Image

from actors.continuity import Continuity
from actors.ledger_service import Entry, Statement
from cache.decisions import Decision
from cache.operations import Recorder
from cache.replica import digest
from cache.spec import TYPES
from errors import SessionOver, StreamError
from media.encoder import Encoder, Fragment, Init, Segment
from models.decoders import Codecs, StreamDecoder
from streams.director import Director
from streams.durability import Footing
from streams.making import Chunk
from streams.stream import Stream

SHOWN = 100  # decisions of each kind that can be inspected
HISTORY = 512  # chunks whose drift can be inspected
THUMBNAIL = 160  # pixels of the longer side


@dataclass(frozen=True)
class Piece:
    """One chunk as viewers get it. Never changed after it was made.

    Args:
        data: a fragment of MP4, possibly empty while codecs hold back.
        key: whether playing can begin here.
        last: whether the take ends with it.
    """

    index: int
    scene: str
    start: Fraction
    drift: float
    data: bytes
    key: bool
    last: bool = False


@dataclass(frozen=True)
class Glimpse:
    """Frames of a published chunk for the segmenter, uint8 [looks, height, width, 3], and which ones of how many."""

    chunk: int
    frames: torch.Tensor
    at: tuple[int, ...]
    count: int
    description: str


@dataclass(frozen=True)
class Note:
    """What is to be known of a chunk when it is shown.

    Args:
        picture: whether it may give its scene a thumbnail.
        look: what the segmenter is to look for in it, or nothing.
        last: whether the take ends with it.
        decisions: how many the cache made since the chunk before, by action and attention type.
        key: whether playing must be able to begin here.
    """

    picture: bool
    look: str
    last: bool
    decisions: Mapping[tuple[str, str], int]
    key: bool = False


@dataclass(frozen=True)
class Away:
    """What stands for a stream that is put away: what was inspected of it then, its books, and who notes them."""

    inspected: dict[str, Any]
    books: Statement
    recorder: Recorder


@dataclass
class Reel:
    """One take; see the module."""

    id: str
    codecs: Codecs
    stream: Stream | None
    decoder: StreamDecoder
    encoder: Encoder
    order: bytes = b""
    director: Director | None = None
    subject: str = ""
    init: Init | None = None
    pieces: int = 0
    decisions: int = 0
    drift: deque[tuple[int, float, int]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    away: Away | None = None
    held: bool = False  # a person has it put away
    rejoined: bool = False  # the next chunk may follow on one that another encoder made

    @property
    def on(self) -> Stream:
        """The stream; raises ``SessionOver`` if it is put away."""
        if self.stream is None:
            raise SessionOver(f"{self.id} is put away; resume it first")
        return self.stream

    @property
    def next_chunk(self) -> int:
        """Index of the chunk to come."""
        return self.pieces

    @property
    def ends_at(self) -> int | None:
        """Chunks of the whole take; ``None`` for one without end."""
        return None if self.director is None else self.director.total

    @property
    def description(self) -> str:
        """What the segmenter is asked for in the scene on air, or nothing."""
        return (self.director.subject if self.director else "") or self.subject

    def direct(self) -> str:
        """Give the stream what its script says before the next chunk; returns why that failed, or nothing."""
        if self.director is None:
            return ""
        try:
            self.director.before(self.next_chunk, self.on)
        except StreamError as error:  # a person's directions may have taken a name that the script wanted
            self.on.decisions.add(self.next_chunk, "script passed over", str(error))
            return str(error)
        return ""

    def entry(self, chunk: int) -> Entry:
        """What the ledger service is told of the commit of ``chunk``."""
        manager = self.on.session.manager
        number, operations = manager.recorder.take()
        return Entry(self.id, chunk, number, operations, digest(manager), aside=self.report())

    def report(self) -> bytes:
        """What another generator would need to go on from here; see ``Continuity``."""
        shot = 0 if self.director is None else self.director.shot
        return Continuity(Footing.of(self.on.session), shot, self.subject, self.held).pack()

    def note(self, chunk: Chunk, due: bool) -> Note:
        """Take notes of a chunk right after its step; ``due``: whether the segmenter should look at it."""
        manager = self.on.session.manager
        self.pieces = chunk.index + 1
        self.drift.append((chunk.index, round(chunk.drift, 4), int(manager.drift.rung)))
        for name in [name for name in self.thumbnails if name not in manager.scenes.scenes]:
            self.thumbnails.pop(name)
        # The first chunk of a scene may still show the one before where a decoder holds back; the second does not.
        picture = chunk.index > manager.scenes.current.entered_at
        key, self.rejoined = self.rejoined, False
        return Note(picture, self.description if due else "", self.pieces == self.ends_at, self._decided(), key)

    def show(self, chunk: Chunk, note: Note) -> tuple[Piece, torch.Tensor]:
        """Decode and encode one published chunk."""
        if note.key:
            self.encoder.key_next()
        media = self.decoder.push(chunk.video, chunk.audio)
        segments = self.encoder.encode(media.frames, media.samples)
        if note.last:
            rest = self.decoder.flush()
            segments += self.encoder.encode(rest.frames, rest.samples) + self.encoder.finish()
        if note.picture and len(media.frames) and chunk.scene not in self.thumbnails:
            self.thumbnails[chunk.scene] = thumbnail(media.frames[len(media.frames) // 2])
        data, key = self._joined(segments)
        return Piece(chunk.index, chunk.scene, chunk.start, chunk.drift, data, key, note.last), media.frames

    def _joined(self, segments: Sequence[Segment]) -> tuple[bytes, bool]:
        fragments = [s for s in segments if isinstance(s, Fragment)]
        self.init = next((s for s in segments if isinstance(s, Init)), self.init)
        return b"".join(f.data for f in fragments), bool(fragments) and fragments[0].key

    def _decided(self) -> Counter[tuple[str, str]]:
        """Decisions since the last call, by action and attention type."""
        log = self.on.decisions
        fresh, self.decisions = log.since(self.decisions), log.dropped + len(log)
        return Counter((d.action, "" if d.type is None else d.type.value) for d in fresh)

    def inspect(self) -> dict[str, Any]:
        """What the cache holds and did, as plain data."""
        stream = self.on
        manager = stream.session.manager
        statistics = stream.statistics()
        positions = manager.positions
        return {
            "next_chunk": self.next_chunk,
            "scene": manager.scenes.current_name,
            "scenes": [
                {"name": s.name, "entered_at": s.entered_at, "visits": s.visits, "thumbnail": s.name in self.thumbnails}
                for s in manager.scenes.scenes.values()
            ],
            "keep_set": stream.keep_set(),
            "slots": {str(chunk): slot for chunk, slot in positions.slots.items()},
            "next_slot": positions.next_slot,
            "epoch": positions.epoch,
            "bytes": {t.value: statistics.types[t].bytes_held for t in TYPES},
            "rung": int(manager.drift.rung),
            "drift": list(self.drift),
            "decisions": [
                {"at": d.at, "action": d.action, "chunk": d.chunk, "type": d.type and d.type.value, "reason": d.reason}
                for d in notable(stream.decisions)
            ],
        }


def notable(decisions: Iterable[Decision]) -> list[Decision]:
    """The newest decisions in order: of evictions, which are most of them, as many as of all others together."""
    kept: list[Decision] = []
    left = {True: SHOWN, False: SHOWN}
    for decision in reversed(list(decisions)):
        evicts = decision.action == "evict"
        if left[evicts]:
            left[evicts] -= 1
            kept.append(decision)
    return kept[::-1]


def thumbnail(frame: torch.Tensor) -> bytes:
    """A JPEG of a frame, uint8 [height, width, 3]."""
    image = Image.fromarray(frame.numpy())
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()

"""A production: a stream that follows a script, decoded chunk by chunk, with its subject looked after."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from models.decoders import Codecs, Media, StreamDecoder
from streams.director import Director, Script
from streams.engine import Engine
from streams.making import Chunk
from streams.stream import Stream
from streams.subject import SubjectKeeper


@dataclass(frozen=True)
class Shown:
    """One published chunk and what a viewer gets of it; the last has no chunk, only what decoders had held back."""

    chunk: Chunk | None
    media: Media


class Production:
    """One take by a script. Iterate over it once, to the end or until it is stopped."""

    def __init__(
        self, engine: Engine, codecs: Codecs, script: Script, seed: int = 0, keeper: SubjectKeeper | None = None
    ) -> None:
        """Open the stream with the script's first scene; raises if its prompt cannot be encoded."""
        seconds: Fraction = engine.backbone.geometry.seconds
        self.director = Director(script, seconds)
        self.stream = Stream.open(engine, self.director.opening.prompt, seed, script.name(0))
        self.decoder = StreamDecoder(codecs)
        self.keeper = keeper
        self.stopped = False

    @property
    def total(self) -> int:
        """Chunks of the whole take."""
        return self.director.total

    def stop(self) -> None:
        """End after the chunk in progress."""
        self.stopped = True

    def __iter__(self) -> Iterator[Shown]:
        for index in range(self.total):
            if self.stopped:
                break
            self.director.before(index, self.stream)
            chunk = self.stream.next()
            media = self.decoder.push(chunk.video, chunk.audio)
            if self.keeper is not None and self.director.subject:
                self.keeper.consider(self.stream, chunk.index, media.frames, self.director.subject)
            yield Shown(chunk, media)
        yield Shown(None, self.decoder.flush())

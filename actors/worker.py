"""The generator's compute thread: opens, steps, directs and puts away reels. Nothing here waits or knows the time.

Sessions that are due together are stepped in one batch. If a batch fails it is tried session by session, so that only
the one that cannot go on fails.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from actors.reel import Glimpse, Order, Piece, Reel
from errors import BadMessage, LongtakeError, NoCapacity, PoolExhausted, StreamError, UnknownSession
from media.encoder import Encoder, Init
from media.encoding import Encoding
from models.decoders import Codecs, StreamDecoder
from models.segmenter import Finding
from streams.director import Director
from streams.engine import Chunk, Engine
from streams.stream import Stream
from streams.subject import SubjectKeeper

FAILURES = (LongtakeError, RuntimeError, ValueError, OSError, MemoryError)
ONE_SCENE = "opening"


class Vault(Protocol):
    """Keeps streams that are put away. Bounded: ``put`` raises ``NoCapacity`` when full, and nothing was changed."""

    def put(self, session: str, data: bytes) -> None:
        """Keep the snapshot of a stream."""
        ...

    def take(self, session: str) -> bytes:
        """Give it back; raises ``RecordLost``. It is kept until ``drop``."""
        ...

    def drop(self, session: str) -> None:
        """Forget it; unknown sessions are no error."""
        ...


@dataclass(frozen=True)
class Direction:
    """What a person asks of a take from its next chunk on.

    Args:
        do: ``prompt`` (another prompt, by ``mode``), ``cut`` (to the new ``scene``), ``return`` (to a known one).
        subject: what the segmenter is to look for from then on; by default as before.
    """

    do: Literal["prompt", "cut", "return"]
    prompt: str = ""
    scene: str = ""
    mode: Literal["keep", "recache", "cut"] = "keep"
    keep_subject: bool = True
    subject: str = ""


@dataclass(frozen=True)
class Made:
    """What a step made of one session: a piece, perhaps something for the segmenter, or why it cannot go on."""

    piece: Piece | None
    init: Init | None = None
    glimpse: Glimpse | None = None
    failure: LongtakeError | None = None


class Worker:
    """All reels of one generator; called from one thread at a time."""

    def __init__(
        self,
        engine: Engine,
        codecs: Codecs,
        vault: Vault,
        keeper: SubjectKeeper | None = None,
        encoding: Encoding | None = None,
    ) -> None:
        self.engine, self.codecs, self.vault, self.keeper = engine, codecs, vault, keeper
        self.encoding = encoding or Encoding(audio="opus")
        self.reels: dict[str, Reel] = {}
        self._inside = threading.Lock()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a method of this worker; raises ``RuntimeError`` if another thread is inside."""
        if not self._inside.acquire(blocking=False):
            raise RuntimeError("two threads in one worker; expected the compute thread alone")
        try:
            return function(*arguments)
        finally:
            self._inside.release()

    # -- reels come and go

    def open(self, session: str, order: Order) -> None:
        """Begin a take.

        Raises:
            NoCapacity: the pool is full; nothing was changed.
        """
        director, name, prompt = None, ONE_SCENE, order.prompt
        if order.script is not None:
            director = Director(order.script, self.engine.backbone.geometry.seconds)
            name, prompt = order.script.name(0), director.opening.prompt
        stream = self._with_room(lambda: Stream.open(self.engine, prompt, order.seed, name))
        self.reels[session] = Reel(
            session, self.codecs, stream, StreamDecoder(self.codecs), self._encoder(), director, order.subject
        )

    def fork(self, session: str, child: str, seed: int | None) -> None:
        """A second take with the same past; raises ``NoCapacity``."""
        parent = self._reel(session)
        stream = self._with_room(lambda: parent.on.fork(seed))
        director = (
            None if parent.director is None else replace(parent.director)
        )  # each keeps its own place in the script
        self.reels[child] = Reel(
            child, self.codecs, stream, parent.decoder.fork(), self._encoder(), director, parent.subject
        )
        self.reels[child].pieces = parent.pieces
        self.reels[child].thumbnails = dict(parent.thumbnails)

    def put_away(self, session: str) -> None:
        """Give the pages back; the stream goes to the vault. Idempotent.

        Raises:
            NoCapacity: the vault is full; the stream is as before.
        """
        reel = self._reel(session)
        if reel.stream is None:
            return
        reel.inspected = reel.inspect()
        self.vault.put(session, reel.stream.snapshot())
        reel.stream.close()
        reel.stream = None

    def bring_back(self, session: str) -> None:
        """The stream as it was put away, bit for bit. Idempotent; raises ``NoCapacity`` if the pool is full."""
        reel = self._reel(session)
        if reel.stream is None:
            data = self.vault.take(session)
            reel.stream = self._with_room(lambda: Stream.resume(self.engine, data))
            self.vault.drop(session)

    def close(self, session: str) -> None:
        """End a take and release all that it holds; unknown sessions are no error."""
        reel = self.reels.pop(session, None)
        if reel is not None:
            self.vault.drop(session)
            if reel.stream is not None:
                reel.stream.close()

    # -- chunks and directions

    def step(self, sessions: Sequence[str]) -> dict[str, Made]:
        """The next chunk of every session, which must all be on; by session."""
        made: dict[str, Made] = {}
        ready: list[Reel] = []
        for reel in map(self._reel, sessions):
            try:
                reel.direct()
                ready.append(reel)
            except FAILURES as error:
                made[reel.id] = _failed(error)
        for reel, chunk in zip(ready, self._chunks(ready), strict=True):
            made[reel.id] = self._show(reel, chunk) if isinstance(chunk, Chunk) else chunk
        return made

    def _chunks(self, reels: Sequence[Reel]) -> list[Chunk | Made]:
        try:
            return list(self.engine.step([reel.on.session for reel in reels]))
        except FAILURES as error:
            if len(reels) == 1:
                return [_failed(error)]
        return [chunk for reel in reels for chunk in self._chunks([reel])]

    def _show(self, reel: Reel, chunk: Chunk) -> Made:
        try:
            piece, frames = reel.show(chunk)
        except FAILURES as error:
            return _failed(error)
        keeper = self.keeper
        if keeper is None or not reel.description or not keeper.due(reel.on, chunk.index) or not len(frames):
            return Made(piece, reel.init)
        at = keeper.frames_to_see(len(frames))
        return Made(
            piece, reel.init, Glimpse(chunk.index, frames[at].clone(), tuple(at), len(frames), reel.description)
        )

    def direct(self, session: str, direction: Direction) -> int:
        """Carry out a direction; returns the chunk from which it holds. Raises what the stream raises."""
        reel = self._reel(session)
        stream = reel.on
        if direction.do == "prompt":
            stream.change_prompt(direction.prompt, direction.mode)
        elif direction.do == "cut":
            stream.cut(direction.scene, direction.prompt, direction.keep_subject)
        elif direction.do == "return":
            stream.return_to(direction.scene)
        else:
            raise BadMessage(f"do is {direction.do!r}; expected prompt, cut or return")
        reel.subject = direction.subject or reel.subject
        return reel.next_chunk

    def offer(self, session: str, glimpse: Glimpse, finding: Finding) -> bool:
        """What the segmenter found in a glimpse; taken only if the chunk is still held and nothing changed since."""
        reel = self.reels.get(session)
        if reel is None or reel.stream is None or self.keeper is None or reel.description != glimpse.description:
            return False
        if not self.keeper.due(reel.stream, glimpse.chunk):
            return False
        with suppress(StreamError):
            return self.keeper.offer(reel.stream, glimpse.chunk, finding, glimpse.at, glimpse.count)
        return False

    def inspect(self, session: str) -> dict[str, Any]:
        """What the cache of a session holds and did, as plain data; of one that is put away, as of then."""
        reel = self._reel(session)
        return reel.inspected if reel.stream is None else reel.inspect()

    def thumbnail(self, session: str, scene: str) -> bytes | None:
        """A JPEG of a scene, if it has been seen."""
        return self._reel(session).thumbnails.get(scene)

    # -- inside

    def _reel(self, session: str) -> Reel:
        if session not in self.reels:
            raise UnknownSession(f"no session {session!r} in this generator")
        return self.reels[session]

    def _with_room(self, make: Callable[[], Stream]) -> Stream:
        try:
            return make()
        except PoolExhausted as error:
            raise NoCapacity(
                f"all {self.engine.config.sessions} places of this generator are taken: {error}"
            ) from error

    def _encoder(self) -> Encoder:
        height, width = self.codecs.frame_size
        codecs = self.codecs
        return Encoder(width, height, codecs.fps, codecs.sample_rate, codecs.channels, self.encoding)


def _failed(error: Exception) -> Made:
    return Made(None, failure=error if isinstance(error, LongtakeError) else StreamError(f"the step failed: {error!r}"))

"""The generator's compute thread: opens, steps, directs and puts away reels. Nothing here knows the time.

Sessions that are due together are stepped in one batch. If a batch fails it is tried session by session, so that only
the one that cannot go on fails.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import torch

from actors.continuity import Continuity
from actors.gauges import Gauge, gauges
from actors.ledger_service import Entry, Statement, Terms
from actors.order import Order, pack_order, parse_order
from actors.reel import Away, Glimpse, Note, Piece, Reel
from cache.state import dump
from cache.tiers import RestoreTier
from errors import BadMessage, LongtakeError, NoCapacity, PoolExhausted, StreamError, UnknownSession
from media.encoder import Encoder, Init
from media.encoding import Encoding
from models.decoders import Codecs, StreamDecoder
from models.segmenter import Finding
from streams.director import Director
from streams.engine import Engine
from streams.making import Chunk
from streams.stream import Stream
from streams.subject import SubjectKeeper

FAILURES = Exception  # whatever one session raises must not end the others
T = TypeVar("T")
LOG = logging.getLogger("longtake.generator")
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


class Stocked(RestoreTier, Protocol):
    """A restore store that can be asked which chunks it has."""

    def chunks(self, session: str) -> list[int]:
        """Chunks of ``session`` with a record. Raises ``RecordLost`` if the store does not answer."""
        ...


@dataclass(frozen=True)
class Site:
    """The restore store of a node."""

    tier: Stocked
    vault: Vault


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
class Stepped:
    """What a step made of one session: a chunk and its entry for the ledger service, or why it cannot go on.

    ``landed``: done when the restore store has what must survive this generator; see ``RestoreTier.landed``.
    """

    chunk: Chunk | None
    entry: Entry | None = None
    note: Note | None = None
    failure: LongtakeError | None = None
    landed: "Future[bool] | None" = None


@dataclass(frozen=True)
class Made:
    """What viewers get of a chunk, perhaps something for the segmenter, or why the session cannot go on."""

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
        model: str = "toy",
    ) -> None:
        """``model``: the name by which callers ask for it."""
        self.engine, self.codecs, self.vault, self.keeper = engine, codecs, vault, keeper
        self.model = model
        self.encoding = encoding or Encoding(audio="opus")
        self.terms = Terms(engine.specs, engine.policy, engine.config.cache)
        self.reels: dict[str, Reel] = {}
        self.besides: list[Callable[[], None]] = []  # what else is ended with all takes
        self.others: Callable[[], Sequence[Site]] = lambda: ()  # restore stores of other nodes
        self.settle: Callable[[], None] = lambda: None  # waits until all that was stepped has been shown
        self.doubted: dict[str, set[str]] = {}  # streams that the books of a session may name; see ``takeover.undone``
        self._inside = threading.Lock()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a method of this worker; raises ``RuntimeError`` if another thread is inside."""
        if not self._inside.acquire(blocking=False):
            raise RuntimeError("two threads in one worker; expected the compute thread alone")
        try:
            return function(*arguments)
        finally:
            self._inside.release()

    @property
    def size(self) -> str:
        """Pixels of a frame as text, width first."""
        height, width = self.codecs.frame_size
        return f"{width}x{height}"

    # -- reels come and go

    def open(self, session: str, order: Order, owner: str = "") -> None:
        """Begin a take.

        Raises:
            BadMessage: the order is for another model or size, or there is a take of that name.
            NoCapacity: the pool is full; nothing was changed.
        """
        self._require_new(session)
        for what, asked, mine in (("model", order.model, self.model), ("size", order.size, self.size)):
            if asked not in ("", mine):
                raise BadMessage(f"{what} is {asked!r}; this service has {mine!r}")
        director, name, prompt = None, ONE_SCENE, order.prompt
        if order.script is not None:
            director = Director(order.script, self.engine.backbone.geometry.seconds)
            name, prompt = order.script.name(0), director.opening.prompt
        stream = self.with_room(lambda: Stream.open(self.engine, prompt, order.seed, name))
        self.introduce(stream, owner)
        packed = pack_order(order, owner)
        decoder, encoder = StreamDecoder(self.codecs), self.encoder()
        self.reels[session] = Reel(session, self.codecs, stream, decoder, encoder, packed, director, order.subject)

    def fork(self, session: str, child: str, seed: int | None) -> None:
        """A second take with the same past; raises ``NoCapacity``, and ``BadMessage`` if there is one of that name."""
        self._require_new(child)
        self.settle()
        parent = self.reel(session)
        stream = self.with_room(lambda: parent.on.fork(seed))
        director = parent.director and replace(parent.director)  # each keeps its own place in the script
        decoder, encoder = parent.decoder.fork(), self.encoder()
        self.reels[child] = Reel(child, self.codecs, stream, decoder, encoder, parent.order, director, parent.subject)
        self.reels[child].pieces = parent.pieces
        self.reels[child].thumbnails = dict(parent.thumbnails)

    def put_away(self, session: str, held: bool = False) -> None:
        """Give the pages back; the stream goes to the vault. Idempotent. ``held``: a person wants it so.

        Raises:
            NoCapacity: the vault is full; the stream is as before.
        """
        reel = self.reel(session)
        if reel.stream is not None:
            away = Away(reel.inspect(), self.statement(session), reel.stream.session.manager.recorder)
            self.vault.put(session, reel.stream.snapshot())
            reel.stream.close()
            reel.stream, reel.away = None, away
        reel.held = held

    def bring_back(self, session: str) -> None:
        """The stream as it was put away, bit for bit. Idempotent; raises ``NoCapacity`` if the pool is full."""
        reel = self.reel(session)
        if reel.away is not None:
            data = self.vault.take(session)
            stream = self.with_room(lambda: Stream.resume(self.engine, data))
            stream.session.manager.record(reel.away.recorder)
            self.introduce(stream, parse_order(reel.order)[1])
            reel.stream, reel.away, reel.held = stream, None, False
            self.vault.drop(session)

    def introduce(self, stream: Stream, owner: str) -> None:
        """Tell the restore store whose records these are, for its quotas."""
        self.engine.store.introduce(stream.session.id, owner, self.engine.backbone.fingerprint)

    def close(self, session: str) -> None:
        """End a take and release all that it holds; unknown sessions are no error."""
        reel = self.reels.pop(session, None)
        if reel is not None:
            if reel.stream is not None:
                reel.stream.close()
            self.vault.drop(session)

    def give_away(self, session: str) -> None:
        """Let go of a take that another generator has; its records and what is in the vault are not touched."""
        reel = self.reels.pop(session, None)
        if reel is not None and reel.stream is not None:
            self.engine.let_go(reel.stream.session)

    def shut(self) -> None:
        """End every take, also one whose opening or closing nobody saw to its end."""
        for end in self.besides:
            end()
        for session in list(self.reels):
            try:
                self.close(session)
            except FAILURES:
                LOG.exception("a session could not be closed", extra={"session": session})

    # -- chunks and directions

    def step(self, sessions: Sequence[str]) -> dict[str, Stepped]:
        """The next chunk of every session, which must all be on; by session. ``show`` must follow."""
        made: dict[str, Stepped] = {}
        ready: list[Reel] = []
        for session in sessions:
            try:
                reel = self.reel(session)
                reel.direct()
                ready.append(reel)
            except FAILURES as error:
                made[session] = Stepped(None, failure=_plainly(session, error))
        chunks = self._chunks(ready)
        landed = self.engine.tier.landed()
        return made | {reel.id: replace(stepped, landed=landed) for reel, stepped in zip(ready, chunks, strict=True)}

    def _chunks(self, reels: Sequence[Reel]) -> list[Stepped]:
        try:
            chunks = self.engine.step([reel.on.session for reel in reels])
            return [self._stepped(reel, chunk) for reel, chunk in zip(reels, chunks, strict=True)]
        except FAILURES as error:
            if len(reels) == 1:
                return [Stepped(None, failure=_plainly(reels[0].id, error))]
        return [stepped for reel in reels for stepped in self._chunks([reel])]

    def _stepped(self, reel: Reel, chunk: Chunk) -> Stepped:
        due = self.keeper is not None and self.keeper.due(reel.on, chunk.index)
        return Stepped(chunk, reel.entry(chunk.index), reel.note(chunk, due))

    def show(self, stepped: Mapping[str, Stepped]) -> dict[str, Made]:
        """Decode and encode what ``step`` made; by session. The media thread's only call."""
        return {session: self._show(session, one) for session, one in stepped.items() if one.chunk is not None}

    def _show(self, session: str, stepped: Stepped) -> Made:
        try:
            reel, chunk, note = self.reel(session), stepped.chunk, stepped.note
            assert chunk is not None
            assert note is not None
            piece, frames = reel.show(chunk, note)
            return Made(piece, reel.init, self._glimpse(chunk.index, note.look, frames))
        except FAILURES as error:
            return Made(None, failure=_plainly(session, error))

    def _glimpse(self, chunk: int, look: str, frames: torch.Tensor) -> Glimpse | None:
        if self.keeper is None or not look or not len(frames):
            return None
        at = self.keeper.frames_to_see(len(frames))
        return Glimpse(chunk, frames[at].clone(), tuple(at), len(frames), look)

    def measures(self) -> list[Gauge]:
        """What the engine holds, as gauges."""
        return gauges(self.engine, [reel.stream for reel in self.reels.values() if reel.stream is not None])

    def statement(self, session: str) -> Statement:
        """Whole books of a session, for the ledger service."""
        reel = self.reel(session)
        if reel.away is not None:
            report = replace(Continuity.parse(reel.away.books.aside), held=reel.held)
            return replace(reel.away.books, aside=report.pack())
        manager = reel.on.session.manager
        noted = manager.recorder.noted
        return Statement(session, self.terms, dump(manager), noted, reel.report(), reel.order)

    def announce(self, session: str, scene: str) -> bool:
        """A return to ``scene`` was asked for; returns whether nothing of it has to be waited for."""
        return self.reel(session).on.announce(scene)

    def direct(self, session: str, direction: Direction) -> int:
        """Carry out a direction; returns the chunk from which it holds. Raises what the stream raises."""
        reel = self.reel(session)
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
        reel = self.reel(session)
        return reel.inspect() if reel.away is None else reel.away.inspected

    def thumbnail(self, session: str, scene: str) -> bytes | None:
        """A JPEG of a scene, if it has been seen."""
        return self.reel(session).thumbnails.get(scene)

    # -- inside

    def reel(self, session: str) -> Reel:
        """The take of that name; raises ``UnknownSession``."""
        if session not in self.reels:
            raise UnknownSession(f"no session {session!r} in this generator")
        return self.reels[session]

    def _require_new(self, session: str) -> None:
        if session in self.reels:
            raise BadMessage(f"session {session!r} exists already")

    def with_room(self, make: Callable[[], T]) -> T:
        """A stream, or room for one, for which there must be a place; raises ``NoCapacity``."""
        try:
            return make()
        except PoolExhausted as error:
            raise NoCapacity(
                f"all {self.engine.config.sessions} places of this generator are taken: {error}"
            ) from error

    def encoder(self, begin: tuple[int, int] = (0, 0)) -> Encoder:
        """An encoder that begins after so many frames and samples."""
        height, width = self.codecs.frame_size
        codecs = self.codecs
        return Encoder(width, height, codecs.fps, codecs.sample_rate, codecs.channels, self.encoding, begin)


def _plainly(session: str, error: Exception) -> LongtakeError:
    if isinstance(error, LongtakeError):
        return error
    LOG.error("unexpected error", exc_info=error, extra={"session": session})
    return StreamError(f"the step failed: {error!r}")

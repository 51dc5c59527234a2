"""A session that another generator lost or gave away: its stream recovered, and its media made again from where its
viewers may still wait for them. For the compute thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from actors.continuity import Continuity
from actors.elsewhere import clear, drop_snapshot, gather, snapshot
from actors.ledger_service import Statement
from actors.order import parse_order
from actors.reel import Note, Piece, Reel
from actors.worker import Stepped, Worker
from errors import RecordLost
from models.decoders import Codecs, StreamDecoder
from streams.director import Director
from streams.durability import PUBLISHED
from streams.making import Chunk
from streams.recovery import forget_lost, published, recover
from streams.stream import Stream


@dataclass(frozen=True)
class Taken:
    """A session that goes on here.

    Args:
        shown: its newest chunks, to be shown once more.
        pieces, header, mime: or the media that were made of these, as ``Live`` has them.
    """

    owner: str
    shown: Sequence[Stepped] = ()
    pieces: Sequence[Piece] = ()
    header: bytes = b""
    mime: str = ""


def take_over(worker: Worker, session: str, statement: Statement) -> Taken:
    """Go on with a session; its newest chunks are to be shown once more.

    A stream that was put away comes from the vault. Any other is recovered from the restore store. If this node's has
    not got all, others are asked.

    Raises:
        NoCapacity: the pool is full; nothing was changed.
        SnapshotError, LongtakeError: what is left of it cannot be used here; nothing was changed.
    """
    parse_order(statement.order)
    report = Continuity.parse(statement.aside)
    stream = worker.with_room(lambda: _stream(worker, session, statement, report))
    try:
        chunks = published(worker.engine, stream.session, PUBLISHED)
        decoder, begin, shown = primed(worker.codecs, chunks, stream.session.manager.next_chunk)
        reel, owner = reel_of(worker, session, statement, stream, decoder, begin)
    except BaseException:
        stream.close()
        raise
    last = reel.pieces == reel.ends_at
    notes = [Note(True, "", last and chunk is shown[-1], {}, key=True) for chunk in shown]
    return Taken(owner, [Stepped(chunk, note=note) for chunk, note in zip(shown, notes, strict=True)])


def reel_of(
    worker: Worker, session: str, statement: Statement, stream: Stream, decoder: StreamDecoder, begin: tuple[int, int]
) -> tuple[Reel, str]:
    """The reel of a stream that was another generator's, and its owner; ``begin``: see ``Worker.encoder``."""
    order, owner = parse_order(statement.order)
    report, seconds = Continuity.parse(statement.aside), worker.engine.backbone.geometry.seconds
    director = None if order.script is None else Director(order.script, seconds, report.shot)
    encoder = worker.encoder(begin)
    reel = Reel(session, worker.codecs, stream, decoder, encoder, statement.order, director, report.subject)
    reel.pieces, reel.rejoined, reel.held = stream.session.manager.next_chunk, True, report.held
    worker.reels[session] = reel
    return reel, owner


def _stream(worker: Worker, session: str, statement: Statement, report: Continuity) -> Stream:
    try:
        saved = snapshot(worker, session)
    except RecordLost:
        return _recovered(worker, statement, report)
    stream = Stream.resume(worker.engine, saved)
    if stream.session.manager.recorder.noted < statement.number:  # an old one, of a stream that was brought back
        stream.close()
        return _recovered(worker, statement, report)
    return stream


def _recovered(worker: Worker, statement: Statement, report: Continuity) -> Stream:
    gather(worker, report.footing.stream)
    return Stream(worker.engine, recover(worker.engine, statement.state, report.footing))


def taken_over(worker: Worker, session: str, statement: Statement) -> None:
    """The books have the stream's new name: what is left under older ones, and in vaults, nobody needs any more."""
    stream = Continuity.parse(statement.aside).footing.stream
    for name in {stream, *worker.doubted.pop(session, ())}:
        forget_lost(worker.engine, name)
    clear(worker, stream)
    drop_snapshot(worker, session)


def undone(worker: Worker, session: str, statement: Statement, refused: bool) -> None:
    """Let go of a session that the books do not have under its new name; whoever comes next finds all as it was.

    Unless they ``refused`` they may have that name: then the records under both stay, until this generator takes the
    session over or the store needs the room. Unknown sessions are no error.
    """
    reel = worker.reels.get(session)
    if reel is None or reel.stream is None:
        return
    if not refused:
        old = Continuity.parse(statement.aside).footing.stream
        worker.doubted.setdefault(session, set()).update((old, reel.stream.session.id))
        worker.give_away(session)
        return
    del worker.reels[session]
    reel.stream.close()


def primed(
    codecs: Codecs, chunks: Sequence[Chunk], next_chunk: int
) -> tuple[StreamDecoder, tuple[int, int], Sequence[Chunk]]:
    """A decoder that has seen as many of ``chunks`` as it must before what it gives is right.

    Returns it, how many frames and samples of the stream came before, and the chunks that are left to be shown.
    """
    decoder = StreamDecoder(codecs)
    if not chunks:
        time = next_chunk * codecs.geometry.seconds
        return decoder, (round(time * codecs.fps), round(time * codecs.sample_rate)), chunks
    first = chunks[0]
    steps = [latents.shape[1] for latents in codecs.unpack(first.video, first.audio)]
    both = (codecs.frames, codecs.sound)
    looks = max(ceil((codec.past + codec.ahead) / n) for codec, n in zip(both, steps, strict=True))
    looks = 0 if first.index == 0 else min(looks, len(chunks))
    # A decoding from the midst lacks as much of its first step as the stream did of its own.
    frames, samples = (first.index * n * codec.ratio for codec, n in zip(both, steps, strict=True))
    for chunk in chunks[:looks]:
        media = decoder.push(chunk.video, chunk.audio)
        frames, samples = frames + len(media.frames), samples + len(media.samples)
    return decoder, (frames, samples), chunks[looks:]

"""A session as a file, and a file as a session: what the compute thread does of an export and an import."""

from actors.order import pack_order, parse_order
from actors.reel import Reel
from actors.worker import Worker
from errors import SnapshotCorrupt, UnknownSession
from models.decoders import StreamDecoder
from streams.director import Director
from streams.takefile import Take, require_model, resumed


def export(worker: Worker, session: str) -> bytes:
    """A session's take as it stands between two chunks, put away or not; it goes on.

    Raises:
        UnknownSession: no such session here.
        RecordLost: it is put away, and the vault has lost it.
    """
    worker.settle()
    if session not in worker.reels:
        raise UnknownSession(f"no session {session!r} in this generator")
    reel = worker.reels[session]
    snapshot = worker.vault.take(session) if reel.stream is None else reel.stream.snapshot()
    order, _ = parse_order(reel.order)  # whose it was is nobody else's business
    shot = 0 if reel.director is None else reel.director.shot
    model, decoder = worker.engine.backbone.fingerprint, reel.decoder.state()
    return Take(model, snapshot, decoder, shot, reel.subject, pack_order(order, ""), reel.thumbnails).pack()


def bring(worker: Worker, session: str, data: bytes, owner: str) -> int:
    """Begin a session with the take in a file, as a fork of the one that was exported; returns its next chunk.

    Raises:
        SnapshotError: it is no take, damaged, or of another model or configuration; nothing was changed.
        NoCapacity: the pool is full; nothing was changed.
    """
    take = Take.parse(data)
    require_model(worker.engine, take)
    order, _ = parse_order(take.order)
    director = None
    if order.script is not None:
        director = Director(order.script, worker.engine.backbone.geometry.seconds, take.shot)
    decoder = StreamDecoder.resume(worker.codecs, take.decoder)
    if director is not None and not 0 <= take.shot < len(director.borders) - 1:
        raise SnapshotCorrupt(f"the take is at shot {take.shot} of a script that has {len(director.borders) - 1}")
    stream = worker.with_room(lambda: resumed(worker.engine, take))
    packed = pack_order(order, owner)
    reel = Reel(session, worker.codecs, stream, decoder, worker.encoder(), packed, director, take.subject)
    reel.pieces = stream.session.manager.next_chunk
    reel.thumbnails = dict(take.thumbnails)
    if reel.ends_at is not None and reel.pieces >= reel.ends_at:
        stream.close()
        raise SnapshotCorrupt(f"the take is over: its script ends with chunk {reel.ends_at}")
    worker.reels[session] = reel
    return reel.pieces

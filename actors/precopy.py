"""What compute threads do of sessions that move while they go on; see ``streams.migration``.

The half where a session comes from, and the half where it goes. Records of evicted chunks are copied too where the two
have different restore stores; where they share one they only change their name.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, cast

import torch

from actors.elsewhere import LANDING_S, chunks_of, clear
from actors.ledger_service import Statement
from actors.reel import Piece
from actors.takeover import Taken, reel_of
from actors.worker import Stocked, Worker
from cache.records import parse_tensor, plain_tensor
from cache.spec import AttentionType
from cache.tiers import KeyValues
from errors import RecordLost, UnknownSession
from models.decoders import StreamDecoder
from streams.durability import everything, moving_shelf, shelves, subject_shelf
from streams.migration import AT_A_TIME, Arrival, Offer, Page, copy_ahead, pack, stay, unpack
from streams.session import Session
from streams.snapshot import told_as_corrupt
from streams.stream import Stream
from wire import seal, unseal

KIND, VERSION = "passing", 1


@dataclass
class Coming:
    """A session that comes here.

    Args:
        source: the restore store that it comes from; ``None``: this node's own.
        records: what that store had of it and this node's has now, and when it was last evicted or encoded anew.
        session: its stream, once that is complete.
    """

    arrival: Arrival
    source: Stocked | None
    records: dict[tuple[str, int], int] = field(default_factory=dict)
    session: Session | None = None
    media: "Media | None" = None
    decoder: StreamDecoder | None = None


@dataclass(frozen=True)
class Media:
    """What was made of a session's chunks: the decoder's state, how much was encoded, and the newest pieces.

    ``end``: frames and samples.
    """

    decoder: dict[str, torch.Tensor]
    end: tuple[int, int]
    pieces: tuple[Piece, ...]
    header: bytes
    mime: str
    thumbnails: dict[str, bytes]


class Precopy:
    """See the module. For the compute thread."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.coming: dict[str, Coming] = {}
        self.came: dict[str, str] = {}  # sessions that have come, and what their streams were called
        worker.besides.append(self.shut)

    # -- where it comes from

    def copy_ahead(self, session: str, came: Iterable[Page], whole: bool) -> tuple[Offer, "Future[bool]"]:
        """See ``migration.copy_ahead``; the future says whether what is offered is there."""
        offered = copy_ahead(self.worker.engine, self.worker.reel(session).on.session, came, whole)
        return offered, self.worker.engine.tier.landed()

    def pack(self, session: str, pieces: Sequence[Piece], header: bytes, mime: str) -> bytes:
        """The rest of a session that stands still, all of whose chunks are published, and the newest of its media.

        None of these is made again: the decoder goes on as it is. See ``migration.pack``.
        """
        reel = self.worker.reel(session)
        media = {
            "decoder": {name: plain_tensor(tensor) for name, tensor in reel.decoder.state().items()},
            "end": list(reel.encoder.end),
            "header": header,
            "mime": mime,
            "pieces": [_plain_piece(piece) for piece in pieces],
            "thumbnails": reel.thumbnails,
        }
        return seal(KIND, VERSION, {"stream": pack(self.worker.engine, reel.on.session), "media": media})

    def stay(self, session: str) -> None:
        """A session does not move after all; unknown ones are no error."""
        reel = self.worker.reels.get(session)
        if reel is not None and reel.stream is not None:
            stay(self.worker.engine, reel.stream.session)

    # -- where it goes

    def prepare(self, session: str, offered: Offer) -> int:
        """Fetch what is offered, and a few records of evicted chunks; returns how many of these are left.

        Raises:
            NoCapacity: the pool is full.
            RecordLost: something of it cannot be fetched.
        """
        coming = self.coming.get(session)
        if coming is None or coming.arrival.stream != offered.stream:
            self.drop(session)
            coming = self.coming[session] = self._begin(offered.stream)
        source, shelf = coming.source or cast(Stocked, self.worker.engine.tier), moving_shelf(offered.stream)
        source.chunks(shelf)  # from now on it knows what it has
        coming.arrival.take(offered, partial(_fetch, source, shelf))
        return self._bring(coming, offered, AT_A_TIME)

    def complete(self, session: str, data: bytes) -> int:
        """Make the stream of what has come and of ``data``; returns the number of operations on its books.

        Raises ``RecordLost`` if something cannot be fetched, ``SnapshotError`` if it cannot be used here.
        """
        passed = unseal(data, KIND, VERSION)
        with told_as_corrupt("the session is sealed but does not hold what it needs"):
            offered, payload = unpack(passed["stream"])
            media = _parsed(passed["media"])
            decoder = StreamDecoder.resume(self.worker.codecs, media.decoder)
        self.prepare(session, offered)
        coming, tier = self.coming[session], self.worker.engine.tier
        coming.media, coming.decoder = media, decoder
        coming.session = coming.arrival.complete(offered, payload)
        if coming.source is None:
            for there, here in zip(shelves(offered.stream), shelves(coming.arrival.name), strict=True):
                tier.adopt(there, here)
        self._bring(coming, offered, None)
        return coming.session.manager.recorder.noted

    def take(self, session: str, statement: Statement) -> Taken:
        """Go on with a session that is complete; see ``takeover.take_over``."""
        coming = self.coming[session]
        if coming.session is None or coming.media is None or coming.decoder is None:
            raise UnknownSession(f"{session} has not come here whole")
        stream, media = Stream(self.worker.engine, coming.session), coming.media
        reel, owner = reel_of(self.worker, session, statement, stream, coming.decoder, media.end)
        reel.thumbnails = media.thumbnails
        self.worker.introduce(stream, owner)
        del self.coming[session]
        self.came[session] = coming.arrival.stream
        return Taken(owner, (), media.pieces, media.header, media.mime)

    def drop(self, session: str) -> None:
        """A session does not come, or has gone again; unknown ones are no error."""
        self.came.pop(session, None)
        coming = self.coming.pop(session, None)
        if coming is not None and coming.session is not None:
            self.worker.engine.close(coming.session)
        elif coming is not None:
            coming.arrival.drop()

    def forget(self, session: str) -> None:
        """Whoever had a session has let it go: what is left of it there goes. Again, or for others, is no error."""
        stream = self.came.pop(session, None)
        if stream is not None:
            for shelf in everything(stream):
                self.worker.engine.tier.close(shelf)
            clear(self.worker, stream)

    def shut(self) -> None:
        """No session comes any more."""
        for session in list(self.coming):
            self.drop(session)

    # -- inside

    def _begin(self, stream: str) -> Coming:
        """Keep room, and find the store that has what was copied ahead."""
        shelf, own = moving_shelf(stream), cast(Stocked, self.worker.engine.tier)
        found = [site.tier for site in self.worker.others() if chunks_of(site.tier, shelf)]
        if not found and not chunks_of(own, shelf):
            raise RecordLost(f"nothing of {stream} is in any store")
        arrival = self.worker.with_room(lambda: Arrival.begin(self.worker.engine, stream))
        return Coming(arrival, None if chunks_of(own, shelf) else found[0])

    def _bring(self, coming: Coming, offered: Offer, most: int | None) -> int:
        """Copy at most so many records that this node's store lacks or has as they were; returns how many are left.

        What is gone there goes here too. Raises ``RecordLost``.
        """
        if coming.source is None:
            return 0
        tier, left = self.worker.engine.tier, 0
        for there, here in zip(shelves(offered.stream), shelves(coming.arrival.name), strict=True):
            subject = there == subject_shelf(offered.stream)
            stamps = {c: offered.renewed.get(None if subject else c, 0) for c in coming.source.chunks(there)}
            for _, chunk in [key for key in coming.records if key[0] == here and key[1] not in stamps]:
                tier.forget(here, chunk)
                del coming.records[here, chunk]
            lacking = [chunk for chunk, stamp in stamps.items() if coming.records.get((here, chunk)) != stamp]
            for chunk in lacking[:most]:
                self._copy(coming.source, there, here, chunk)
                coming.records[here, chunk] = stamps[chunk]
            left += 0 if most is None else len(lacking[most:])
        return left

    def _copy(self, source: Stocked, there: str, here: str, chunk: int) -> None:
        tier, held = self.worker.engine.tier, source.holds(there, chunk)
        tier.forget(here, chunk)
        if held.latents:
            tier.keep_latents(here, chunk, source.latents(there, chunk))
        for kind in held.types:
            tier.offload(here, chunk, kind, source.fetch(there, chunk, kind))
        try:
            whole = tier.landed().result(LANDING_S)
        except TimeoutError:
            whole = False
        if not whole:
            raise RecordLost(f"chunk {chunk} of {there} was lost on its way here")


def _plain_piece(piece: Piece) -> list[Any]:
    start = [piece.start.numerator, piece.start.denominator]
    return [piece.index, piece.scene, start, piece.drift, piece.data, piece.key, piece.last]


def _parsed(media: dict[str, Any]) -> Media:
    frames, samples = media["end"]
    pieces = tuple(Piece(i, scene, Fraction(*start), *rest) for i, scene, start, *rest in media["pieces"])
    decoder = {str(name): parse_tensor(plain) for name, plain in media["decoder"].items()}
    return Media(
        decoder, (int(frames), int(samples)), pieces, bytes(media["header"]), str(media["mime"]), media["thumbnails"]
    )


def _fetch(source: Stocked, shelf: str, record: int, type: AttentionType) -> KeyValues:
    if type not in source.holds(shelf, record).types:
        raise RecordLost(f"record {record} [{type}] of {shelf} is not in the store any more")
    return source.fetch(shelf, record, type)

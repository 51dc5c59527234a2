"""A stream that moves to another engine while it goes on: live migration by pre-copy.

Keys and values of a committed chunk stay as they are: a move turns keys from how they were first written, and how these
were is kept. So pages are copied ahead, to a shelf of the restore store from which the other engine fetches them into
pages of its own, a chunk at a time, while the stream makes more. When a chunk or two are left the stream stands still
for these and for its books. What is evicted, restored or encoded anew meanwhile is copied anew
(Clark et al., Live Migration of Virtual Machines, NSDI 2005: dirty pages, rounds).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cache.keep_set import Role
from cache.pool import Lease
from cache.spec import AttentionType
from cache.tiers import KeyValues
from errors import RecordLost, SnapshotCorrupt
from kernels.copies import Landing
from streams.durability import everything, moving_shelf
from streams.engine import Engine
from streams.session import Ahead, Origin, Session
from streams.snapshot import LIES, bare, parsed, told_as_corrupt
from wire import seal, unseal

KIND, VERSION = "moving", 1
AT_A_TIME = 1  # chunks: as many as a step makes at most, while older ones leave the keep-set; so it comes to an end
Place = tuple[AttentionType, int]
Page = tuple[AttentionType, int, int, int]  # type, record on the shelf, place, when it was copied
Fetch = Callable[[int, AttentionType], KeyValues]


@dataclass(frozen=True)
class Offer:
    """What of a stream has been copied ahead.

    Args:
        stream: its name in the restore store.
        pages: all that were copied and are as they were.
        renewed: chunks that were evicted or encoded anew since copying began, and when: records of these may be others
            now. ``None`` is the subject anchor.
        left: chunks of which pages are still to be copied.
    """

    stream: str
    pages: tuple[Page, ...]
    renewed: dict[int | None, int]
    left: int


def copy_ahead(engine: Engine, session: Session, came: Iterable[Page] = (), whole: bool = False) -> Offer:
    """Put pages on the shelf that were not copied yet, those that stay longest first; between two chunks.

    Args:
        came: pages that were fetched, and make room.
        whole: not a chunk, but all that is left.
    """
    engine.require(session)
    session.ahead = ahead = session.ahead or Ahead()
    shelf, tier = moving_shelf(session.id), engine.staging
    for record in _done_with(ahead, came):
        tier.forget(shelf, record)
    lacking = _by_chunk(session, ahead)
    chosen = sorted(lacking, key=lambda c: (c is not None and lacking[c][0][3] is Role.RECENT, -(c or 0)))
    for chunk in chosen if whole else chosen[:AT_A_TIME]:
        for t, place, slot, role in lacking[chunk]:
            payload = engine.through.payload(session, t, chunk, place, slot, role)
            tier.offload(shelf, record_of(chunk), t, payload)
            if t in tier.holds(shelf, record_of(chunk)).types:  # else there was no room on the way
                ahead.written[t, chunk] = payload.written
    return offer(session)


def offer(session: Session) -> Offer:
    """What has been copied until now."""
    ahead = session.ahead or Ahead()
    places = {(t, chunk): place for chunk, t, place, _, _ in _pages(session)}
    pages = tuple((t, record_of(c), places[t, c], written) for (t, c), written in ahead.written.items())
    return Offer(session.id, pages, dict(ahead.renewed), len(_by_chunk(session, ahead)))


def pack(engine: Engine, session: Session) -> bytes:
    """A stream all of whose pages were copied, as bytes for ``Arrival.complete``. Raises ``RecordLost``."""
    made = offer(session)
    if made.left:
        raise RecordLost(f"pages of {made.left} chunks of {session.id} found no room on their way")
    pages = [[t.value, *rest] for t, *rest in made.pages]
    renewed = [[chunk, when] for chunk, when in made.renewed.items()]
    return seal(KIND, VERSION, bare(engine, session) | {"stream": session.id, "pages": pages, "renewed": renewed})


def unpack(data: bytes) -> tuple[Offer, dict[str, Any]]:
    """What is offered with the last bytes of a stream, and the rest of what ``pack`` packed.

    Raises ``SnapshotCorrupt`` and ``SnapshotMismatch``.
    """
    payload = unseal(data, KIND, VERSION)
    with told_as_corrupt("the stream is sealed but does not hold what it needs"):
        pages = tuple((AttentionType(t), int(record), int(place), int(at)) for t, record, place, at in payload["pages"])
        return Offer(str(payload["stream"]), pages, dict(payload["renewed"]), 0), payload


def stay(engine: Engine, session: Session) -> None:
    """The stream does not move after all, or has moved: what was copied is forgotten."""
    if session.ahead is not None:
        session.ahead = None
        engine.staging.close(moving_shelf(session.id))


def record_of(chunk: int | None) -> int:
    """The number on the shelf of a chunk, or of the subject anchor (``None``)."""
    return 0 if chunk is None else chunk + 1


@dataclass
class Came:
    """A page that has come: of which record, when that was copied, and its keys as they were first written."""

    record: int
    written: int
    origin: Origin


@dataclass
class Arrival:
    """A stream that comes here: its pages so far, in a lease of this engine's pool, under the name it will have."""

    engine: Engine
    stream: str
    name: str
    lease: Lease
    pages: dict[Place, Came] = field(default_factory=dict)

    @classmethod
    def begin(cls, engine: Engine, stream: str) -> "Arrival":
        """Keep room for a stream; raises ``PoolExhausted``."""
        lease = engine.pool.open(engine.places)
        return cls(engine, stream, engine.new_name(), lease)

    def take(self, offered: Offer, fetch: Fetch) -> None:
        """Fetch what is offered and not here. Raises ``RecordLost``, and what is here stays."""
        paging, table = self.engine.paging, self.lease.tables
        for t, record, place, written in offered.pages:
            here = self.pages.get((t, place))
            if here is not None and (here.record, here.written) == (record, written):
                continue
            payload = fetch(record, t)
            if payload.written != written:
                raise RecordLost(f"record {record} [{t}] of {offered.stream} is another than was offered")
            page = table[t][place] if place in table[t] else self.engine.pool.claim(self.lease, t, place)
            packed = paging.fitted(t, payload)
            paging.unpack(t, page, packed)
            keys = Landing([paging.keys_of(t, packed).clone()])
            self.pages[t, place] = Came(record, written, Origin(keys, payload.slot))

    def complete(self, offered: Offer, payload: dict[str, Any]) -> Session:
        """Make the stream of its pages, all of which have come, and of the rest; it goes on bit-equal.

        Raises:
            SnapshotMismatch: it is of another model, release or cache configuration.
            SnapshotCorrupt: the pages are not those in its books.
        """
        engine = self.engine
        with told_as_corrupt("the stream does not hold what it needs"):
            session = parsed(engine, payload, self.name)
        try:
            kept = {(t, place) for t, _, place, _ in offered.pages}
            for t, place in [(t, p) for t, table in self.lease.tables.items() for p in table if (t, p) not in kept]:
                engine.pool.release(self.lease, t, place)
            session.lease = self.lease
            for chunk, t, place, slot, _ in _pages(session):
                came = self.pages[t, place]
                if came.record != record_of(chunk):
                    raise ValueError(f"{t}: record {came.record} at place {place}; expected {record_of(chunk)}")
                if came.origin.slot != slot:
                    session.origins[t, chunk] = came.origin
                    engine.executor.rotate(t, session.page(t, place), came.origin.slot, slot)
            session.check_pages()
        except LIES as error:
            raise SnapshotCorrupt(f"the pages that came are not those in the books: {error!r}") from error
        return engine.adopt(session)

    def drop(self) -> None:
        """The stream does not come: its pages are free, and so is what the store has under its name here."""
        self.engine.pool.close(self.lease)
        for name in everything(self.name):
            self.engine.staging.close(name)


def _pages(session: Session) -> Iterator[tuple[int | None, AttentionType, int, int, Role]]:
    """Every page of a stream: chunk (``None``: the subject anchor), type, place, slot, role."""
    for t, ledger in session.manager.ledgers.items():
        if ledger.subject is not None:
            yield None, t, 0, ledger.subject.slot, Role.SUBJECT_ANCHOR
        for chunk, entry in ledger.entries.items():
            yield chunk, t, entry.place, entry.slot, entry.role


def _done_with(ahead: Ahead, came: Iterable[Page]) -> set[int]:
    """Records all of whose pages were fetched as they are now."""
    fetched = {(t, record, written) for t, record, _, written in came}
    copied = {(t, record_of(chunk), written) for (t, chunk), written in ahead.written.items()}
    return {record for _, record, _ in fetched} - {record for _, record, _ in copied - fetched}


def _by_chunk(session: Session, ahead: Ahead) -> dict[int | None, list[tuple[AttentionType, int, int, Role]]]:
    """What is not copied, or was copied and is not as it was: type, place, slot and role, by chunk."""
    found: dict[int | None, list[tuple[AttentionType, int, int, Role]]] = {}
    for chunk, t, place, slot, role in _pages(session):
        if (t, chunk) not in ahead.written:
            found.setdefault(chunk, []).append((t, place, slot, role))
    return found

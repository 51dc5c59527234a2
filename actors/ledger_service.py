"""The ledger service: the books of every session once more, outside the generators, and who may write to them.

A generator carries plans out the moment its own books make them; the service does the same operations on books of its
own and compares. So nothing waits for a plan, and books that survive a generator are there without a replay. A chunk is
shown only after its commit was acknowledged here (docs/decisions/0008).
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from zlib import crc32

from actors import lines
from actors.statements import Entry, Statement, Verdict
from cache.journal import Journal, Nowhere
from cache.manager import CacheManager
from cache.replica import Answers, apply, digest
from cache.state import dump, load
from cache.terms import Terms
from errors import FencedOff, JournalDown, LongtakeError, NoCapacity, SnapshotCorrupt, SnapshotMismatch, UnknownSession

__all__ = ["Entry", "LedgerShard", "Statement", "Terms", "Verdict", "shard_of"]
LOG = logging.getLogger("longtake.ledger")
SESSIONS = 4096
FORGET_S = 3600.0
LOG_CAPACITY = 64  # decisions that are kept a session; the generator's own log is the one that is read
WHOLE_EVERY = 64  # lines in the journal after which a session's books are written whole
AT_ONCE = 64  # sessions that are written whole in one append
UNUSABLE = (LongtakeError, ArithmeticError, LookupError, TypeError, ValueError)


@dataclass
class Book:
    """One session's books, by whom they may be written, how many operations are in them, and when they were last."""

    manager: CacheManager
    answers: Answers
    terms: Terms
    epoch: int
    number: int
    heard: float
    aside: bytes
    order: bytes
    lines: int = 0
    whole_due: bool = False

    def apply(self, entry: Entry) -> bool:
        """Do what of ``entry`` was not done yet; whether the books are then as their generator says."""
        try:
            for operation in entry.operations[self.number - entry.number :]:
                apply(self.manager, self.answers, operation)
                self.number += 1
        except UNUSABLE:
            if self.manager.in_progress:
                self.manager.abort()
            return False
        if digest(self.manager) != entry.digest:
            return False
        self.aside = entry.aside
        return True

    def statement(self) -> Statement:
        """The books as they are now."""
        state = dump(self.manager)
        return Statement(self.manager.session, self.terms, state, self.number, self.aside, self.order)


class LedgerShard:
    """The books of some sessions, at most ``sessions``; those nobody wrote to for ``forget_s`` make room if they must.

    A generator that finds its session forgotten states it anew, so that nothing is lost but the fence. What is
    acknowledged is in the ``journal``, from which a shard that begins takes its books up before it answers anything.
    While the journal is down every call raises ``JournalDown``, and is right to be made again: nothing is buffered but
    the books themselves, which are written whole when it is back.
    """

    def __init__(
        self,
        sessions: int = SESSIONS,
        forget_s: float = FORGET_S,
        clock: Callable[[], float] = time.monotonic,
        journal: Journal | None = None,
        whole_every: int = WHOLE_EVERY,
    ) -> None:
        self.sessions, self.forget_s, self.clock = sessions, forget_s, clock
        self.books: dict[str, Book] = {}
        self.counts = dict.fromkeys(Verdict, 0)
        self.journal: Journal = journal or Nowhere()
        self.whole_every, self.taken_up, self.lost = whole_every, False, 0
        self.leaving: set[str] = set()  # closed while the journal was down

    def open(self, statement: Statement) -> int:
        """Take a session over, or begin it; returns the epoch under which it may be written from now on.

        Whoever wrote it before is fenced off. Raises ``NoCapacity`` and ``JournalDown``, and then nothing was changed.
        """
        self._begin()
        before = self.books.get(statement.session)
        return self._put(statement, 1 if before is None else before.epoch + 1)

    def state(self, statement: Statement, epoch: int) -> None:
        """Put a session's books right, by the generator that has it.

        Raises ``FencedOff``, ``NoCapacity`` and ``JournalDown``, and then nothing was changed.
        """
        self._begin()
        before = self.books.get(statement.session)
        if before is not None and epoch < before.epoch:
            raise FencedOff(f"{statement.session} is written under epoch {before.epoch}; this generator has {epoch}")
        self._put(statement, epoch)

    def commit(self, entries: Sequence[Entry]) -> list[Verdict]:
        """Book the entries, each once however often it comes. What is booked is in the journal, by one append.

        Raises ``JournalDown``: none of them is acknowledged; they are to come again.
        """
        self._begin()
        wanting = self.journal.ready()
        fresh: dict[str, list[lines.Line]] = {}
        verdicts = [self._commit(entry, fresh) for entry in entries]
        written = []
        for session, added in fresh.items():
            book = self.books[session]
            if session in wanting or book.whole_due or book.lines + len(added) > self.whole_every:
                written.append(lines.whole(book.statement(), book.epoch))
            else:
                written += added
        self._write(written)
        for verdict in verdicts:
            self.counts[verdict] += 1
        return verdicts

    def _commit(self, entry: Entry, fresh: dict[str, list[lines.Line]]) -> Verdict:
        """``fresh``: takes the session if something of it is booked, and what is new."""
        book = self.books.get(entry.session)
        if book is None or entry.epoch > book.epoch or entry.number > book.number:
            return Verdict.BEHIND
        if entry.epoch < book.epoch:
            return Verdict.FENCED
        book.heard = self.clock()
        before = book.number, book.aside
        repeated = entry.number + len(entry.operations) < book.number  # and more has come since
        if not repeated and not book.apply(entry):
            book.whole_due = True
            return Verdict.DIFFERS
        added = fresh.setdefault(entry.session, [])
        if before != (book.number, book.aside):
            added.append(lines.entered(entry))
        return Verdict.BOOKED

    def knows(self, session: str) -> bool:
        """Whether there are books of a session. Raises ``JournalDown`` if those of before cannot be read."""
        self._begin()
        return session in self.books

    def read(self, session: str) -> tuple[int, Statement]:
        """Epoch and books of a session, as acknowledged. Raises ``UnknownSession`` and ``JournalDown``."""
        book = self._book(session)
        if session in self.journal.ready():
            self._write([lines.whole(book.statement(), book.epoch)])
        return book.epoch, book.statement()

    def claim(self, session: str, number: int | None = None) -> tuple[int, Statement]:
        """As ``read``, for whoever takes the session over: whoever wrote it before is fenced off.

        Raises ``FencedOff`` if there are other than ``number`` operations in the books: who claims has not got all.
        """
        book = self._book(session)
        if number not in (None, book.number):
            raise FencedOff(f"the books of {session} have {book.number} operations; {number} have come")
        statement = book.statement()
        self.journal.ready()
        self._write([lines.whole(statement, book.epoch + 1)])
        book.epoch += 1
        return book.epoch, statement

    def close(self, session: str, epoch: int) -> None:
        """Forget a session, unless somebody else has taken it over; unknown ones are no error.

        Raises ``JournalDown``: it is forgotten here, and taken out of the journal as soon as that is back.
        """
        self._begin()
        if session in self.books and self.books[session].epoch <= epoch:
            del self.books[session]
            self.leaving.add(session)
            self.journal.ready()
            self._write([lines.gone(session)])
            self.leaving.discard(session)

    def tend(self) -> None:
        """What is due from time to time: take the books up, write what an outage left unwritten, free space."""
        with suppress(JournalDown):
            self._begin()
            self._mend()
        self.journal.tend()

    def statistics(self) -> dict[str, int]:
        """Sessions, entries by what became of them, and how the journal fares; ``journal_down`` is 0 or 1."""
        found = self.journal.statistics()
        told = {
            "down": int(bool(found.down)),
            "live_bytes": found.live_bytes,
            "held_bytes": found.held_bytes,
            "unwritten": found.wanting + len(self.leaving),
            "failures": found.failures,
            "damaged": found.damaged,
            "lost": self.lost,
        }
        counts = {verdict.value: n for verdict, n in self.counts.items()}
        return {"sessions": len(self.books), **counts, **{f"journal_{name}": n for name, n in told.items()}}

    # -- books

    def _book(self, session: str) -> Book:
        self._begin()
        if session not in self.books:
            raise UnknownSession(f"no books of {session!r}")
        return self.books[session]

    def _put(self, statement: Statement, epoch: int) -> int:
        forgotten = self._forgettable() if statement.session not in self.books else []
        book = self._made(statement, epoch)
        self.journal.ready()
        self._write([*map(lines.gone, forgotten), lines.whole(book.statement(), epoch)])
        for session in forgotten:
            del self.books[session]
        self.leaving.discard(statement.session)
        self.books[statement.session] = book
        return epoch

    def _made(self, statement: Statement, epoch: int) -> Book:
        terms, answers = statement.terms, Answers()
        config = replace(terms.config, log_capacity=LOG_CAPACITY)
        manager = load(statement.state, statement.session, terms.specs, terms.policy, config, answers)
        heard = self.clock()
        return Book(manager, answers, terms, epoch, statement.number, heard, statement.aside, statement.order)

    def _forgettable(self) -> list[str]:
        """Who makes room for one more, if that is needed."""
        if len(self.books) < self.sessions:
            return []
        oldest = min(self.books, key=lambda name: self.books[name].heard)
        if self.clock() - self.books[oldest].heard < self.forget_s:
            raise NoCapacity(f"{len(self.books)} sessions are in the books; expected at most {self.sessions} a shard")
        return [oldest]

    # -- the journal

    def _write(self, written: Sequence[lines.Line]) -> None:
        if not written:
            return
        self.journal.append(written)
        for line in written:
            book = self.books.get(line.session)
            if book is not None and line.kind is lines.Kind.WHOLE:
                book.lines, book.whole_due = 0, False
            elif book is not None:
                book.lines += 1

    def _mend(self) -> None:
        """Write whole what nobody knows to be written, and take out what was closed meanwhile."""
        wanting = self.journal.ready()
        while left := sorted(wanting | self.leaving, key=lambda name: (name in self.books, name))[:AT_ONCE]:
            ended = [name for name in left if name not in self.books]
            going_on = [] if ended else [self.books[name] for name in left]  # for which the ended make room first
            self._write([*map(lines.gone, ended), *(lines.whole(b.statement(), b.epoch) for b in going_on)])
            self.leaving.difference_update(ended)
            wanting = self.journal.ready()

    def _begin(self) -> None:
        """Take the books up from the journal, once. Raises ``JournalDown``, and then it is tried again."""
        if self.taken_up:
            return
        replay = self.journal.replay()
        self.books, self.lost = {}, len(replay.damaged)
        for damage in replay.damaged:
            LOG.error("the journal is damaged", extra={"reason": damage})
        for session, data in replay.sessions.items():
            try:
                self.books[session] = self._again(session, data)
            except SnapshotMismatch as error:
                raise JournalDown(f"the journal was written by another release: {error}") from error
            except UNUSABLE as error:
                LOG.error("books cannot be taken up", extra={"session": session, "reason": repr(error)})
                self.leaving.add(session)
                self.lost += 1
        self.taken_up = True
        LOG.info("books taken up", extra={"sessions": len(self.books), "torn_bytes": replay.torn_bytes})

    def _again(self, session: str, data: Sequence[bytes]) -> Book:
        """The books that lines of the journal tell of, which must come to what was acknowledged."""
        first = lines.parse(session, data[0])
        if isinstance(first, Entry):
            raise SnapshotCorrupt(f"{session!r} begins with an entry; expected whole books")
        book = self._made(*first)
        for packed in data[1:]:
            entry = lines.parse(session, packed)
            if not isinstance(entry, Entry) or entry.number > book.number or not book.apply(entry):
                raise SnapshotCorrupt(f"{session!r}: an entry does not lead to the books that were acknowledged")
        book.lines = len(data) - 1
        return book


def shard_of(session: str, shards: int) -> int:
    """The shard that has the books of a session; the same in every process."""
    return crc32(session.encode()) % shards

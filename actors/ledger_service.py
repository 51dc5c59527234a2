"""The ledger service: the books of every session once more, outside the generators, and who may write to them.

A generator carries plans out the moment its own books make them; the service does the same operations on books of its
own and compares. So nothing waits for a plan, and books that survive a generator are there without a replay. A chunk is
shown only after its commit was acknowledged here (docs/decisions/0008).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from zlib import crc32

from cache.books import CacheConfig
from cache.manager import CacheManager
from cache.operations import Operation
from cache.policies.base import Policy
from cache.replica import Answers, apply, digest
from cache.spec import AttentionSpec, AttentionType
from cache.state import dump, load
from errors import FencedOff, LongtakeError, NoCapacity, UnknownSession

SESSIONS = 4096
FORGET_S = 3600.0
LOG_CAPACITY = 64  # decisions that are kept a session; the generator's own log is the one that is read


@dataclass(frozen=True)
class Terms:
    """What books are kept by: the same for all sessions of a generator."""

    specs: dict[AttentionType, AttentionSpec]
    policy: Policy
    config: CacheConfig


@dataclass(frozen=True)
class Statement:
    """Whole books as their generator has them.

    Args:
        number: operations that are in them.
        aside: what else the generator wants to be kept with the books, as it was then.
        order: what the session was to be; never changes.
    """

    session: str
    terms: Terms
    state: dict[str, Any]
    number: int
    aside: bytes = b""
    order: bytes = b""


@dataclass(frozen=True)
class Entry:
    """The operations up to the commit of ``chunk``, after ``number`` others; ``digest``: of the books then.

    ``aside``: what the generator wants to be kept with the books; the latest is.
    """

    session: str
    chunk: int
    number: int
    operations: Sequence[Operation]
    digest: bytes
    epoch: int = 0
    aside: bytes = b""

    def under(self, epoch: int) -> "Entry":
        """The same, written under a fencing epoch."""
        return replace(self, epoch=epoch)


class Verdict(StrEnum):
    """What became of an entry. After ``behind`` and ``differs`` the service wants a ``Statement``."""

    BOOKED = "booked"
    BEHIND = "behind"
    DIFFERS = "differs"
    FENCED = "fenced"


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


class LedgerShard:
    """The books of some sessions, at most ``sessions``; those nobody wrote to for ``forget_s`` make room if they must.

    A generator that finds its session forgotten states it anew, so that nothing is lost but the fence.
    """

    def __init__(
        self, sessions: int = SESSIONS, forget_s: float = FORGET_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.sessions, self.forget_s, self.clock = sessions, forget_s, clock
        self.books: dict[str, Book] = {}
        self.counts = dict.fromkeys(Verdict, 0)

    def open(self, statement: Statement) -> int:
        """Take a session over, or begin it; returns the epoch under which it may be written from now on.

        Whoever wrote it before is fenced off. Raises ``NoCapacity``, and then nothing was changed.
        """
        before = self.books.get(statement.session)
        if before is None:
            self._make_room()
        self._put(statement, 1 if before is None else before.epoch + 1)
        return self.books[statement.session].epoch

    def state(self, statement: Statement, epoch: int) -> None:
        """Put a session's books right, by the generator that has it. Raises ``FencedOff`` and ``NoCapacity``."""
        before = self.books.get(statement.session)
        if before is None:
            self._make_room()
        elif epoch < before.epoch:
            raise FencedOff(f"{statement.session} is written under epoch {before.epoch}; this generator has {epoch}")
        self._put(statement, epoch)

    def commit(self, entries: Sequence[Entry]) -> list[Verdict]:
        """Book the entries, each once however often it comes."""
        verdicts = [self._commit(entry) for entry in entries]
        for verdict in verdicts:
            self.counts[verdict] += 1
        return verdicts

    def _commit(self, entry: Entry) -> Verdict:
        book = self.books.get(entry.session)
        if book is None or entry.epoch > book.epoch or entry.number > book.number:
            return Verdict.BEHIND
        if entry.epoch < book.epoch:
            return Verdict.FENCED
        book.heard = self.clock()
        after = entry.number + len(entry.operations)
        if after < book.number:
            return Verdict.BOOKED  # repeated, and more has come since
        try:
            for operation in entry.operations[book.number - entry.number :]:
                apply(book.manager, book.answers, operation)
                book.number += 1
        except (LongtakeError, ArithmeticError, LookupError, TypeError, ValueError):
            return Verdict.DIFFERS
        if digest(book.manager) != entry.digest:
            return Verdict.DIFFERS
        book.aside = entry.aside
        return Verdict.BOOKED

    def read(self, session: str) -> tuple[int, Statement]:
        """Epoch and books of a session. Raises ``UnknownSession``."""
        if session not in self.books:
            raise UnknownSession(f"no books of {session!r}")
        book = self.books[session]
        return book.epoch, Statement(session, book.terms, dump(book.manager), book.number, book.aside, book.order)

    def claim(self, session: str) -> tuple[int, Statement]:
        """As ``read``, for whoever takes the session over: whoever wrote it before is fenced off."""
        self.read(session)
        self.books[session].epoch += 1
        return self.read(session)

    def close(self, session: str, epoch: int) -> None:
        """Forget a session, unless somebody else has taken it over; unknown ones are no error."""
        if session in self.books and self.books[session].epoch <= epoch:
            del self.books[session]

    def statistics(self) -> dict[str, int]:
        """Sessions, and entries by what became of them."""
        return {"sessions": len(self.books), **{verdict.value: n for verdict, n in self.counts.items()}}

    def _put(self, statement: Statement, epoch: int) -> None:
        terms, answers = statement.terms, Answers()
        config = replace(terms.config, log_capacity=LOG_CAPACITY)
        manager = load(statement.state, statement.session, terms.specs, terms.policy, config, answers)
        self.books[statement.session] = Book(
            manager, answers, terms, epoch, statement.number, self.clock(), statement.aside, statement.order
        )

    def _make_room(self) -> None:
        if len(self.books) < self.sessions:
            return
        oldest = min(self.books, key=lambda name: self.books[name].heard)
        if self.clock() - self.books[oldest].heard < self.forget_s:
            raise NoCapacity(f"{len(self.books)} sessions are in the books; expected at most {self.sessions} a shard")
        del self.books[oldest]


def shard_of(session: str, shards: int) -> int:
    """The shard that has the books of a session; the same in every process."""
    return crc32(session.encode()) % shards

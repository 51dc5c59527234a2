"""The journal of the ledger service: what outlives the process that keeps the books, and the choice to have none.

A session's lines are one ``whole``, which replaces all that was written of it before, and any number of ``more`` behind
it; ``gone`` takes the session out. What a line says is its owner's affair: here it is bytes. The owner appends, and
acknowledges only what ``append`` has returned from.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import xxhash

from errors import IntegrityError


class Kind(IntEnum):
    """What a line does to the lines of its session before it. The values are written to disk."""

    WHOLE = 1
    MORE = 2
    GONE = 3


@dataclass(frozen=True)
class Line:
    """One entry of a journal; ``data`` is empty for ``gone``."""

    session: str
    kind: Kind
    data: bytes = b""


@dataclass(frozen=True)
class Replay:
    """What a journal has.

    Args:
        sessions: by session, the data of its ``whole`` and of what follows it; every line that was ever acknowledged,
            in order.
        damaged: what is lost, in words: a session of which a line is damaged or missing is not in ``sessions``.
        torn_bytes: of appends that a death interrupted, which nobody was told of; cut off.
    """

    sessions: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    torn_bytes: int = 0


@dataclass(frozen=True)
class JournalStatistics:
    """What a journal holds and how it fares.

    Args:
        live_bytes: of lines that a replay would give; ``held_bytes`` with those that are replaced already.
        wanting: sessions that must be written whole, because nobody knows what of them was written.
        damaged: lines that were found damaged, since the journal was opened.
        down: why nothing can be written now; empty if it can.
    """

    sessions: int = 0
    live_bytes: int = 0
    held_bytes: int = 0
    wanting: int = 0
    appends: int = 0
    failures: int = 0
    compactions: int = 0
    damaged: int = 0
    down: str = ""


class Journal(Protocol):
    """Lines by session, on something that outlives the process. One owner at a time: a second one is refused.

    Every method may raise ``JournalDown``, and then may be called again; nothing is buffered.
    """

    def replay(self) -> Replay:
        """All that is there, checked; called once, before anything else. What is damaged is taken out."""
        ...

    def ready(self) -> frozenset[str]:
        """Have the medium in order, and tell which sessions must be written whole in the next ``append``.

        These are sessions of an ``append`` that failed, of which nobody knows how much was written, and sessions that
        the medium has lost. Called before each ``append``, which must honour the answer.
        """
        ...

    def append(self, lines: Sequence[Line]) -> None:
        """Write the lines; when this returns, they survive what the journal's policy says that they survive."""
        ...

    def tend(self) -> None:
        """What is due from time to time: writes that are to be flushed, space that is to be freed. Never raises."""
        ...

    def statistics(self) -> JournalStatistics:
        """A frozen summary."""
        ...

    def close(self) -> None:
        """Let go of the medium; nothing that was acknowledged is lost without it."""
        ...


class Nowhere(Journal):
    """No journal: books last as long as their process."""

    def replay(self) -> Replay:
        return Replay()

    def ready(self) -> frozenset[str]:
        return frozenset()

    def append(self, lines: Sequence[Line]) -> None:
        pass

    def tend(self) -> None:
        pass

    def statistics(self) -> JournalStatistics:
        return JournalStatistics()

    def close(self) -> None:
        pass


def wholly_again(lines: Sequence[Line], wanting: frozenset[str] | set[str]) -> None:
    """Raise ``IntegrityError`` if something follows lines of a session of which nobody knows whether they are there."""
    begun: set[str] = set()
    for line in lines:
        if line.kind is Kind.MORE and line.session in wanting and line.session not in begun:
            raise IntegrityError(f"{line.session!r} is to be written whole; got a line that follows others")
        begun.add(line.session)


def checksum(*parts: bytes | int | str) -> int:
    """xxh3-64 over parts, each bound to its length and kind."""
    state = xxhash.xxh3_64()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.intdigest()


@dataclass
class Chain:
    """The lines of one session as they are read back: whole, then each with the number after the one before."""

    last: int = -1
    lines: list[bytes] | None = None
    broken: bool = False

    def take(self, kind: Kind, number: int, data: bytes) -> None:
        """The next line in the order of writing."""
        if kind is Kind.MORE:
            self.broken = self.broken or self.lines is None or number != self.last + 1
            if self.lines is not None:
                self.lines.append(data)
        else:
            self.broken, self.lines = False, [data] if kind is Kind.WHOLE else None
        self.last = number


def taken_up(lines: Iterable[tuple[str, Kind, int, bytes]]) -> dict[str, Chain]:
    """Chains by session of lines in the order of writing; those of sessions that are gone have no lines."""
    chains: dict[str, Chain] = {}
    for session, kind, number, data in lines:
        chains.setdefault(session, Chain()).take(kind, number, data)
    return chains

"""The journal as a file of this machine: lines are appended, and the file is written anew when half of it is replaced.

What was appended survives the death of the process at once, whatever the policy: the kernel has it. The policy says
what survives the machine. The file is written anew under another name, which becomes the journal's when all is on the
disk, so that at any moment there is one whole journal.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cache import frames
from cache.compaction import Place, copied, write_all
from cache.frames import PREAMBLE, Before, Damage, Frame, Torn
from cache.journal import Journal, JournalStatistics, Kind, Line, Replay, taken_up, wholly_again
from errors import ConfigError, JournalDown

Fsync = Literal["commit", "interval", "never"]


@dataclass(frozen=True)
class Keeping:
    """How a file journal is kept.

    Args:
        fsync: when what was written is forced to the disk, so that it survives a loss of power: with each ``commit``,
            at an ``interval`` of ``fsync_s``, or ``never``, when the kernel likes. The death of the process loses
            nothing in any case.
        max_bytes: of lines that are in force; beyond it nothing is booked until a session ends. The file is at most
            twice as large, and while it is written anew there are two.
        slack_bytes: a file that is smaller is not written anew to save space.
        erase_s: after which the bytes of a session that ended are gone from the file.
    """

    fsync: Fsync = "commit"
    fsync_s: float = 1.0
    max_bytes: int = 256 << 20
    slack_bytes: int = 1 << 20
    erase_s: float = 60.0

    def __post_init__(self) -> None:
        if self.fsync_s <= 0 or self.erase_s < 0:
            raise ConfigError(f"fsync_s is {self.fsync_s} and erase_s {self.erase_s}; expected seconds")
        if not 0 < self.slack_bytes <= self.max_bytes:
            raise ConfigError(
                f"slack_bytes is {self.slack_bytes:,} and max_bytes {self.max_bytes:,}; expected 0 < slack <= max"
            )


class FileJournal(Journal):
    """One file, one owner: a lock beside it refuses a second one, also in another process.

    Not for several threads.
    """

    def __init__(self, path: Path, keeping: Keeping, clock: Callable[[], float]) -> None:
        self.path, self.keeping, self.clock = path, keeping, clock
        self._fd = self._lock = -1
        self._end, self._before = 0, Before()
        self._live: dict[str, list[Place]] = {}
        self._numbers: dict[str, int] = {}
        self._live_bytes = 0
        self._wanting: set[str] = set()
        self._ragged = self._doubtful = False  # bytes behind the end; pages that the disk may not have
        self._unsynced_since: float | None = None
        self._gone_since: float | None = None
        self._rewrite_above = keeping.slack_bytes
        self._appends = self._failures = self._compactions = self._damaged = 0
        self._down = "not read yet"

    def replay(self) -> Replay:
        with self._or_down():
            self._own()
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            data = self.path.read_bytes() if self.path.exists() else b""
            if data:
                found = self._recognised(data)
                self._fd = os.open(self.path, os.O_RDWR)
                replay = self._settle(found, len(data))
            else:
                self._rewrite()
                replay = Replay()
        self._down = ""
        return replay

    def ready(self) -> frozenset[str]:
        with self._or_down():
            if self._fd < 0:
                raise JournalDown(f"{self.path.name} was not read yet")
            if self._doubtful:
                self._rewrite()
            elif self._ragged:
                os.ftruncate(self._fd, self._end)
                self._ragged = False
        return frozenset(self._wanting)

    def append(self, lines: Sequence[Line]) -> None:
        wholly_again(lines, self.ready())
        try:
            self._make_room(lines)
            with self._or_down():
                self._write(lines)
        except JournalDown:
            self._wanting.update(line.session for line in lines)
            raise
        self._appends, self._down = self._appends + 1, ""
        self._wanting.difference_update(line.session for line in lines)

    def tend(self) -> None:
        now = self.clock()
        with suppress(JournalDown), self._or_down():
            if self._fd < 0:
                return
            unsynced, gone = self._unsynced_since, self._gone_since
            if self.keeping.fsync == "interval" and unsynced is not None and now - unsynced >= self.keeping.fsync_s:
                self._sync()
            if gone is not None and now - gone >= self.keeping.erase_s:
                self._rewrite()

    def statistics(self) -> JournalStatistics:
        counts = (self._appends, self._failures, self._compactions, self._damaged)
        return JournalStatistics(
            len(self._live), self._live_bytes, self._end, len(self._wanting), *counts, down=self._down
        )

    def close(self) -> None:
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1

    # -- reading

    def _own(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._lock < 0:
            lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                raise JournalDown(f"{self.path.name} belongs to another process; expected it to be let go of") from None
            self._lock = lock
        self._new.unlink(missing_ok=True)

    @property
    def _new(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    def _recognised(self, data: bytes) -> list[Frame | Damage | Torn]:
        """What is in the file. Raises ``JournalDown`` if it is none of ours, and then it is not touched."""
        version = frames.version_of(data)
        if version not in (None, frames.VERSION):
            raise JournalDown(
                f"{self.path.name} is a journal of version {version}; this release reads {frames.VERSION}"
            )
        found = frames.scan(data)
        if version is None:
            if not any(isinstance(f, Frame) for f in found):
                raise JournalDown(f"{self.path.name} is no journal; expected one, or no file")
            found.insert(0, Damage(0, PREAMBLE, 0))
        return found

    def _settle(self, found: Sequence[Frame | Damage | Torn], length: int) -> Replay:
        """Take up what is whole, and take out what is not."""
        whole = [f for f in found if isinstance(f, Frame)]
        damages = [f for f in found if isinstance(f, Damage)]
        torn = sum(f.size for f in found if isinstance(f, Torn))
        self._live, self._numbers, self._live_bytes, self._end = {}, {}, 0, length - torn
        for frame in whole:
            self._book(Line(frame.session, frame.kind), frame.number, Place(frame.at, frame.size))
        self._before = Before(frames.key_of(whole[-1].session), whole[-1].at) if whole else Before()
        told = [f"{self.path.name}: {d.size} bytes at {d.at} are damaged" for d in damages]
        chains = taken_up((f.session, f.kind, f.number, f.data) for f in whole)
        for session, places in list(self._live.items()):
            if chains[session].broken or any(_hits(d, session, places[-1].at) for d in damages):
                told.append(f"{self.path.name}: lines of {session!r} are damaged or missing: it is not taken up")
                self._strike(session)
                del chains[session]
        if damages:
            self._damaged += len(damages)
            self._rewrite()
        elif torn:
            os.ftruncate(self._fd, self._end)
            os.fdatasync(self._fd)
        self._rewrite_above = max(self.keeping.slack_bytes, 2 * self._live_bytes)
        sessions = {s: c.lines for s, c in chains.items() if c.lines is not None}
        return Replay(sessions, tuple(told), torn)

    # -- writing

    def _make_room(self, lines: Sequence[Line]) -> None:
        """Write the file anew if that is due. Raises ``JournalDown`` if the lines have no room."""
        size = sum(frames.HEAD + len(line.session.encode()) + len(line.data) for line in lines)
        replaced = {line.session for line in lines if line.kind is not Kind.MORE}
        live = self._live_bytes + size - sum(p.size for s in replaced for p in self._live.get(s, ()))
        if live > self.keeping.max_bytes and any(line.kind is not Kind.GONE for line in lines):
            self._failures += 1
            self._down = f"the journal is full: {live:,} bytes in force; expected at most {self.keeping.max_bytes:,}"
            raise JournalDown(self._down)
        if self._end + size > self._rewrite_above:
            self._rewrite_above = self._end + self.keeping.slack_bytes  # if it fails now, the old file goes on so far
            with suppress(JournalDown), self._or_down():
                self._rewrite()
        if self._end + size > 2 * self.keeping.max_bytes + self.keeping.slack_bytes:
            raise JournalDown(f"{self.path.name} cannot be written anew and has {self._end:,} bytes: {self._down}")

    def _write(self, lines: Sequence[Line]) -> None:
        numbers: dict[str, int] = {}
        blocks, booked, at, before = [], [], self._end, self._before
        for line in lines:
            number = numbers[line.session] = numbers.get(line.session, self._numbers.get(line.session, -1)) + 1
            blocks.append(frames.pack(line.session, line.kind, number, line.data, at, self._end, before))
            booked.append((line, number, Place(at, len(blocks[-1]))))
            before = Before(frames.key_of(line.session), at)
            at += len(blocks[-1])
        self._ragged = True
        write_all(self._fd, b"".join(blocks), self._end)
        if self._unsynced_since is None:
            self._unsynced_since = self.clock()
        waited = self.clock() - self._unsynced_since
        if self.keeping.fsync == "commit" or (self.keeping.fsync == "interval" and waited >= self.keeping.fsync_s):
            self._sync()
        self._ragged, self._end, self._before = False, at, before
        for one in booked:
            self._book(*one)

    def _sync(self) -> None:
        """After a failure nobody knows which pages the disk has (they count as written): all is written anew."""
        self._doubtful = True
        os.fdatasync(self._fd)
        self._doubtful, self._unsynced_since = False, None

    def _book(self, line: Line, number: int, place: Place) -> None:
        if line.kind is not Kind.MORE:
            self._strike(line.session)
        self._numbers[line.session] = number
        if line.kind is Kind.GONE:
            del self._numbers[line.session]
            self._gone_since = self.clock() if self._gone_since is None else self._gone_since
        else:
            self._live.setdefault(line.session, []).append(place)
            self._live_bytes += place.size

    def _strike(self, session: str) -> None:
        self._live_bytes -= sum(place.size for place in self._live.pop(session, ()))
        self._numbers.pop(session, None)

    # -- writing anew

    def _rewrite(self) -> None:
        """All lines in force, and nothing else, in a new file that takes the place of the old one."""
        try:
            fd = os.open(self._new, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                made = copied(self._fd, fd, self._live)
                os.fsync(fd)
                os.rename(self._new, self.path)
            except BaseException:
                os.close(fd)
                raise
        except OSError:
            with suppress(OSError):
                self._new.unlink(missing_ok=True)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._end, self._live, self._before = fd, made.end, made.live, made.before
        self._live_bytes = made.end - PREAMBLE
        self._wanting |= made.rotten
        self._damaged += len(made.rotten)
        self._compactions += 1
        self._ragged, self._doubtful = False, True  # until the folder is on the disk too
        self._rewrite_above = max(self.keeping.slack_bytes, 2 * self._live_bytes)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._doubtful, self._unsynced_since, self._gone_since = False, None, None

    @contextmanager
    def _or_down(self) -> Iterator[None]:
        """An error of the disk is a ``JournalDown``, and stays to be seen until something succeeds."""
        try:
            yield
        except OSError as error:
            self._failures += 1
            self._down = f"{self.path.name}: {error.strerror or error}"
            raise JournalDown(f"the journal cannot be read or written now; {self._down}") from error
        except JournalDown as error:
            self._down = str(error)
            raise


def _hits(damage: Damage, session: str, last: int) -> bool:
    """Whether the damage may be of a line that followed the last one of a session."""
    return damage.at > last and damage.key in (None, frames.key_of(session))

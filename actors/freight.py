"""Files of takes on their way out of a generator and into one, piece by piece, as whoever is at the other end asks.

A few at a time; one for whose next piece nobody has asked for a while makes room if it must. Event loop only.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from errors import BadMessage, NoCapacity

PIECE = 1 << 20
MOST = 2  # files each way at a time
PATIENCE_S = 30.0


@dataclass
class File:
    """One file: ``data`` so far, of ``nbytes``, and when somebody last asked for it or sent a part of it."""

    data: bytearray
    nbytes: int
    heard: float


@dataclass
class Freight:
    """See the module. ``most``: files at a time, of whatever size callers allow."""

    most: int = MOST
    patience_s: float = PATIENCE_S
    clock: Callable[[], float] = time.monotonic
    _files: dict[str, File] = field(default_factory=dict)

    def reserve(self) -> str:
        """A place for a file; raises ``NoCapacity``."""
        now = self.clock()
        for ticket in [t for t, file in self._files.items() if now - file.heard > self.patience_s]:
            del self._files[ticket]
        if len(self._files) >= self.most:
            raise NoCapacity(f"{len(self._files)} takes are on their way already; expected at most {self.most}")
        ticket = secrets.token_hex(8)
        self._files[ticket] = File(bytearray(), 0, now)
        return ticket

    def drop(self, ticket: str) -> None:
        """Forget a file; unknown ones are no error."""
        self._files.pop(ticket, None)

    # -- out

    def put(self, ticket: str, data: bytes) -> None:
        """What is to go out."""
        self._files[ticket] = File(bytearray(data), len(data), self.clock())

    def piece(self, ticket: str, offset: int) -> bytes:
        """The next piece; the file is forgotten with the last. Raises ``BadMessage``."""
        file = self._known(ticket)
        if not 0 <= offset < file.nbytes:
            raise BadMessage(f"offset is {offset}; expected one of the {file.nbytes:,} bytes of the file")
        piece = bytes(file.data[offset : offset + PIECE])
        if offset + len(piece) == file.nbytes:
            self.drop(ticket)
        return piece

    # -- in

    def expect(self, ticket: str, nbytes: int) -> None:
        """So many bytes are to come."""
        self._known(ticket).nbytes = nbytes

    def add(self, ticket: str, offset: int, piece: bytes) -> None:
        """The next piece came; raises ``BadMessage`` if it is another, or more than was announced."""
        file = self._known(ticket)
        if offset != len(file.data) or offset + len(piece) > file.nbytes:
            raise BadMessage(
                f"{len(piece):,} bytes at {offset:,}; expected the next after {len(file.data):,} of {file.nbytes:,}"
            )
        file.data += piece

    def whole(self, ticket: str) -> bytes:
        """The file, which is forgotten; raises ``BadMessage`` if some of it has not come."""
        file = self._known(ticket)
        self.drop(ticket)
        if len(file.data) != file.nbytes:
            raise BadMessage(f"{len(file.data):,} bytes of the take have come; expected {file.nbytes:,}")
        return bytes(file.data)

    def _known(self, ticket: str) -> File:
        if ticket not in self._files:
            raise BadMessage(f"no file {ticket!r} is on its way; it came to its end, or was given up: begin anew")
        file = self._files[ticket]
        file.heard = self.clock()
        return file

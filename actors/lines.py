"""The lines that a shard of the ledger service writes to its journal, in msgpack: whole books, or an entry.

Each is a list that begins with the version of this form and what it is.
"""

from typing import Any

import msgpack

from actors.statements import Entry, Statement
from cache.journal import Kind as Kind
from cache.journal import Line as Line
from cache.operations import Operation
from cache.terms import parse_terms, plain_terms
from errors import SnapshotCorrupt, SnapshotMismatch

VERSION = 1


def whole(statement: Statement, epoch: int) -> Line:
    """Books that replace all that was written of the session before."""
    s = statement
    plain = [epoch, plain_terms(s.terms), s.state, s.number, s.aside, s.order]
    return Line(s.session, Kind.WHOLE, _pack("whole", plain))


def entered(entry: Entry) -> Line:
    """What was booked after the lines before it."""
    operations = [[o.do, o.arguments, o.held] for o in entry.operations]
    plain = [entry.chunk, entry.number, operations, entry.digest, entry.epoch, entry.aside]
    return Line(entry.session, Kind.MORE, _pack("entry", plain))


def gone(session: str) -> Line:
    """The session is to be forgotten."""
    return Line(session, Kind.GONE)


def parse(session: str, data: bytes) -> tuple[Statement, int] | Entry:
    """What a line of ``session`` says: whole books and their epoch, or an entry.

    Raises:
        SnapshotCorrupt: it is no such line.
        SnapshotMismatch: it was written by another release.
    """
    try:
        version, what, *plain = msgpack.unpackb(data, raw=False, strict_map_key=False)
        if version != VERSION:
            raise SnapshotMismatch(f"a line of the journal has version {version}; this release reads {VERSION}")
        if what == "whole":
            epoch, terms, *rest = plain
            return Statement(session, parse_terms(terms), *rest), epoch
        if what == "entry":
            chunk, number, operations, *rest = plain
            return Entry(session, chunk, number, [Operation(*o) for o in operations], *rest)
    except (ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException) as error:
        raise SnapshotCorrupt(f"a line of {session!r} cannot be read: {error!r}") from error
    raise SnapshotCorrupt(f"a line of {session!r} is {what!r}; expected whole or entry")


def _pack(what: str, plain: list[Any]) -> bytes:
    packed: bytes = msgpack.packb([VERSION, what, *plain], use_bin_type=True)
    return packed

"""Frames of the file journal: one line as bytes that say where they stand, how long they are and that they are whole.

``preamble | frame | frame | ...``, and a frame is ``head | payload``. Head and payload have a checksum each (xxh3-64):
a head that can be believed says how long its payload is and whose it was even when the payload is damaged. The head's
is seeded with the frame's place in the file, so that a frame which lies within another's payload, or where it was
not written, is none.
"""

import struct
from dataclasses import dataclass, replace
from itertools import pairwise

import xxhash

from cache.journal import Kind
from errors import ConfigError

MAGIC, VERSION = b"LONGTAKEJOURNAL\n", 1
_PREAMBLE = struct.Struct("<16sHQ")  # magic, version, checksum
# mark, kind, bytes of the name, bytes of all, session, number, where its append began, session and place of the frame
# before, checksums of payload and head
_HEAD = struct.Struct("<4sBBxxIQQQQQQQ")
MARK = b"\xa5LTJ"
PREAMBLE, HEAD = _PREAMBLE.size, _HEAD.size
SECTOR = 512  # what a disk writes whole or not at all, at the least
LONGEST_NAME = 255


@dataclass(frozen=True)
class Before:
    """Hash of the session of the frame before, and where that stands: whose it was if its own head is damaged."""

    key: int = 0
    at: int = 0


@dataclass(frozen=True)
class Frame:
    """A whole line, and the bytes of the file that it takes: [at, at + size).

    Args:
        since: where its append began.
        before: the frame before.
    """

    session: str
    kind: Kind
    number: int
    data: bytes
    at: int
    size: int
    since: int
    before: "Before"


@dataclass(frozen=True)
class Damage:
    """Bytes [at, at + size) of the file that are no frame; ``key``: hash of their session, if they say it."""

    at: int
    size: int
    key: int | None


@dataclass(frozen=True)
class Torn:
    """What is left of an append that was interrupted: all from ``at`` on."""

    at: int
    size: int


def preamble(version: int = VERSION) -> bytes:
    """What a journal begins with."""
    return _PREAMBLE.pack(MAGIC, version, xxhash.xxh3_64_intdigest(MAGIC, version))


def version_of(data: bytes) -> int | None:
    """The version that a file says it is of; ``None`` if it does not begin like a journal."""
    if len(data) < PREAMBLE:
        return None
    magic, version, digest = _PREAMBLE.unpack_from(data)
    whole = magic == MAGIC and digest == xxhash.xxh3_64_intdigest(MAGIC, version)
    return int(version) if whole else None


def key_of(session: str) -> int:
    """What a head names a session by."""
    return xxhash.xxh3_64_intdigest(session.encode())


def pack(session: str, kind: Kind, number: int, data: bytes, at: int, since: int, before: Before) -> bytes:
    """A line as the frame that stands at byte ``at``. Raises ``ConfigError`` if the name is too long."""
    name = session.encode()
    if len(name) > LONGEST_NAME:
        raise ConfigError(f"the name of a session has {len(name)} bytes; expected at most {LONGEST_NAME}")
    payload = name + data
    digest = xxhash.xxh3_64_intdigest(payload)
    places = (since, before.key, before.at)
    bare = _HEAD.pack(MARK, kind, len(name), len(payload), key_of(session), number, *places, digest, 0)
    return bare[:-8] + _sign(bare, at) + payload


def unpack(block: bytes, at: int) -> Frame | Damage | None:
    """The frame that ``block`` begins with, read from byte ``at``; ``None`` if no head there can be believed."""
    if not _believable(block[:HEAD], at):
        return None
    _, kind, named, length, key, number, since, key_before, at_before, digest, _ = _HEAD.unpack_from(block)
    payload = block[HEAD : HEAD + length]
    if xxhash.xxh3_64_intdigest(payload) != digest:
        return Damage(at, HEAD + length, key)
    before = Before(key_before, at_before)
    return Frame(payload[:named].decode(), Kind(kind), number, payload[named:], at, HEAD + length, since, before)


def scan(data: bytes) -> list[Frame | Damage | Torn]:
    """All that a file has behind its preamble, in order; ``Torn`` comes last, if it comes.

    Torn is what a death or a loss of power in the middle of the last append leaves: less than a frame, or sectors of
    it that were never written. What else is no frame is damage.
    """
    found: list[Frame | Damage | Torn] = []
    at = PREAMBLE
    while at < len(data):
        found.append(_at(data, at))
        at = found[-1].at + found[-1].size
    for i, (one, following) in enumerate(pairwise(found)):
        if isinstance(one, Damage) and isinstance(following, Frame) and following.before.at == one.at:
            found[i] = replace(one, key=following.before.key)
    begun = next((f.since for f in reversed(found) if isinstance(f, Frame)), len(data))
    if any(isinstance(d, Damage) and d.at >= begun and _unwritten(data, d.at, d.at + d.size) for d in found):
        return [*(f for f in found if f.at < begun), Torn(begun, len(data) - begun)]
    return found


def _at(data: bytes, at: int) -> Frame | Damage | Torn:
    found = _read(data, at)
    if isinstance(found, Frame):
        return found
    if found is None:
        following = at
        while (following := data.find(MARK, following + 1)) >= 0:
            if _read(data, following) is not None:
                return Damage(at, following - at, None)
        found = Damage(at, len(data) - at, None)
    end, cut = found.at + found.size, found.key is None and len(data) - at < HEAD
    if cut or end > len(data) or (end == len(data) and _unwritten(data, at, end)):
        return Torn(at, len(data) - at)
    return found


def _read(data: bytes, at: int) -> Frame | Damage | None:
    head = data[at : at + HEAD]
    if not _believable(head, at):
        return None
    length: int = _HEAD.unpack(head)[3]
    return unpack(head + data[at + HEAD : at + HEAD + length], at)


def _believable(head: bytes, at: int) -> bool:
    marked = len(head) == HEAD and head.startswith(MARK)
    return marked and head[-8:] == _sign(head[:-8] + bytes(8), at)


def _sign(bare: bytes, at: int) -> bytes:
    return xxhash.xxh3_64_intdigest(bare, at).to_bytes(8, "little")


def _unwritten(data: bytes, begin: int, end: int) -> bool:
    """Whether a sector, or the part of one that lies in [begin, end), is nothing but zeros."""
    bounds = [begin, *range(begin - begin % SECTOR + SECTOR, end, SECTOR), end]
    parts = [data[a:b] for a, b in pairwise(bounds)]
    return any(len(part) >= HEAD and not any(part) for part in parts)

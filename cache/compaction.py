"""The copying of the lines that are in force from one journal file to another, each checked on its way."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cache import frames
from cache.frames import PREAMBLE, Before, Frame


@dataclass(frozen=True)
class Place:
    """Where a line stands in a file."""

    at: int
    size: int


@dataclass
class Copy:
    """A new file: its end, where which lines stand, its last frame, and sessions whose lines were damaged meanwhile.

    The latter are not in it.
    """

    end: int = PREAMBLE
    live: dict[str, list[Place]] = field(default_factory=dict)
    before: Before = field(default_factory=Before)
    rotten: set[str] = field(default_factory=set)


def copied(source: int, target: int, live: Mapping[str, Sequence[Place]]) -> Copy:
    """Write a whole journal with the lines of ``live`` to the file ``target``, which is empty. Raises ``OSError``."""
    made = Copy()
    write_all(target, frames.preamble(), 0)
    for session, places in live.items():
        found = [frames.unpack(os.pread(source, place.size, place.at), place.at) for place in places]
        whole = [frame for frame in found if isinstance(frame, Frame)]
        if len(whole) < len(found):
            made.rotten.add(session)
            continue
        made.live[session] = []
        for frame in whole:
            at = made.end
            block = frames.pack(session, frame.kind, frame.number, frame.data, at, at, made.before)
            write_all(target, block, at)
            made.live[session].append(Place(at, len(block)))
            made.before, made.end = Before(frames.key_of(session), at), at + len(block)
    return made


def write_all(fd: int, data: bytes, at: int) -> None:
    """All of ``data`` at byte ``at``. Raises ``OSError``, and then some of it may be written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written

"""Fragments of an MP4 file (ISO/IEC 14496-12, section 8.8): plain numbers in five kinds of boxes.

FFmpeg's muxer writes a fragment only when a frame of the *next* one arrives, and PyAV has no call to flush it. So that
a chunk leaves as soon as it is encoded, the fragments are ours; the header, which knows every codec, is FFmpeg's.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_KEY, _NO_KEY = 0x02000000, 0x01010000
_DEFAULT_BASE_IS_MOOF = 0x020000
_OFFSET_DURATION_SIZE_FLAGS = 0x000701


class Sample(NamedTuple):
    """An encoded frame; ``time`` and ``duration`` in units of its track's time scale, counted from the priming on."""

    data: bytes
    time: int
    duration: int
    key: bool


def fragment(sequence: int, tracks: Mapping[int, Sequence[Sample]]) -> bytes:
    """One ``moof`` and its ``mdat`` with the samples of each track, by track id; a track without any is left out."""
    tracks = {track: samples for track, samples in tracks.items() if samples}
    media = {track: b"".join(sample.data for sample in samples) for track, samples in tracks.items()}

    def moof(begin: int) -> bytes:
        """With the first sample's data at ``begin`` bytes from its own start."""
        runs = []
        for track, samples in tracks.items():
            runs.append(_traf(track, samples, begin))
            begin += len(media[track])
        return _box(b"moof", _full_box(b"mfhd", 0, 0, struct.pack(">I", sequence)), *runs)

    header_bytes = len(moof(0)) + 8
    return moof(header_bytes) + _box(b"mdat", *media.values())


def top_boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and whole bytes of each box of a file, in order; a box that is cut off at the end is left out."""
    begin = 0
    while len(data) - begin >= 8:
        size, kind = struct.unpack_from(">I4s", data, begin)
        if size < 8 or begin + size > len(data):
            return
        yield kind, data[begin : begin + size]
        begin += size


def _traf(track: int, samples: Sequence[Sample], begin: int) -> bytes:
    rows = [struct.pack(">3I", s.duration, len(s.data), _KEY if s.key else _NO_KEY) for s in samples]
    return _box(
        b"traf",
        _full_box(b"tfhd", 0, _DEFAULT_BASE_IS_MOOF, struct.pack(">I", track)),
        _full_box(b"tfdt", 1, 0, struct.pack(">Q", samples[0].time)),
        _full_box(b"trun", 0, _OFFSET_DURATION_SIZE_FLAGS, struct.pack(">Ii", len(rows), begin), *rows),
    )


def _box(kind: bytes, *parts: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, parts)), kind) + b"".join(parts)


def _full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), *parts)

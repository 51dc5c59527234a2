"""One record of the restore store as bytes that cannot lie: what it is and what is in it under one checksum.

``head | payload``: the head is one block of 4,096 bytes, so that the payload is aligned for direct I/O and for
one-sided transfer. The checksum (xxh3-128) covers the head and the payload; who opens a record says whose it must be.
"""

import struct
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import msgpack
import xxhash
from typing_extensions import Buffer

from errors import ConfigError, RecordCorrupt, RecordForeign

HEAD = 4096
MAGIC, VERSION = b"LTRECORD", 1
Kind = Literal["latents", "video_self", "audio_self", "audio_to_video", "video_to_audio"]
_FIXED = struct.Struct("<8sHHQ16s")  # magic, version, bytes of the label, bytes of the payload, checksum
_DIGEST = slice(_FIXED.size - 16, _FIXED.size)


@dataclass(frozen=True)
class Label:
    """What a record is.

    Args:
        generation: counts the writings of this key; an older one is another record.
        model: fingerprint of weights, configuration and chunk geometry.
        codec: name of the codec that made the payload, see ``cache.codec``.
        plain: what else is needed to make use of the payload: shapes, types, slot, role, prompt.
    """

    session: str
    chunk: int
    kind: Kind
    scene: str = ""
    generation: int = 0
    model: str = ""
    codec: str = "exact"
    plain: dict[str, Any] = field(default_factory=dict)


def head(label: Label, payload: Buffer) -> bytes:
    """The head that goes in front of ``payload``. Raises ``ConfigError`` if the label is too long."""
    view = memoryview(payload).cast("B")
    packed: bytes = msgpack.packb(asdict(label), use_bin_type=True)
    if _FIXED.size + len(packed) > HEAD:
        raise ConfigError(f"a label has {len(packed)} bytes; expected at most {HEAD - _FIXED.size}")
    block = bytearray(HEAD)
    _FIXED.pack_into(block, 0, MAGIC, VERSION, len(packed), len(view), bytes(16))
    block[_FIXED.size : _FIXED.size + len(packed)] = packed
    block[_DIGEST] = _checksum(block, view)
    return bytes(block)


def peek(block: Buffer) -> tuple[Label, int]:
    """Label and bytes of the payload as a head says them, which is believed only after ``check``.

    Raises:
        RecordCorrupt: no head, cut off, or of another version.
    """
    view = memoryview(block).cast("B")
    if len(view) < HEAD:
        raise RecordCorrupt(f"a record has {len(view)} bytes; expected {HEAD} or more: it was cut off")
    magic, version, labelled, length, _ = _FIXED.unpack_from(view)
    if magic != MAGIC or version != VERSION or _FIXED.size + labelled > HEAD:
        raise RecordCorrupt(f"no record of version {VERSION}: it begins with {bytes(view[:12]).hex()}")
    try:
        return Label(**msgpack.unpackb(view[_FIXED.size : _FIXED.size + labelled], raw=False)), int(length)
    except (TypeError, ValueError, msgpack.exceptions.UnpackException) as error:
        raise RecordCorrupt(f"the label of a record cannot be read: {error}") from error


def check(block: Buffer, payload: Buffer, expected: Label | None = None) -> Label:
    """The label of a whole record; ``payload`` may be longer than the record's and is then cut.

    Args:
        expected: whose it must be: session, chunk, kind, generation and model are compared.

    Raises:
        RecordCorrupt: damaged, cut off, or no record at all.
        RecordForeign: whole, but not the one that was expected.
    """
    label, length = peek(block)
    view = memoryview(payload).cast("B")
    if len(view) < length:
        raise RecordCorrupt(f"the payload has {len(view):,} bytes; expected {length:,}: it was cut off")
    bare = bytearray(memoryview(block).cast("B")[:HEAD])
    digest = bytes(bare[_DIGEST])
    bare[_DIGEST] = bytes(16)
    if digest != _checksum(bare, view[:length]):
        raise RecordCorrupt(f"the checksum of a {label.kind} record does not match: it was damaged")
    if expected is not None:
        for name in ("session", "chunk", "kind", "generation", "model"):
            found, wanted = getattr(label, name), getattr(expected, name)
            if found != wanted:
                raise RecordForeign(f"{name} of a record is {found!r}; expected {wanted!r}")
    return label


def _checksum(block: Buffer, payload: Buffer) -> bytes:
    state = xxhash.xxh3_128(block)
    state.update(payload)
    return state.digest()

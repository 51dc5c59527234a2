"""What crosses processes: msgpack in a sealed envelope that says what it is, in which version, and that it is whole.

An envelope is ``magic | kind | version | length | blake2b-128 of the payload | payload``, big-endian. Only plain data
goes in: numbers, strings, bytes, lists, and maps with string or integer keys.
"""

import hashlib
import struct
from typing import Any

import msgpack

from errors import SnapshotCorrupt, SnapshotMismatch

MAGIC = b"LONGTAKE"
_HEADER = struct.Struct(">8s16sHQ16s")


def seal(kind: str, version: int, payload: Any) -> bytes:
    """Pack ``payload`` and bind it to its kind (at most 16 ASCII characters) and format version."""
    packed: bytes = msgpack.packb(payload, use_bin_type=True)
    return _HEADER.pack(MAGIC, kind.encode("ascii"), version, len(packed), _digest(kind, version, packed)) + packed


def unseal(data: bytes, kind: str, version: int) -> Any:
    """The payload of an envelope of this kind and version.

    Raises:
        SnapshotCorrupt: no envelope, truncated, or its checksum does not match.
        SnapshotMismatch: a whole envelope of another kind or version.
    """
    if len(data) < _HEADER.size or data[: len(MAGIC)] != MAGIC:
        raise SnapshotCorrupt(f"{len(data)} bytes that do not begin with {MAGIC.decode()}; expected a Longtake {kind}")
    _, raw_kind, found_version, length, digest = _HEADER.unpack_from(data)
    packed = bytes(data[_HEADER.size :])
    found_kind = raw_kind.rstrip(b"\0").decode("ascii", "replace")
    if len(packed) != length:
        raise SnapshotCorrupt(f"{kind} is {len(packed):,} bytes long; expected {length:,}: it was cut or appended to")
    if digest != _digest(found_kind, found_version, packed):
        raise SnapshotCorrupt(f"the checksum of this {kind} does not match: it was damaged; use another copy")
    if found_kind != kind:
        raise SnapshotMismatch(f"this is a Longtake {found_kind}; expected a {kind}")
    if found_version != version:
        raise SnapshotMismatch(
            f"this {kind} has format version {found_version}; this release reads version {version}: "
            "resume it with the release that wrote it"
        )
    try:
        return msgpack.unpackb(packed, raw=False, strict_map_key=False)
    except (ValueError, msgpack.exceptions.ExtraData) as error:
        raise SnapshotCorrupt(f"the payload of this {kind} is not msgpack: {error}") from error


def _digest(kind: str, version: int, packed: bytes) -> bytes:
    return hashlib.blake2b(f"{kind}/{version}/".encode() + packed, digest_size=16).digest()

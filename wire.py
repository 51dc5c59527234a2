"""What crosses processes: msgpack, as messages between a viewer and the service, or sealed in an envelope.

A message is a map with ``v``, the version of the protocol, and ``type``. An envelope says what it is, in which version,
and that it is whole: ``magic | kind | version | length | blake2b-128 of the payload | payload``, big-endian. Only plain
data goes in: numbers, strings, bytes, lists, and maps with string or integer keys.
"""

import hashlib
import struct
from typing import Any

import msgpack

from errors import BadMessage, SnapshotCorrupt, SnapshotMismatch

PROTOCOL = 1
LONGEST_MESSAGE = 64 * 1024
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


def sealed_length(data: bytes) -> int:
    """Bytes of the envelope that ``data`` begins with, whether or not they are all there.

    Raises ``SnapshotCorrupt`` if it begins with none.
    """
    if len(data) < _HEADER.size or data[: len(MAGIC)] != MAGIC:
        raise SnapshotCorrupt(f"{len(data)} bytes that do not begin with {MAGIC.decode()}; expected something sealed")
    length: int = _HEADER.unpack_from(data)[3]
    return _HEADER.size + length


def _digest(kind: str, version: int, packed: bytes) -> bytes:
    return hashlib.blake2b(f"{kind}/{version}/".encode() + packed, digest_size=16).digest()


def pack_message(message: dict[str, Any]) -> bytes:
    """A message of the protocol's present version; it must have a ``type``."""
    packed: bytes = msgpack.packb({"v": PROTOCOL, **message}, use_bin_type=True)
    return packed


def unpack_message(data: bytes, longest: int | None = LONGEST_MESSAGE) -> dict[str, Any]:
    """The map that ``pack_message`` packed, without its version; ``longest``: bytes that are read at most.

    Raises:
        BadMessage: too long, no msgpack, no map with a type, or of another version of the protocol.
    """
    if longest is not None and len(data) > longest:
        raise BadMessage(f"the message has {len(data):,} bytes; expected at most {longest:,}")
    try:
        message = msgpack.unpackb(data, raw=False)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise BadMessage(f"the message is no msgpack: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise BadMessage("the message is no map with a type; see docs/protocol.md")
    version = message.pop("v", None)
    if version != PROTOCOL:
        raise BadMessage(f"the message has protocol version {version!r}; this service speaks {PROTOCOL}")
    return message

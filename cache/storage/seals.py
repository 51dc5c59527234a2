"""Encryption at rest: nothing, or AES-256-GCM with a key per stream and a key per content.

The store's key wraps a random key per stream; heads of records are sealed by their stream's; a content is sealed by a
random key of its own, which stands in the heads of all that share it. Whose stream's key is thrown away, nobody reads.
"""

import os
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cache.codec import Buffer
from errors import ConfigError, RecordCorrupt

KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16
LARGEST = (1 << 31) - 1 - TAG_BYTES  # bytes that are sealed at once, by the library


class Seal(Protocol):
    """Makes data unreadable without a key, and any change to them noticed."""

    @property
    def overhead(self) -> int:
        """Bytes that sealing adds."""
        ...

    def fresh_key(self) -> bytes:
        """A key for ``seal``."""
        ...

    def wrap(self, key: bytes, name: str) -> bytes:
        """``key``, sealed by the store's own; ``name`` says what for."""
        ...

    def unwrap(self, wrapped: bytes, name: str) -> bytes:
        """Undo ``wrap``. Raises ``RecordCorrupt``."""
        ...

    def seal(self, key: bytes, data: Buffer, name: str) -> Buffer:
        """``data`` as they are written to a file that ``name`` is bound to."""
        ...

    def unseal(self, key: bytes, data: Buffer, name: str) -> Buffer:
        """Undo ``seal``. Raises ``RecordCorrupt``: changed, of another name, or another key's."""
        ...


@dataclass(frozen=True)
class Unsealed:
    """Data as they are."""

    overhead: int = 0

    def fresh_key(self) -> bytes:
        return b""

    def wrap(self, key: bytes, name: str) -> bytes:
        return b"plain"

    def unwrap(self, wrapped: bytes, name: str) -> bytes:
        if wrapped != b"plain":
            raise RecordCorrupt(f"the key of {name} is none of a store without encryption")
        return b""

    def seal(self, key: bytes, data: Buffer, name: str) -> Buffer:
        return data

    def unseal(self, key: bytes, data: Buffer, name: str) -> Buffer:
        return data


@dataclass(frozen=True)
class Aes:
    """AES-256-GCM; ``key``: 32 bytes, the store's own. ``nonce | ciphertext | tag``, a fresh random nonce each time."""

    key: bytes
    overhead: int = NONCE_BYTES + TAG_BYTES

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ConfigError(f"the store's key has {len(self.key)} bytes; expected {KEY_BYTES}")

    def __repr__(self) -> str:
        return "Aes(key=...)"

    def fresh_key(self) -> bytes:
        return AESGCM.generate_key(8 * KEY_BYTES)

    def wrap(self, key: bytes, name: str) -> bytes:
        return bytes(self.seal(self.key, key, name))

    def unwrap(self, wrapped: bytes, name: str) -> bytes:
        return bytes(self.unseal(self.key, wrapped, name))

    def seal(self, key: bytes, data: Buffer, name: str) -> Buffer:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + AESGCM(key).encrypt(nonce, data, name.encode())

    def unseal(self, key: bytes, data: Buffer, name: str) -> Buffer:
        view = memoryview(data)
        try:
            return AESGCM(key).decrypt(bytes(view[:NONCE_BYTES]), view[NONCE_BYTES:], name.encode())
        except (InvalidTag, ValueError) as error:
            raise RecordCorrupt(f"{name} cannot be opened: it was changed, or another key sealed it") from error

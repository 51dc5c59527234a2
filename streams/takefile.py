"""A take in a file: a stream's snapshot, and before it what a production needs to go on as a fork would.

The file is two envelopes of ``wire`` one after the other, each under its own checksum. The first, small one names the
model and binds the second by its digest, so that a file of another model, or one that was cut off, put together from
two or changed anywhere, is refused before anything is made of it.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkstemp
from typing import Any

import torch

from cache.records import parse_tensor, plain_tensor
from errors import MediaError, SnapshotCorrupt, SnapshotMismatch
from streams.engine import Engine
from streams.stream import Stream
from wire import seal, sealed_length, unseal

KIND, VERSION = "take", 1


@dataclass(frozen=True)
class Take:
    """One take between two chunks.

    Args:
        model: fingerprint of weights, configuration and chunk geometry.
        snapshot: the stream, as ``Stream.snapshot`` gave it: books, keys and values, latents, seed, records.
        decoder: state of the stream decoder.
        shot: how far the director is in its script.
        subject: what the segmenter is to look for.
        order: what the take was to be, as whoever made it has it.
        thumbnails: a JPEG of each scene that has one.
    """

    model: str
    snapshot: bytes
    decoder: Mapping[str, torch.Tensor] = field(default_factory=dict)
    shot: int = 0
    subject: str = ""
    order: bytes = b""
    thumbnails: Mapping[str, bytes] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The bytes of the file."""
        head = {
            "model": self.model,
            "snapshot": [len(self.snapshot), _digest(self.snapshot)],
            "decoder": {name: plain_tensor(tensor) for name, tensor in self.decoder.items()},
            "shot": self.shot,
            "subject": self.subject,
            "order": self.order,
            "thumbnails": dict(self.thumbnails),
        }
        return seal(KIND, VERSION, head) + self.snapshot

    @classmethod
    def parse(cls, data: bytes) -> "Take":
        """What ``pack`` made.

        Raises:
            SnapshotCorrupt: no take, or damaged, cut off or appended to anywhere.
            SnapshotMismatch: of another version of the format.
        """
        begin = sealed_length(data)
        head: dict[str, Any] = unseal(data[:begin], KIND, VERSION)
        try:
            length, digest = head["snapshot"]
            snapshot = data[begin:]
            if len(snapshot) != length:
                raise SnapshotCorrupt(
                    f"the take has {len(data):,} bytes; expected {begin + length:,}: it was cut or appended to"
                )
            if _digest(snapshot) != digest:
                raise SnapshotCorrupt("the checksum of this take does not match: it was damaged; use another copy")
            decoder = {str(name): parse_tensor(plain) for name, plain in head["decoder"].items()}
            pictures = {str(scene): bytes(picture) for scene, picture in head["thumbnails"].items()}
            return cls(
                str(head["model"]), snapshot, decoder, int(head["shot"]), str(head["subject"]), bytes(head["order"]),
                pictures,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise SnapshotCorrupt(f"the take is sealed but does not hold what a take needs: {error!r}") from error


def resumed(engine: Engine, take: Take) -> Stream:
    """The stream of a take, in this engine; it goes on bit-equal to a fork of the one that was exported.

    Raises:
        SnapshotMismatch: the take is of another model or cache configuration.
        SnapshotCorrupt: it does not hold a stream.
        PoolExhausted: no room; nothing was changed.
    """
    require_model(engine, take)
    return Stream.resume(engine, take.snapshot)


def require_model(engine: Engine, take: Take) -> None:
    """Raise ``SnapshotMismatch`` if a take is of another model than the engine's."""
    if take.model != engine.backbone.fingerprint:
        raise SnapshotMismatch(
            f"the take is of model {take.model}, this engine serves {engine.backbone.fingerprint} (weights, "
            "configuration or chunk geometry differ); import it where that model is served"
        )


def export_stream(stream: Stream, path: Path) -> None:
    """Write a stream to a file, whole or not at all; it goes on. Raises ``MediaError``."""
    save(path, Take(stream.engine.backbone.fingerprint, stream.snapshot()).pack())


def import_stream(engine: Engine, path: Path) -> Stream:
    """A second stream with the past of the one in the file.

    Raises what ``Take.parse`` and ``resumed`` raise, and ``OSError``.
    """
    return resumed(engine, Take.parse(path.read_bytes()))


def save(path: Path, data: bytes) -> None:
    """Write a file under its name only when it is whole and with the disk; raises ``MediaError``."""
    try:
        handle, name = mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _found_again(path.parent)
    except OSError as error:
        raise MediaError(f"{path} cannot be written: {error}; what was there before is as it was") from error


def _found_again(folder: Path) -> None:
    """Have the disk keep the name too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()

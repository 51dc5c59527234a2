"""What the disk tier does with files: written whole and then named, read into warm buffers and hashed on the way.

A file that the page cache has is read through it; another one by direct I/O in large blocks, the next of which is on
its way while one is hashed. Measured on a virtual disk: one by one, blocks of 8 MiB give 1.8 GB/s and those of 64 MiB
2.5; two at a time, blocks of 8 give what those of 64 give.
"""

import contextlib
import fcntl
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import xxhash

from cache.codec import Buffer, Bytes
from cache.storage.buffers import PAGE, BufferPool
from errors import ConfigError, RecordCorrupt

Sync = Literal["always", "never"]
CACHED_BLOCK = 1 << 20  # stays in the core's own cache between reading and hashing
DIRECT_BLOCK = 8 << 20
TEMPORARY = ".tmp"


@dataclass(frozen=True)
class Files:
    """Changes of files; ``sync``: whether each is on the medium (``always``) or left to the system (``never``).

    Without it a killed process loses nothing, and a power cut may lose what was written last; what it leaves is still
    never taken for whole, for everything is checked when it is read.
    """

    sync: Sync = "always"

    def __post_init__(self) -> None:
        if self.sync not in ("always", "never"):
            raise ConfigError(f"sync is {self.sync!r}; expected 'always' or 'never'")

    def write(self, path: Path, parts: Sequence[Buffer]) -> None:
        """A new file at ``path``; if this raises, there is none."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for part in parts:
                view = memoryview(part).cast("B")
                while view:
                    view = view[os.write(fd, view) :]
            if self.sync == "always":
                os.fdatasync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file its name, in place of another of that name."""
        os.replace(old, new)

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is not there is no error."""
        path.unlink(missing_ok=True)

    def wipe(self, path: Path) -> None:
        """Overwrite a small file before it is removed, so that its blocks do not keep a key."""
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(fd, bytes(os.fstat(fd).st_size), 0)
                os.fdatasync(fd)
            finally:
                os.close(fd)
            path.unlink()

    def sync_folder(self, path: Path) -> None:
        """Names given and taken away in a folder are on the medium."""
        if self.sync == "always":
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


@dataclass
class Reader:
    """Reads whole files into buffers of a pool. May be used by several threads."""

    buffers: BufferPool
    _ahead: ThreadPoolExecutor = field(
        init=False, default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="read")
    )

    def read(self, path: Path, nbytes: int) -> tuple[Bytes, bytes]:
        """The ``nbytes`` of the file, in a pooled buffer, and their xxh3-128.

        Raises:
            RecordCorrupt: the file is not there, or shorter or longer.
            OSError: the disk does not give it.
        """
        buffer, state = self.buffers.take(nbytes), xxhash.xxh3_128()
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise RecordCorrupt(f"{path.name} is not there") from error
        try:
            found = os.fstat(fd).st_size
            if found != nbytes:
                raise RecordCorrupt(f"{path.name} has {found:,} bytes; expected {nbytes:,}: it was cut off or replaced")
            if self._cached(fd, buffer) or not self._direct(path, buffer, nbytes, state):
                state.reset()
                self._through_cache(fd, buffer, nbytes, state)
        finally:
            os.close(fd)
        return buffer[:nbytes], state.digest()

    def close(self) -> None:
        """End the threads that read ahead."""
        self._ahead.shutdown()

    @staticmethod
    def _cached(fd: int, buffer: Bytes) -> bool:
        """Whether the page cache has the beginning and so, most likely, all."""
        try:
            return os.preadv(fd, [buffer[:PAGE].data], 0, os.RWF_NOWAIT) > 0
        except (BlockingIOError, OSError):
            return False

    @staticmethod
    def _through_cache(fd: int, buffer: Bytes, nbytes: int, state: "xxhash.xxh3_128") -> None:
        at = 0
        while at < nbytes:
            got = os.preadv(fd, [buffer[at : min(nbytes, at + CACHED_BLOCK)].data], at)
            if not got:
                raise RecordCorrupt(f"a file ended at {at:,} of {nbytes:,} bytes")
            state.update(buffer[at : at + got].data)
            at += got

    def _direct(self, path: Path, buffer: Bytes, nbytes: int, state: "xxhash.xxh3_128") -> bool:
        """Past the page cache; False where the file system does not know how."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            starts = range(0, nbytes, DIRECT_BLOCK)
            blocks = [buffer[at : at + DIRECT_BLOCK] for at in starts]
            reads = [
                self._ahead.submit(os.preadv, fd, [block.data], at) for at, block in zip(starts, blocks, strict=True)
            ]
            good = True
            for at, block, read in zip(starts, blocks, reads, strict=True):  # every one is waited for: fd must stay
                expected = min(len(block), nbytes - at)
                good = (read.exception() is None and read.result() == expected) and good
                if good:
                    state.update(block[:expected].data)
            return good
        finally:
            os.close(fd)


def take_lock(path: Path) -> int | None:
    """Lock a file for this process, as long as what is returned is open; ``None`` if another one has it."""
    fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)  # a disk may turn read-only while it is held
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd

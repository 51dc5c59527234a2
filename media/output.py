"""Files that grow under their final name and play while they grow."""

import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from errors import MediaError


class OutputFile:
    """A file that holds whole segments only, whatever happens; each is with the system once ``write`` returns.

    There is no second name to rename from at the end: a fragmented MP4 is playable from its first fragment on, and
    whoever looks for the file, or stops the program, finds what there is under the name that was asked for. An earlier
    file stays as it was until the first segment comes, and a new one that got none is removed again: a start that
    fails leaves no trace.
    """

    def __init__(self, path: Path, descriptor: int, existed: bool) -> None:
        """Made by ``open_output``."""
        self.path = path
        self.bytes_written = 0
        self._descriptor, self._existed = descriptor, existed
        self._regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._closed = False

    def write(self, data: bytes, /) -> None:
        """Append a segment.

        Raises:
            MediaError: the disk is full or fails; the file then ends with the segment before.
        """
        try:
            if not self.bytes_written and self._regular:
                os.ftruncate(self._descriptor, 0)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except BaseException as error:  # Ctrl-C too
            if self._regular:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self.bytes_written)
            if isinstance(error, OSError):
                raise MediaError(f"{self.path} cannot be written on: {error}; what was written before plays") from error
            raise
        self.bytes_written += len(data)

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        os.close(self._descriptor)
        if not self.bytes_written and not self._existed:
            with suppress(OSError):
                self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_output(
    path: Path,
    overwrite: bool = False,
    need_bytes: int = 1 << 24,
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> OutputFile:
    """Open ``path`` for a stream, or say why that cannot be before any work is done.

    Args:
        overwrite: whether an earlier file may be replaced, which happens when the first segment is written.
        need_bytes: what must be free on the disk.
        free_bytes: asks the disk of a folder.

    Raises:
        MediaError: the folder is missing, the path is a folder, exists already or may not be written, or the disk is
            full; nothing was changed.
    """
    folder = path.parent
    if os.path.isdir(path):
        raise MediaError(f"{path} is a folder; expected the name of a file in it, such as {path / 'take.mp4'}")
    if not os.path.isdir(folder):
        raise MediaError(f"{path} cannot be written: there is no folder {folder}; make it, or name another")
    existed = os.path.exists(path)  # pathlib raises where a name is too long
    if os.path.isfile(path) and not overwrite:
        raise MediaError(f"{path} exists already; name another file, or allow it to be overwritten")
    if (free := free_bytes(folder)) < need_bytes:
        raise MediaError(f"{path} cannot be written: {free:,} bytes are free in {folder}; expected {need_bytes:,}")
    exclusive = 0 if existed else os.O_EXCL
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | exclusive, 0o666)
    except OSError as error:
        raise MediaError(f"{path} cannot be written: {error.strerror}; name a file that you may write") from error
    return OutputFile(path, descriptor, existed)

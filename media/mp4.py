"""A stream as a file that plays while it grows: each written chunk is one whole fragment of an MP4."""

from fractions import Fraction
from types import TracebackType
from typing import Protocol, Self

from errors import MediaError
from media.encoder import Array, Encoder, Segment
from media.encoding import Encoding


class Sink(Protocol):
    """Where the bytes go, in order; each call brings one whole segment."""

    def write(self, data: bytes, /) -> object:
        """Take all of ``data``."""


class Fmp4Writer:
    """Writes a stream to a sink, flushed chunk by chunk: whenever it stops, what was written plays.

    As a context manager it closes itself, after an error too.
    """

    def __init__(
        self,
        sink: Sink,
        width: int,
        height: int,
        fps: Fraction,
        sample_rate: int,
        channels: int,
        encoding: Encoding | None = None,
    ) -> None:
        """``sink`` stays the caller's: it closes it, and flushes it if it is buffered. The rest as ``Encoder``."""
        self.sink = sink
        self.encoder = Encoder(width, height, fps, sample_rate, channels, encoding)
        self._closed = False

    def write(self, frames: Array, samples: Array) -> None:
        """Encode and write a chunk, see ``Encoder.encode``.

        Raises:
            MediaError: as ``Encoder.encode``; or the sink failed, and then the stream ends with the chunk before.
        """
        if self._closed:
            raise MediaError("the writer is closed; expected one that is open")
        self._put(self.encoder.encode(frames, samples))

    def close(self) -> None:
        """Write what the encoders still hold; a second call, or one after the sink failed, does nothing."""
        if not self._closed:
            self._put(self.encoder.finish())
            self._closed = True

    def _put(self, segments: list[Segment]) -> None:
        closed, self._closed = self._closed, True  # after a fragment that was cut short, no other may follow
        try:
            for segment in segments:
                self.sink.write(segment.data)
        except OSError as error:
            raise MediaError(f"the stream cannot be written on: {error}; what was written before plays") from error
        self._closed = closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

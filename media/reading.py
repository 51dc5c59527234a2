"""Frames and sound back from a file, for tests and tools; players use their own decoders."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from numpy.typing import NDArray

from errors import MediaError
from media.fragments import top_boxes


@dataclass(frozen=True)
class Media:
    """A decoded file.

    ``frames`` [n, height, width, 3], uint8 RGB, shown at ``frame_times`` seconds; ``samples`` [m, channels], float32,
    from ``audio_start`` seconds on at ``sample_rate`` Hz.
    """

    frames: NDArray[np.uint8]
    frame_times: tuple[Fraction, ...]
    samples: NDArray[np.float32]
    sample_rate: int
    audio_start: Fraction


def read(source: Path | BinaryIO) -> Media:
    """All of a file or of an open one, in memory; a file that breaks off is read as far as it goes.

    Raises:
        MediaError: there is no such file, or nothing in it that can be decoded.
    """
    with _open(source, "video", "audio") as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        frames: list[NDArray[np.uint8]] = []
        times: list[Fraction] = []
        sound: list[NDArray[np.float32]] = []
        start: Fraction | None = None
        end = Fraction(0)
        for packet in _packets(container, (video, audio)):
            if packet.stream.type == "audio" and packet.pts is not None:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
            for frame in _decoded(packet):
                if isinstance(frame, av.VideoFrame):
                    frames.append(_rgb(frame))
                    times.append(_time(frame))
                else:
                    sound.append(_floats(frame))
                    start = _time(frame) if start is None else start
        start = start or Fraction(0)
        # The last packet is as long as all of its kind; how much of it counts is in its duration.
        count = max(0, round((end - start) * audio.rate))
        picture = np.stack(frames) if frames else np.zeros((0, video.height, video.width, 3), np.uint8)
        samples = np.concatenate(sound)[:count] if sound else np.zeros((0, audio.channels), np.float32)
        return Media(picture, tuple(times), samples, audio.rate, start)


def read_frames(source: Path | BinaryIO) -> Iterator[tuple[Fraction, NDArray[np.uint8]]]:
    """Time in seconds and pixels [height, width, 3] of each frame, one in memory at a time; raises as ``read``."""
    with _open(source, "video") as container:
        for packet in _packets(container, (container.streams.video[0],)):
            for frame in _decoded(packet):
                if isinstance(frame, av.VideoFrame):
                    yield _time(frame), _rgb(frame)


def _open(source: Path | BinaryIO, *kinds: str) -> InputContainer:
    try:
        container = _container(source)
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{source} cannot be read: {error}; expected a file with {' and '.join(kinds)}") from error
    missing = set(kinds) - {stream.type for stream in container.streams}
    if missing:
        container.close()
        raise MediaError(f"{source} has no {' and no '.join(sorted(missing))}; expected {' and '.join(kinds)}")
    return container


def _container(source: Path | BinaryIO) -> InputContainer:
    if not isinstance(source, Path):
        return av.open(source, "r")
    try:
        return av.open(str(source), "r")
    except (av.InvalidDataError, av.EOFError):
        # FFmpeg refuses a whole file that was cut in the header of its last fragment.
        whole = b"".join(box for _, box in top_boxes(source.read_bytes()))
        return av.open(io.BytesIO(whole), "r")


def _packets(container: InputContainer, streams: tuple[Stream, ...]) -> "Iterator[Packet[Stream]]":
    try:
        yield from container.demux(*streams)
    except av.InvalidDataError:
        return


def _decoded(packet: "Packet[Stream]") -> list[av.VideoFrame | av.AudioFrame]:
    try:
        return [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame | av.AudioFrame)]
    except av.InvalidDataError:
        return []


def _time(frame: av.VideoFrame | av.AudioFrame) -> Fraction:
    if frame.pts is None or frame.time_base is None:
        raise MediaError("a frame has no time; expected a file with time stamps, such as an MP4")
    return frame.pts * frame.time_base


def _rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def _floats(frame: av.AudioFrame) -> NDArray[np.float32]:
    if frame.format.name != "fltp":
        raise MediaError(f"the sound is decoded to {frame.format.name}; expected fltp, as of AAC and Opus")
    return np.ascontiguousarray(frame.to_ndarray().T, np.float32)

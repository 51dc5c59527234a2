"""Small films to encode, and what comes back from them."""

import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import accumulate

import numpy as np

from media.encoder import Encoder, Fragment, Segment
from media.encoding import Encoding
from media.mp4 import Fmp4Writer
from media.reading import Media, read

SIDE, FPS, RATE = 32, Fraction(25, 2), 16_000
AAC, OPUS = Encoding(), Encoding(audio="opus")
VP9 = Encoding(video="vp9", audio="opus")
UNEVEN = (8, 3, 9, 1, 16, 5, 8, 8, 7, 10)
CHUNK = (np.zeros((8, SIDE, SIDE, 3), np.uint8), np.zeros((10_240, 1), np.float32))

Sound = Callable[[np.ndarray], np.ndarray]
Picture = Callable[[int], int]


def sine(samples: np.ndarray, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * samples / rate)


def noise(count: int, seed: int = 0) -> np.ndarray:
    """Smooth noise that is like itself only where it is."""
    white = np.random.default_rng(seed).standard_normal(count + 15)
    return (0.3 * np.convolve(white, np.hanning(16) / 4, "valid")).astype(np.float32)


def chunks(
    frames: tuple[int, ...], fps: Fraction, rate: int, picture: Picture, sound: Sound, channels: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks of so many frames of one grey each; the sound of a chunk is now ahead of its picture, and now behind."""
    made = 0
    for number, end in enumerate(accumulate(frames)):
        shades = np.array([picture(i) for i in range(end - frames[number], end)], np.uint8)
        last = number == len(frames) - 1
        stop = int(end / fps * rate) + (0 if last else (-1) ** number * 37)
        samples = sound(np.arange(made, stop)).astype(np.float32)
        made = stop
        yield (
            np.broadcast_to(shades[:, None, None, None], (len(shades), SIDE, SIDE, 3)),
            np.stack([samples] * channels, 1),
        )


def film(
    encoding: Encoding = AAC,
    frames: tuple[int, ...] = UNEVEN,
    fps: Fraction = FPS,
    rate: int = RATE,
    picture: Picture = lambda i: 8 * (i % 30),
    sound: Sound = sine,
    channels: int = 1,
) -> bytes:
    sink = io.BytesIO()
    with Fmp4Writer(sink, SIDE, SIDE, fps, rate, channels, encoding) as writer:
        for chunk in chunks(frames, fps, rate, picture, sound, channels):
            writer.write(*chunk)
    return sink.getvalue()


def decode(data: bytes) -> Media:
    return read(io.BytesIO(data))


def data_of(segments: list[Segment]) -> bytes:
    return b"".join(segment.data for segment in segments)


def fragments_of(segments: list[Segment]) -> list[Fragment]:
    return [segment for segment in segments if isinstance(segment, Fragment)]


def encoder(encoding: Encoding = AAC, channels: int = 1) -> Encoder:
    return Encoder(SIDE, SIDE, FPS, RATE, channels, encoding)


def lag(decoded: np.ndarray, truth: np.ndarray, most: int) -> int:
    """By how many samples the first is late, at most ``most`` either way."""
    inner = truth[most:-most]
    scores = [float(np.dot(decoded[most + s : most + s + len(inner)], inner)) for s in range(-most, most + 1)]
    return int(np.argmax(scores)) - most

"""A generated film read back by the truth of the toy world: room, subject, sound, and whether the two agree.

No learned judge: the room is the median of the frames, the subject what differs from it, matched against the world's
own shapes and colours; bounces are the lowest points of its path, and onsets jumps of the sound's level.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d

from training.world import COLOURS, FPS, NOTE_HZ, SAMPLE_RATE, SHAPES

DIFFERENCE, LEAST_PIXELS, LEAST_OVERLAP = 0.16, 60, 0.45
RADII = (14.0, 15.5, 17.0, 18.0)
HALF = 12  # templates are 25 × 25 at half resolution
HOP = 160
TOLERANCE = 0.1
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sighting:
    """The subject in one frame: best shape, best colour, centre in pixels, overlap with the shape in [0, 1]."""

    shape: str
    colour: str
    x: float
    y: float
    overlap: float


@dataclass(frozen=True)
class Window:
    """What was seen and heard in a stretch of film.

    Args:
        room: median frame [height, width, 3] in [0, 1].
        found, colour, shape: share of frames with a subject, and of those with the right colour and shape.
        level_db: root mean square of the sound, dB of full scale.
        pitch_cents: distance of the notes' strongest tone from the right one; NaN without notes.
        synchrony: F1 of bounces against onsets within a tenth of a second.
    """

    room: Array
    found: float
    colour: float
    shape: float
    level_db: float
    pitch_cents: float
    synchrony: float


def median_room(frames: torch.Tensor) -> torch.Tensor:
    """The room without its moving subject: median of frames uint8 [n, height, width, 3], as float in [0, 1]."""
    return frames.float().median(0).values / 255


@cache
def _templates() -> tuple[torch.Tensor, list[str]]:
    """Coverage of every shape at every radius [shapes · radii, 1, 25, 25], and whose it is."""
    line = torch.arange(-HALF, HALF + 1, dtype=torch.float32) * 2
    dx, dy = line[None, :], line[:, None]
    made, names = [], []
    for shape in SHAPES:
        for r in RADII:
            round_ = (dx**2 + dy**2).sqrt()
            distance = {
                "ball": round_ - r,
                "box": torch.maximum(dx.abs(), dy.abs()) - 0.9 * r,
                "cone": torch.maximum(dy - r, (dx.abs() * 2 - dy - r) / 2.24),
                "ring": (round_ - 0.7 * r).abs() - 0.3 * r,
            }[shape]
            made.append((0.5 - distance / 2).clamp(0, 1))
            names.append(shape)
    return torch.stack(made)[:, None], names


def sightings(frames: torch.Tensor, room: torch.Tensor) -> list[Sighting | None]:
    """The subject in every frame of uint8 [n, height, width, 3], or ``None`` where there is none."""
    pictures = frames.float() / 255
    differs = ((pictures - room).abs().amax(-1) > DIFFERENCE).float()[:, None]
    mask = avg_pool2d(differs, 2)
    mask = mask * (max_pool2d(avg_pool2d(mask, 3, 1, 1), 3, 1, 1) > 0.5)  # specks are no subject
    templates, names = _templates()
    common = conv2d(mask, templates, padding=HALF)
    overlap = common / (mask.sum((1, 2, 3))[:, None, None, None] + templates.sum((1, 2, 3))[:, None, None] - common)
    best, place = overlap.flatten(1).max(1)
    found: list[Sighting | None] = []
    side = mask.shape[-1]
    for i in range(len(frames)):
        if mask[i].sum() < LEAST_PIXELS or best[i] < LEAST_OVERLAP:
            found.append(None)
            continue
        template, where = divmod(int(place[i]), mask.shape[-2] * side)
        y, x = divmod(where, side)
        inside = differs[i, 0] > 0
        seen = pictures[i][inside].median(0).values
        colour = min(COLOURS, key=lambda c: float((seen - torch.tensor(COLOURS[c])).square().sum()))
        found.append(Sighting(names[template], colour, 2.0 * x + 1, 2.0 * y + 1, float(best[i])))
    return found


def bounces(seen: list[Sighting | None]) -> list[float]:
    """Times of the lowest points of the subject's path, s from the first frame."""
    y = np.array([np.nan if s is None else s.y for s in seen])
    times = []
    for i in range(2, len(y) - 2):
        near = y[i - 2 : i + 3]
        if np.isnan(near).any() or near[2] < near.max() or near[2] - min(near[0], near[4]) < 4:
            continue
        left, peak, right = y[i - 1 : i + 2]
        bend = left - 2 * peak + right
        shift = 0.5 * (left - right) / bend if bend else 0.0
        time = (i + shift) / float(FPS)
        if not times or time - times[-1] > 0.3:
            times.append(time)
    return times


def onsets(sound: Array) -> list[float]:
    """Times at which the level of the sound jumps, s from the first sample."""
    frames = sound[: len(sound) // HOP * HOP].reshape(-1, HOP)
    level = np.sqrt((frames**2).mean(1))
    times: list[float] = []
    for i in range(4, len(level)):
        before = level[i - 4 : i - 1].min()
        if level[i] > 0.06 and level[i] > 1.8 * before:
            time = i * HOP / SAMPLE_RATE
            if not times or time - times[-1] > 0.3:
                times.append(time)
    return times


def f1(some: list[float], others: list[float]) -> float:
    """Agreement of two lists of times within ``TOLERANCE``; NaN if both are empty."""
    if not some and not others:
        return float("nan")
    hits = sum(any(abs(a - b) <= TOLERANCE for b in others) for a in some)
    back = sum(any(abs(a - b) <= TOLERANCE for a in some) for b in others)
    precision, recall = hits / max(1, len(some)), back / max(1, len(others))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def pitch_cents(sound: Array, times: list[float], shape: str) -> float:
    """How far the notes' strongest new tone lies from the one that ``shape`` makes, in cents; the median of notes."""
    length, wanted, found = int(0.1 * SAMPLE_RATE), NOTE_HZ[shape], []
    window, size = np.hanning(length), 16 * SAMPLE_RATE // 10
    for time in times:
        first = int(time * SAMPLE_RATE)
        before, after = sound[max(0, first - length - 160) : first - 160], sound[first : first + length]
        if len(before) < length or len(after) < length:
            continue
        rise = np.abs(np.fft.rfft(after * window, size)) - np.abs(np.fft.rfft(before * window, size))
        found.append(float(np.argmax(rise)) * SAMPLE_RATE / size)
    if not found:
        return float("nan")
    return float(np.median([abs(1200 * np.log2(max(f, 1.0) / wanted)) for f in found]))


def look(frames: torch.Tensor, sound: torch.Tensor, shape: str, colour: str) -> Window:
    """Everything about a stretch of film, frames uint8 [n, height, width, 3] and samples [m]."""
    room = median_room(frames)
    seen = sightings(frames, room)
    there = [s for s in seen if s is not None]
    heard = sound.double().numpy()
    times = onsets(heard)
    return Window(
        room=room.double().numpy(),
        found=len(there) / len(seen),
        colour=sum(s.colour == colour for s in there) / max(1, len(there)),
        shape=sum(s.shape == shape for s in there) / max(1, len(there)),
        level_db=float(10 * np.log10(np.mean(heard**2) + 1e-12)),
        pitch_cents=pitch_cents(heard, times, shape),
        synchrony=f1(bounces(seen), times),
    )

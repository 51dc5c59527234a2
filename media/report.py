"""What a take looked like, as pictures: contact sheet with waveform, drift, and which chunk was remembered when."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cache.keep_set import Role

matplotlib.use("Agg")
COLOURS = {
    Role.SUBJECT_ANCHOR: "#b5179e",
    Role.SCENE_SINK: "#2a9d4a",
    Role.SCENE_ANCHOR: "#1d9bb5",
    Role.RESTORED: "#e9a820",
    Role.RECENT: "#9db4d6",
}
SHEET_COLUMNS = 8
KeepSet = Mapping[str, Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class Moment:
    """What is recorded of one chunk.

    Args:
        start: media time of the chunk, s.
        drift, rung: score against the scene's reference, and the repair rung in force.
        keep_set: kept chunks after it, by attention type and role.
        frame: a frame of it, uint8 [height, width, 3].
        peaks: lowest and highest sample of the chunk, or of all chunks that this moment stands for.
    """

    chunk: int
    start: float
    scene: str
    drift: float
    rung: int
    keep_set: KeepSet
    frame: NDArray[np.uint8]
    peaks: tuple[float, float]


@dataclass
class History:
    """Moments of a take of any length in bounded memory: when it is full, every second one is let go.

    The waveform's peaks are merged and not lost. Mutated by ``add`` only.
    """

    capacity: int = 512
    stride: int = 1
    moments: list[Moment] = field(default_factory=list)
    seen: int = 0
    borders: list[tuple[float, str]] = field(default_factory=list)

    def add(self, moment: Moment) -> None:
        """Record the next chunk."""
        if not self.borders or self.borders[-1][1] != moment.scene:
            self.borders = [*self.borders, (moment.start, moment.scene)][-self.capacity :]
        if self.seen % self.stride == 0:
            self.moments.append(moment)
        else:
            self.moments[-1] = _merged(self.moments[-1], moment)
        self.seen += 1
        if len(self.moments) > self.capacity:
            pairs = zip(self.moments[::2], [*self.moments[1::2], self.moments[-1]], strict=False)
            self.moments = [_merged(first, second) for first, second in pairs]
            self.stride *= 2

    def write(self, folder: Path, title: str) -> list[Path]:
        """Draw everything into ``folder``; returns the files."""
        drawn = {
            "contact-sheet.png": contact_sheet(self, title),
            "drift.png": drift_plot(self, title),
            "keep-set.png": keep_set_timeline(self, title),
        }
        for name, figure in drawn.items():
            figure.savefig(folder / name, dpi=110)
        return [folder / name for name in drawn]


def _merged(first: Moment, second: Moment) -> Moment:
    peaks = (min(first.peaks[0], second.peaks[0]), max(first.peaks[1], second.peaks[1]))
    return Moment(first.chunk, first.start, first.scene, first.drift, first.rung, first.keep_set, first.frame, peaks)


def contact_sheet(history: History, title: str, frames: int = 32) -> Figure:
    """Frames at even distances, each with its time and scene, and the waveform of the whole below."""
    shown = [history.moments[i] for i in np.unique(np.linspace(0, len(history.moments) - 1, frames).astype(int))]
    rows = -(-len(shown) // SHEET_COLUMNS)
    figure = Figure(figsize=(1.5 * SHEET_COLUMNS, 1.75 * rows + 1.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.add_gridspec(rows + 1, SHEET_COLUMNS)
    for i, moment in enumerate(shown):
        axes = figure.add_subplot(grid[i // SHEET_COLUMNS, i % SHEET_COLUMNS])
        axes.imshow(moment.frame)
        axes.set_title(f"{_clock(moment.start)}  {moment.scene}", fontsize=7)
        axes.set_axis_off()
    wave = figure.add_subplot(grid[rows, :])
    times = [m.start for m in history.moments]
    low, high = zip(*(m.peaks for m in history.moments), strict=True)
    wave.fill_between(times, low, high, step="post", linewidth=0, color="#444444")
    wave.set_ylabel("sound")
    wave.set_ylim(-1, 1)
    _shade(wave, history)
    return figure


def drift_plot(history: History, title: str) -> Figure:
    """Drift of every chunk against its scene's reference, and the repair rung."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.add_subplot()
    times = [m.start for m in history.moments]
    axes.plot(times, [m.drift for m in history.moments], linewidth=1.0, color="#c0392b")
    axes.set_ylabel("drift score")
    axes.set_ylim(bottom=0)
    rungs = axes.twinx()
    rungs.step(times, [m.rung for m in history.moments], where="post", color="#2c5aa0", linewidth=1.0)
    rungs.set_ylim(0, 4.2)
    rungs.set_ylabel("repair rung", color="#2c5aa0")
    _shade(axes, history)
    return figure


def keep_set_timeline(history: History, title: str) -> Figure:
    """One panel per attention type: across, the take; up, the chunks; a dot where a chunk was remembered, by role."""
    types = list(history.moments[0].keep_set)
    figure = Figure(figsize=(11, 2.3 * len(types) + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    size = max(1.0, min(16.0, 1400 / max(1, len(history.moments)) / 2))
    for row, attention_type in enumerate(types):
        axes = figure.add_subplot(len(types), 1, row + 1)
        for role, colour in COLOURS.items():
            kept = [(m.start, c) for m in history.moments for c in m.keep_set[attention_type].get(role.value, ())]
            if kept:
                x, y = zip(*kept, strict=True)
                axes.scatter(x, y, s=size, marker="s", color=colour, linewidths=0, label=role.value.replace("_", " "))
        axes.set_ylabel(f"{attention_type}\nchunk", fontsize=8)
        _shade(axes, history)
        if row == 0:
            axes.legend(loc="upper left", fontsize=7, ncols=len(COLOURS))
    return figure


def _shade(axes: Axes, history: History) -> None:
    """Shade every second scene and name them at the top."""
    end = history.moments[-1].start
    borders = [*history.borders, (end, "")]
    for i, ((start, name), (stop, _)) in enumerate(itertools.pairwise(borders)):
        axes.axvspan(start, stop, color="#000000", alpha=0.06 if i % 2 else 0.0, linewidth=0)
        if len(borders) < 16:
            axes.annotate(name, (start, 1.0), xycoords=("data", "axes fraction"), fontsize=7, va="bottom")
    axes.set_xlim(0, max(end, 1e-3))
    axes.set_xlabel("media time, s", fontsize=8)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"

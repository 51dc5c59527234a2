"""``longtake generate``: a prompt or a script in, a film of any length out."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli.common import app, fail, interruptible, undisturbed
from errors import ConfigError, LongtakeError, ScriptError
from media.mp4 import Fmp4Writer
from media.output import OutputFile, open_output
from media.report import History, Moment
from settings import build_studio, load, read_shots
from streams.director import Script, Shot
from streams.production import Production, Shown

DEFAULT_SECONDS = 30.0
EVERY_LINES = 20


@dataclass
class Film:
    """What comes of a production: the file that grows, and the history for the report."""

    production: Production
    writer: Fmp4Writer
    history: History = field(default_factory=History)
    chunks: int = 0
    ticks: deque[float] = field(default_factory=lambda: deque([time.monotonic()], maxlen=17))

    def take(self, shown: Shown) -> None:
        """Write what is shown, and record it."""
        self.writer.write(shown.media.frames, shown.media.samples)
        chunk = shown.chunk
        if chunk is None:  # what decoders had held back
            return
        self.chunks += 1
        self.ticks.append(time.monotonic())
        if not len(shown.media.frames):
            return
        samples = shown.media.samples
        stream = self.production.stream
        self.history.add(
            Moment(
                chunk=chunk.index,
                start=float(chunk.start),
                scene=chunk.scene,
                drift=chunk.drift,
                rung=int(stream.statistics().rung),
                keep_set=stream.keep_set(),
                frame=shown.media.frames[len(shown.media.frames) // 2].numpy(),
                peaks=(float(samples.min()), float(samples.max())) if len(samples) else (0.0, 0.0),
            )
        )

    @property
    def rate(self) -> float:
        """Chunks per second of wall time, over the last sixteen."""
        return (len(self.ticks) - 1) / max(1e-9, self.ticks[-1] - self.ticks[0])

    def figures(self) -> str:
        """Speed, keep-set and drift in one line."""
        stream = self.production.stream
        geometry = stream.engine.backbone.geometry
        now = stream.statistics()
        kept = max((t.chunks for t in now.types.values()), default=0)
        drift = self.history.moments[-1].drift if self.history.moments else 0.0
        speed = self.rate * float(geometry.seconds)
        return (
            f"{speed * float(geometry.fps):.1f} fps, {speed:.2f} x real time, {kept} chunks kept "
            f"({now.bytes_held / 1e6:.1f} MB), drift {drift:.2f} ({now.rung.name.lower().replace('_', ' ')})"
        )


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to show and hear; or give --script.")] = "",
    script: Annotated[Path | None, typer.Option(help="Scenes, YAML.")] = None,
    duration: Annotated[str, typer.Option(help="Length of a prompt's take: 30, 90s, 45m, 2h.")] = "",
    subject: Annotated[str, typer.Option(help="What to keep an eye on, such as 'red ball'.")] = "",
    out: Annotated[Path, typer.Option(help="The MP4 to write; it plays while it grows.")] = Path("take.mp4"),
    report: Annotated[Path | None, typer.Option(help="Folder for contact sheet, drift and keep-set as PNG.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same take.")] = 0,
    config: Annotated[Path | None, typer.Option(help="Settings, YAML.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder; default: the shipped.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
) -> None:
    """Generate a film from a prompt or a script: one take, of any length. Ctrl-C ends it; what is there plays."""
    console = Console()
    try:
        shots = _script(prompt, duration, subject, script)
        if report is not None:
            _folder(report)
        with open_output(out, overwrite) as file:
            studio = build_studio(load(config, model=model))
            production = Production(studio.engine, studio.codecs, shots, seed, studio.keeper())
            chunks = _film(production, file, console, report)
    except ConfigError as error:
        fail(error, 2)
    except LongtakeError as error:
        fail(error, 1)
    if chunks < production.total:
        raise typer.Exit(130)


def _script(prompt: str, duration: str, subject: str, path: Path | None) -> Script:
    if path is not None:
        if prompt or duration or subject:
            raise ScriptError("--script and a prompt, --duration or --subject were given; the script says all three")
        return read_shots(path)
    if not prompt.strip():
        raise ScriptError("the prompt is empty; expected what to show and hear, or --script FILE")
    return Script((Shot(duration or DEFAULT_SECONDS, "opening", prompt, subject),))


def _folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".longtake"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--report {path} is not writable: {error}; expected a folder to write to") from error


def _film(production: Production, file: OutputFile, console: Console, report: Path | None) -> int:
    """Make the film, to its end or up to a Ctrl-C; returns its chunks."""
    codecs = production.decoder.codecs
    height, width = codecs.frame_size
    begun = time.monotonic()
    writer = Fmp4Writer(file, width, height, codecs.fps, codecs.sample_rate, codecs.channels)
    film = Film(production, writer)
    try:
        with suppress(KeyboardInterrupt), interruptible() as pressed, _progress(production, console) as show:
            for shown in production:
                film.take(shown)
                if shown.chunk is not None:
                    show(film)
                if pressed:
                    production.stop()
    finally:
        with undisturbed():
            writer.close()
    media = film.chunks * float(production.stream.engine.backbone.geometry.seconds)
    wall = time.monotonic() - begun
    made = f"{media:.1f} s of media in {wall:.1f} s ({media / wall:.2f} x real time)"
    console.print(f"{file.path}: {made}", markup=False, highlight=False, soft_wrap=True)
    if report is not None and film.history.moments:
        for path in film.history.write(report, f"{file.path.name}: {made}"):
            console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    return film.chunks


@contextmanager
def _progress(production: Production, console: Console) -> Iterator[Callable[[Film], None]]:
    """A bar on a terminal; elsewhere a line every twenty chunks."""
    if not console.is_terminal:
        yield lambda film: _line(film, console)
        return
    columns = (
        TextColumn("{task.fields[scene]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("take", total=production.total, scene="", figures="")

        def show(film: Film) -> None:
            scene = film.history.moments[-1].scene if film.history.moments else ""
            bar.update(task, completed=film.chunks, scene=scene, figures=film.figures())

        yield show


def _line(film: Film, console: Console) -> None:
    if film.chunks % EVERY_LINES == 0 or film.chunks == film.production.total:
        text = f"chunk {film.chunks} of {film.production.total}: {film.figures()}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)

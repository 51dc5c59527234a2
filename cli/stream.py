"""``longtake stream``: a take as latents on disk, and what the cache remembers while it grows."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from safetensors.torch import save

from cache.decisions import DecisionLog
from cache.keep_set import Role
from cache.spec import TYPES, AttentionType
from cli.common import app, fail, interruptible, undisturbed
from errors import ConfigError, LongtakeError
from settings import Cue, build_engine, load, read_script
from streams.engine import Engine
from streams.making import Chunk
from streams.stream import Stream

OPENING, LOG, KITCHEN = "opening", "decisions.jsonl", "a quiet kitchen at night, a kettle begins to boil"
STYLES = ("bold magenta", "bold green", "bold cyan", "bold yellow", "blue")
MARKS = {role: (mark, style) for role, mark, style in zip(Role, "USARo", STYLES, strict=True)}


class Frame(NamedTuple):
    """What a view shows after a chunk; ``rate`` is chunks per second of wall time over the last sixteen."""

    stream: Stream
    chunk: Chunk
    rate: float
    total: int


Show = Callable[[Frame], None]
View = AbstractContextManager[Show]


@dataclass
class Take:
    """A take on disk, written as it grows: shards of ``shard_chunks`` chunks (one in memory), and ``decisions.jsonl``.

    A shard loses its suffix ``.part`` when it is whole. If the disk fails, methods raise ``LongtakeError``.
    """

    out: Path
    identity: Mapping[str, str]
    shard_chunks: int = 256
    shards: int = 0
    chunks: int = 0
    decisions: int = 0
    prompts: list[list[Any]] = field(default_factory=list)
    pending: list[Chunk] = field(default_factory=list)

    def open(self, overwrite: bool) -> None:
        """Make the folder and an empty log; raises ``ConfigError`` if that cannot be, or a take is there already."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            earlier = sorted(self.out.glob("take-*.safetensors*"))
            if earlier and not overwrite:
                raise ConfigError(f"--out {self.out} holds a take already; name another folder or pass --overwrite")
            for path in earlier:
                path.unlink()
            (self.out / LOG).write_text("")
        except OSError as error:
            raise ConfigError(f"--out {self.out} is not writable: {error}; expected a folder to write to") from error

    def append(self, chunk: Chunk, stream: Stream) -> None:
        """Add a published chunk and the decisions made since the one before."""
        spoken = [chunk.scene, stream.session.prompt.text]
        if not self.prompts or self.prompts[-1][1:] != spoken:
            self.prompts.append([chunk.index, *spoken])
        self._log(stream.decisions)
        self.pending.append(chunk)
        self.chunks += 1
        if len(self.pending) >= self.shard_chunks:
            self.flush()

    def flush(self) -> None:
        """Write the pending chunks as a shard, if there are any."""
        if not self.pending:
            return
        tensors = {m: torch.stack([getattr(c, m) for c in self.pending]).cpu() for m in ("video", "audio")}
        about = {**self.identity, "first_chunk": str(self.pending[0].index), "prompts": json.dumps(self.prompts)}
        path = self.out / f"take-{self.shards:05d}.safetensors"
        part = path.with_suffix(".safetensors.part")
        try:
            part.write_bytes(save(tensors, about))
            part.replace(path)
        except OSError as error:
            raise LongtakeError(f"{path} cannot be written: {error}; earlier files are whole") from error
        self.pending.clear()
        self.shards += 1

    def _log(self, log: DecisionLog) -> None:
        fresh = log.dropped + len(log) - self.decisions
        lost = max(0, fresh - len(log))
        plain: list[dict[str, Any]] = [{"action": "dropped", "reason": f"{lost} decisions"}] if lost else []
        plain += [asdict(decision) for decision in islice(log, len(log) - fresh + lost, None)]
        try:
            with (self.out / LOG).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in plain)
        except OSError as error:
            raise LongtakeError(f"{self.out / LOG} cannot be written: {error}") from error
        self.decisions += fresh


@app.command()
def stream(
    prompt: Annotated[str, typer.Argument(help="What to show and hear.")] = "a red ball bouncing in a blue room",
    chunks: Annotated[int, typer.Option(min=1, help="Length of the take.")] = 60,
    out: Annotated[Path, typer.Option(help="Folder for latents and decisions.jsonl.")] = Path("take"),
    seed: Annotated[int, typer.Option(help="Same seed, same take.")] = 0,
    config: Annotated[Path | None, typer.Option(help="Settings, YAML.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id, folder or .safetensors; default: the shipped one.")] = None,
    script: Annotated[Path | None, typer.Option(help="Cues, YAML; default: a cut and a return.")] = None,
    no_script: Annotated[bool, typer.Option("--no-script", help="One scene only.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the take in --out.")] = False,
) -> None:
    """Stream a take into a folder: latents in shards of 256 chunks, and why the cache kept what it kept."""
    console = Console()
    try:
        cues = _cues(script, no_script, chunks)
        engine = build_engine(load(config, model=model))
        opened = Stream.open(engine, prompt, seed, OPENING)
        take = Take(out, _identity(engine, seed))
        take.open(overwrite)
    except LongtakeError as error:
        fail(error, 2)
    if not engine.understands:
        typer.echo("note: this model has no text encoder; prompts are hashed, and it cannot follow them")
    try:
        _play(opened, cues, chunks, take, panel(console) if console.is_terminal else lines(console))
    except LongtakeError as error:
        fail(error, 1)
    media = f"{take.chunks} of {chunks} chunks, {float(take.chunks * engine.backbone.geometry.seconds):.2f} s of media"
    typer.echo(f"{media}; {take.shards} shards and {take.decisions} decisions in {out}")
    if take.chunks < chunks:
        raise typer.Exit(130)


def _cues(script: Path | None, no_script: bool, chunks: int) -> dict[int, Cue]:
    """Cues by the chunk before which they are given, checked against the length of the take and the known scenes."""
    if script is None:
        # A cut at one third and a return at two thirds: memory is seen to come back.
        thirds = (Cue(chunks // 3, "cut", "kitchen", KITCHEN), Cue(2 * chunks // 3, "return", OPENING))
        return {} if no_script or chunks < 3 else {cue.at: cue for cue in thirds}
    if no_script:
        raise ConfigError("--script and --no-script were both given; expected one of them")
    cues, known, on_air, at = read_script(script), {OPENING}, OPENING, 0
    for cue in cues:
        if not at < cue.at < chunks:
            raise ConfigError(f"{script}: a cue at {cue.at}; expected rising numbers from {at + 1} to {chunks - 1}")
        if not {"cut": cue.scene not in known, "return": cue.scene in known - {on_air}, "prompt": True}[cue.do]:
            raise ConfigError(f"{script}: {cue.do} to {cue.scene!r} at {cue.at}; on air {on_air!r} of {sorted(known)}")
        on_air, at = cue.scene or on_air, cue.at
        known.add(on_air)
    return {cue.at: cue for cue in cues}


def _direct(stream: Stream, cue: Cue) -> None:
    if cue.do == "cut":
        stream.cut(cue.scene, cue.prompt)
    elif cue.do == "return":
        stream.return_to(cue.scene)
    else:
        stream.change_prompt(cue.prompt, cue.mode)


def _play(stream: Stream, cues: Mapping[int, Cue], chunks: int, take: Take, view: View) -> None:
    """Stream ``chunks`` chunks or up to a Ctrl-C, the second of which does not wait for the chunk in progress."""
    ticks = deque([time.monotonic()], maxlen=17)
    try:
        with suppress(KeyboardInterrupt), interruptible() as pressed, view as show:
            while take.chunks < chunks and not pressed:
                if take.chunks in cues:
                    _direct(stream, cues[take.chunks])
                chunk = stream.next()
                take.append(chunk, stream)
                ticks.append(time.monotonic())
                show(Frame(stream, chunk, (len(ticks) - 1) / (ticks[-1] - ticks[0]), chunks))
    finally:
        with undisturbed():
            take.flush()


@contextmanager
def lines(console: Console) -> Iterator[Show]:
    """The keep-set as plain lines: every ten chunks, and whenever the set of memory changes."""
    seen: list[object] = []

    def show(frame: Frame) -> None:
        memory = [{r: c for r, c in roles.items() if r != Role.RECENT} for roles in frame.stream.keep_set().values()]
        if seen != memory or frame.chunk.index % 10 == 0:
            seen[:] = memory
            text = "\n    ".join([status(frame), *keep_sets(frame.stream)])
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    yield show


@contextmanager
def panel(console: Console) -> Iterator[Show]:
    """The keep-set as a panel that is redrawn in place, four times a second."""
    with Live(console=console) as live:
        yield lambda frame: live.update(render(frame))


def render(frame: Frame) -> Panel:
    """One picture: figures, progress, and per attention type which role stands at which distance."""
    slots = frame.stream.session.manager.positions.config.slots
    table = Table.grid(padding=(0, 2))
    table.add_row("progress", ProgressBar(total=frame.total, completed=frame.chunk.index + 1, width=slots))
    table.add_row("chunks back", f"{slots - 1}".ljust(slots - 1) + "0", style="dim")
    for t in TYPES:
        table.add_row(t.value, timeline(frame.stream, t))
    legend = Text("  ").join(Text(f"{mark} {role}".replace("_", " "), style) for role, (mark, style) in MARKS.items())
    return Panel(Group(Text(status(frame)), table, legend, *keep_sets(frame.stream)), title="longtake")


def timeline(stream: Stream, type: AttentionType) -> Text:
    """One cell per position slot, from the farthest distance to the chunk that comes next."""
    positions, ledger = stream.session.manager.positions, stream.session.manager.ledgers[type]
    cells = [(".", "dim")] * (positions.config.slots - 1) + [(">", "bold")]
    for entry in ledger.entries.values():
        cells[entry.slot - positions.lowest] = MARKS[entry.role]
    if ledger.subject is not None:
        cells[ledger.subject.slot - positions.lowest] = MARKS[Role.SUBJECT_ANCHOR]
    return Text.assemble(*cells)


def status(frame: Frame) -> str:
    """The figures of the moment in one line."""
    now, chunk = frame.stream.statistics(), frame.chunk
    speed = f"{frame.rate:.1f} chunk/s, {frame.rate * float(chunk.seconds):.2f} x real time"
    memory = f"{now.bytes_held / 1e6:.2f} MB held, epoch {now.epoch}, drift {chunk.drift:.3f} ({now.rung.name.lower()})"
    return f"chunk {chunk.index} of {frame.total}, scene {chunk.scene}: {speed}, {memory}"


def keep_sets(stream: Stream) -> list[str]:
    """What is kept, role by role; attention types that keep the same share a line."""
    alike: dict[str, list[str]] = {}
    for name, roles in stream.keep_set().items():
        kept = ", ".join(f"{r} {' '.join(map(str, roles[r]))}".replace("_", " ") for r in Role if r in roles)
        alike.setdefault(kept, []).append(name)
    return [f"{'all types' if len(alike) == 1 else ', '.join(names)}: {kept}" for kept, names in alike.items()]


def _identity(engine: Engine, seed: int) -> dict[str, str]:
    """What every shard says about the take that it belongs to."""
    geometry = engine.backbone.geometry
    plain = {"fps": str(geometry.fps), "geometry": json.dumps(asdict(geometry), default=str), "seed": str(seed)}
    return {"format": "longtake-take-1", "model": engine.backbone.fingerprint, **plain}

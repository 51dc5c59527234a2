"""What all benchmarks share: options, laps, the header, tables, goals, and the JSON and plot that are left behind."""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

matplotlib.use("Agg")
REPOSITORY = Path(__file__).resolve().parent.parent
NANOSECONDS_PER_MS = 1e6
T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What every benchmark is run with; ``results`` is ``None`` where nothing is to be left behind.

    ``work``: where finished parts are kept, if anywhere.
    """

    quick: bool
    threads: int
    results: Path | None
    work: Path | None


def parser(description: str) -> argparse.ArgumentParser:
    """A command line with the shared options; a benchmark adds its own."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="small sizes; for trying, not for quoting")
    made.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    made.add_argument("--work", type=Path, help="folder where finished parts are kept, so that a run can go on")
    made.add_argument(
        "--results", type=Path, help="folder for JSON and plot (default: bench/results; with --quick nothing is left)"
    )
    return made


def options(arguments: argparse.Namespace) -> Options:
    """The shared options, and torch held to the threads they name."""
    if arguments.threads < 1:
        raise SystemExit(f"--threads is {arguments.threads}; expected at least 1")
    torch.set_num_threads(arguments.threads)
    default = None if arguments.quick else REPOSITORY / "bench" / "results"
    return Options(arguments.quick, arguments.threads, arguments.results or default, arguments.work)


def kept(work: Path | None, name: str, what: object, run: Callable[[], T]) -> T:
    """What ``run`` gave, as JSON; a part of a benchmark that ``work`` has of the same ``what`` is not run again."""
    if work is None:
        return run()
    key, file = json.dumps(what, default=str, sort_keys=True), work / f"{name.replace(' ', '-')}.json"
    if file.is_file() and (found := json.loads(file.read_text()))["key"] == key:
        return cast(T, found["given"])
    given = run()
    work.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"key": key, "given": given}))
    return given


def progress() -> Progress:
    """A progress bar on standard error, so that tables can be piped."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


@dataclass
class Laps:
    """Times in milliseconds by name, one list entry per lap."""

    ms: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Time the body and book it under ``name``."""
        begun = time.perf_counter_ns()
        yield
        self.add(name, (time.perf_counter_ns() - begun) / NANOSECONDS_PER_MS)

    def add(self, name: str, ms: float) -> None:
        """Book one lap."""
        self.ms.setdefault(name, []).append(ms)

    def extend(self, other: "Laps") -> None:
        """Book every lap of ``other``, in its order."""
        for name, ms in other.ms.items():
            self.ms.setdefault(name, []).extend(ms)

    def median(self, name: str) -> float:
        """Median over the laps of ``name``; 0 if there was none, as for work that a contender does not have."""
        return float(np.median(self.ms[name])) if self.ms.get(name) else 0.0

    def percentile(self, name: str, percent: float) -> float:
        """A percentile over the laps of ``name``."""
        return float(np.percentile(self.ms[name], percent))


@dataclass(frozen=True)
class Goal:
    """A promise beside what was measured."""

    promise: str
    measured: str
    met: bool


@dataclass
class Report:
    """One run of one benchmark: filled while it runs, then shown and left behind.

    Args:
        configuration: what was run, as plain data.
        figures: what was measured, as plain data.
        notes: sentences that a reader of the figures needs.
    """

    name: str
    title: str
    options: Options
    configuration: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table whose first column is text and whose others are numbers, formatted already."""
        made = Table(title=title, title_justify="left", title_style="bold")
        for i, column in enumerate(columns):
            made.add_column(column, justify="left" if not i else "right")
        for row in rows:
            made.add_row(*(str(cell) for cell in row))
        self.tables.append(made)

    def goal(self, promise: str, measured: str, met: bool) -> None:
        """State a goal beside its figure."""
        self.goals.append(Goal(promise, measured, met))

    def finish(self, plot: Figure) -> None:
        """Show everything on standard output; leave JSON and plot in the results folder if there is one."""
        header = hardware(self.options)
        self._show(header)
        folder = self.options.results
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            goals = [asdict(goal) for goal in self.goals]
            content = {
                "name": self.name,
                "header": header,
                "quick": self.options.quick,
                "configuration": self.configuration,
                "figures": self.figures,
                "goals": goals,
                "notes": self.notes,
            }
            (folder / f"{self.name}.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
            plot.savefig(folder / f"{self.name}.png", dpi=120)

    def _show(self, header: Mapping[str, object]) -> None:
        console = Console(width=None if os.isatty(1) else 140, highlight=False)
        console.print(f"[bold]{self.title}[/bold]" + (" (quick sizes: not for quoting)" if self.options.quick else ""))
        console.print("; ".join(f"{key}: {value}" for key, value in header.items()))
        console.print("; ".join(f"{key}: {value}" for key, value in self.configuration.items()), markup=False)
        for table in self.tables:
            console.print()
            console.print(table)
        console.print()
        for note in self.notes:
            console.print(f"- {note}", markup=False)
        for goal in self.goals:
            verdict = "[green]met[/green]    " if goal.met else "[red]NOT MET[/red]"
            console.print(f"{verdict} {goal.promise}: {goal.measured}")


def hardware(options: Options) -> dict[str, object]:
    """CPU, cores, torch, threads, commit: what a figure means nothing without."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "last-level cache": _last_level_cache(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch threads": options.threads,
        "commit": commit(),
        "load when done (1 min)": round(os.getloadavg()[0], 2),
    }


def commit() -> str:
    """The commit of the working tree, with ``+dirty`` if tracked or new files other than results differ."""
    if not (REPOSITORY / ".git").exists():
        return "not a git checkout"
    head = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":!bench/results")
    return head + ("+dirty" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _last_level_cache() -> str:
    size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return size.read_text().strip() if size.is_file() else "unknown"


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Title and axis labels, with a light grid behind."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, which="both", alpha=0.25)
    axes.set_axisbelow(True)


def megabytes(count: float) -> str:
    """Bytes as MB (10⁶), with as many digits as it takes to see them."""
    return f"{count / 1e6:,.3g}" if count < 1e9 else f"{count / 1e6:,.0f}"

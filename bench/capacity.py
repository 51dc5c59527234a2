"""What this machine reaches, for ``longtake plan --measured``: matrices, memory, link, disk, and steps of a model.

Steps are of the real worker: the keep-set is full, and decoding and encoding are in them.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from actors.order import Order
from actors.worker import Vault
from bench.common import Options, Report, hardware, label, options, parser, progress
from errors import NoCapacity, RecordLost
from settings import Settings, build_worker, load, question_of
from sizing import machine_named
from sizing.chunk_time import COMMIT

PROMPT = "a red ball bouncing in a blue room"
BATCHES, QUICK_BATCHES = (1, 2, 4), (1, 2)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class NoVault(Vault):
    """Nothing is put away in here."""

    def put(self, session: str, data: bytes) -> None:
        raise NoCapacity("nothing is put away while it is measured")

    def take(self, session: str) -> bytes:
        raise RecordLost(session)

    def drop(self, session: str) -> None:
        pass


def best(times: int, work: Callable[[], object], device: torch.device) -> float:
    """Seconds of ``work`` when it was quickest: what the machine can, not what else it did meanwhile."""
    found = []
    for _ in range(times):
        _finish(device)
        began = time.perf_counter()
        work()
        _finish(device)
        found.append(time.perf_counter() - began)
    return min(found)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rates(device: torch.device, quick: bool) -> dict[str, Any]:
    """Operations a second of matrices, and bytes a second of the device's memory and of its link with the host."""
    side, megabytes, times = (256, 16, 2) if quick else (2048 if device.type == "cpu" else 8192, 256, 5)
    matrix = {}
    for name, dtype in DTYPES.items():
        a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
        matrix[name] = 2 * side**3 / best(times, lambda a=a, b=b: a @ b, device)  # type: ignore[misc]
    source = torch.ones(megabytes << 20, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    # A copy reads and writes, so that it moves twice its bytes.
    memory = 2 * source.nbytes / best(times, lambda: copy.copy_(source), device)
    host = torch.empty(source.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    link = source.nbytes / best(times, lambda: host.copy_(source), device)
    return {"matrix_ops_s": matrix, "memory_bytes_s": memory, "link_bytes_s": link}


def disk(folder: Path, quick: bool) -> dict[str, float]:
    """Bytes a second to a file with ``fsync``, and from it when the page cache was told to forget it."""
    content = os.urandom((8 if quick else 256) << 20)
    file = folder / "longtake-capacity"
    try:
        began = time.perf_counter()
        with file.open("wb") as writing:
            writing.write(content)
            writing.flush()
            os.fsync(writing.fileno())
        write = len(content) / (time.perf_counter() - began)
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            while os.read(descriptor, 4 << 20):
                pass
            read = len(content) / (time.perf_counter() - began)
        finally:
            os.close(descriptor)
    finally:
        file.unlink(missing_ok=True)
    return {"disk_write_bytes_s": write, "disk_read_bytes_s": read}


def steps(settings: Settings, batches: tuple[int, ...], count: int, each: Callable[[], object]) -> dict[int, float]:
    """Median seconds of a step, shown, by the sessions in it, when their keep-sets are full."""
    worker = build_worker(settings, NoVault())
    full = max(budget.places for budget in settings.budgets.values())
    names = [f"s{i}" for i in range(max(batches))]
    for i, name in enumerate(names):
        worker.open(name, Order(PROMPT, seed=i))
    for _ in range(full):
        worker.show(worker.step(names))
        each()
    found = {}
    for batch in batches:
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            made = worker.show(worker.step(names[:batch]))
            seconds.append(time.perf_counter() - began)
            assert all(one.failure is None for one in made.values()), made
            each()
        found[batch] = float(np.median(seconds))
    worker.shut()
    return found


def measure(report: Report, settings: Settings, gpu: str, folder: Path) -> None:
    """Fill the report with what ``sizing.measured`` reads."""
    quick, device = report.options.quick, torch.device(settings.model.device)
    report.figures |= rates(device, quick) | disk(folder, quick)
    if device.type == "cuda":
        report.figures["memory_bytes"] = float(torch.cuda.get_device_properties(device).total_memory)
    batches, count = (QUICK_BATCHES, 2) if quick else (BATCHES, 20)
    report.configuration["sessions"] = list(batches)
    engine = replace(settings.engine, sessions=max(batches))
    full = max(budget.places for budget in settings.budgets.values())
    with progress() as bar:
        task = bar.add_task("steps", total=full + count * len(batches))
        found = steps(replace(settings, engine=engine), batches, count, lambda: bar.advance(task))
    report.figures["step_s"] = found
    question = question_of(settings, machine_named(gpu))
    operations = (question.keeping.passes + COMMIT) * question.operations()
    report.configuration["chunk_operations"] = operations
    dtype = question.model.dtype
    if dtype in report.figures["matrix_ops_s"]:
        reached = operations / found[1] / report.figures["matrix_ops_s"][dtype]
        report.notes.append(
            f"a chunk alone reaches {reached:.0%} of the matrix rate in {dtype}, all that it does counted"
        )


def tables(report: Report) -> None:
    """What was measured, for a person."""
    figures = report.figures
    rows = [
        [f"matrices, {name}", f"{rate / 1e9:,.0f} G operations/s"] for name, rate in figures["matrix_ops_s"].items()
    ]
    names = ("memory_bytes_s", "link_bytes_s", "disk_read_bytes_s", "disk_write_bytes_s")
    rows += [[name.replace("_bytes_s", "").replace("_", " "), f"{figures[name] / 1e9:.2f} GB/s"] for name in names]
    report.table("This machine", ["", "reached"], rows)
    steps_s = [[f"{n} sessions", f"{s * 1e3:,.0f} ms", f"{n / s:.1f}"] for n, s in figures["step_s"].items()]
    report.table("A step, decoded and encoded", ["", "time", "chunks/s"], steps_s)


def plot(report: Report) -> Figure:
    """Steps by the sessions in them."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    found = report.figures["step_s"]
    axes.plot(list(found), [s * 1e3 for s in found.values()], marker="o")
    axes.set_ylim(bottom=0)
    label(axes, "A step, decoded and encoded", "sessions", "ms")
    return figure


def _arguments() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--config", type=Path, help="settings, YAML; default: the model that ships")
    made.add_argument("--gpu", default="cpu", help="name of this machine in longtake plan (default: cpu)")
    made.add_argument("--disk", type=Path, help="folder on the disk that is measured (default: of temporary files)")
    made.add_argument("--out", type=Path, help="file for longtake plan --measured, beside what --results leaves")
    return made.parse_args()


def main() -> None:
    """Measure, print, and leave JSON and plot."""
    given = _arguments()
    shared: Options = options(given)
    settings = replace(load(given.config), threads=shared.threads)
    configuration = {"gpu": machine_named(given.gpu).name, "model": settings.model.source}
    report = Report("capacity", "What this machine reaches", shared, configuration)
    measure(report, settings, given.gpu, given.disk or Path(tempfile.gettempdir()))
    tables(report)
    report.finish(plot(report))
    if given.out is not None:
        content = {"name": report.name, "header": hardware(shared), "configuration": configuration}
        given.out.write_text(json.dumps({**content, "figures": report.figures}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()

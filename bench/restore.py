"""How fast a record comes back from the restore store, verified, beside what this machine can do and what others do.

    python -m bench.restore [--quick] [--folder /mnt/nvme] [--lmcache-python PATH] [--cacheseek-python PATH]

Every contender takes its turn in every round, so that a machine that gets slower gets slower for all. ``cold``: the
file was put on the medium and out of the page cache first. GB/s are 10⁹ bytes per second; medians.
"""

import argparse
import json
import mmap
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from bench.common import Laps, Report, label, options, parser
from cache.codec import Bytes
from cache.keep_set import Role
from cache.spec import TYPES
from cache.storage.buffers import BufferPool
from cache.tiered import TieredStore
from cache.tiered_config import TiersConfig
from cache.tiers import KeyValues

TYPE = TYPES[0]
OTHERS = {"lmcache": "LMCache's file tier", "cacheseek": "CacheSeek's local store"}
DIRECT_BLOCK = 64 << 20
COLUMNS = (
    "memcpy, warm",
    "memcpy, fresh",
    "direct read",
    "page cache read",
    "put (host)",
    "write (disk)",
    "get warm (host)",
    "get warm (disk)",
    "get cold (disk)",
)


@dataclass
class Bench:
    """One size: a file, buffers, and a store with nothing but the record in turn."""

    folder: Path
    nbytes: int
    laps: Laps = field(default_factory=Laps)

    def __post_init__(self) -> None:
        tokens = self.nbytes // (2 * 2 * 2 * 1024)
        drawn = torch.randn(2, 2, tokens, 1024, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
        self.payload = KeyValues(drawn, 0, Role.SCENE_SINK)
        self.nbytes = self.payload.nbytes
        self.source = drawn.view(torch.uint8).reshape(-1).numpy()
        self.pool = BufferPool(4 * self.nbytes)
        self.target = self.pool.take(self.nbytes)
        self.target[:] = 1
        self.file = self.folder / "plain"
        self.file.write_bytes(self.source.data)
        config = TiersConfig(
            disk=str(self.folder / "store"),
            disk_bytes=8 * self.nbytes + (1 << 20),
            ttl_s=None,
            admission="always",
            behind_bytes=2 * self.nbytes,
            buffer_bytes=4 * self.nbytes,
        )
        self.store = TieredStore(4 * self.nbytes, config, time.time)

    def round(self, number: int) -> None:
        """Everything once."""
        self._limits()
        changed = self.payload.tensor.clone()
        changed.view(-1)[0] = float(number)  # another content each time, so that nothing is shared
        payload = KeyValues(changed, 0, Role.SCENE_SINK)
        with self.laps.lap("put (host)"):
            self.store.offload("a", 0, TYPE, payload)
        with self.laps.lap("write (disk)"):
            assert self.store.write_next()
        with self.laps.lap("get warm (host)"):
            np.copyto(self.target, _bytes(self.store.fetch("a", 0, TYPE)))
        self._from_disk("get warm (disk)", payload)
        drop(self.folder)
        self._from_disk("get cold (disk)", payload)
        self.store.close("a")

    def _from_disk(self, name: str, payload: KeyValues) -> None:
        """Read and verified, into a buffer of the pool of warm ones."""
        self.store.host.close("a")
        with self.laps.lap(name):
            found = self.store.fetch("a", 0, TYPE)
        assert torch.equal(found.tensor, payload.tensor)

    def _limits(self) -> None:
        with self.laps.lap("memcpy, warm"):
            np.copyto(self.target[: self.nbytes], self.source)
        with self.laps.lap("memcpy, fresh"):
            fresh = np.frombuffer(mmap.mmap(-1, self.nbytes), np.uint8)
            np.copyto(fresh, self.source)
        del fresh
        read(self.file, self.target, os.O_RDONLY, 1 << 20)
        with self.laps.lap("page cache read"):
            read(self.file, self.target, os.O_RDONLY, 1 << 20)
        drop(self.folder)
        with self.laps.lap("direct read"):
            read(self.file, self.target, os.O_RDONLY | os.O_DIRECT, DIRECT_BLOCK)

    def rates(self) -> dict[str, float]:
        """GB/s by name."""
        return {name: self.nbytes / 1e6 / self.laps.median(name) for name in COLUMNS}


def _bytes(payload: KeyValues) -> Bytes:
    found: Bytes = payload.tensor.view(torch.uint8).reshape(-1).numpy()
    return found


def read(path: Path, buffer: Bytes, flags: int, block: int) -> None:
    """A file into a warm buffer by plain system calls."""
    fd, at = os.open(path, flags), 0
    try:
        while got := os.preadv(fd, [buffer[at : at + block].data], at):
            at += got
            if at >= len(buffer) or got % 4096:
                break
    finally:
        os.close(fd)


def drop(folder: Path) -> None:
    """Every file on the medium and out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def others(name: str, python: str, folder: Path, mebibytes: int, rounds: int) -> dict[str, Any]:
    """What another store gives, run by an interpreter that has it."""
    script = Path(__file__).with_name("restore_others.py")
    with tempfile.TemporaryDirectory(dir=folder) as own:
        command = [python, str(script), name, own, str(mebibytes), str(rounds)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        return {"missing": done.stderr.strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Run it."""
    command = parser(__doc__.splitlines()[0])
    command.add_argument("--folder", type=Path, help="where the files are, on the disk that is measured")
    command.add_argument("--rounds", type=int, default=9)
    for name in OTHERS:
        command.add_argument(f"--{name}-python", help=f"interpreter that has {OTHERS[name]} installed")
    arguments = command.parse_args()
    chosen = options(arguments)
    sizes, rounds = ((1, 4), 3) if chosen.quick else ((4, 64, 256), arguments.rounds)
    configuration = {"MiB": sizes, "rounds": rounds, "sync": "never", "codec": "exact"}
    report = Report("restore", "Restore: put and get of one record, verified", chosen, configuration)
    measured = {size: measure(size, rounds, arguments, report) for size in sizes}
    columns = ("GB/s", *(f"{size} MiB" for size in sizes))
    names = list(dict.fromkeys(name for rates in measured.values() for name in rates))
    rows = [(n, *(f"{measured[s][n]:.2f}" if n in measured[s] else "-" for s in sizes)) for n in names]
    report.table("Rates, medians of rounds side by side", columns, rows)
    report.figures = {f"{size} MiB": rates for size, rates in measured.items()}
    goals(report, measured)
    report.finish(plot(measured))


def measure(mebibytes: int, rounds: int, arguments: argparse.Namespace, report: Report) -> dict[str, float]:
    """All rates at one size."""
    with tempfile.TemporaryDirectory(prefix="longtake-restore-", dir=arguments.folder) as folder:
        bench = Bench(Path(folder), mebibytes << 20)
        bench.round(-1)
        bench.laps = Laps()
        for number in range(rounds):
            bench.round(number)
        rates = bench.rates()
        bench.store.shut()
        for name, called in OTHERS.items():
            python = getattr(arguments, f"{name}_python")
            given: dict[str, Any] = {"missing": "no interpreter was named"}
            if python is not None:
                given = others(name, python, Path(folder), mebibytes, rounds)
            if "missing" in given:
                note = f"{called} was not measured: {given['missing']}"
                report.notes += [note] if note not in report.notes else []
                continue
            for how in ("put", "warm", "cold"):
                rates[f"{called}, {how}, unverified"] = bench.nbytes / 1e9 / float(np.median(np.array(given[how])))
    return rates


def goals(report: Report, measured: dict[int, dict[str, float]]) -> None:
    """The promises, at every size."""
    for size, rates in measured.items():
        share = rates["get cold (disk)"] / rates["direct read"]
        report.goal(f"verified cold read ≥ 0.95 of direct I/O at {size} MiB", f"{share:.2f}", share >= 0.95)
        share = rates["get warm (host)"] / rates["memcpy, warm"]
        report.goal(f"restore from host memory ≥ 0.8 of memcpy at {size} MiB", f"{share:.2f}", share >= 0.8)
        other = rates.get(f"{OTHERS['lmcache']}, warm, unverified")
        if other is not None:
            mine = rates["get warm (host)"]
            said = f"{mine:.1f} against {other:.1f} GB/s"
            report.goal(f"verified warm read faster than {OTHERS['lmcache']} at {size} MiB", said, mine > other)
    report.notes.append(
        "What is in host memory was verified when it came; a read from there is a copy. Through the page cache a read "
        "is verified each time, which costs a quarter to a half of it."
    )


def plot(measured: dict[int, dict[str, float]]) -> Figure:
    """Rates by size."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(name for rates in measured.values() for name in rates):
        sizes = [size for size in measured if name in measured[size]]
        axes.plot(sizes, [measured[size][name] for size in sizes], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.legend(fontsize=7, ncols=2)
    label(axes, "Restore store beside the limits of the machine", "MiB", "GB/s")
    return figure


if __name__ == "__main__":
    main()

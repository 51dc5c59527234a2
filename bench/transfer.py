"""How fast chunks go to the restore store and come back, verified, against a copy within one process.

The generator is this process, the store another one: an actor on a Ray cluster of its own, or, to tell Ray's part from
the transport's, a process that answers over a pipe. Payloads go through shared memory, by NIXL, and within calls.
A put is over when the store has verified it, a get when the bytes are verified here, a restore when they are in the
pool. One way at a time has the machine: UCX's progress thread would slow down the others.
"""

import importlib.util
import multiprocessing as mp
import os
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, cast

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from actors.remote_tier import Call, RemoteTier
from actors.restore_store import Answer, RestoreStore
from actors.staging import Staging, StagingConfig
from actors.transport.choose import Transport, region
from bench.common import Laps, Options, Report, label, options, parser, progress
from cache.keep_set import Role
from cache.spec import TYPES
from cache.tiers import KeyValues

MIB, GOAL, PATIENCE_S = 1 << 20, 0.8, 60.0
Line = Literal["pipe", "ray"]
WAYS: tuple[Transport, ...] = ("shared", "nixl", "inline")
VERBS = ("put", "get", "restore")
STORE_BYTES = 2 << 30


@dataclass(frozen=True)
class Contender:
    """One way to the store."""

    line: Line
    way: Transport
    tier: RemoteTier

    @property
    def name(self) -> str:
        """As in tables."""
        return f"{self.way}, {self.line}"


def main() -> None:
    """Run all of it."""
    made = parser(__doc__ or "")
    made.add_argument("--rounds", type=int, help="times that everything is done (default: 15, quick 3)")
    arguments = made.parse_args()
    chosen = options(arguments)
    sizes = [MIB, 4 * MIB] if chosen.quick else [4 * MIB, 64 * MIB, 256 * MIB]
    rounds = arguments.rounds or (3 if chosen.quick else 15)
    os.environ.setdefault("UCX_NET_DEVICES", "lo")  # else UCX listens on every device
    ways = [way for way in WAYS if way != "nixl" or importlib.util.find_spec("nixl_cu12") is not None]
    configuration = {"sizes MiB": [size // MIB for size in sizes], "rounds": rounds, "ways": ways}
    report = Report("transfer", "To the restore store and back", chosen, configuration)
    if "nixl" not in ways:
        report.notes.append("NIXL is not installed here (the extra 'nixl'): its rows are missing")
    laps = Laps()
    with ExitStack() as stack:
        lines = {"pipe": stack.enter_context(piped()), "ray": stack.enter_context(clustered(chosen))}
        with progress() as bar:
            task = bar.add_task("transfers", total=len(sizes) * len(lines) * len(ways))
            for size in sizes:
                for _ in run(lines, ways, size, rounds, laps):
                    bar.advance(task)
    report.finish(report_on(report, laps, sizes, ways))


def run(lines: dict[str, Call], ways: list[Transport], size: int, rounds: int, laps: Laps) -> Iterator[int]:
    """Every contender for itself, ``rounds`` times after one that is not counted, and a copy beside each."""
    source = torch.from_numpy(np.random.default_rng(0).integers(0, 256, size, np.uint8)).view(1, 2, 1, size // 2)
    pool = torch.zeros_like(source)
    config = StagingConfig(slots=2, slot_bytes=size, small_bytes=0)
    for name, call in lines.items():
        for way in ways:
            staging = Staging(region(way, config.slots, config.slot_bytes), config)
            one = Contender(cast(Line, name), way, RemoteTier(call, PATIENCE_S, staging=staging))
            while way != "inline" and not staging.open:
                one.tier.holds("none", 0)
            for i in range(rounds + 1):
                copies(source, pool, laps if i else Laps())
                there_and_back(one, source, pool, laps if i else Laps())
            assert not staging.failures, staging.failures
            assert staging.moved["in", way] == size * (rounds + 1), "it went another way"
            one.tier.close(one.name)
            one.tier.records(one.name)  # which waits for its turn
            staging.close()
            yield size


def copies(source: torch.Tensor, pool: torch.Tensor, laps: Laps) -> None:
    """What a copy within this process takes."""
    with laps.lap(f"memcpy {source.nbytes}"):
        pool.copy_(source)
    with laps.lap(f"fresh {source.nbytes}"):
        fresh = source.clone()
    del fresh


def there_and_back(one: Contender, source: torch.Tensor, pool: torch.Tensor, laps: Laps) -> None:
    """One put and one get; what comes back must be what went."""
    size = source.nbytes
    with laps.lap(f"{one.name} put {size}"):
        one.tier.offload(one.name, 0, TYPES[0], KeyValues(source, 0, Role.RECENT))
        assert one.tier.landed().result(PATIENCE_S)
    one.tier.holds(one.name, 0)
    pool.zero_()
    with laps.lap(f"{one.name} restore {size}"):
        with laps.lap(f"{one.name} get {size}"):
            found = one.tier.fetch(one.name, 0, TYPES[0])
        pool.copy_(found.tensor)
    assert torch.equal(pool, source)


@contextmanager
def piped() -> Iterator[Call]:
    """Calls to a store in another process, over a pipe, one at a time."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(theirs,), daemon=True)
    process.start()

    def call(name: str, *arguments: Any) -> "Future[Answer]":
        ours.send((name, arguments))
        told: Future[Answer] = Future()
        told.set_result(ours.recv())
        return told

    try:
        yield call
    finally:
        ours.send(None)
        process.join()


def answer(pipe: Connection) -> None:
    """Be the store at the other end."""
    store = RestoreStore(STORE_BYTES, 0)
    while (asked := pipe.recv()) is not None:
        name, arguments = asked
        pipe.send(getattr(store, name)(*arguments))
    store.dock.close()


@contextmanager
def clustered(chosen: Options) -> Iterator[Call]:
    """Calls to a store that is an actor."""
    import ray

    from actors.remote import StoreActor, actor_of, store_calls
    from cache.tiered_config import TiersConfig

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2 << 30)
    try:
        yield store_calls(actor_of(StoreActor).remote(STORE_BYTES, 0, TiersConfig(), b"", "here"))
    finally:
        ray.shutdown()


def speed(laps: Laps, name: str, size: int) -> float:
    """GB/s by the median."""
    return size / laps.median(f"{name} {size}") / 1e6


def report_on(report: Report, laps: Laps, sizes: list[int], ways: list[Transport]) -> Figure:
    """Tables, the goal, and a plot of restores."""
    names = [f"{way}, {line}" for line in ("pipe", "ray") for way in ways]
    for size in sizes:
        copied = speed(laps, "memcpy", size)
        rows = [["memcpy, warm", f"{copied:.2f}", "", "", "1.00"]]
        rows.append(["memcpy, fresh pages", f"{speed(laps, 'fresh', size):.2f}", "", "", ""])
        for name in names:
            speeds = [speed(laps, f"{name} {verb}", size) for verb in VERBS]
            rows.append([name, *(f"{s:.2f}" for s in speeds), f"{speeds[2] / copied:.2f}"])
            report.figures[f"{name} {size // MIB} MiB"] = dict(zip(VERBS, speeds, strict=True))
        report.figures[f"memcpy {size // MIB} MiB"] = {"warm": copied, "fresh": speed(laps, "fresh", size)}
        columns = ["way, line", "put", "get, verified", "into the pool", "of memcpy"]
        report.table(f"GB/s at {size // MIB} MiB, medians of {report.configuration['rounds']}", columns, rows)
    largest = sizes[-1]
    best = max(names, key=lambda name: speed(laps, f"{name} restore", largest))
    share = speed(laps, f"{best} restore", largest) / speed(laps, "memcpy", largest)
    promise = f"verified restore into the pool at {largest // MIB} MiB at {GOAL} of memcpy or more"
    report.goal(promise, f"{share:.2f} ({best})", share >= GOAL)
    return plotted(laps, sizes, names)


def plotted(laps: Laps, sizes: list[int], names: list[str]) -> Figure:
    """Restores by size and way."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    at = [size / MIB for size in sizes]
    axes.plot(at, [speed(laps, "memcpy", size) for size in sizes], "k--", label="memcpy, warm")
    for name in names:
        axes.plot(at, [speed(laps, f"{name} restore", size) for size in sizes], "o-", label=name)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    label(axes, "Verified restore into the pool", "MiB", "GB/s")
    return figure


if __name__ == "__main__":
    main()

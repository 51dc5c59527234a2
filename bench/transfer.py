"""How fast chunks go to the restore store and come back, verified, against a copy within one process.

The generator is this process, the store another one: an actor on a Ray cluster of its own, or, to tell Ray's part from
the transport's, a process that answers over a pipe. Payloads go through shared memory, by NIXL, and within calls.
A put is over when the store has verified it, a get when the bytes are verified here, a restore when they are in a page
of the pool: copied there after a get, or put there while they come (``land``), as an engine does. One way at a time has
the machine: UCX's progress thread would slow down the others.
"""

import importlib.util
import multiprocessing as mp
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Thread
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
from cache.pool import Pool
from cache.spec import TYPES, AttentionSpec, AttentionType
from cache.tiers import KeyValues
from kernels.ops import ops
from streams.paging import Paging

MIB, GOAL, PATIENCE_S = 1 << 20, 0.8, 60.0
Line = Literal["pipe", "ray"]
WAYS: tuple[Transport, ...] = ("shared", "nixl", "inline")
VERBS = ("put", "get", "restore", "land")
LAYERS, WIDTH = 32, 4096
STORE_BYTES = 2 << 30
T, PAGE = AttentionType.VIDEO_SELF, 1


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
    paging = page_of(size)
    drawn = torch.from_numpy(np.random.default_rng(0).integers(0, 256, size, np.uint8))
    source = drawn.view(torch.bfloat16).view(paging.pool.storage[T][:, :, 0].shape)
    copy = torch.zeros_like(source)
    config = StagingConfig(slots=2, slot_bytes=size, small_bytes=0, lands_bytes=0)
    for name, call in lines.items():
        for way in ways:
            staging = Staging(region(way, config.slots, config.slot_bytes), config)
            one = Contender(cast(Line, name), way, RemoteTier(call, PATIENCE_S, staging=staging))
            while way != "inline" and not staging.open:
                one.tier.holds("none", 0)
            for i in range(rounds + 1):
                copies(source, copy, laps if i else Laps())
                there_and_back(one, source, paging, laps if i else Laps())
            assert not staging.failures, staging.failures
            assert staging.moved["in", way] == 2 * size * (rounds + 1), "it went another way"
            assert staging.landed_bytes == (size * (rounds + 1) if way == "shared" else 0), "it did not land"
            one.tier.close(one.name)
            one.tier.records(one.name)  # which waits for its turn
            staging.close()
            yield size


def page_of(size: int) -> Paging:
    """A pool whose pages of one type have ``size`` bytes."""
    form = dict.fromkeys(TYPES, (1, 1, 1)) | {T: (LAYERS, size // (LAYERS * 2 * WIDTH * 2), WIDTH)}
    specs = {t: AttentionSpec(t, *form[t], 2) for t in TYPES}
    pool = Pool(specs, {t: 3 if t is T else 1 for t in TYPES}, torch.bfloat16)
    pool.storage[T].zero_()
    return Paging(pool, ops("torch"))


def copies(source: torch.Tensor, copy: torch.Tensor, laps: Laps) -> None:
    """What a copy within this process takes."""
    with laps.lap(f"memcpy {source.nbytes}"):
        copy.copy_(source)
    with laps.lap(f"fresh {source.nbytes}"):
        fresh = source.clone()
    del fresh


def there_and_back(one: Contender, source: torch.Tensor, paging: Paging, laps: Laps) -> None:
    """One put and two fetches; what comes back must be what went."""
    size, page = source.nbytes, paging.pool.storage[T][:, :, PAGE].view(torch.int16)
    expected = source.view(torch.int16)  # as bits: some are no numbers
    with laps.lap(f"{one.name} put {size}"):
        one.tier.offload(one.name, 0, T, KeyValues(source, 0, Role.RECENT))
        assert one.tier.landed().result(PATIENCE_S)
    one.tier.holds(one.name, 0)
    page.zero_()
    with laps.lap(f"{one.name} restore {size}"):
        with laps.lap(f"{one.name} get {size}"):
            found = one.tier.fetch(one.name, 0, T)
        paging.put(T, PAGE, found)
    assert torch.equal(page, expected)
    del found
    page.zero_()
    with laps.lap(f"{one.name} land {size}"):
        paging.put(T, PAGE, one.tier.fetch(one.name, 0, T, paging.room(T, PAGE)))
    assert torch.equal(page, expected)


@contextmanager
def piped() -> Iterator[Call]:
    """Calls to a store in another process, over a pipe, one at a time."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(theirs,), daemon=True)
    process.start()

    waiting: deque[Future[Answer]] = deque()

    def call(name: str, *arguments: Any) -> "Future[Answer]":
        waiting.append(Future())
        told = waiting[-1]
        ours.send((name, arguments))
        return told

    def listen() -> None:
        while (found := ours.recv()) is not None:
            waiting.popleft().set_result(found)

    thread = Thread(target=listen, name="line", daemon=True)
    thread.start()
    try:
        yield call
    finally:
        ours.send(None)
        thread.join()
        process.join()


def answer(pipe: Connection) -> None:
    """Be the store at the other end."""
    store = RestoreStore(STORE_BYTES, 0)
    while (asked := pipe.recv()) is not None:
        name, arguments = asked
        pipe.send(getattr(store, name)(*arguments))
    store.dock.close()
    pipe.send(None)


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
        rows = [["memcpy, warm", f"{copied:.2f}", "", "", "", "", "1.00"]]
        rows.append(["memcpy, fresh pages", f"{speed(laps, 'fresh', size):.2f}", "", "", "", "", ""])
        for name in names:
            speeds = [speed(laps, f"{name} {verb}", size) for verb in VERBS]
            rows.append([name, *(f"{s:.2f}" for s in speeds), *(f"{s / copied:.2f}" for s in speeds[2:])])
            report.figures[f"{name} {size // MIB} MiB"] = dict(zip(VERBS, speeds, strict=True))
        report.figures[f"memcpy {size // MIB} MiB"] = {"warm": copied, "fresh": speed(laps, "fresh", size)}
        columns = ["way, line", "put", "get, verified", "got, then put", "landing", "of memcpy", "landing, of memcpy"]
        report.table(f"GB/s at {size // MIB} MiB, medians of {report.configuration['rounds']}", columns, rows)
    largest = sizes[-1]
    best = max(names, key=lambda name: speed(laps, f"{name} land", largest))
    share = speed(laps, f"{best} land", largest) / speed(laps, "memcpy", largest)
    promise = f"verified restore into the pool at {largest // MIB} MiB at {GOAL} of memcpy or more"
    report.goal(promise, f"{share:.2f} ({best})", share >= GOAL)
    return plotted(laps, sizes, names)


def plotted(laps: Laps, sizes: list[int], names: list[str]) -> Figure:
    """Restores by size and way."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    at = [size / MIB for size in sizes]
    axes.plot(at, [speed(laps, "memcpy", size) for size in sizes], "k--", label="memcpy, warm")
    for i, name in enumerate(names):
        axes.plot(at, [speed(laps, f"{name} land", size) for size in sizes], f"C{i}o-", label=f"{name}, landing")
        axes.plot(at, [speed(laps, f"{name} restore", size) for size in sizes], f"C{i}.:", label=f"{name}, got first")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, ncols=2)
    label(axes, "Verified restore into the pool", "MiB", "GB/s")
    return figure


if __name__ == "__main__":
    main()

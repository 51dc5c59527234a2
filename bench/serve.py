"""What serving costs: the way from a generator to its viewer, many sessions at once, the call to the ledger service.

The way is measured with chunks of 64 KiB on both data planes of Ray Serve, each in a process of its own, against a
viewer inside the generator's process. Sessions at once are played in real time: viewers acknowledge as they play.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from actors.generator import Generator
from actors.metrics import Tally
from actors.order import Order
from actors.pace import Pace
from actors.vault import HostVault
from actors.worker import Worker
from bench.common import REPOSITORY, Options, Report, label, options, parser
from bench.served import PROMPT, QUICK, build_padded, delay_ms
from settings import Settings, build_worker, load

PLANES = {
    "default proxy": {},
    "HAProxy": {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    },
}
GOALS = {"default proxy": 10.0, "HAProxy": 3.0}
SESSIONS = (1, 2, 4, 8, 16)
AHEAD_S = 2.5  # media that a viewer has before it waits with its acknowledgement
FASTER = 2.0


Each = Callable[[bytes, int], Awaitable[float | None] | None]


class Kept(Tally):
    """Every observation, not only sums."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: defaultdict[str, list[float]] = defaultdict(list)

    def observe(self, name: str, value: float, **tags: str) -> None:
        """See ``Meter``."""
        super().observe(name, value, **tags)
        self.seen[":".join((name, *tags.values()))].append(value)


def made(settings: Settings, pace: Pace, meter: Kept, build: Callable[..., Worker] = build_worker) -> Generator:
    """A generator in this process."""
    return Generator(build(settings, HostVault(1 << 30)), pace, meter=meter)


async def watched(
    generator: Generator, session: str, each: Callable[[bytes, int], Awaitable[float | None] | None]
) -> None:
    """Watch a session for ever; ``each`` sees every chunk and may wait before it is acknowledged."""
    async for message in generator.watch(session, "", "viewer", -1, 8):
        if message["type"] == "chunk":
            waited = each(message["data"], message["index"])
            buffered = None if waited is None else await waited
            await generator.acknowledge(session, "viewer", message["index"], 8, buffered)


async def direct(settings: Settings, chunks: int) -> list[float]:
    """Delays of padded chunks at a viewer in the generator's own process, milliseconds."""
    generator = made(settings, Pace(), Kept(), build_padded)
    found: list[float] = []
    enough = asyncio.Event()

    def each(data: bytes, index: int) -> None:
        found.append(delay_ms(data))
        if len(found) == chunks + 10:
            enough.set()

    await generator.create("a", Order(PROMPT))
    task = asyncio.create_task(watched(generator, "a", each))
    await enough.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await generator.close()
    return found[10:]


async def played(settings: Settings, sessions: int, seconds: float) -> dict[str, float]:
    """Real-time viewers of so many sessions: chunk latency in milliseconds, and deadlines missed."""
    meter = Kept()
    generator = made(settings, Pace(), meter)
    chunk_s = generator.seconds
    began: dict[int, float] = {}

    def player(number: int) -> Callable[[bytes, int], Awaitable[float]]:
        async def each(data: bytes, index: int) -> float:
            begun = began.setdefault(number, time.perf_counter())
            ahead = (index + 1) * chunk_s - (time.perf_counter() - begun)
            if ahead > AHEAD_S:
                await asyncio.sleep(ahead - AHEAD_S)
            return max(0.0, min(ahead, AHEAD_S))

        return each

    for i in range(sessions):
        await generator.create(f"s{i}", Order(PROMPT, seed=i))
    tasks = [asyncio.create_task(watched(generator, f"s{i}", player(i))) for i in range(sessions)]
    await asyncio.sleep(seconds)
    total = 1e3 * np.array(meter.seen["chunk_seconds:total"])
    figures = {f"p{p}": float(np.percentile(total, p)) for p in (50, 95, 99)}
    chunks = meter.counts["chunks",]
    figures |= {
        "misses": meter.counts["deadline_misses",] / chunks,
        "batch": meter.sums["batch_sessions",] / meter.counts["batch_sessions",],
        "real_time": chunks * chunk_s / seconds / sessions,
        "ledger": float(1e3 * np.median(meter.seen["chunk_seconds:ledger"])),
        "encode": float(1e3 * np.median(meter.seen["chunk_seconds:encode"])),
    }
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await generator.close()
    return figures


async def throughput(settings: Settings, sessions: int, batch: int, seconds: float) -> float:
    """Chunks a second of sessions whose viewers take all there is."""
    meter = Kept()
    generator = made(settings, Pace(batch=batch), meter)
    for i in range(sessions):
        await generator.create(f"s{i}", Order(PROMPT, seed=i))
    tasks = [asyncio.create_task(watched(generator, f"s{i}", lambda *_: None)) for i in range(sessions)]
    while meter.counts["chunks",] < 2 * sessions:
        await asyncio.sleep(0.05)
    before, began = meter.counts["chunks",], time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (meter.counts["chunks",] - before) / (time.perf_counter() - began)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await generator.close()
    return rate


def plane(name: str, chunks: int, times: int) -> dict[str, list[float]]:
    """What ``bench.served`` measures on a data plane."""
    environment = {**os.environ, "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1", **PLANES[name]}
    command = [sys.executable, "-m", "bench.served", str(chunks), str(times)]
    done = subprocess.run(
        command, check=False, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise SystemExit(f"bench.served on the {name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def ways(report: Report, chunks: int, times: int) -> None:
    """The way to the viewer on both planes and without any, and the ledger call."""
    found = {"in the generator": {"delay": asyncio.run(direct(load(environ=QUICK), chunks))}}
    found |= {name: plane(name, chunks, times) for name in PLANES}
    report.figures["ways"] = found
    rows = []
    base = float(np.median(found["in the generator"]["delay"]))
    for name, one in found.items():
        p50, p95 = np.percentile(one["delay"], (50, 95))
        first = f"{np.median(one['first']):.0f}" if "first" in one else ""
        ledger = "{:.2f} / {:.2f}".format(*np.percentile(one["ledger"], (50, 95))) if "ledger" in one else ""
        rows.append([name, f"{p50:.2f}", f"{p95:.2f}", f"{p50 - base:.2f}", first, ledger])
        if name in GOALS:
            goal = GOALS[name]
            report.goal(f"{name}: p50 added under {goal:g} ms", f"{p50 - base:.2f} ms", bool(p50 - base < goal))
    columns = ["viewer behind", "p50 ms", "p95 ms", "added p50", "first chunk, ms", "ledger call p50 / p95, ms"]
    report.table("From the encoder to the viewer, chunks of 64 KiB", columns, rows)


def crowds(report: Report, settings: Settings, seconds: float, counts: tuple[int, ...]) -> None:
    """Sessions played at once, and batched against one by one."""
    figures = {n: asyncio.run(played(settings, n, seconds)) for n in counts}
    report.figures["played"] = figures
    rows = [
        [str(n), *(f"{f[p]:.0f}" for p in ("p50", "p95", "p99")), f"{f['misses']:.1%}", f"{f['batch']:.1f}",
         f"{f['real_time']:.2f}", f"{f['encode'] / f['batch']:.1f}", f"{f['ledger']:.2f}"]
        for n, f in figures.items()
    ]  # fmt: skip
    columns = ["sessions", "p50 ms", "p95 ms", "p99 ms", "misses", "batch", "real time", "encode, ms", "ledger, ms"]
    report.table("Sessions played in real time, a chunk from step to viewers", columns, rows)
    rates: dict[int, list[float]] = {1: [], 16: []}
    sessions = min(8, counts[-1])
    for _ in range(3):
        for batch, seen in rates.items():
            seen.append(asyncio.run(throughput(settings, sessions, batch, seconds / 2)))
    report.figures["throughput"] = rates
    one, many = (float(np.median(rates[batch])) for batch in (1, 16))
    rows = [["one by one", f"{one:.1f}", ""], ["in one batch", f"{many:.1f}", f"{many / one:.2f}"]]
    report.table(f"{sessions} sessions, chunks a second", ["", "chunks/s", "ratio"], rows)
    goal = f"{sessions} sessions in a batch at least {FASTER:g} times as fast as one by one"
    report.goal(goal, f"{many / one:.2f} x", many / one >= FASTER)


def plot(report: Report) -> Figure:
    """Delays by plane, latency by sessions."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name, one in report.figures["ways"].items():
        delays = np.sort(one["delay"])
        left.plot(delays, np.linspace(0, 1, len(delays)), label=name)
    left.set_xlim(0, max(20.0, float(np.percentile(report.figures["ways"]["default proxy"]["delay"], 98))))
    left.legend()
    label(left, "From the encoder to the viewer, 64 KiB", "ms", "share of chunks")
    played = report.figures["played"]
    for p in ("p50", "p95", "p99"):
        right.plot(list(played), [f[p] for f in played.values()], marker="o", label=p)
    right.axhline(640, color="grey", linestyle="--", label="a chunk's own time")
    right.set_xscale("log", base=2)
    right.legend()
    label(right, "A chunk from step to viewers", "sessions at once", "ms")
    return figure


def main() -> None:
    """Run all, print, and leave JSON and plot."""
    shared: Options = options(parser(__doc__ or "").parse_args())
    chunks, times, seconds = (30, 2, 4.0) if shared.quick else (300, 10, 20.0)
    counts = SESSIONS[:2] if shared.quick else SESSIONS
    report = Report("serve", "What serving costs", shared, {"chunks": chunks, "seconds": seconds, "sessions": counts})
    report.notes.append("the way: one denoising step a chunk; sessions at once: the schedule that ships")
    settings = load(environ={})
    engine = replace(settings.engine, sessions=max(counts))
    crowds(report, replace(settings, engine=engine, threads=shared.threads), seconds, counts)
    ways(report, chunks, times)
    report.finish(plot(report))


if __name__ == "__main__":
    main()

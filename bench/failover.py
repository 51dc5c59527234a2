"""How long a viewer waits when its generator is killed: from the kill to the next chunk, by durability.

Two generators on one machine, the model that ships, a viewer that takes all it gets. The victim is the one that has the
session; the other takes it over. Nothing may be missed: chunks are counted, and their times must go on.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import ray
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from ray import serve
from ray.util import list_named_actors

from actors.remote import DIRECTORY, NAMESPACE
from bench.common import Options, Report, label, options, parser
from client import Client
from serve_app import NAME, application
from settings import load

T = TypeVar("T")
PORT = 8322
PROMPT = "a red ball bouncing in a blue room"
BEFORE, AFTER = 24, 4  # chunks that are watched before the kill, and after it
READY_S = 120.0


def kill(member: str) -> None:
    """End a generator's process at once."""
    name = next(a["name"] for a in list_named_actors(all_namespaces=True) if member in (a["name"] or ""))
    ray.kill(ray.get_actor(name, "serve"))


async def both_ready(but: str = "") -> None:
    """Wait until two generators report, none of them ``but``."""
    directory: Any = ray.get_actor(DIRECTORY, NAMESPACE)
    async with asyncio.timeout(READY_S):
        while len(places := await directory.places.remote()) < 2 or but in places:
            await asyncio.sleep(0.25)


async def one_kill(client: Client, seed: int) -> dict[str, float]:
    """Watch, kill, watch on; seconds without a chunk, against the longest wait before the kill."""
    directory: Any = ray.get_actor(DIRECTORY, NAMESPACE)
    session = (await client.create(PROMPT, seed=seed))["session"]
    seen: list[int] = []
    times: list[float] = []
    home, killed = "", 0.0
    async with client.watch(session) as watch:
        async for message in watch:
            if message["type"] != "chunk":
                continue
            seen.append(message["index"])
            times.append(time.perf_counter())
            if len(seen) == BEFORE:
                home = await directory.find.remote(session)
                killed = time.perf_counter()
                kill(home)
            elif len(seen) == BEFORE + AFTER:
                break
    await client.stop(session)
    await both_ready(but=home)
    return {
        "pause": times[BEFORE] - killed,
        "longest before": float(np.diff(times[:BEFORE]).max()),
        "missed": float(seen != list(range(BEFORE + AFTER))),
    }


def with_two(work: Callable[[Client], Awaitable[T]], **options: Any) -> T:
    """Do something with a client of two generators, in a cluster of its own; ``options`` of the service."""
    settings = load(environ={"LONGTAKE_THREADS": "1", "LONGTAKE_SERVICE__TELEMETRY__LOG_LEVEL": "error"})
    service = replace(settings.service, generators=2, cpus=0.5, **options)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"port": PORT})
        serve.run(application(replace(settings, service=service)), name=NAME)

        async def run() -> T:
            await both_ready()
            async with Client(f"http://127.0.0.1:{PORT}") as client:
                return await work(client)

        return asyncio.run(run())
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


async def killed_times(client: Client, times: int) -> list[dict[str, float]]:
    """Kills one after the other."""
    return [await one_kill(client, seed) for seed in range(times)]


def plot(report: Report) -> Figure:
    """Every pause, by durability."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for at, (name, kills) in enumerate(report.figures["kills"].items()):
        axes.plot([at] * len(kills), [k["pause"] for k in kills], "o", alpha=0.6, label=name)
    axes.set_xticks(range(len(report.figures["kills"])), list(report.figures["kills"]))
    axes.set_ylim(0)
    label(axes, "From the kill to the next chunk at the viewer", "durability", "seconds")
    return figure


def main() -> None:
    """Run all, print, and leave JSON and plot."""
    shared: Options = options(parser(__doc__ or "").parse_args())
    times = 1 if shared.quick else 8
    report = Report("failover", "A generator is killed", shared, {"kills": times, "chunks before": BEFORE})
    found = {d: with_two(partial(killed_times, times=times), durability=d) for d in ("latents", "kv")}
    report.figures["kills"] = found
    rows = []
    for name, kills in found.items():
        pauses = [k["pause"] for k in kills]
        rows.append(
            [name, f"{np.median(pauses):.2f}", f"{max(pauses):.2f}", f"{max(k['longest before'] for k in kills):.2f}",
             f"{sum(k['missed'] for k in kills):.0f} of {len(kills)}"]
        )  # fmt: skip
    columns = ["durability", "median s", "longest s", "longest wait before s", "viewers that missed a chunk"]
    report.table("From the kill to the next chunk at the viewer", columns, rows)
    worst = max(k["pause"] for kills in found.values() for k in kills)
    report.goal("the player goes on after a pause of seconds (at most 10)", f"{worst:.2f} s", worst < 10)
    missed = sum(k["missed"] for kills in found.values() for k in kills)
    report.goal("no chunk is missed or shown twice", f"{missed:.0f} takes", not missed)
    report.finish(plot(report))


if __name__ == "__main__":
    main()

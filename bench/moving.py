"""How long a session stands still when it moves: put away and fetched, against copied ahead, side by side.

Two generators on one machine, the model that ships, and a viewer that takes all it gets: the session moves to and fro,
by turns the one way and the other.
"""

import asyncio
import time
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from ray import serve

from actors.backend import ServeBackend
from actors.fleet import ServeFleet
from actors.movement import Mover
from bench.common import Options, Report, label, options, parser
from bench.failover import PROMPT, READY_S, with_two
from client import Client
from errors import ServiceError
from serve_app import GENERATOR, NAME

BEFORE, AFTER = 24, 12  # chunks that are watched before the first move, and after each
AWAY, AHEAD = "put away", "copied ahead"


class Timed(ServeFleet):
    """A fleet whose calls are timed, one list a move."""

    def __init__(self, backend: ServeBackend) -> None:
        super().__init__(backend)
        self.spans: list[tuple[str, float, float]] = []

    async def _timed(self, name: str, work: Any) -> Any:
        begun = time.perf_counter()
        try:
            return await work
        finally:
            self.spans.append((name, begun, time.perf_counter()))

    async def leaving(self, call: str, session: str, *arguments: Any) -> Any:
        return await self._timed(call, super().leaving(call, session, *arguments))

    async def coming(self, member: str, call: str, session: str, *arguments: Any) -> Any:
        return await self._timed(call, super().coming(member, call, session, *arguments))

    async def hand_over(self, session: str, passed: bool = False) -> None:
        await self._timed("hand_over", super().hand_over(session, passed))

    async def take_over(self, session: str) -> str:
        return str(await self._timed("take_over", super().take_over(session)))


async def opened(client: Client) -> str:
    """A session, as soon as the ledger service answers too."""
    async with asyncio.timeout(READY_S):
        while True:
            with suppress(ServiceError):
                return str((await client.create(PROMPT))["session"])
            await asyncio.sleep(0.5)


async def watched(client: Client, times: int) -> dict[str, list[dict[str, float]]]:
    """A session that is watched and moved; of every move what its parts took and what the viewer saw of it."""
    fleet = Timed(ServeBackend(GENERATOR, {}))
    fleet.backend._handle = serve.get_deployment_handle(GENERATOR, NAME)  # here is no application to be in
    session = await opened(client)
    arrivals: list[tuple[float, int]] = []
    news = asyncio.Event()

    async def watch() -> None:
        async with client.watch(session) as watching:
            async for message in watching:
                if message["type"] == "chunk":
                    arrivals.append((time.perf_counter(), message["index"]))
                    news.set()

    async def until(chunks: int) -> None:
        while len(arrivals) < chunks:
            news.clear()
            await news.wait()

    watching = asyncio.create_task(watch())
    found: dict[str, list[dict[str, float]]] = {AWAY: [], AHEAD: []}
    await until(BEFORE)
    for turn in range(2 * (times + 1)):  # the first of each is not counted
        name = AHEAD if turn % 2 else AWAY
        fleet.spans.clear()
        begun = time.perf_counter()
        await Mover(fleet, ahead=name == AHEAD).move(session)
        await until(len(arrivals) + AFTER)
        if turn > 1:
            found[name].append(told(fleet.spans, begun, [when for when, _ in arrivals]))
    watching.cancel()
    await client.stop(session)
    assert [index for _, index in arrivals] == list(range(len(arrivals))), "a chunk was missed or came twice"
    return found


def told(spans: list[tuple[str, float, float]], begun: float, arrivals: list[float]) -> dict[str, float]:
    """Seconds of one move."""
    first = {
        name: next((s for s in spans if s[0] == name), (name, 0.0, 0.0)) for name in ("hold", "accept", "take_over")
    }
    handed = next(s for s in spans if s[0] == "hand_over")
    copied = bool(first["hold"][1])
    still = first["accept"][2] - first["hold"][1] if copied else first["take_over"][2] - handed[1]
    gaps = np.diff(arrivals)
    move = [gap for gap, at in zip(gaps, arrivals[1:], strict=True) if at > begun]
    return {
        "still": still,
        "viewer": float(max(move)),
        "usual": float(np.median(gaps)),
        "whole": first["take_over"][2] - begun,
        "copy": first["hold"][1] - begun if copied else 0.0,
        "rounds": float(sum(name == "prepare" for name, _, _ in spans)),
        **{name: end - start for name, start, end in (*first.values(), handed)},
    }


# -- what is left behind


def plot(report: Report) -> Figure:
    """Every move: how long the session stood still, and the longest wait of its viewer."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for at, (name, moves) in enumerate(report.figures["served"].items()):
        for what, shift in (("still", -0.1), ("viewer", 0.1)):
            axes.plot([at + shift] * len(moves), [m[what] for m in moves], "o", alpha=0.6, label=f"{name}: {what}")
    axes.set_xticks([0, 1], list(report.figures["served"]))
    axes.set_ylim(0)
    axes.legend()
    label(axes, "A session moves", "", "seconds")
    return figure


def main() -> None:
    """Run all, print, and leave JSON and plot."""
    shared: Options = options(parser(__doc__ or "").parse_args())
    times = 1 if shared.quick else 4
    report = Report("moving", "A session moves", shared, {"moves each way": times})
    report.figures["served"] = with_two(partial(watched, times=times))
    parts = ("still", "viewer", "usual", "copy", "hold", "accept", "hand_over", "take_over", "whole")
    rows = [
        [name, *(f"{1e3 * np.median([m[part] for m in moves]):.0f}" for part in parts)]
        for name, moves in report.figures["served"].items()
    ]
    columns = ["", "stands still", "viewer's longest wait", "between chunks", "copied for", "hold", "accept"]
    report.table("Milliseconds, medians", [*columns, "hand over", "take over", "whole move"], rows)
    report.notes.append("put away and copied ahead by turns; the first of each is left out")
    report.finish(plot(report))


if __name__ == "__main__":
    main()

"""The generator's compute thread and what waits for it: between two steps it does what was asked in the meantime.

Behind it a media thread decodes and encodes what was stepped, while the next step is on its way.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from actors.worker import FAILURES, Made, Stepped, Worker
from errors import NoCapacity, SessionOver

JOBS = 256


@dataclass
class Job:
    """Something for the compute thread, and who waits for it."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    done: "asyncio.Future[Any]"


class Compute:
    """One thread for one worker; at most ``JOBS`` requests wait for it. Event loop only."""

    def __init__(self, worker: Worker, clock: Callable[[], float] = time.monotonic) -> None:
        self.worker, self.clock = worker, clock
        self.jobs: deque[Job] = deque()
        self.wake = asyncio.Event()
        self.busy_since: float | None = None
        self._showing: deque[float] = deque()
        self._thread, self._media = ThreadPoolExecutor(1, "compute"), ThreadPoolExecutor(1, "media")
        worker.settle = self._settle

    async def now(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run something in the thread; for the step loop only, which is the one that waits for it."""
        self.busy_since = self.clock()
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self.worker.call, function, *arguments)
        finally:
            self.busy_since = None

    def show(self, stepped: Mapping[str, Stepped]) -> "asyncio.Future[dict[str, Made]]":
        """Have the media thread show what was stepped, after all that was stepped before."""
        showing = asyncio.get_running_loop().run_in_executor(self._media, self.worker.show, stepped)
        self._showing.append(self.clock())
        showing.add_done_callback(lambda _: self._showing.popleft())
        return showing

    @property
    def waits_since(self) -> float | None:
        """Since when what is being computed or shown has been waited for."""
        return min((t for t in (self.busy_since, *self._showing) if t is not None), default=None)

    async def between(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have the step loop run something between two steps; raises ``NoCapacity`` if too much waits already."""
        if len(self.jobs) >= JOBS:
            raise NoCapacity(f"{len(self.jobs)} requests wait for the generator; expected at most {JOBS}")
        job = Job(function, arguments, asyncio.get_running_loop().create_future())
        self.jobs.append(job)
        self.wake.set()
        return await job.done

    async def drain(self) -> None:
        """Do what waits now, in the order in which it came; what comes meanwhile waits for the next step."""
        for _ in range(len(self.jobs)):
            job = self.jobs.popleft()
            if job.done.cancelled():
                continue
            try:
                result = await self.now(job.function, *job.arguments)
            except FAILURES as error:
                if not job.done.cancelled():
                    job.done.set_exception(error)
            else:
                if not job.done.cancelled():
                    job.done.set_result(result)

    def _settle(self) -> None:
        """Wait for the media thread; from the compute thread."""
        self._media.submit(int).result()

    def close(self) -> None:
        """End the thread; whoever still waits gets ``SessionOver``."""
        self._thread.shutdown()
        self._media.shutdown()
        for job in self.jobs:
            if not job.done.done():
                job.done.set_exception(SessionOver("the generator closes"))

"""Copies between host and device that nobody waits for, and the one place where the host waits for the device.

A step queues all its passes at once and is far ahead of the device then. Every copy that is not of pinned memory, and
every number that is read in between, would make it wait, and the device after it.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

Table = tuple[tuple[int, ...], ...]


def upload(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``x`` on ``device``, or itself if it is there: queued from pinned memory behind what the device does already."""
    if x.device.type == "cpu" and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


@lru_cache(maxsize=8)
def _beside(device: torch.device) -> torch.cuda.Stream:
    """The stream of copies that nothing queued behind them is to wait for."""
    return torch.cuda.Stream(device)


class Landing:
    """Tensors on their way to host memory, behind what the device does already; ``sources`` of one device.

    They may be written again at once, by what is queued behind. Tensors of the host are there, and are not copied.

    Args:
        beside: what is queued behind does not wait for the copies, and must not write to ``sources``; they may be
            dropped.
    """

    def __init__(self, sources: Sequence[torch.Tensor], beside: bool = False) -> None:
        self._found, self._sources = list(sources), list(sources)
        self._landed: torch.cuda.Event | None = None
        if sources and sources[0].device.type == "cuda":
            self._found = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in sources]
            stream = torch.cuda.current_stream(sources[0].device)
            if beside:
                here, stream = stream, _beside(sources[0].device)
                stream.wait_stream(here)
            with torch.cuda.stream(stream):
                for found, source in zip(self._found, sources, strict=True):
                    found.copy_(source, non_blocking=True)
                    source.record_stream(stream)
            self._landed = stream.record_event()

    def here(self) -> bool:
        """Whether ``wait`` would not wait; then ``sources`` are let go."""
        if self._landed is not None and self._landed.query():
            self._landed, self._sources = None, self._found
        return self._landed is None

    def near(self) -> list[torch.Tensor]:
        """Where nobody has to wait: what was copied if it is there, else ``sources``, which nobody has written then."""
        return self._found if self.here() else self._sources

    def wait(self) -> list[torch.Tensor]:
        """What was copied, once it is there: here the host waits for the device, and nowhere else in a step.

        It is pinned memory, which is scarce: what is to be kept is copied once more.
        """
        if not self.here() and self._landed is not None:
            self._landed.synchronize()
            self._landed, self._sources = None, self._found
        return self._found


class Lap:
    """How long something takes: on a device, by its own clock and without waiting for it."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self._clock, self._seconds = clock, float("nan")
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            self._events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._events[0].record()
        self._begun = clock()

    def end(self) -> None:
        """What was queued until now is what is timed."""
        self._seconds = self._clock() - self._begun
        if self._events is not None:
            self._events[1].record()

    @property
    def seconds(self) -> float | None:
        """How long it took, or ``None`` while that is not known."""
        if self._events is None:
            return self._seconds
        begun, ended = self._events
        return begun.elapsed_time(ended) / 1e3 if ended.query() else None


@lru_cache(maxsize=1024)
def on_device(rows: Table, device: torch.device) -> torch.Tensor:
    """``rows`` as int32 [rows, longest] on ``device``, filled up with zeros.

    The last 1,024 that were asked for are kept, the one asked for longest ago is dropped and would be made again.
    A chunk asks for the same tables in each layer of each of its passes.
    """
    longest = max((len(row) for row in rows), default=0)
    # Not of inference mode: what is kept may be asked for by training next.
    with torch.inference_mode(False):
        table = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.int32)
        return upload(table.reshape(len(rows), longest), device)


@lru_cache(maxsize=1024)
def floats_on_device(rows: tuple[tuple[float, ...], ...], device: torch.device) -> torch.Tensor:
    """As ``on_device``, float32."""
    longest = max((len(row) for row in rows), default=0)
    with torch.inference_mode(False):
        return upload(torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in rows]), device)

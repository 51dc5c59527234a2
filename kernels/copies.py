"""Copies between host and device that nobody waits for, and the one place where the host waits for the device.

A step queues all its passes at once and is far ahead of the device then. Every copy that is not of pinned memory, and
every number that is read in between, would make it wait, and the device after it.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch

Table = tuple[tuple[int, ...], ...]


def upload(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``x`` on ``device``, or itself if it is there: queued from pinned memory behind what the device does already."""
    if x.device.type == "cpu" and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


class Landing:
    """Tensors on their way to host memory, behind what the device does already; ``sources`` of one device.

    They may be written again at once, by what is queued behind. Tensors of the host are there, and are not copied.
    """

    def __init__(self, sources: Sequence[torch.Tensor]) -> None:
        self._found = list(sources)
        self._landed: torch.cuda.Event | None = None
        if sources and sources[0].device.type == "cuda":
            self._found = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in sources]
            for found, source in zip(self._found, sources, strict=True):
                found.copy_(source, non_blocking=True)
            self._landed = torch.cuda.current_stream(sources[0].device).record_event()

    def wait(self) -> list[torch.Tensor]:
        """What was copied, once it is there: here the host waits for the device, and nowhere else in a step.

        It is pinned memory, which is scarce: what is to be kept is copied once more.
        """
        if self._landed is not None:
            self._landed.synchronize()
        return self._found


def on_host(sources: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies in ordinary host memory, when they are there; or ``sources`` themselves if they are."""
    landing = Landing(sources)
    found = landing.wait()
    return found if found[0] is sources[0] else [x.clone() for x in found]


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

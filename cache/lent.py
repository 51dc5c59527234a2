"""Memory that is lent and comes back by itself when nobody can see it any more; and a store of warm buffers of it."""

import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from errors import IntegrityError

Bytes = NDArray[np.uint8]


def lent(memory: Bytes, back: Callable[[], None]) -> Bytes:
    """``memory`` as an array; ``back`` is called, in whatever thread, once neither it nor any view of it is left.

    A view of an array refers to the first of its makers that is no array; by way of a memoryview this is ours.
    """
    array: Bytes = np.frombuffer(memory.data, np.uint8)
    weakref.finalize(array, back).atexit = False
    return array


@dataclass
class WarmBuffers:
    """Buffers that were used before: copying into fresh pages takes eight times as long as into warm ones.

    For any thread.

    Args:
        idle_bytes: held in buffers that nobody uses, at most; what comes back beyond it goes to the system.
    """

    idle_bytes: int
    lent_bytes: int = 0
    kept_bytes: int = 0
    _idle: defaultdict[int, list[Bytes]] = field(default_factory=lambda: defaultdict(list))
    _back: deque[Bytes] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, nbytes: int) -> Bytes:
        """A buffer with contents of somebody else, to be written before it is read; lent until nobody sees it."""
        with self._lock:
            self._collect()
            self.lent_bytes += nbytes
            idle = self._idle[nbytes].pop() if self._idle[nbytes] else None
            if idle is not None:
                self.kept_bytes -= nbytes
        memory = np.empty(nbytes, np.uint8) if idle is None else idle
        return lent(memory, lambda: self._back.append(memory))

    def statistics(self) -> dict[str, int]:
        """Bytes that are lent, and bytes that wait."""
        with self._lock:
            self._collect()
        return {"warm_lent_bytes": self.lent_bytes, "warm_idle_bytes": self.kept_bytes}

    def check_integrity(self) -> None:
        """Idle bytes are counted right and within the bound."""
        with self._lock:
            self._collect()
        found = sum(size * len(buffers) for size, buffers in self._idle.items())
        if found != self.kept_bytes or not 0 <= found <= self.idle_bytes or self.lent_bytes < 0:
            raise IntegrityError(f"warm buffers count {self.kept_bytes:,} bytes of {self.idle_bytes:,}, hold {found:,}")

    def _collect(self) -> None:
        """What came back since, from whatever thread; under the lock, which whoever gives back never takes."""
        while self._back:
            memory = self._back.popleft()
            self.lent_bytes -= memory.nbytes
            if memory.nbytes and self.kept_bytes + memory.nbytes > self.idle_bytes:
                self._drop_others(memory.nbytes)
            if self.kept_bytes + memory.nbytes <= self.idle_bytes:
                self._idle[memory.nbytes].append(memory)
                self.kept_bytes += memory.nbytes

    def _drop_others(self, nbytes: int) -> None:
        """Make room for a buffer of the size that is used now, at the cost of other sizes."""
        for size, buffers in list(self._idle.items()):
            while buffers and size != nbytes and self.kept_bytes + nbytes > self.idle_bytes:
                buffers.pop()
                self.kept_bytes -= size
            if not buffers and size != nbytes:
                del self._idle[size]


def flat(buffer: Any) -> Bytes:
    """Any contiguous buffer as bytes, not copied."""
    return np.frombuffer(memoryview(buffer).cast("B"), np.uint8)

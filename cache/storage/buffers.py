"""Warm buffers: pages that were written before cost an eighth of fresh ones."""

import mmap
import weakref
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from cache.codec import Bytes
from errors import ConfigError

PAGE = 4096


@dataclass
class BufferPool:
    """Page-aligned buffers that come back by themselves once nothing refers to them or to a view of them.

    At most ``budget_bytes`` lie idle; what comes back beyond that is given to the system. For several threads.
    """

    budget_bytes: int = 256 << 20
    idle_bytes: int = 0
    made: int = 0
    reused: int = 0
    _idle: dict[int, list[mmap.mmap]] = field(default_factory=dict)
    _back: deque[tuple[int, mmap.mmap]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if self.budget_bytes < 0:
            raise ConfigError(f"buffer budget_bytes is {self.budget_bytes}; expected 0 or more")

    def take(self, nbytes: int) -> Bytes:
        """A buffer of ``nbytes`` rounded up to whole pages, with whatever was in it before."""
        size = max(PAGE, -(-nbytes // PAGE) * PAGE)
        self._settle()
        try:
            pages = self._idle[size].pop()
            self.idle_bytes -= size
            self.reused += 1
        except (KeyError, IndexError):
            pages = mmap.mmap(-1, size)
            self.made += 1
        buffer = np.frombuffer(pages, np.uint8)
        # The finalizer may run anywhere, even inside ``take``: it only appends, which needs no lock.
        weakref.finalize(buffer, self._back.append, (size, pages)).atexit = False
        return buffer

    def _settle(self) -> None:
        while self._back:
            size, pages = self._back.popleft()
            if self.idle_bytes + size <= self.budget_bytes:
                self._idle.setdefault(size, []).append(pages)
                self.idle_bytes += size

"""The two ways in which the field's open caches hold a window: shifted by copy, and concatenated out of a ring.

Each as published and in its leanest form, so that Longtake is not compared with carelessness.
"""

from collections.abc import Sequence

import torch

from bench.contenders import Pair, Source


class ShiftCopy:
    """A window that is moved down by copy at every chunk, below a sink that stays (Self-Forcing, CausVid).

    ``whole``: the moved part is cloned first, as the published code does because source and destination overlap;
    else it is moved chunk by chunk, which needs no clone and half the traffic.
    """

    def __init__(self, name: str, memory: Sequence[int], recent: Sequence[int], source: Source, whole: bool) -> None:
        self.name, self.memory, self.recent, self.whole = name, list(memory), len(recent), whole
        self.chunks = len(memory) + len(recent) + 1
        key, _ = source.of(0)
        self.tokens, width = key.shape
        self.keys, self.values = torch.zeros(2, self.chunks * self.tokens, width, dtype=key.dtype)
        for i, chunk in enumerate((*memory, *recent)):
            key, value = source.of(chunk)
            self._part(self.keys, i, i + 1).copy_(key)
            self._part(self.values, i, i + 1).copy_(value)

    def stage(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self._part(self.keys, self.chunks - 1, self.chunks).copy_(key)
        self._part(self.values, self.chunks - 1, self.chunks).copy_(value)

    commit = stage

    def read(self) -> Pair:
        return self.keys[:], self.values[:]

    def evict(self) -> None:
        first = len(self.memory)
        for buffer in (self.keys, self.values):
            if self.whole:
                moved = self._part(buffer, first + 1, self.chunks).clone()
                self._part(buffer, first, self.chunks - 1).copy_(moved)
                continue
            for i in range(first, self.chunks - 1):
                self._part(buffer, i, i + 1).copy_(self._part(buffer, i + 1, i + 2))

    def order(self, current: int) -> list[int]:
        return [*self.memory, *range(current - self.recent, current + 1)]

    def storages(self) -> list[torch.Tensor]:
        return [self.keys]

    def _part(self, buffer: torch.Tensor, first: int, end: int) -> torch.Tensor:
        return buffer[first * self.tokens : end * self.tokens]


class Ring:
    """A sink and a ring of chunks written in place; every read concatenates them in order.

    A chunk in progress is concatenated as it comes and written on its commit only. ``fresh``: into a new tensor at
    each read; else into one that is kept for the purpose, at the price of a second copy of the window in memory.
    """

    def __init__(self, name: str, memory: Sequence[int], recent: Sequence[int], source: Source, fresh: bool) -> None:
        self.name, self.memory, self.recent = name, list(memory), len(recent)
        key, _ = source.of(0)
        tokens, width = key.shape
        self.slots, self.head = len(recent) + 1, len(recent)
        self.sink = torch.zeros(2, len(memory), tokens, width, dtype=key.dtype)
        self.ring = torch.zeros(2, self.slots, tokens, width, dtype=key.dtype)
        for buffer, chunks in ((self.sink, memory), (self.ring, recent)):
            for i, chunk in enumerate(chunks):
                for side, tensor in enumerate(source.of(chunk)):
                    buffer[side, i].copy_(tensor)
        window = (len(memory) + self.slots) * tokens
        self.kept = None if fresh else torch.zeros(2, window, width, dtype=key.dtype)
        self.current: Pair | None = None

    def stage(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self.current = (key, value)

    def commit(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self.ring[0, self.head].copy_(key)
        self.ring[1, self.head].copy_(value)
        self.current = None

    def read(self) -> Pair:
        return self._joined(0), self._joined(1)

    def evict(self) -> None:
        self.head = (self.head + 1) % self.slots

    def order(self, current: int) -> list[int]:
        return [*self.memory, *range(current - self.recent, current + 1)]

    def storages(self) -> list[torch.Tensor]:
        return [self.sink, self.ring]

    def _joined(self, side: int) -> torch.Tensor:
        ring = self.ring[side]
        older, newer = ring[self.head + 1 :].flatten(0, 1), ring[: self.head].flatten(0, 1)
        own = ring[self.head] if self.current is None else self.current[side]
        parts = [self.sink[side].flatten(0, 1), older, newer, own]
        return torch.cat(parts) if self.kept is None else torch.cat(parts, out=self.kept[side])

"""The decision log: what happened to which chunk of which attention type, and why."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from cache.spec import AttentionType


@dataclass(frozen=True, slots=True)
class Decision:
    """One line of the log. ``type`` is ``None`` where all four types are meant; ``at`` is the chunk being made."""

    at: int
    action: str
    chunk: int | None
    type: AttentionType | None
    reason: str

    def __str__(self) -> str:
        what = "" if self.chunk is None else f" chunk {self.chunk}"
        where = "" if self.type is None else f" [{self.type}]"
        return f"@{self.at}: {self.action}{what}{where}: {self.reason}"


@dataclass
class DecisionLog:
    """The newest ``capacity`` decisions of one stream; older ones are dropped and counted, never silently."""

    capacity: int = 4096
    dropped: int = 0
    _lines: deque[Decision] = field(default_factory=deque)

    def add(
        self, at: int, action: str, reason: str, chunk: int | None = None, type: AttentionType | None = None
    ) -> None:
        """Append one decision."""
        if len(self._lines) >= self.capacity:
            self._lines.popleft()
            self.dropped += 1
        self._lines.append(Decision(at, action, chunk, type, reason))

    def __iter__(self) -> Iterator[Decision]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def since(self, count: int) -> list[Decision]:
        """The decisions after the first ``count`` that were ever made, as far as the log still has them."""
        return list(islice(self._lines, max(0, count - self.dropped), None))

    def about(self, chunk: int) -> list[Decision]:
        """Everything the log still knows about ``chunk``."""
        return [line for line in self._lines if line.chunk == chunk]

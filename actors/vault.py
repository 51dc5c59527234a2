"""Streams that are put away, in host memory outside the generators."""

from collections import OrderedDict
from dataclasses import dataclass, field

from errors import NoCapacity, RecordLost


@dataclass
class HostVault:
    """Snapshots by session, at most ``budget_bytes``; full is full, for what is here cannot be made again."""

    budget_bytes: int
    bytes_held: int = 0
    _held: OrderedDict[str, bytes] = field(default_factory=OrderedDict)

    def put(self, session: str, data: bytes) -> None:
        """Keep a snapshot, in place of an older one. Raises ``NoCapacity``, and then nothing was changed."""
        held = self.bytes_held - len(self._held.get(session, b"")) + len(data)
        if held > self.budget_bytes:
            raise NoCapacity(
                f"{len(self._held)} streams that are put away hold {self.bytes_held:,} bytes; {len(data):,} more do "
                f"not fit {self.budget_bytes:,}"
            )
        self._held[session] = bytes(data)
        self.bytes_held = held

    def take(self, session: str) -> bytes:
        """Give a snapshot back; it is kept until ``drop``. Raises ``RecordLost``."""
        if session not in self._held:
            raise RecordLost(f"{session} is not in the vault; it was dropped, or the vault was lost")
        return self._held[session]

    def drop(self, session: str) -> None:
        """Forget a snapshot; unknown ones are no error."""
        self.bytes_held -= len(self._held.pop(session, b""))

    def statistics(self) -> dict[str, int]:
        """What is held."""
        return {"bytes_held": self.bytes_held, "budget_bytes": self.budget_bytes, "streams": len(self._held)}

"""What is on its way to disk: newest payload per key, bounded, and given back while it waits."""

from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field

from cache.storage.index import Key
from cache.storage.packing import Payload, worth
from errors import ConfigError, IntegrityError


@dataclass(eq=False)
class Pending:
    """A payload that waits for the disk, and who waits for it; ``done`` tells whether it got there."""

    payload: Payload
    done: "Future[bool]" = field(default_factory=Future)


@dataclass
class Behind:
    """First come, first written; at most ``budget_bytes``.

    What does not fit may take the place of what is worth less; else it is refused.
    """

    budget_bytes: int
    bytes_held: int = 0
    _waiting: OrderedDict[Key, Pending] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        if self.budget_bytes < 0:
            raise ConfigError(f"behind_bytes is {self.budget_bytes}; expected 0 or more")

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: Key) -> bool:
        return key in self._waiting

    def get(self, key: Key) -> Pending | None:
        """What waits under this key."""
        return self._waiting.get(key)

    def keys(self) -> list[Key]:
        """All that waits, first to last."""
        return list(self._waiting)

    def put(self, key: Key, payload: Payload) -> tuple[bool, list[tuple[Key, Payload]]]:
        """Let a payload wait, in place of an older one of its key; whether it does, and what it took the place of."""
        self.settle(key)
        free = self.budget_bytes - self.bytes_held
        lesser = [(k, p.payload) for k, p in reversed(self._waiting.items()) if worth(p.payload) < worth(payload)]
        lesser.sort(key=lambda pair: worth(pair[1]))
        displaced = []
        for other in lesser:
            if payload.nbytes <= free:
                break
            displaced.append(other)
            free += other[1].nbytes
        if payload.nbytes > free:
            return False, []
        for other_key, _ in displaced:
            self.drop(other_key)
        self._waiting[key] = Pending(payload)
        self.bytes_held += payload.nbytes
        return True, displaced

    def first(self) -> tuple[Key, Pending] | None:
        """Who is next; waits on until ``settle`` or ``drop``."""
        return next(iter(self._waiting.items()), None)

    def settle(self, key: Key) -> None:
        """It got to the disk, or nobody wants it there any more."""
        self._take(key, True)

    def drop(self, key: Key) -> None:
        """It will not get to the disk."""
        self._take(key, False)

    def check_integrity(self) -> None:
        """Bytes are counted right, and within the bound."""
        counted = sum(pending.payload.nbytes for pending in self._waiting.values())
        if counted != self.bytes_held or counted > self.budget_bytes:
            raise IntegrityError(f"{counted:,} bytes wait for the disk; counted {self.bytes_held:,}")

    def _take(self, key: Key, done: bool) -> None:
        pending = self._waiting.pop(key, None)
        if pending is not None:
            self.bytes_held -= pending.payload.nbytes
            pending.done.set_result(done)

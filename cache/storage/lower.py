"""The disk behind host memory: a queue that one thread empties, and what happens when the disk fails.

A disk that fails is not written until ``retry_s`` later; then it is opened anew, so that the index is what is there,
and what could not be removed meanwhile is removed. What it has can be read all the time, if it can be read.
"""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from cache.storage.behind import Behind
from cache.storage.buffers import BufferPool
from cache.storage.disk import DiskTier
from cache.storage.disk_config import DiskConfig
from cache.storage.index import Key
from cache.storage.packing import Payload
from cache.storage.quotas import Owners
from errors import ConfigError, RecordLost


@dataclass(eq=False)
class Lower:
    """See the module. May be used by several threads; ``write_next`` and ``recover`` by one.

    Args:
        root: the disk tier's folder; none for no disk at all.
        above: whether host memory has a record too, so that nothing is lost if it is not written.
        gone: records that are in neither any more although nobody asked for that.

    Raises:
        ConfigError: the folder is somebody else's or was made with another key.
    """

    root: Path | None
    config: DiskConfig
    owners: Owners
    buffers: BufferPool
    behind: Behind
    lock: threading.RLock
    clock: Callable[[], float]
    retry_s: float
    tell: Callable[[str], None]
    above: Callable[[Key], bool]
    disk: DiskTier | None = None
    degraded: str = ""
    refused: int = 0
    gone: int = 0
    degradations: int = 0
    recoveries: int = 0
    misses: Counter[str] = field(default_factory=Counter)
    _unerased: set[str] = field(default_factory=set)
    _unremoved: set[Key] = field(default_factory=set)
    _retry_at: float = float("-inf")

    def __post_init__(self) -> None:
        self.news = threading.Condition(self.lock)
        if self.root is not None:
            try:
                self.disk = self._open(self.root)
            except OSError as error:
                self._degrade(error)

    # -- what is here

    def has(self, key: Key) -> bool:
        """Whether it is on disk, or on its way."""
        return key in self.behind or (self.disk is not None and self.disk.has(*key))

    def keys(self, session: str) -> set[Key]:
        """All that is on disk or on its way of a session."""
        on_disk = [] if self.disk is None else self.disk.index.of(session)
        return {*on_disk, *(key for key in self.behind.keys() if key.session == session)}  # noqa: SIM118

    def sessions(self) -> dict[str, float]:
        """Names that have something here, and when it was last used; 0 for what is on its way."""
        found = {key.session: 0.0 for key in self.behind.keys()}  # noqa: SIM118
        if self.disk is not None:
            found |= {name: self.disk.index.last_use(name) for name in self.disk.index.by_session}
        return found

    def read(self, key: Key) -> tuple[Payload, str]:
        """A payload, and whether the ``queue`` or the ``disk`` had it.

        Raises:
            RecordLost: nobody has it, or it is damaged; that is counted, and it is gone then.
        """
        pending = self.behind.get(key)
        if pending is not None:
            return pending.payload, "queue"
        if self.disk is None:
            self.misses["absent"] += 1
            raise RecordLost(f"chunk {key.chunk} [{key.kind}] of {key.session!r} is not in host memory")
        before, records = Counter(self.disk.misses), len(self.disk.index.entries)
        try:
            return self.disk.get(*key), "disk"
        except RecordLost:
            self.misses.update(self.disk.misses - before)
            self.gone += records - len(self.disk.index.entries)
            raise

    # -- what comes and goes

    def put(self, key: Key, payload: Payload) -> bool:
        """Let a payload wait for the disk; whether it does."""
        if self.disk is None or self.degraded:
            return False
        taken, displaced = self.behind.put(key, payload)
        self.refused += len(displaced) + (not taken)
        self.gone += sum(not self.above(other) for other, _ in displaced)
        self.news.notify_all()
        return taken

    def remove(self, key: Key) -> None:
        """Nothing of this key may be given back any more."""
        self.behind.settle(key)
        if self.disk is not None and self.disk.has(*key) and not self._try(lambda disk: disk.remove(key)):
            self._unremoved.add(key)

    def fork(self, parent: str, child: str) -> None:
        """Give ``child`` what ``parent`` has, by reference."""
        refused: list[Key] = []
        self._try(lambda disk: refused.extend(disk.fork(parent, child)))
        self.gone += sum(not self.above(key) for key in refused)
        for key in self.behind.keys():  # noqa: SIM118
            pending, mine = self.behind.get(key), Key(child, key.chunk, key.kind)
            if key.session == parent and pending is not None and not self.put(mine, pending.payload):
                self.gone += not self.above(mine)

    def close(self, session: str) -> None:
        """Erase a session."""
        for key in self.behind.keys():  # noqa: SIM118
            if key.session == session:
                self.behind.settle(key)
        on_disk = self.disk is not None and bool(self.disk.index.of(session))
        if on_disk and not self._try(lambda disk: disk.close(session)):
            self._unerased.add(session)

    def landed(self) -> "Future[bool]":
        """When all that waits now has got to the disk; whether it has."""
        waiting = [p.done for k in self.behind.keys() if (p := self.behind.get(k)) is not None]  # noqa: SIM118
        return all_of(waiting, self.disk is not None and not self.degraded)

    # -- the thread that writes

    def write_next(self) -> bool:
        """Write what waits longest; whether there was something."""
        with self.lock:
            disk, first = self.disk, self.behind.first()
            if disk is None or first is None or self.degraded:
                return False
        key, pending = first
        try:
            draft = disk.draft(key, pending.payload)
            with self.lock:
                if self.behind.get(key) is not pending:
                    return True
                if not disk.reserve(draft):
                    self._give_up(key)
                    return True
            disk.write(draft)
            with self.lock:
                if self.behind.get(key) is not pending:
                    disk.discard(draft)
                    return True
                disk.publish(draft)
                self.behind.settle(key)
        except RecordLost:
            return True  # what it was to share made room meanwhile; the next try writes it
        except ConfigError as error:
            with self.lock:
                self.tell(f"a record cannot be written: {error}")
                self._give_up(key)
        except OSError as error:
            with self.lock:
                self._degrade(error)
        return True

    def recover(self) -> bool:
        """Try a disk that failed again, if it is time to; whether it works again."""
        now = self.clock()
        if not self.degraded or self.root is None or now < self._retry_at:
            return False
        self._retry_at = now + self.retry_s
        try:
            if self.disk is not None:
                self.disk.probe()
                self.gone += self.dropped
                self._let_go()
            self.disk = self._open(self.root)
            for session in set(self._unerased):
                self.disk.close(session)
                self._unerased.discard(session)
            for key in set(self._unremoved):
                self.disk.remove(key)
                self._unremoved.discard(key)
        except OSError as error:
            self._degrade(error)
            return False
        except ConfigError as error:
            self.tell(f"the disk cannot be used again: {error}")
            return False
        self.degraded = ""
        self.recoveries += 1
        self.gone += 1  # whoever follows the losses asks what is here now
        self.tell("the disk works again")
        return True

    def shut(self) -> None:
        """Let the disk go; what is on it stays."""
        self._let_go()
        self.news.notify_all()

    @property
    def dropped(self) -> int:
        """Records that had to make room on the disk since it was opened."""
        return 0 if self.disk is None else self.disk.dropped["key_values"] + self.disk.dropped["latents"]

    @property
    def unerased(self) -> int:
        """Sessions and records that could not be removed yet."""
        return len(self._unerased) + len(self._unremoved)

    # -- inside

    def _open(self, root: Path) -> DiskTier:
        return DiskTier(root, self.config, self.clock, self.owners, self.buffers)

    def _let_go(self) -> None:
        if self.disk is not None:
            self.disk.shut()
            self.disk = None

    def _try(self, do: Callable[[DiskTier], object]) -> bool:
        """Do something on disk, if there is one; whether it did not fail."""
        try:
            if self.disk is not None:
                do(self.disk)
        except OSError as error:
            self._degrade(error)
            return False
        return True

    def _degrade(self, error: OSError) -> None:
        self._retry_at = self.clock() + self.retry_s
        if not self.degraded:
            self.degradations += 1
            self.degraded = str(error)
            self.tell(f"the disk fails, there is host memory alone: {error}")
        for key in self.behind.keys():  # noqa: SIM118
            self._give_up(key)

    def _give_up(self, key: Key) -> None:
        """What waits will not be written."""
        self.behind.drop(key)
        self.refused += 1
        self.gone += not self.above(key)


def all_of(waiting: "list[Future[bool]]", good: bool) -> "Future[bool]":
    """Done when all are; whether all were told so."""
    told: Future[bool] = Future()
    if not waiting:
        told.set_result(good)
        return told
    left, results = len(waiting), []
    lock = threading.Lock()

    def tell(one: "Future[bool]") -> None:
        with lock:
            results.append(one.result())
            last = len(results) == left
        if last:
            told.set_result(good and all(results))

    for one in waiting:
        one.add_done_callback(tell)
    return told

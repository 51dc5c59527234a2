"""A restore store of two tiers: host memory, and disk behind it.

What arrives is in host memory; what has to make room there goes to disk instead of nowhere, by a queue that one thread
empties; what is fetched from disk comes up again. On a full or failing disk it degrades in this order: keys and values
of restored and recent chunks are no longer written, then those of anchors, then of sinks, then latents; if the disk
fails, there is host memory alone, which is said, until the disk works again.
"""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from cache.codecs import named
from cache.spec import TYPES, AttentionType
from cache.storage.behind import Behind
from cache.storage.buffers import BufferPool
from cache.storage.disk import DiskTier
from cache.storage.disk_config import DiskConfig
from cache.storage.files import Files
from cache.storage.index import Key
from cache.storage.packing import KINDS, LATENTS, Payload, kind_of, worth
from cache.storage.quotas import Owners, Quota, account
from cache.storage.seals import Aes, Seal, Unsealed
from cache.tiered_config import TieredStatistics, TiersConfig
from cache.tiers import Held, HostTier, KeyValues, Latents, Record, RestoreTier
from errors import ConfigError, RecordLost

T = TypeVar("T")
USES = 65_536  # records whose uses are counted; all begin anew beyond that


class TieredStore(RestoreTier):
    """See the module. May be used by several threads.

    ``work`` is for one thread of its own, or ``write_next`` and ``tend`` are called now and then.

    Args:
        clock: wall time in seconds.
        key: what the disk is encrypted with, 32 bytes; empty for no encryption.
        tell: is told when the disk fails and when it works again.
        files: how the disk tier changes files.

    Raises:
        ConfigError: the folder of the disk is somebody else's or was made with another key.
    """

    def __init__(
        self,
        host_bytes: int,
        config: TiersConfig,
        clock: Callable[[], float],
        key: bytes = b"",
        tell: Callable[[str], None] = lambda reason: None,
        files: Files | None = None,
    ) -> None:
        self.config, self.clock, self.tell = config, clock, tell
        self.owners, quota = Owners(), Quota(config.session_bytes, config.owner_bytes)
        self.host = HostTier(host_bytes, 0, 0, named(config.host_codec), quota, self.owners, self._demote)
        self.behind = Behind(config.behind_bytes)
        self.buffers = BufferPool(config.buffer_bytes)
        seal: Seal = Aes(key) if key else Unsealed()
        self._disk_config = DiskConfig(
            config.disk_bytes, named(config.disk_codec), quota, files or Files(config.sync), seal
        )
        self.hits: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()
        self.refused = self.gone = self.expired = self.degradations = self.recoveries = 0
        self.degraded = ""
        self._uses: Counter[Key] = Counter()
        self._last: dict[str, float] = {}
        self._unerased: set[str] = set()
        self._unremoved: set[Key] = set()
        self._retry_at = self._sweep_at = float("-inf")
        self._lock = threading.RLock()
        self._news, self._ended = threading.Condition(self._lock), False
        self.disk: DiskTier | None = None
        if config.disk:
            try:
                self.disk = self._open()
            except OSError as error:
                self._degrade(error)

    # -- what a cache asks

    def holds(self, session: str, chunk: int) -> Held:
        with self._lock:
            held = self.host.holds(session, chunk)
            types = {t for t in TYPES if t not in held.types and self._below(Key(session, chunk, kind_of(t)))}
            return Held(held.types | types, held.latents or self._below(Key(session, chunk, LATENTS)))

    def introduce(self, session: str, owner: str, model: str) -> None:
        with self._lock:
            self.owners.introduce(session, owner, model)

    def offload(self, session: str, chunk: int, type: AttentionType, payload: KeyValues) -> None:
        with self._lock:
            key = self._arrives(session, chunk, type)
            self.host.offload(session, chunk, type, payload)
            if self.config.admission == "always" or worth(payload):
                self._write_ahead(key)

    def keep_latents(self, session: str, chunk: int, latents: Latents) -> None:
        with self._lock:
            key = self._arrives(session, chunk, None)
            self.host.keep_latents(session, chunk, latents)
            self._write_ahead(key)

    def fetch(self, session: str, chunk: int, type: AttentionType) -> KeyValues:
        with self._lock:
            found = self._use(Key(session, chunk, kind_of(type)))
            assert isinstance(found, KeyValues)
            return found.unpacked()

    def latents(self, session: str, chunk: int) -> Latents:
        with self._lock:
            found = self._use(Key(session, chunk, LATENTS))
            assert isinstance(found, Latents)
            return found

    def records(self, session: str) -> dict[int, Record]:
        with self._lock:
            found = {}
            for chunk in self.chunks(session):
                record = Record()
                for kind in KINDS:
                    payload = self._peek(Key(session, chunk, kind))
                    if isinstance(payload, Latents):
                        record.latents = payload
                    elif payload is not None:
                        record.key_values[AttentionType(kind)] = payload.unpacked()
                if record.latents is not None or record.key_values:
                    found[chunk] = record
            return found

    def forget(self, session: str, chunk: int) -> None:
        with self._lock:
            self.host.forget(session, chunk)
            for kind in KINDS:
                self._remove_below(Key(session, chunk, kind))
                self._uses.pop(Key(session, chunk, kind), None)

    def fork(self, parent: str, child: str) -> None:
        with self._lock:
            self._touch(child)
            self.host.fork(parent, child)
            refused: list[Key] = self._on_disk(lambda disk: disk.fork(parent, child), [])
            self.gone += sum(not self._host_has(key) for key in refused)
            for key in [key for key in self.behind.keys() if key.session == parent]:  # noqa: SIM118
                pending, mine = self.behind.get(key), Key(child, key.chunk, key.kind)
                if pending is not None and not self._queue(mine, pending.payload) and not self._host_has(mine):
                    self.gone += 1

    def adopt(self, parent: str, child: str) -> None:
        self.fork(parent, child)

    def close(self, session: str) -> None:
        with self._lock:
            self.host.close(session)
            for key in [*self.behind.keys(), *self._uses]:
                if key.session == session:
                    self.behind.settle(key)
                    self._uses.pop(key, None)
            if self.disk is not None and self.disk.index.of(session):
                self._on_disk(lambda disk: disk.close(session), None, unerased=session)
            self.owners.forget(session)
            self._last.pop(session, None)

    def landed(self) -> "Future[bool]":
        """As configured: at once, or when all that waits for the disk now has got there."""
        with self._lock:
            waiting = [p.done for k in self.behind.keys() if (p := self.behind.get(k)) is not None]  # noqa: SIM118
            if self.config.safe == "memory":
                return done(True)
            return all_of(waiting, not self.degraded)

    def chunks(self, session: str) -> list[int]:
        """Chunks of ``session`` with a record in any tier, in media order."""
        with self._lock:
            below = self.disk.index.of(session) if self.disk is not None else []
            waiting = (key for key in self.behind.keys() if key.session == session)  # noqa: SIM118
            return sorted({*self.host.chunks(session), *(key.chunk for key in (*below, *waiting))})

    # -- the way to disk

    def work(self) -> None:
        """Write what waits, and tend to the rest, until ``shut``; for one thread."""
        while not self._ended:
            self.tend()
            if not self.write_next():
                with self._news:
                    self._news.wait(1.0)

    def write_next(self) -> bool:
        """Write what waits longest; whether there was something."""
        with self._lock:
            disk, first = self.disk, self.behind.first()
            if disk is None or first is None or self.degraded:
                return False
        key, pending = first
        try:
            draft = disk.draft(key, pending.payload)
            with self._lock:
                if self.behind.get(key) is not pending:
                    return True
                if not disk.reserve(draft):
                    self._give_up(key)
                    return True
            disk.write(draft)
            with self._lock:
                if self.behind.get(key) is not pending:
                    disk.discard(draft)
                    return True
                disk.publish(draft)
                self.behind.settle(key)
        except RecordLost:
            return True  # what it was to share made room meanwhile; the next try writes it
        except ConfigError as error:
            with self._lock:
                self.tell(f"a record cannot be written: {error}")
                self._give_up(key)
        except OSError as error:
            with self._lock:
                self._degrade(error)
        return True

    def tend(self) -> None:
        """Try a disk that failed again, and erase what nobody has used for too long; by the thread that writes."""
        now = self.clock()
        with self._lock:
            if self.degraded and self.config.disk and now >= self._retry_at:
                self._retry_at = now + self.config.retry_s
                self._recover()
            if self.config.ttl_s is not None and now >= self._sweep_at:
                self._sweep_at = now + self.config.ttl_s / 20
                self._expire(now - self.config.ttl_s)

    def shut(self) -> None:
        """Let the disk go, with all that is on it; what is on its way is not waited for."""
        with self._lock:
            self._ended = True
            self._news.notify_all()
            if self.disk is not None:
                self.disk.shut()
                self.disk = None

    # -- the state of it

    @property
    def losses(self) -> int:
        """See ``TieredStatistics``; never fewer than before."""
        return self.gone + self.host.dropped_key_values + self.host.dropped_latents + self._disk_losses()

    def statistics(self) -> TieredStatistics:
        """A frozen summary."""
        with self._lock:
            disk = None if self.disk is None else self.disk.statistics()
            return TieredStatistics(
                host=self.host.statistics(),
                disk=disk,
                queued_records=len(self.behind),
                queued_bytes=self.behind.bytes_held,
                hits=dict(self.hits),
                misses=dict(self.misses),
                refused=self.refused,
                losses=self.losses,
                expired=self.expired,
                degraded=self.degraded,
                degradations=self.degradations,
                recoveries=self.recoveries,
                unerased=len(self._unerased) + len(self._unremoved),
            )

    def check_integrity(self) -> None:
        """Each tier's own, and the queue's."""
        with self._lock:
            self.host.check_integrity()
            self.behind.check_integrity()
            if self.disk is not None and not self.degraded:
                self.disk.check_integrity()

    # -- inside: up and down

    def _arrives(self, session: str, chunk: int, type: AttentionType | None) -> Key:
        """A payload is about to be kept; nothing older of its key may ever be given back."""
        key = Key(session, chunk, kind_of(type))
        self._touch(session)
        self._remove_below(key)
        return key

    def _write_ahead(self, key: Key) -> None:
        """Queue a copy of what host memory has; if there is no room it is tried again when it must go."""
        payload = self._in_host(key)
        if payload is not None and not self._below(key):
            self._queue(key, payload)

    def _demote(self, session: str, chunk: int, type: AttentionType | None, payload: Payload) -> bool:
        """Host memory drops a payload; whether it is or will be on disk."""
        key = Key(session, chunk, kind_of(type))
        if self._below(key):
            return True
        worthy = worth(payload) or self._uses[key] > 1 or self.config.admission != "worthy"
        return bool(worthy) and self._queue(key, payload)

    def _queue(self, key: Key, payload: Payload) -> bool:
        if self.disk is None or self.degraded:
            return False
        taken, displaced = self.behind.put(key, payload)
        self.refused += len(displaced) + (not taken)
        self.gone += sum(not self._host_has(other) for other, _ in displaced)
        self._news.notify_all()
        return taken

    def _give_up(self, key: Key) -> None:
        """What waits will not be written."""
        self.behind.drop(key)
        self.refused += 1
        self.gone += not self._host_has(key)

    def _use(self, key: Key) -> Payload:
        """A payload, wherever it is, brought up. Raises ``RecordLost``."""
        self._touch(key.session)
        payload = self._in_host(key)
        if payload is not None:
            self.host.touch(key.session, key.chunk)
            self.hits["host"] += 1
            self._used(key)
            if self._uses[key] > 1:
                self._write_ahead(key)
            return payload
        pending = self.behind.get(key)
        payload = self._read(key) if pending is None else pending.payload
        self.hits["disk" if pending is None else "queue"] += 1
        self._used(key)
        if isinstance(payload, Latents):
            self.host.keep_latents(key.session, key.chunk, payload)
        else:
            self.host.offload(key.session, key.chunk, AttentionType(key.kind), payload)
        return payload

    def _used(self, key: Key) -> None:
        if len(self._uses) >= USES:
            self._uses.clear()
        self._uses[key] += 1

    def _read(self, key: Key) -> Payload:
        """From disk. Raises ``RecordLost``; what is damaged is gone then, and counted."""
        if self.disk is None:
            self.misses["absent"] += 1
            raise RecordLost(f"chunk {key.chunk} [{key.kind}] of {key.session!r} is not in host memory")
        before, records = Counter(self.disk.misses), len(self.disk.index.entries)
        try:
            return self.disk.get(*key)
        except RecordLost:
            self.misses.update(self.disk.misses - before)
            self.gone += records - len(self.disk.index.entries)
            raise

    def _peek(self, key: Key) -> Payload | None:
        """A payload, wherever it is; nothing is brought up."""
        pending = self.behind.get(key)
        payload = self._in_host(key) or (None if pending is None else pending.payload)
        if payload is None and self.disk is not None and self.disk.has(*key):
            try:
                return self._read(key)
            except RecordLost:
                return None
        return payload

    def _in_host(self, key: Key) -> Payload | None:
        return self.host.peek(key.session, key.chunk, None if key.kind == LATENTS else AttentionType(key.kind))

    def _host_has(self, key: Key) -> bool:
        return self._in_host(key) is not None

    def _below(self, key: Key) -> bool:
        return key in self.behind or (self.disk is not None and self.disk.has(*key))

    def _remove_below(self, key: Key) -> None:
        self.behind.settle(key)
        if self.disk is not None and self.disk.has(*key):
            self._on_disk(lambda disk: disk.remove(key), None, unremoved=key)

    def _touch(self, session: str) -> None:
        self._last[account(session)] = self.clock()

    # -- inside: a disk that fails, and time that passes

    def _open(self) -> DiskTier:
        return DiskTier(Path(self.config.disk), self._disk_config, self.clock, self.owners, self.buffers)

    def _on_disk(
        self, do: Callable[[DiskTier], T], otherwise: T, unremoved: Key | None = None, unerased: str | None = None
    ) -> T:
        """Do something on disk; if it fails, remember what is still to be removed."""
        if self.disk is None:
            return otherwise
        try:
            return do(self.disk)
        except OSError as error:
            self._unremoved |= {unremoved} if unremoved is not None else set()
            self._unerased |= {unerased} if unerased is not None else set()
            self._degrade(error)
            return otherwise

    def _degrade(self, error: OSError) -> None:
        self._retry_at = self.clock() + self.config.retry_s
        if not self.degraded:
            self.degradations += 1
            self.degraded = str(error)
            self.tell(f"the disk fails, there is host memory alone: {error}")
        for key in self.behind.keys():  # noqa: SIM118
            self._give_up(key)

    def _recover(self) -> None:
        """Open the disk anew, so that the index is what is there, and catch up on what could not be removed."""
        try:
            if self.disk is not None:
                self.disk.probe()
                self.gone += self._disk_losses()
                self.disk.shut()
                self.disk = None
            self.disk = disk = self._open()
            for session in set(self._unerased):
                disk.close(session)
                self._unerased.discard(session)
            for key in set(self._unremoved):
                disk.remove(key)
                self._unremoved.discard(key)
        except OSError as error:
            self._degrade(error)
            return
        except ConfigError as error:
            self.tell(f"the disk cannot be used again: {error}")
            return
        self.degraded = ""
        self.recoveries += 1
        self.gone += 1  # whoever follows the losses asks what is here now
        self.tell("the disk works again")
        for session in self.host.sessions():
            for chunk in self.host.chunks(session):
                self._write_ahead(Key(session, chunk, LATENTS))

    def _expire(self, before: float) -> None:
        names = self.host.sessions() | {key.session for key in self.behind.keys()}  # noqa: SIM118
        last = dict(self._last)
        if self.disk is not None:
            for name in self.disk.index.by_session:
                last[account(name)] = max(last.get(account(name), 0.0), self.disk.index.last_use(name))
            names |= set(self.disk.index.by_session)
        for name in names:
            if last.get(account(name), 0.0) < before:
                self.close(name)
                self.expired += 1
                self.gone += 1

    def _disk_losses(self) -> int:
        return 0 if self.disk is None else self.disk.dropped["key_values"] + self.disk.dropped["latents"]


def done(value: bool) -> "Future[bool]":
    """A future that is done."""
    told: Future[bool] = Future()
    told.set_result(value)
    return told


def all_of(waiting: "list[Future[bool]]", good: bool) -> "Future[bool]":
    """Done when all are; whether all were told so."""
    if not waiting:
        return done(good)
    told: Future[bool] = Future()
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

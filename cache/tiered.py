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

from cache.codecs import named
from cache.host_tier import HostTier
from cache.spec import TYPES, AttentionType
from cache.storage.behind import Behind
from cache.storage.buffers import BufferPool
from cache.storage.disk_config import DiskConfig
from cache.storage.files import Files
from cache.storage.index import Key
from cache.storage.lower import Lower
from cache.storage.packing import KINDS, LATENTS, Payload, kind_of, worth
from cache.storage.quotas import Owners, Quota, account
from cache.storage.seals import Aes, Unsealed
from cache.tiered_config import TieredStatistics, TiersConfig
from cache.tiers import NOTHING, Held, KeyValues, Latents, Record, RestoreTier, Room, answered
from errors import RecordLost

DISK = "disk"  # the tier that ``where`` names; host memory is ``tiers.HERE``
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
        self.config, self.clock = config, clock
        self.owners, quota = Owners(), Quota(config.session_bytes, config.owner_bytes)
        self.host = HostTier(host_bytes, 0, 0, named(config.host_codec), quota, self.owners, self._demote)
        self.hits: Counter[str] = Counter()
        self.expired = 0
        self._uses: Counter[Key] = Counter()
        self._last: dict[str, float] = {}
        self._sweep_at, self._ended = float("-inf"), False
        self._lock = threading.RLock()
        self.lower = Lower(
            root=Path(config.disk) if config.disk else None,
            config=DiskConfig(
                config.disk_bytes,
                named(config.disk_codec),
                quota,
                files or Files(config.sync),
                Aes(key) if key else Unsealed(),
            ),
            owners=self.owners,
            buffers=BufferPool(config.buffer_bytes),
            behind=Behind(config.behind_bytes),
            lock=self._lock,
            clock=clock,
            retry_s=config.retry_s,
            tell=tell,
            above=lambda key: self._in_host(key) is not None,
        )

    # -- what a cache asks

    def holds(self, session: str, chunk: int) -> Held:
        with self._lock:
            held = self.host.holds(session, chunk)
            types = {t for t in TYPES if t not in held.types and self.lower.has(Key(session, chunk, kind_of(t)))}
            return Held(held.types | types, held.latents or self.lower.has(Key(session, chunk, LATENTS)))

    def introduce(self, session: str, owner: str, model: str) -> None:
        with self._lock:
            self._touch(session)
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

    def fetch(self, session: str, chunk: int, type: AttentionType, into: Room | None = None) -> KeyValues:
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
                self.lower.remove(Key(session, chunk, kind))
                self._uses.pop(Key(session, chunk, kind), None)

    def fork(self, parent: str, child: str) -> None:
        with self._lock:
            self._touch(child)
            self.host.fork(parent, child)
            self.lower.fork(parent, child)

    def begin_fetch(
        self, session: str, chunk: int, type: AttentionType, into: Room | None = None
    ) -> "Future[KeyValues]":
        return answered(self.fetch, session, chunk, type)

    def begin_latents(self, session: str, chunk: int) -> "Future[Latents]":
        return answered(self.latents, session, chunk)

    def where(self, session: str, chunk: int) -> str:
        with self._lock:
            return DISK if self.host.holds(session, chunk) == NOTHING else self.host.where(session, chunk)

    def adopt(self, parent: str, child: str) -> None:
        self.fork(parent, child)

    def close(self, session: str) -> None:
        with self._lock:
            self.host.close(session)
            self.lower.close(session)
            for key in [key for key in self._uses if key.session == session]:
                del self._uses[key]
            self.owners.forget(session)
            self._last.pop(session, None)

    def landed(self) -> "Future[bool]":
        """As configured: at once, or when all that waits for the disk now has got there."""
        with self._lock:
            return self.host.landed() if self.config.safe == "memory" else self.lower.landed()

    def chunks(self, session: str) -> list[int]:
        """Chunks of ``session`` with a record in any tier, in media order."""
        with self._lock:
            return sorted({*self.host.chunks(session), *(key.chunk for key in self.lower.keys(session))})

    # -- the thread that writes

    def work(self) -> None:
        """Write what waits, and tend to the rest, until ``shut``; for one thread."""
        while not self._ended:
            self.tend()
            if not self.write_next():
                with self._lock:
                    if not self._ended:
                        self.lower.news.wait(1.0)

    def write_next(self) -> bool:
        """Write what waits longest; whether there was something."""
        return self.lower.write_next()

    def tend(self) -> None:
        """Try a disk that failed again, and erase what nobody has used for too long; by the thread that writes."""
        now, ttl_s = self.clock(), self.config.ttl_s
        with self._lock:
            if self.lower.recover():
                for session in self.host.sessions():
                    for chunk in self.host.chunks(session):
                        self._write_ahead(Key(session, chunk, LATENTS))
            if ttl_s is not None and now >= self._sweep_at:
                self._sweep_at = now + ttl_s / 20
                self._expire(now - ttl_s)

    def shut(self) -> None:
        """Let the disk go, with all that is on it; what is on its way is not waited for."""
        with self._lock:
            self._ended = True
            self.lower.shut()

    # -- the state of it

    @property
    def losses(self) -> int:
        """See ``TieredStatistics``; never fewer than before."""
        return self.lower.gone + self.lower.dropped + self.host.dropped_key_values + self.host.dropped_latents

    def statistics(self) -> TieredStatistics:
        """A frozen summary."""
        with self._lock:
            lower = self.lower
            return TieredStatistics(
                host=self.host.statistics(),
                disk=None if lower.disk is None else lower.disk.statistics(),
                queued_records=len(lower.behind),
                queued_bytes=lower.behind.bytes_held,
                hits=dict(self.hits),
                misses=dict(lower.misses),
                refused=lower.refused,
                losses=self.losses,
                expired=self.expired,
                degraded=lower.degraded,
                degradations=lower.degradations,
                recoveries=lower.recoveries,
                unerased=lower.unerased,
            )

    def check_integrity(self) -> None:
        """Each tier's own, and the queue's."""
        with self._lock:
            self.host.check_integrity()
            self.lower.behind.check_integrity()
            if self.lower.disk is not None and not self.lower.degraded:
                self.lower.disk.check_integrity()

    # -- inside

    def _arrives(self, session: str, chunk: int, type: AttentionType | None) -> Key:
        """A payload is about to be kept; nothing older of its key may ever be given back."""
        key = Key(session, chunk, kind_of(type))
        self._touch(session)
        self.lower.remove(key)
        return key

    def _write_ahead(self, key: Key) -> None:
        """Queue a copy of what host memory has; if there is no room it is tried again when it must go."""
        payload = self._in_host(key)
        if payload is not None and not self.lower.has(key):
            self.lower.put(key, payload)

    def _demote(self, session: str, chunk: int, type: AttentionType | None, payload: Payload) -> bool:
        """Host memory drops a payload; whether it is or will be on disk."""
        key = Key(session, chunk, kind_of(type))
        if self.lower.has(key):
            return True
        worthy = worth(payload) > 0 or self._uses[key] > 1 or self.config.admission != "worthy"
        return worthy and self.lower.put(key, payload)

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
        payload, where = self.lower.read(key)
        self.hits[where] += 1
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

    def _peek(self, key: Key) -> Payload | None:
        """A payload, wherever it is; nothing is brought up."""
        payload = self._in_host(key)
        if payload is None and self.lower.has(key):
            try:
                return self.lower.read(key)[0]
            except RecordLost:
                return None
        return payload

    def _in_host(self, key: Key) -> Payload | None:
        return self.host.peek(key.session, key.chunk, None if key.kind == LATENTS else AttentionType(key.kind))

    def _touch(self, session: str) -> None:
        self._last[account(session)] = self.clock()

    def _expire(self, before: float) -> None:
        names = self.lower.sessions() | dict.fromkeys(self.host.sessions(), 0.0)
        last = dict(self._last)
        for name, used in self.lower.sessions().items():
            last[account(name)] = max(last.get(account(name), 0.0), used)
        for name in names:
            if last.get(account(name), 0.0) < before:
                self.close(name)
                self.expired += 1
                self.lower.gone += 1
        for stream in [stream for stream, used in last.items() if used < before]:
            self.owners.forget(stream)
            self._last.pop(stream, None)

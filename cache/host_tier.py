"""A restore store in the memory of this process: bounded, with quotas, equal contents held once."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from cache.codec import BufferCodec, Exact
from cache.keep_set import Role
from cache.spec import AttentionType
from cache.storage.contents import Contents
from cache.storage.quotas import Owners, Quota
from cache.tiers import HERE, NOTHING, Held, KeyValues, Latents, PackedKeyValues, Record, Room, answered
from errors import ConfigError, IntegrityError, RecordLost


@dataclass(frozen=True)
class TierStatistics:
    """What a tier holds and what it had to drop since it was made."""

    bytes_held: int
    budget_bytes: int
    records: int
    dropped_key_values: int
    dropped_latents: int


Dropped = Callable[[str, int, AttentionType | None, KeyValues | Latents], bool]
WORTH = ((Role.RESTORED, Role.RECENT), (Role.SCENE_ANCHOR,), (Role.SCENE_SINK, Role.SUBJECT_ANCHOR))


@dataclass
class HostTier:
    """Records in host memory, at most ``budget_bytes``.

    At the bound it degrades in this order: keys and values of restored and recent chunks, then of anchors, then of
    sinks, then latents; oldest use first each time. A chunk whose keys and values are gone can be rebuilt from latents.
    Where a quota is exceeded, the records of that stream or owner make room, in the same order.

    Args:
        codec: what keys and values are packed by while they are here; ``bytes_held`` are packed bytes.
        demote: takes what has to make room; says whether it is kept elsewhere, and then it is not counted as dropped.
    """

    budget_bytes: int
    dropped_key_values: int = 0
    dropped_latents: int = 0
    codec: BufferCodec = field(default_factory=Exact)
    quota: Quota = field(default_factory=Quota)
    owners: Owners = field(default_factory=Owners)
    demote: Dropped | None = None
    _records: OrderedDict[tuple[str, int], Record] = field(default_factory=OrderedDict)
    _contents: Contents = field(default_factory=Contents)

    def __post_init__(self) -> None:
        if self.budget_bytes < 0:
            raise ConfigError(f"host tier budget_bytes is {self.budget_bytes}; expected 0 or more")

    @property
    def bytes_held(self) -> int:
        """Bytes of all payloads, each content once."""
        return self._contents.bytes_held

    def holds(self, session: str, chunk: int) -> Held:
        record = self._records.get((session, chunk))
        return NOTHING if record is None else Held(frozenset(record.key_values), record.latents is not None)

    def introduce(self, session: str, owner: str, model: str) -> None:
        self.owners.introduce(session, owner, model)

    def offload(self, session: str, chunk: int, type: AttentionType, payload: KeyValues) -> None:
        packed = PackedKeyValues.of(payload, self.codec)
        record = self._touch(session, chunk)
        self._release(record.key_values.pop(type, None))
        record.key_values[type] = replace(packed, tensor=self._contents.hold(packed.tensor))
        self._shrink(session)

    def keep_latents(self, session: str, chunk: int, latents: Latents) -> None:
        record = self._touch(session, chunk)
        self._release(record.latents)
        video, audio = self._contents.hold(latents.video), self._contents.hold(latents.audio)
        record.latents = replace(latents, video=video, audio=audio)
        self._shrink(session)

    def fetch(self, session: str, chunk: int, type: AttentionType, into: Room | None = None) -> KeyValues:
        payload = self._require(session, chunk).key_values.get(type)
        if payload is None:
            raise RecordLost(f"keys and values of chunk {chunk} [{type}] of {session!r} are no longer in host memory")
        return payload.unpacked()

    def peek(self, session: str, chunk: int, type: AttentionType | None) -> KeyValues | Latents | None:
        """What is held, packed as it is held, if it is; latents for no ``type``. Does not count as a use."""
        record = self._records.get((session, chunk))
        if record is None:
            return None
        return record.latents if type is None else record.key_values.get(type)

    def touch(self, session: str, chunk: int) -> None:
        """A record was used. Raises ``RecordLost``."""
        self._require(session, chunk)

    def latents(self, session: str, chunk: int) -> Latents:
        latents = self._require(session, chunk).latents
        if latents is None:
            raise RecordLost(f"latents of chunk {chunk} of {session!r} are no longer in host memory")
        return latents

    def begin_fetch(
        self, session: str, chunk: int, type: AttentionType, into: Room | None = None
    ) -> "Future[KeyValues]":
        return answered(self.fetch, session, chunk, type)

    def begin_latents(self, session: str, chunk: int) -> "Future[Latents]":
        return answered(self.latents, session, chunk)

    def where(self, session: str, chunk: int) -> str:
        return HERE

    def records(self, session: str) -> dict[int, Record]:
        found = {chunk: self._records[session, chunk] for chunk in self.chunks(session)}
        if isinstance(self.codec, Exact):
            return found
        return {
            chunk: Record(record.latents, {t: payload.unpacked() for t, payload in record.key_values.items()})
            for chunk, record in found.items()
        }

    def forget(self, session: str, chunk: int) -> None:
        record = self._records.pop((session, chunk), None)
        if record is not None:
            for payload in (*record.key_values.values(), record.latents):
                self._release(payload)

    def fork(self, parent: str, child: str) -> None:
        self.owners.inherit(parent, child)
        for (session, chunk), record in list(self._records.items()):
            if session == parent:
                self.forget(child, chunk)
                self._records[child, chunk] = Record(record.latents, dict(record.key_values))
                for payload in (*record.key_values.values(), record.latents):
                    self._hold(payload)
        self._shrink(child)

    def adopt(self, parent: str, child: str) -> None:
        self.fork(parent, child)

    def close(self, session: str) -> None:
        for owner, chunk in list(self._records):
            if owner == session:
                self.forget(owner, chunk)
        self.owners.forget(session)

    def landed(self) -> "Future[bool]":
        done: Future[bool] = Future()
        done.set_result(True)
        return done

    def chunks(self, session: str) -> list[int]:
        """Chunks of ``session`` with a record, in media order."""
        return sorted(chunk for owner, chunk in self._records if owner == session)

    def sessions(self) -> set[str]:
        """Names with a record."""
        return {session for session, _ in self._records}

    def statistics(self) -> TierStatistics:
        """A frozen summary."""
        return TierStatistics(
            self.bytes_held, self.budget_bytes, len(self._records), self.dropped_key_values, self.dropped_latents
        )

    def check_integrity(self) -> None:
        """Bytes held are counted right, once per shared content, and within the budget and the quotas."""
        payloads = (p for r in self._records.values() for p in (*r.key_values.values(), r.latents))
        self._contents.check_integrity(Counter(id(t) for p in payloads for t in _parts(p)))
        if self.bytes_held > self.budget_bytes:
            raise IntegrityError(f"host tier holds {self.bytes_held:,} of {self.budget_bytes:,} bytes")
        for session in self.sessions():
            for bound, ours in self.owners.bounds(self.quota, session):
                if self._used(ours) > bound:
                    raise IntegrityError(f"{session!r} holds {self._used(ours):,} bytes; its quota is {bound:,}")

    def _touch(self, session: str, chunk: int) -> Record:
        record = self._records.setdefault((session, chunk), Record())
        self._records.move_to_end((session, chunk))
        return record

    def _require(self, session: str, chunk: int) -> Record:
        if (session, chunk) not in self._records:
            raise RecordLost(f"chunk {chunk} of {session!r} is not in host memory")
        return self._touch(session, chunk)

    def _hold(self, payload: KeyValues | Latents | None) -> None:
        for tensor in _parts(payload):
            self._contents.hold(tensor)

    def _release(self, payload: KeyValues | Latents | None) -> None:
        for tensor in _parts(payload):
            self._contents.release(tensor)

    def _used(self, ours: Callable[[str], bool]) -> int:
        mine = (r for (session, _), r in self._records.items() if ours(session))
        return sum(t.nbytes for r in mine for p in (*r.key_values.values(), r.latents) for t in _parts(p))

    def _within(self, ours: Callable[[str], bool], bound: int) -> bool:
        return self._used(ours) <= bound

    def _shrink(self, session: str = "") -> None:
        for bound, ours in self.owners.bounds(self.quota, session):
            self._make_room(ours, partial(self._within, ours, bound))
        self._make_room(lambda name: True, lambda: self.bytes_held <= self.budget_bytes)

    def _make_room(self, ours: Callable[[str], bool], enough: Callable[[], bool]) -> None:
        if enough():
            return
        for roles in WORTH:
            for (session, chunk), record in list(self._records.items()):
                if not ours(session):
                    continue
                if enough():
                    break
                for t in [t for t, payload in record.key_values.items() if payload.role in roles]:
                    self.dropped_key_values += self._drop(session, chunk, t, record.key_values.pop(t))
        for key in [k for k, r in self._records.items() if r.latents is not None and ours(k[0])]:
            if enough():
                break
            latents, self._records[key].latents = self._records[key].latents, None
            assert latents is not None
            self.dropped_latents += self._drop(*key, None, latents)
        for key in [k for k, r in self._records.items() if r.latents is None and not r.key_values]:
            del self._records[key]

    def _drop(self, session: str, chunk: int, type: AttentionType | None, payload: KeyValues | Latents) -> int:
        self._release(payload)
        return 0 if self.demote is not None and self.demote(session, chunk, type, payload) else 1


def _parts(payload: KeyValues | Latents | None) -> tuple[torch.Tensor, ...]:
    if payload is None:
        return ()
    return (payload.tensor,) if isinstance(payload, KeyValues) else (payload.video, payload.audio)

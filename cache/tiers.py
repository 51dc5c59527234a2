"""Where evicted chunks go, and come back from when their scene returns.

``RestoreTier`` is the interface; ``HostTier`` keeps records in the memory of this process. Records are immutable, so
forks of a take share them by reference and their bytes are counted once.
"""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from cache.keep_set import Role
from cache.spec import AttentionType
from errors import ConfigError, IntegrityError, RecordLost

HERE = "host"  # the tier that is memory of this process: a fetch from it is answered at once
T = TypeVar("T")


@dataclass(frozen=True)
class Held:
    """What the store has of one chunk: keys and values of which attention types, and whether its clean latents."""

    types: frozenset[AttentionType] = frozenset()
    latents: bool = False


NOTHING = Held()


class Holdings(Protocol):
    """The part of a restore store that a cache manager may ask."""

    def holds(self, session: str, chunk: int) -> Held:
        """What could be fetched now."""
        ...


@dataclass(frozen=True)
class Latents:
    """The committed copy of one chunk: video [video tokens, channels] and audio [audio tokens, channels], clean.

    ``prompt`` is the key of the prompt that the chunk is encoded under, ``scene`` the name of the one that it shows.
    """

    video: torch.Tensor
    audio: torch.Tensor
    prompt: str
    scene: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of both modalities."""
        return self.video.nbytes + self.audio.nbytes


@dataclass(frozen=True)
class KeyValues:
    """Keys and values of one chunk of one attention type [layers, 2, tokens, width]; keys encoded for ``slot``.

    ``written``: operations on the books when it was written; books with fewer do not know of it.
    """

    tensor: torch.Tensor
    slot: int
    role: Role
    written: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return self.tensor.nbytes


@dataclass
class Record:
    """All that a store has of one chunk."""

    latents: Latents | None = None
    key_values: dict[AttentionType, KeyValues] = field(default_factory=dict)


class RestoreTier(Holdings, Protocol):
    """A restore store: takes evicted chunks, gives them back, forgets them. Bounded; says what it dropped."""

    def offload(self, session: str, chunk: int, type: AttentionType, payload: KeyValues) -> None:
        """Keep keys and values; the payload must not be written afterwards."""
        ...

    def keep_latents(self, session: str, chunk: int, latents: Latents) -> None:
        """Keep clean latents; they must not be written afterwards."""
        ...

    def fetch(self, session: str, chunk: int, type: AttentionType) -> KeyValues:
        """Keys and values, to be copied by the caller. Raises ``RecordLost``."""
        ...

    def latents(self, session: str, chunk: int) -> Latents:
        """Clean latents. Raises ``RecordLost``."""
        ...

    def begin_fetch(self, session: str, chunk: int, type: AttentionType) -> "Future[KeyValues]":
        """As ``fetch``, without waiting; the future may raise ``RecordLost``, and may never be done."""
        ...

    def begin_latents(self, session: str, chunk: int) -> "Future[Latents]":
        """As ``latents``, without waiting; the future may raise ``RecordLost``, and may never be done."""
        ...

    def where(self, session: str, chunk: int) -> str:
        """Name of the tier that ``chunk`` would come from: what measurements of bandwidth are kept by."""
        ...

    def records(self, session: str) -> dict[int, Record]:
        """Everything about ``session``, by chunk in media order. Raises ``RecordLost`` if the store does not answer."""
        ...

    def forget(self, session: str, chunk: int) -> None:
        """Drop everything about ``chunk``; unknown chunks are no error."""
        ...

    def fork(self, parent: str, child: str) -> None:
        """Give ``child`` every record of ``parent``, by reference."""
        ...

    def adopt(self, parent: str, child: str) -> None:
        """As ``fork``, where ``parent`` was another engine's. Raises ``RecordLost`` if the store does not answer."""
        ...

    def close(self, session: str) -> None:
        """Drop everything about ``session``."""
        ...

    def landed(self) -> "Future[bool]":
        """Done when all that was given until now has been taken; whether nothing of it was lost on the way."""
        ...


def answered(call: Callable[..., T], *arguments: Any) -> "Future[T]":
    """The answer of a tier that answers at once, as a future that is done."""
    done: Future[T] = Future()
    try:
        done.set_result(call(*arguments))
    except RecordLost as error:
        done.set_exception(error)
    return done


@dataclass(frozen=True)
class TierStatistics:
    """What a tier holds and what it had to drop since it was made."""

    bytes_held: int
    budget_bytes: int
    records: int
    dropped_key_values: int
    dropped_latents: int


@dataclass
class HostTier:
    """Records in host memory, at most ``budget_bytes``.

    At the bound it degrades in this order: keys and values of restored and recent chunks, then of anchors, then of
    sinks, then latents; oldest use first each time. A chunk whose keys and values are gone can be rebuilt from latents.
    """

    budget_bytes: int
    dropped_key_values: int = 0
    dropped_latents: int = 0
    bytes_held: int = 0
    _records: OrderedDict[tuple[str, int], Record] = field(default_factory=OrderedDict)
    _holders: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.budget_bytes < 0:
            raise ConfigError(f"host tier budget_bytes is {self.budget_bytes}; expected 0 or more")

    def holds(self, session: str, chunk: int) -> Held:
        record = self._records.get((session, chunk))
        return NOTHING if record is None else Held(frozenset(record.key_values), record.latents is not None)

    def offload(self, session: str, chunk: int, type: AttentionType, payload: KeyValues) -> None:
        record = self._touch(session, chunk)
        self._release(record.key_values.pop(type, None))
        record.key_values[type] = payload
        self._hold(payload)
        self._shrink()

    def keep_latents(self, session: str, chunk: int, latents: Latents) -> None:
        record = self._touch(session, chunk)
        self._release(record.latents)
        record.latents = latents
        self._hold(latents)
        self._shrink()

    def fetch(self, session: str, chunk: int, type: AttentionType) -> KeyValues:
        payload = self._require(session, chunk).key_values.get(type)
        if payload is None:
            raise RecordLost(f"keys and values of chunk {chunk} [{type}] of {session!r} are no longer in host memory")
        return payload

    def latents(self, session: str, chunk: int) -> Latents:
        latents = self._require(session, chunk).latents
        if latents is None:
            raise RecordLost(f"latents of chunk {chunk} of {session!r} are no longer in host memory")
        return latents

    def begin_fetch(self, session: str, chunk: int, type: AttentionType) -> "Future[KeyValues]":
        return answered(self.fetch, session, chunk, type)

    def begin_latents(self, session: str, chunk: int) -> "Future[Latents]":
        return answered(self.latents, session, chunk)

    def where(self, session: str, chunk: int) -> str:
        return HERE

    def records(self, session: str) -> dict[int, Record]:
        return {chunk: self._records[session, chunk] for chunk in self.chunks(session)}

    def forget(self, session: str, chunk: int) -> None:
        record = self._records.pop((session, chunk), None)
        if record is not None:
            for payload in (*record.key_values.values(), record.latents):
                self._release(payload)

    def fork(self, parent: str, child: str) -> None:
        for (session, chunk), record in list(self._records.items()):
            if session == parent:
                self._records[child, chunk] = Record(record.latents, dict(record.key_values))
                for payload in (*record.key_values.values(), record.latents):
                    self._hold(payload)

    def adopt(self, parent: str, child: str) -> None:
        self.fork(parent, child)

    def close(self, session: str) -> None:
        for owner, chunk in list(self._records):
            if owner == session:
                self.forget(owner, chunk)

    def landed(self) -> "Future[bool]":
        done: Future[bool] = Future()
        done.set_result(True)
        return done

    def chunks(self, session: str) -> list[int]:
        """Chunks of ``session`` with a record, in media order."""
        return sorted(chunk for owner, chunk in self._records if owner == session)

    def statistics(self) -> TierStatistics:
        """A frozen summary."""
        return TierStatistics(
            self.bytes_held, self.budget_bytes, len(self._records), self.dropped_key_values, self.dropped_latents
        )

    def check_integrity(self) -> None:
        """Bytes held are counted right, once per shared payload, and within the budget."""
        payloads = {}
        for record in self._records.values():
            for payload in (*record.key_values.values(), record.latents):
                if payload is not None:
                    payloads[id(payload)] = payload.nbytes
        if sum(payloads.values()) != self.bytes_held or set(payloads) != set(self._holders):
            raise IntegrityError(f"host tier counts {self.bytes_held:,} bytes, holds {sum(payloads.values()):,}")
        if self.bytes_held > self.budget_bytes:
            raise IntegrityError(f"host tier holds {self.bytes_held:,} of {self.budget_bytes:,} bytes")

    def _touch(self, session: str, chunk: int) -> Record:
        record = self._records.setdefault((session, chunk), Record())
        self._records.move_to_end((session, chunk))
        return record

    def _require(self, session: str, chunk: int) -> Record:
        if (session, chunk) not in self._records:
            raise RecordLost(f"chunk {chunk} of {session!r} is not in host memory")
        return self._touch(session, chunk)

    def _hold(self, payload: KeyValues | Latents | None) -> None:
        if payload is None:
            return
        holders = self._holders.get(id(payload), 0)
        self._holders[id(payload)] = holders + 1
        if not holders:
            self.bytes_held += payload.nbytes

    def _release(self, payload: KeyValues | Latents | None) -> None:
        if payload is None:
            return
        holders = self._holders.pop(id(payload)) - 1
        if holders:
            self._holders[id(payload)] = holders
        else:
            self.bytes_held -= payload.nbytes

    def _shrink(self) -> None:
        for roles in ((Role.RESTORED, Role.RECENT), (Role.SCENE_ANCHOR,), (Role.SCENE_SINK, Role.SUBJECT_ANCHOR)):
            for record in self._records.values():
                if self.bytes_held <= self.budget_bytes:
                    return
                for t in [t for t, payload in record.key_values.items() if payload.role in roles]:
                    self._release(record.key_values.pop(t))
                    self.dropped_key_values += 1
        for key in [k for k, r in self._records.items() if r.latents is not None]:
            if self.bytes_held <= self.budget_bytes:
                break
            self.forget(*key)
            self.dropped_latents += 1
        for key in [k for k, r in self._records.items() if r.latents is None and not r.key_values]:
            del self._records[key]

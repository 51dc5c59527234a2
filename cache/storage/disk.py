"""The tier on disk: records that are whole or invisible, and give back what was written or nothing.

``heads/<stream>/<chunk>-<kind>`` says what a record is and which content it has, under one checksum; the content's own
xxh3-128, its length and its key stand in the head, so that the head binds them. ``contents/<random name>`` has the
payload, once for all records that share it. A content is there before a head names it, and a head is gone before its
content; whatever a crash leaves between the two, or under a temporary name, is removed at the next start.
"""

import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import xxhash

from cache import envelope
from cache.codec import Bytes, readable
from cache.envelope import HEAD, Kind, Label
from cache.storage.buffers import BufferPool
from cache.storage.disk_config import DiskConfig, DiskStatistics
from cache.storage.files import Reader
from cache.storage.folder import Folder
from cache.storage.index import Content, Entry, Index, Key
from cache.storage.packing import Parcel, Payload, parcel, unparcel
from cache.storage.quotas import Owners
from cache.storage.seals import LARGEST
from errors import ConfigError, IntegrityError, RecordCorrupt, RecordForeign, RecordLost


@dataclass(frozen=True)
class Draft:
    """A record on its way to the disk; see ``DiskTier.draft``. ``fresh``: its content is not there yet."""

    key: Key
    parcel: Parcel
    content: Content
    fresh: bool
    model: str

    @property
    def cost(self) -> int:
        """Bytes that it adds."""
        return HEAD + (self.content.cost if self.fresh else 0)


@dataclass
class DiskTier:
    """See the module. Not to be used by two threads at a time, but for ``draft`` and ``write``.

    Args:
        root: a folder of its own; made if it is not there. Held until ``shut``: a second tier cannot open it.
        clock: seconds; those of last use are kept with the files and must go on after a restart, as wall time does.

    At the bound, and where a quota is exceeded, records make room: keys and values of restored and recent chunks, then
    of anchors, then of sinks, then latents; oldest use first each time.

    Raises:
        ConfigError: ``root`` is somebody else's, or was made with another key.
        OSError: the disk does not work, or another process uses ``root``.
    """

    root: Path
    config: DiskConfig
    clock: Callable[[], float]
    owners: Owners = field(default_factory=Owners)
    buffers: BufferPool = field(default_factory=BufferPool)
    hits: int = 0
    shared: int = 0
    misses: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.index, self._reserved = Index(), 0
        self._reader = Reader(self.buffers)
        self.folder = Folder.open(self.root, self.config.files, self.config.seal)
        try:
            self.removed = self.folder.rebuild(self.index, self.owners)
            self._fit(0)
        except OSError:
            self.folder.close()
            raise

    # -- writing, in steps

    def put(self, session: str, chunk: int, kind: Kind, payload: Payload) -> bool:
        """Write a record; whether it could be kept within the budget and the quotas. The old one is gone either way.

        Raises:
            OSError: the disk did not take it.
        """
        key = Key(session, chunk, kind)
        self.remove(key)
        draft = self.draft(key, payload)
        if not self.reserve(draft):
            return False
        self.write(draft)
        try:
            self.publish(draft)
        except RecordLost:  # making room for it took what it was to share
            return self.put(session, chunk, kind, payload)
        return True

    def draft(self, key: Key, payload: Payload) -> Draft:
        """Pack a payload, and look for a content that equals it byte by byte; nothing is changed."""
        packed = parcel(payload, self.config.codec)
        digest, seal = xxhash.xxh3_128_digest(packed.data.data), self.config.seal
        known = self.index.equal(digest, len(packed.data))
        model = self.owners.model(key.session)
        if known is not None and self._same(known, packed.data):
            return Draft(key, packed, known, False, model)
        if seal.overhead and len(packed.data) > LARGEST:
            raise ConfigError(f"a payload has {len(packed.data):,} bytes; expected at most {LARGEST:,} to be sealed")
        content = Content(
            secrets.token_hex(16), digest, len(packed.data), len(packed.data) + seal.overhead, seal.fresh_key()
        )
        return Draft(key, packed, content, True, model)

    def reserve(self, draft: Draft) -> bool:
        """Make room for a draft; whether there is. ``publish`` or ``discard`` must follow."""
        for bound, mine in self._bounds(draft.key.session):
            least = bound - draft.content.cost - HEAD
            if least < 0 or not self._shrink(partial(self._within, mine, least), mine):
                return False
        if draft.cost > self.config.budget_bytes or not self._fit(draft.cost):
            return False
        self._reserved += draft.cost
        return True

    def write(self, draft: Draft) -> None:
        """Put the content of a draft on disk, where nobody sees it yet. On ``OSError`` it is discarded."""
        if draft.fresh:
            data = self.config.seal.seal(draft.content.key, draft.parcel.data.data, draft.content.name)
            try:
                self.folder.write_content(draft.content, data)
            except OSError:
                self._reserved -= draft.cost
                raise

    def publish(self, draft: Draft) -> None:
        """Let a written draft be found, in place of an older record of its key. On ``OSError`` it is discarded."""
        try:
            self.remove(draft.key)
            if not draft.fresh and draft.content.name not in self.index.contents:
                raise RecordLost(f"the content that {draft.key} shares has gone meanwhile")
            self._link(draft)
        except (OSError, ConfigError):
            if draft.fresh:
                with contextlib.suppress(OSError):
                    self.folder.forget_content(draft.content.name)
            raise
        finally:
            self._reserved -= draft.cost
        self.shared += not draft.fresh

    def discard(self, draft: Draft) -> None:
        """Give a reserved draft up, written or not."""
        self._reserved -= draft.cost
        if draft.fresh:
            self.folder.forget_content(draft.content.name)

    # -- reading

    def get(self, session: str, chunk: int, kind: Kind) -> Payload:
        """What was written, in a buffer of its own from the pool; packed, if a codec packed it.

        Raises:
            RecordLost: it is not there, is damaged, or is of another model than ``session``; it is removed then.
        """
        entry = self.index.entries.get(Key(session, chunk, kind))
        if entry is None:
            self.misses["absent"] += 1
            raise RecordLost(f"{kind} of chunk {chunk} of {session!r} is not on disk")
        try:
            expected = self.owners.model(session)
            if expected and entry.label.model != expected:
                raise RecordForeign(f"model of a record is {entry.label.model!r}; expected {expected!r}")
            data = self._content(entry.content)
            found = unparcel(kind, entry.label.codec, entry.label.scene, entry.label.plain["payload"], data)
        except OSError as error:
            self._miss(entry, "io")
            raise RecordLost(f"the disk does not give {kind} of chunk {chunk} of {session!r}: {error}") from error
        except RecordForeign:
            self._miss(entry, "foreign")
            raise
        except RecordCorrupt:
            self._miss(entry, "damaged")
            raise
        self.hits += 1
        self.index.touch(entry, self.clock())
        return found

    def has(self, session: str, chunk: int, kind: Kind) -> bool:
        """Whether ``get`` would look for it."""
        return Key(session, chunk, kind) in self.index.entries

    # -- forgetting

    def remove(self, key: Key) -> None:
        """Forget one record; an unknown one is no error. Raises ``OSError``, and then it is forgotten but there."""
        entry = self.index.entries.get(key)
        if entry is not None:
            self._unlink([entry])

    def close(self, session: str) -> None:
        """Erase a session: its key first, then its heads, then what nobody else shares."""
        entries = [self.index.entries[key] for key in self.index.of(session)]
        try:
            self.folder.erase(session)
        finally:
            self._unlink(entries, heads=False)
            self.owners.forget(session)

    def fork(self, parent: str, child: str) -> list[Key]:
        """Give ``child`` every record of ``parent``, by reference; returns those for which there was no room."""
        self.owners.inherit(parent, child)
        refused = []
        for key in list(self.index.of(parent)):
            entry = self.index.entries.get(key)
            mine = Key(child, key.chunk, key.kind)
            if entry is None:
                continue  # made room for the child's
            label = entry.label
            packed = Parcel(np.empty(0, np.uint8), label.codec, label.scene, entry.worth, label.plain["payload"])
            draft = Draft(mine, packed, entry.content, False, label.model)
            self.remove(mine)
            if not self.reserve(draft):
                refused.append(mine)
            elif entry.content.name in self.index.contents:
                self.publish(draft)
            else:
                self._reserved -= draft.cost
                refused.append(mine)
        return refused

    def probe(self) -> None:
        """Write a block and remove it. Raises ``OSError`` if the disk does not take it."""
        content = Content("probe", b"", HEAD, HEAD)
        self.folder.write_content(content, bytes(HEAD))
        self.folder.forget_content(content.name)

    def shut(self) -> None:
        """Let go of the folder; what is on disk stays."""
        self._reader.close()
        self.folder.close()

    # -- the state of it

    @property
    def bytes_held(self) -> int:
        """Bytes of all files in whole blocks, and of those on their way."""
        return self.index.cost + self._reserved

    def statistics(self) -> DiskStatistics:
        """A frozen summary."""
        return DiskStatistics(
            bytes_held=self.bytes_held,
            budget_bytes=self.config.budget_bytes,
            payload_bytes=sum(content.size for content in self.index.contents.values()),
            records=len(self.index.entries),
            contents=len(self.index.contents),
            hits=self.hits,
            misses=dict(self.misses),
            removed=dict(self.removed),
            dropped_key_values=self.dropped["key_values"],
            dropped_latents=self.dropped["latents"],
            shared=self.shared,
        )

    def check_integrity(self) -> None:
        """Index and files say the same, nothing is left over, and bytes are within the budget and the quotas."""
        self.index.check_integrity()
        self.folder.check_integrity(self.index)
        if self.bytes_held > self.config.budget_bytes:
            raise IntegrityError(f"disk tier holds {self.bytes_held:,} of {self.config.budget_bytes:,} bytes")
        for session in self.index.by_session:
            for bound, mine in self._bounds(session):
                if self.index.used(mine) > bound:
                    raise IntegrityError(f"{session!r} uses {self.index.used(mine):,} bytes; its quota is {bound:,}")

    # -- inside

    def _content(self, content: Content) -> Bytes:
        data, digest = self._reader.read(self.folder.content(content.name), content.stored)
        if self.config.seal.overhead:
            opened = self.config.seal.unseal(content.key, data.data, content.name)
            data, digest = readable(opened), xxhash.xxh3_128_digest(opened)
            data = self._owned(data)
        if digest != content.digest:
            raise RecordCorrupt(f"the checksum of content {content.name} does not match: it was damaged or replaced")
        return data

    def _owned(self, data: Bytes) -> Bytes:
        buffer = self.buffers.take(len(data))
        buffer[: len(data)] = data
        return buffer[: len(data)]

    def _same(self, content: Content, data: Bytes) -> bool:
        """Whether a content on disk is whole and equals ``data``: neither a hash nor an old file is trusted."""
        try:
            return bool(np.array_equal(self._content(content), data))
        except (RecordCorrupt, OSError):
            return False

    def _link(self, draft: Draft) -> None:
        key, content, now = draft.key, draft.content, self.clock()
        plain = {
            "payload": draft.parcel.plain,
            "content": [content.name, content.digest, content.size, content.key],
            "worth": draft.parcel.worth,
            "owner": self.owners.owner(key.session),
        }
        generation = self.index.newest + 1
        label = Label(
            key.session, key.chunk, key.kind, draft.parcel.scene, generation, draft.model, draft.parcel.codec, plain
        )
        self.folder.write_head(key, envelope.head(label, b""), now)
        self.index.add(Entry(key, label, content, draft.parcel.worth, now))

    def _miss(self, entry: Entry, reason: str) -> None:
        self.misses[reason] += 1
        if reason == "damaged":
            # Whoever shares the content has lost it too.
            entries = [e for e in self.index.entries.values() if e.content.name == entry.content.name]
        else:
            entries = [entry]
        try:
            self._unlink(entries)
        except OSError:
            return  # a disk that cannot be written keeps the file, and the index no longer knows it

    def _unlink(self, entries: Iterable[Entry], heads: bool = True) -> None:
        """Out of the index first, so that an ``OSError`` leaves a file and never a record."""
        gone = list(entries)
        orphans = [name for entry in gone if (name := self.index.discard(entry)) is not None]
        for entry in gone if heads else ():
            if entry.key.session in self.index.by_session:
                self.folder.forget_head(entry.key)
            else:
                self.folder.erase(entry.key.session)
        for name in orphans:
            self.folder.forget_content(name)

    def _bounds(self, session: str) -> list[tuple[int, Callable[[str], bool]]]:
        return self.owners.bounds(self.config.quota, session)

    def _fit(self, extra: int) -> bool:
        return self._shrink(lambda: self.bytes_held + extra <= self.config.budget_bytes, lambda session: True)

    def _within(self, mine: Callable[[str], bool], bound: int) -> bool:
        return self.index.used(mine) <= bound

    def _shrink(self, enough: Callable[[], bool], mine: Callable[[str], bool]) -> bool:
        for entry in self.index.victims() if not enough() else ():
            if enough():
                return True
            if mine(entry.key.session):
                self.dropped["latents" if entry.worth == 3 else "key_values"] += 1
                self._unlink([entry])
        return enough()

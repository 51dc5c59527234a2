"""The folder of a disk tier: names, keys of streams, and the rebuilding of its index from what is there."""

import contextlib
import errno
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from cache import envelope
from cache.codec import Buffer
from cache.envelope import HEAD
from cache.storage.files import TEMPORARY, Files, take_lock
from cache.storage.index import Content, Entry, Index, Key
from cache.storage.quotas import Owners
from cache.storage.seals import Seal
from errors import ConfigError, IntegrityError, RecordCorrupt, RecordForeign

MARKER, LOCK, HEADS, CONTENTS, STREAM_KEY = "LONGTAKE-STORE", "lock", "heads", "contents", "key"
VERSION = b"longtake store 1"


def folder_name(session: str) -> str:
    """Where the heads of a session are."""
    return xxhash.xxh3_128_hexdigest(session.encode())


def head_name(key: Key) -> str:
    """The file of a head."""
    return f"{key.chunk}-{key.kind}"


@dataclass
class Folder:
    """See ``cache.storage.disk`` for what is where. Locked for this process until ``close``."""

    root: Path
    files: Files
    seal: Seal
    lock: int
    _keys: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path, files: Files, seal: Seal) -> "Folder":
        """Make or take the folder.

        Raises:
            ConfigError: not a store's, or made with another key.
            OSError: the disk does not work, or another process uses the folder.
        """
        root.mkdir(parents=True, exist_ok=True)
        strange = {path.name for path in root.iterdir()} - {LOCK, MARKER + TEMPORARY, HEADS, CONTENTS}
        marked = MARKER in strange
        if strange and not marked:
            raise ConfigError(f"the disk tier's folder {root} holds {sorted(strange)[:3]}; expected an empty one")
        lock = take_lock(root / LOCK)
        if lock is None:
            raise OSError(errno.EBUSY, "the folder of the disk tier is in use by another process", str(root))
        made = cls(root, files, seal, lock)
        try:
            made._open(marked)
        except (ConfigError, OSError):
            os.close(lock)
            raise
        return made

    def _open(self, marked: bool) -> None:
        if marked:
            try:
                version = self.seal.unwrap((self.root / MARKER).read_bytes(), MARKER)
            except RecordCorrupt as error:
                raise ConfigError(f"the disk tier in {self.root} was made with another key, or with none") from error
            if self.seal.overhead and version != VERSION:
                raise ConfigError(f"the disk tier in {self.root} is of version {version!r}; expected {VERSION!r}")
        else:
            temporary = self.root / (MARKER + TEMPORARY)
            self.files.write(temporary, [self.seal.wrap(VERSION, MARKER)])
            self.files.rename(temporary, self.root / MARKER)
        for name in (HEADS, CONTENTS):
            (self.root / name).mkdir(exist_ok=True)
        self.files.sync_folder(self.root)

    def close(self) -> None:
        """Let another process have it."""
        os.close(self.lock)

    # -- one record

    def content(self, name: str) -> Path:
        """The file of a content."""
        return self.root / CONTENTS / name

    def write_content(self, content: Content, data: Buffer) -> None:
        """Write a content that no head names yet. On ``OSError`` there is none."""
        self.files.write(self.content(content.name), [data])
        self.files.sync_folder(self.root / CONTENTS)

    def write_head(self, key: Key, head: bytes, now: float) -> None:
        """Let a record be found. On ``OSError`` it is not, or will be gone when the folder is opened again."""
        name = folder_name(key.session)
        stream_key = self._stream_key(name)
        sealed = bytes(self.seal.seal(stream_key, head.rstrip(b"\0"), f"{name}/{head_name(key)}"))
        if self.seal.overhead and len(sealed) > HEAD:
            raise ConfigError(f"a sealed label has {len(sealed):,} bytes; expected at most {HEAD:,}")
        block = sealed if self.seal.overhead else head
        path = self._head(key)
        temporary = path.with_name(path.name + TEMPORARY)
        self.files.write(temporary, [block])
        try:
            os.utime(temporary, (now, now))
            self.files.rename(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self.files.sync_folder(path.parent)

    def forget_head(self, key: Key) -> None:
        """Remove one head of a stream that has others."""
        path = self._head(key)
        self.files.unlink(path)
        if path.parent.is_dir():
            self.files.sync_folder(path.parent)

    def forget_content(self, name: str) -> None:
        """Remove a content."""
        self.files.unlink(self.content(name))

    def erase(self, session: str) -> None:
        """Throw a stream's key away, then its heads: all at once, as far as whoever comes next can see."""
        name = folder_name(session)
        self._keys.pop(name, None)
        folder = self.root / HEADS / name
        if folder.is_dir():
            gone = folder.with_name(name + TEMPORARY)
            self.files.rename(folder, gone)
            self._remove(gone)
            self.files.sync_folder(folder.parent)

    def _remove(self, folder: Path) -> None:
        if self.seal.overhead:
            self.files.wipe(folder / STREAM_KEY)
        for path in folder.iterdir():
            self.files.unlink(path)
        folder.rmdir()

    def _head(self, key: Key) -> Path:
        return self.root / HEADS / folder_name(key.session) / head_name(key)

    def _stream_key(self, name: str) -> bytes:
        folder = self.root / HEADS / name
        if name not in self._keys:
            folder.mkdir(exist_ok=True)
            key = self.seal.fresh_key()
            if self.seal.overhead:
                temporary = folder / (STREAM_KEY + TEMPORARY)
                self.files.write(temporary, [self.seal.wrap(key, name)])
                self.files.rename(temporary, folder / STREAM_KEY)
            self.files.sync_folder(folder.parent)
            self._keys[name] = key
        return self._keys[name]

    # -- the whole

    def rebuild(self, index: Index, owners: Owners) -> "Counter[str]":
        """Fill an empty index from what is whole, and remove everything else; returns what was, by what it was."""
        removed: Counter[str] = Counter()
        found: list[Entry] = []
        for folder in sorted((self.root / HEADS).iterdir()):
            if not folder.is_dir() or folder.name.endswith(TEMPORARY):
                removed["temporary" if folder.is_dir() else "unknown"] += 1
                _destroy(folder)
            else:
                found += self._heads_of(folder, removed)
        contents: dict[str, Content] = {}
        for entry in sorted(found, key=lambda entry: entry.used):
            if contents.setdefault(entry.content.name, entry.content) != entry.content:
                removed["foreign"] += 1
                _destroy(self._head(entry.key))
                continue
            index.add(entry)
            plain = entry.label.plain
            owners.introduce(entry.key.session, plain["owner"], entry.label.model)
        for session in {entry.key.session for entry in found} - set(index.by_session):
            self.erase(session)
        for path in (self.root / CONTENTS).iterdir():
            if path.name not in index.contents:
                removed["orphan" if path.is_file() else "unknown"] += 1
                _destroy(path)
        return removed

    def _heads_of(self, folder: Path, removed: "Counter[str]") -> list[Entry]:
        found = []
        with contextlib.suppress(RecordCorrupt, FileNotFoundError):
            wrapped = (folder / STREAM_KEY).read_bytes() if self.seal.overhead else b"plain"
            self._keys[folder.name] = self.seal.unwrap(wrapped, folder.name)
        for path in sorted(folder.iterdir()):
            if path.name == STREAM_KEY and self.seal.overhead:
                continue
            try:
                found.append(self._read_head(path))
                continue
            except RecordForeign:
                reason = "foreign"
            except RecordCorrupt as error:
                reason = "cut off" if "cut off" in str(error) else "damaged"
            except OSError:
                reason = "io"
            removed["temporary" if path.name.endswith(TEMPORARY) else reason] += 1
            _destroy(path)
        if not found:
            self._keys.pop(folder.name, None)
            _destroy(folder)
        return found

    def _read_head(self, path: Path) -> Entry:
        """The entry of a head, if head, name and length of the content fit each other."""
        folder = path.parent.name
        if path.name.endswith(TEMPORARY) or not path.is_file() or folder not in self._keys:
            raise RecordCorrupt(f"{path.name} is no head that can be read")
        with path.open("rb") as file:
            block, status = file.read(HEAD + 1), os.fstat(file.fileno())
        if self.seal.overhead:
            block = bytes(self.seal.unseal(self._keys[folder], block, f"{folder}/{path.name}")).ljust(HEAD, b"\0")
        elif len(block) != HEAD:
            raise RecordCorrupt(f"{path.name} has {len(block):,} bytes; expected {HEAD:,}: it was cut off")
        label = envelope.check(block, b"")
        key = Key(label.session, label.chunk, label.kind)
        if (folder, path.name) != (folder_name(label.session), head_name(key)):
            raise RecordForeign(f"{path.name} is the head of another record")
        name, digest, size, crypt = label.plain["content"]
        content = Content(name, digest, size, size + self.seal.overhead, crypt)
        if not self.content(name).is_file() or self.content(name).stat().st_size != content.stored:
            raise RecordCorrupt(f"the content of {path.name} was cut off, or is not there")
        return Entry(key, label, content, label.plain["worth"], status.st_mtime)

    def check_integrity(self, index: Index) -> None:
        """Raises ``IntegrityError`` if there is a file that the index does not know, or one missing."""
        heads = {p for p in (self.root / HEADS).rglob("*") if p.is_file() and p.name != STREAM_KEY}
        contents = {p.name for p in (self.root / CONTENTS).iterdir()}
        expected = {self._head(key) for key in index.entries}
        if heads != expected:
            raise IntegrityError(f"the disk tier has {len(heads)} heads, knows {len(expected)}: {heads ^ expected}")
        if contents != set(index.contents):
            raise IntegrityError(f"the disk tier has {len(contents)} contents; its index knows {len(index.contents)}")


def _destroy(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

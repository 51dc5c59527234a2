"""What is on disk, as its owner knows it: entries by key, contents by digest, and who makes room first."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from cache.envelope import HEAD, Kind, Label
from errors import IntegrityError

BLOCK = 4096


class Key(NamedTuple):
    """Whose record, and of what."""

    session: str
    chunk: int
    kind: Kind


@dataclass(frozen=True)
class Content:
    """A payload on disk: its random name, xxh3-128, bytes, bytes of the file, and the key it is sealed with."""

    name: str
    digest: bytes
    size: int
    stored: int
    key: bytes = b""

    @property
    def cost(self) -> int:
        """Bytes in whole blocks."""
        return round_up(self.stored)


@dataclass
class Entry:
    """One record; ``used``: when it was last written or read."""

    key: Key
    label: Label
    content: Content
    worth: int
    used: float


@dataclass
class Index:
    """Entries and contents. ``cost``: bytes of all heads and contents in whole blocks, shared contents once."""

    entries: dict[Key, Entry] = field(default_factory=dict)
    contents: dict[str, Content] = field(default_factory=dict)
    by_session: dict[str, dict[Key, None]] = field(default_factory=dict)
    cost: int = 0
    newest: int = 0  # generation
    _holders: Counter[str] = field(default_factory=Counter)
    _by_digest: dict[tuple[bytes, int], str] = field(default_factory=dict)
    _used: Counter[str] = field(default_factory=Counter)
    _order: list[OrderedDict[Key, Entry]] = field(default_factory=lambda: [OrderedDict() for _ in range(4)])

    def add(self, entry: Entry) -> None:
        """A record whose key is not here yet, as the one used last."""
        content = entry.content
        self.entries[entry.key] = entry
        self.by_session.setdefault(entry.key.session, {})[entry.key] = None
        self._order[entry.worth][entry.key] = entry
        self._used[entry.key.session] += HEAD + content.cost
        self.cost += HEAD
        self.newest = max(self.newest, entry.label.generation)
        if not self._holders[content.name]:
            self.contents[content.name] = content
            self._by_digest.setdefault((content.digest, content.size), content.name)
            self.cost += content.cost
        self._holders[content.name] += 1

    def discard(self, entry: Entry) -> str | None:
        """Take a record out; the name of its content, if nobody else has it."""
        key, content = entry.key, entry.content
        del self.entries[key]
        del self._order[entry.worth][key]
        mine = self.by_session[key.session]
        del mine[key]
        self._used[key.session] -= HEAD + content.cost
        if not mine:
            del self.by_session[key.session]
            del self._used[key.session]
        self.cost -= HEAD
        self._holders[content.name] -= 1
        if self._holders[content.name]:
            return None
        del self._holders[content.name], self.contents[content.name]
        self.cost -= content.cost
        if self._by_digest.get((content.digest, content.size)) == content.name:
            del self._by_digest[content.digest, content.size]
        return content.name

    def equal(self, digest: bytes, size: int) -> Content | None:
        """A content with this hash and size, if there is one."""
        return self.contents.get(self._by_digest.get((digest, size), ""))

    def of(self, session: str) -> list[Key]:
        """Keys of a session."""
        return list(self.by_session.get(session, ()))

    def touch(self, entry: Entry, now: float) -> None:
        """The record was used."""
        entry.used = now
        self._order[entry.worth].move_to_end(entry.key)

    def last_use(self, session: str) -> float:
        """When any record of a session was last used."""
        return max(self.entries[key].used for key in self.by_session[session])

    def used(self, mine: Callable[[str], bool]) -> int:
        """Bytes that these sessions hold, shared contents counted for each."""
        return sum(nbytes for session, nbytes in self._used.items() if mine(session))

    def victims(self) -> Iterator[Entry]:
        """Who makes room, first to last; entries may go meanwhile."""
        for order in self._order:
            for key, entry in list(order.items()):
                if self.entries.get(key) is entry:
                    yield entry

    def check_integrity(self) -> None:
        """Every count is what a fresh count gives."""
        fresh = Index()
        for order in self._order:
            for entry in order.values():
                fresh.add(entry)
        for name in ("entries", "contents", "cost", "_holders", "_used"):
            if getattr(fresh, name) != getattr(self, name):
                raise IntegrityError(f"{name} of the disk tier's index is not what its entries say")
        if {s: set(keys) for s, keys in fresh.by_session.items()} != {s: set(k) for s, k in self.by_session.items()}:
            raise IntegrityError("the disk tier's index does not know the keys of its sessions")


def round_up(nbytes: int) -> int:
    """Bytes in whole blocks."""
    return -(-nbytes // BLOCK) * BLOCK

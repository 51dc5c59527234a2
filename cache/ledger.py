"""The ledger: the books of one attention type of one session.

Which chunk is held, in which role, in which place, for which position slot its keys are encoded. A *place* is an index
into the session's page table; the pool maps it to a memory slot. Kept chunks never change place, so nothing is moved
when something else is evicted: the next chunk takes the lowest free place, which in the steady state is the one just
vacated, and the occupied places stay one contiguous run.
"""

import heapq
from dataclasses import dataclass, field

from cache.keep_set import CHUNK_ROLES, Role, RoleBudget
from cache.spec import AttentionSpec
from errors import IntegrityError, TransactionError


@dataclass(slots=True)
class Entry:
    """One chunk in one ledger: ``slot`` is the position that its stored keys are encoded for."""

    role: Role
    place: int
    slot: int


@dataclass(slots=True)
class Subject:
    """The subject anchor: ``tokens`` chosen tokens of ``chunk`` in place 0, right-aligned in their memory slot."""

    chunk: int
    tokens: int
    score: float
    slot: int


@dataclass
class Ledger:
    """Books of one attention type. Mutated by ``stage``, ``book``, ``unstage``, ``evict`` and ``admit`` only."""

    spec: AttentionSpec
    budget: RoleBudget
    entries: dict[int, Entry] = field(default_factory=dict)
    subject: Subject | None = None
    staged: int | None = None
    free: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.free and not self.entries:
            self.free = list(range(self.budget.subject_anchor, self.budget.places))

    def stage(self) -> int:
        """Open the place that the chunk in progress will be written to: the lowest that is free."""
        if self.staged is not None:
            raise TransactionError(f"{self.spec.type}: place {self.staged} is staged already; commit or abort first")
        self.staged = heapq.heappop(self.free)
        return self.staged

    def unstage(self) -> int:
        """Give the place of an aborted chunk back."""
        if self.staged is None:
            raise TransactionError(f"{self.spec.type}: nothing is staged; begin first")
        place, self.staged = self.staged, None
        heapq.heappush(self.free, place)
        return place

    def book(self, chunk: int, slot: int) -> None:
        """The staged place now holds ``chunk``, encoded for ``slot``; its role follows with the plan."""
        if self.staged is None:
            raise TransactionError(f"{self.spec.type}: nothing is staged; begin first")
        self.entries[chunk] = Entry(Role.RECENT, self.staged, slot)
        self.staged = None

    def admit(self, chunk: int, role: Role, slot: int) -> int:
        """Open a place for a chunk that comes back; returns it."""
        place = heapq.heappop(self.free)
        self.entries[chunk] = Entry(role, place, slot)
        return place

    def evict(self, chunk: int) -> Entry:
        """Strike ``chunk`` off; its place is free for the next chunk."""
        entry = self.entries.pop(chunk)
        heapq.heappush(self.free, entry.place)
        return entry

    def places(self) -> list[int]:
        """Occupied and staged places in physical order, without the subject anchor's."""
        occupied = [entry.place for entry in self.entries.values()]
        if self.staged is not None:
            occupied.append(self.staged)
        return sorted(occupied)

    def by_role(self) -> dict[Role, int]:
        """How many chunks are held in each role."""
        counts = dict.fromkeys(Role, 0)
        for entry in self.entries.values():
            counts[entry.role] += 1
        counts[Role.SUBJECT_ANCHOR] = int(self.subject is not None)
        return counts

    def bytes_held(self) -> int:
        """Bytes of the memory slots in use, the one of the chunk in progress included."""
        slots = len(self.entries) + (self.subject is not None) + (self.staged is not None)
        return self.spec.maximum_bytes(slots)

    def check_integrity(self) -> None:
        """Budgets hold for every role and in sum; every place is used once or free."""
        name = self.spec.type
        counts = self.by_role()
        over = {role: counts[role] for role in CHUNK_ROLES if counts[role] > self.budget.of(role)}
        if over:
            raise IntegrityError(f"{name}: roles over budget: {over} against {self.budget}")
        if self.budget.max_bytes is not None and self.bytes_held() > self.budget.max_bytes:
            raise IntegrityError(f"{name}: holds {self.bytes_held():,} bytes of {self.budget.max_bytes:,}")
        used = self.places() + self.free
        if sorted(used) != list(range(self.budget.subject_anchor, self.budget.places)):
            raise IntegrityError(f"{name}: places {self.places()} in use and {sorted(self.free)} free do not add up")
        if self.subject is not None and not 0 < self.subject.tokens <= self.spec.tokens_per_chunk:
            raise IntegrityError(f"{name}: subject anchor of {self.subject.tokens} tokens")

"""The pool: memory slots for keys and values, shared by all sessions of one replica.

Every attention type has one tensor [layers, 2, pages, tokens, width]. A session leases as many pages per type as its
budget has places; its page table maps a place to a page. Pages are reference counted: a fork shares its parent's pages
until one of the two writes, and the shared bytes are counted once. A lease prefers a contiguous home range in which
page = home + place, so that the occupied places of a session read as one contiguous view. Where a spec says that pages
are codes, the tensor is of codes, and each page has scales and zeros of its own (``Ends``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from cache.spec import TYPES, AttentionSpec, AttentionType, PageFormat
from errors import BudgetError, CacheError, IntegrityError, PoolExhausted


@dataclass
class PageAllocator:
    """Which pages of one attention type are in use, by how many leases. No tensors.

    The number of pages leased never exceeds the number of pages, so ``allocate`` cannot fail within a lease.
    """

    pages: int
    references: list[int] = field(default_factory=list)
    leased: dict[int, int] = field(default_factory=dict)
    homes: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.references = [0] * self.pages

    def lease(self, owner: int, count: int, with_home: bool = True) -> None:
        """Promise ``count`` pages to ``owner``; raises ``PoolExhausted`` without changing anything."""
        free = self.pages - sum(self.leased.values())
        if count > free:
            raise PoolExhausted(f"{count} memory slots wanted, {free} of {self.pages} are not leased")
        self.leased[owner] = count
        home = self._gap(count) if with_home else None
        if home is not None:
            self.homes[owner] = home

    def end_lease(self, owner: int) -> None:
        """Take back the promise; pages in use are released one by one before."""
        del self.leased[owner]
        self.homes.pop(owner, None)

    def allocate(self, owner: int, place: int) -> int:
        """A free page for ``place``: at home if possible, else outside all homes, else wherever one is free."""
        home = self.homes.get(owner)
        if home is not None and not self.references[home + place]:
            page = home + place
        else:
            free = [page for page in range(self.pages) if not self.references[page]]
            if not free:
                raise IntegrityError(f"no free page among {self.pages} although {self.leased} are leased")
            page = next((page for page in free if not self._in_a_home(page)), free[-1])
        self.references[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more lease reads ``page``."""
        self.references[page] += 1

    def release(self, page: int) -> None:
        """One lease less reads ``page``; at zero it is free."""
        if not self.references[page]:
            raise IntegrityError(f"page {page} was released more often than it was taken")
        self.references[page] -= 1

    @property
    def used(self) -> int:
        """Pages in use, shared ones counted once."""
        return self.pages - self.references.count(0)

    def _in_a_home(self, page: int) -> bool:
        return any(home <= page < home + self.leased[owner] for owner, home in self.homes.items())

    def _gap(self, count: int) -> int | None:
        start = 0
        for owner, home in sorted(self.homes.items(), key=lambda item: item[1]):
            if home - start >= count:
                break
            start = home + self.leased[owner]
        return start if start + count <= self.pages else None


@dataclass(eq=False)
class Lease:
    """The page tables of one session: place → page, per attention type."""

    id: int
    tables: dict[AttentionType, dict[int, int]] = field(default_factory=lambda: {t: {} for t in TYPES})


CODES: dict[PageFormat, torch.dtype] = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


@dataclass(frozen=True)
class Ends:
    """What the codes of each page are multiples of, and where zero is; float32, never shared by two pages.

    Args:
        key_scale, key_zero: [layers, pages, width], by channel.
        value_scale: [layers, pages, tokens], by token.
    """

    key_scale: torch.Tensor
    key_zero: torch.Tensor
    value_scale: torch.Tensor

    @classmethod
    def empty(cls, spec: AttentionSpec, pages: int, device: torch.device) -> "Ends":
        """Of ``pages`` pages, undefined until written."""
        by_channel = torch.empty(2, spec.layers, pages, spec.width, device=device)
        by_token = torch.empty(spec.layers, pages, spec.tokens_per_chunk, device=device)
        return cls(by_channel[0], by_channel[1], by_token)

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All three; the dimension of pages is the second of each."""
        return self.key_scale, self.key_zero, self.value_scale


@dataclass(frozen=True)
class PoolStatistics:
    """Bytes by attention type: of the whole pool, leased to sessions, and held in pages (shared ones once)."""

    capacity_bytes: Mapping[AttentionType, int]
    leased_bytes: Mapping[AttentionType, int]
    held_bytes: Mapping[AttentionType, int]
    copied_on_write_pages: int


class Pool:
    """Memory slots of one replica. Owns the tensors; a page is written by one lease at a time only."""

    def __init__(
        self,
        specs: Mapping[AttentionType, AttentionSpec],
        pages: Mapping[AttentionType, int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate ``pages[type]`` memory slots per attention type, each ``specs[type].bytes_per_chunk`` bytes.

        Raises:
            BudgetError: a spec was made for another element size than that of ``dtype``.
        """
        stored = {t: dtype if s.pages == "exact" else CODES[s.pages] for t, s in specs.items()}
        for t in TYPES:
            size = stored[t].itemsize
            if specs[t].element_bytes != size:
                raise BudgetError(f"{t}: spec has {specs[t].element_bytes} bytes an element, {stored[t]} {size}")
        self.specs = dict(specs)
        self.dtype, self.device = dtype, torch.device(device)
        self.storage = {
            t: torch.empty(s.layers, 2, pages[t], s.tokens_per_chunk, s.width, dtype=stored[t], device=self.device)
            for t, s in specs.items()
        }
        self.ends = {t: Ends.empty(s, pages[t], self.device) for t, s in specs.items() if s.pages != "exact"}
        self.allocators = {t: PageAllocator(pages[t]) for t in TYPES}
        self.copied_on_write = 0
        self._next_lease = 0
        self._leases: dict[int, Lease] = {}

    def open(self, places: Mapping[AttentionType, int], with_home: bool = True) -> Lease:
        """Lease ``places[type]`` pages per type; raises ``PoolExhausted`` and leases nothing if they are not there."""
        lease = Lease(self._next_lease)
        done: list[PageAllocator] = []
        try:
            for t in TYPES:
                self.allocators[t].lease(lease.id, places[t], with_home)
                done.append(self.allocators[t])
        except PoolExhausted as error:
            for allocator in done:
                allocator.end_lease(lease.id)
            raise PoolExhausted(f"{error}; close or pause a stream, or make the pool larger") from None
        self._next_lease += 1
        self._leases[lease.id] = lease
        return lease

    def fork(self, parent: Lease) -> Lease:
        """A lease of the same size that shares every page of ``parent`` until one of the two writes."""
        self._require(parent)
        child = self.open({t: self.allocators[t].leased[parent.id] for t in TYPES}, with_home=False)
        for t in TYPES:
            child.tables[t] = dict(parent.tables[t])
            for page in child.tables[t].values():
                self.allocators[t].share(page)
        return child

    def close(self, lease: Lease) -> None:
        """Release every page of ``lease`` and the lease itself."""
        self._require(lease)
        for t in TYPES:
            for place in list(lease.tables[t]):
                self.release(lease, t, place)
            self.allocators[t].end_lease(lease.id)
        del self._leases[lease.id]

    def claim(self, lease: Lease, type: AttentionType, place: int) -> int:
        """A page for an empty place; its contents are undefined until written."""
        self._require(lease)
        if place in lease.tables[type]:
            raise IntegrityError(f"{type}: place {place} has page {lease.tables[type][place]} already")
        page = self.allocators[type].allocate(lease.id, place)
        lease.tables[type][place] = page
        return page

    def release(self, lease: Lease, type: AttentionType, place: int) -> None:
        """Empty a place; its page is free once no fork reads it."""
        self.allocators[type].release(lease.tables[type].pop(place))

    def exclusive(self, lease: Lease, type: AttentionType, place: int) -> int:
        """The page of ``place``, copied first if a fork shares it: what must be called before writing in place."""
        page = lease.tables[type][place]
        allocator = self.allocators[type]
        if allocator.references[page] == 1:
            return page
        own = allocator.allocate(lease.id, place)
        self.storage[type][:, :, own] = self.storage[type][:, :, page]
        if type in self.ends:
            for tensor in self.ends[type].tensors:
                tensor[:, own] = tensor[:, page]
        allocator.release(page)
        lease.tables[type][place] = own
        self.copied_on_write += 1
        return own

    def pages(self, lease: Lease, type: AttentionType, places: Sequence[int]) -> tuple[int, ...]:
        """The pages of ``places``, in their order."""
        table = lease.tables[type]
        return tuple(table[place] for place in places)

    def statistics(self) -> PoolStatistics:
        """A frozen summary in bytes."""
        size = {t: self.specs[t].bytes_per_chunk for t in TYPES}
        return PoolStatistics(
            {t: size[t] * a.pages for t, a in self.allocators.items()},
            {t: size[t] * sum(a.leased.values()) for t, a in self.allocators.items()},
            {t: size[t] * a.used for t, a in self.allocators.items()},
            self.copied_on_write,
        )

    def check_integrity(self) -> None:
        """Every page's references are exactly the places that map to it; no lease holds more than it was promised."""
        for t, allocator in self.allocators.items():
            counted = [0] * allocator.pages
            for lease in self._leases.values():
                if len(lease.tables[t]) > allocator.leased[lease.id]:
                    raise IntegrityError(f"{t}: lease {lease.id} holds more pages than it was promised")
                for page in lease.tables[t].values():
                    counted[page] += 1
            if counted != allocator.references:
                raise IntegrityError(f"{t}: references {allocator.references}, places {counted}")
            if set(allocator.leased) != set(self._leases):
                raise IntegrityError(f"{t}: leases {sorted(allocator.leased)}, sessions {sorted(self._leases)}")

    def _require(self, lease: Lease) -> None:
        if self._leases.get(lease.id) is not lease:
            raise CacheError(f"lease {lease.id} is not open in this pool")

"""Who may touch which slot of a region that others read and write one-sided. Plain books: no memory, no clock.

A slot is leased for one transfer under a generation that no other transfer of the region ever has. It is leased again
only after its peer is known to have finished: by its answer, or by proof of its death. Until then it lies in the
graveyard. So nobody's bytes are ever where somebody else may still read or write.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from errors import ConfigError, IntegrityError

# ``leased``: a peer may be in it. ``held``: the peer has finished, the owner still reads. ``grave``: the owner has
# given it up, and a peer may still be in it.
Use = Literal["leased", "held", "grave"]


@dataclass(frozen=True)
class Lease:
    """The right to one slot for one transfer.

    Args:
        until: when the peer must have finished, by the clock of whoever keeps the book.
    """

    slot: int
    generation: int
    until: float


@dataclass(frozen=True)
class SlotStatistics:
    """Slots by what they are used for; they add up."""

    free: int
    leased: int
    held: int
    grave: int


@dataclass
class SlotBook:
    """Leases of ``slots`` slots. Every call with a lease that is over changes nothing and says so with ``False``.

    Args:
        lease_s: how long a peer may take; a lease that is older goes to the graveyard.
    """

    slots: int
    lease_s: float
    generation: int = 0
    _used: dict[int, tuple[Lease, Use]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.slots < 1 or self.lease_s <= 0:
            raise ConfigError(f"{self.slots} slots leased for {self.lease_s:g} s; expected at least one, above 0 s")

    def reserve(self, now: float) -> Lease | None:
        """A lease of a free slot; ``None`` at the bound."""
        free = next((slot for slot in range(self.slots) if slot not in self._used), None)
        if free is None:
            return None
        self.generation += 1
        lease = Lease(free, self.generation, now + self.lease_s)
        self._used[free] = (lease, "leased")
        return lease

    def hold(self, lease: Lease) -> bool:
        """The peer has finished; the owner reads on, for as long as it likes."""
        return self._turn(lease, ("leased",), "held")

    def release(self, lease: Lease) -> bool:
        """Free the slot; the peer is known to have finished, or never knew of it."""
        if not self._is(lease):
            return False
        del self._used[lease.slot]
        return True

    def bury(self, lease: Lease) -> bool:
        """The owner gives up; nobody knows whether the peer has finished."""
        return self._turn(lease, ("leased",), "grave")

    def expire(self, now: float) -> list[Lease]:
        """Bury every lease that is over, and say which."""
        over = [lease for lease, use in self._used.values() if use == "leased" and lease.until <= now]
        for lease in over:
            self.bury(lease)
        return over

    def exhume(self, dead: Callable[[Lease], bool]) -> list[Lease]:
        """Free the graves whose transfers are ``dead``, and say which."""
        found = [lease for lease, use in self._used.values() if use == "grave" and dead(lease)]
        for lease in found:
            self.release(lease)
        return found

    def use(self, lease: Lease) -> Use | None:
        """What the slot is used for under this lease; ``None`` once it is over."""
        return self._used[lease.slot][1] if self._is(lease) else None

    def statistics(self) -> SlotStatistics:
        """A frozen summary."""
        uses = [use for _, use in self._used.values()]
        counts = (uses.count("leased"), uses.count("held"), uses.count("grave"))
        return SlotStatistics(self.slots - len(uses), *counts)

    def check_integrity(self) -> None:
        """Every slot that is in use exists and has one lease, and no generation was given twice."""
        generations = [lease.generation for lease, _ in self._used.values()]
        if len(set(generations)) != len(generations) or max(generations, default=0) > self.generation:
            raise IntegrityError(f"generations {sorted(generations)} of {self.generation} were given twice or never")
        for slot, (lease, _) in self._used.items():
            if slot != lease.slot or not 0 <= slot < self.slots:
                raise IntegrityError(f"slot {slot} of {self.slots} is in use under a lease of slot {lease.slot}")

    def _is(self, lease: Lease) -> bool:
        found = self._used.get(lease.slot)
        return found is not None and found[0] == lease

    def _turn(self, lease: Lease, before: tuple[Use, ...], use: Use) -> bool:
        if not self._is(lease) or self._used[lease.slot][1] not in before:
            return False
        self._used[lease.slot] = (lease, use)
        return True

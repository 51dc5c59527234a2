"""A generator's end of the transport: warm slots through which evicted chunks leave and returning ones arrive."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from actors.cargo import Cargo, Goods, padded, unpacked, unpacked_inline
from actors.landing import Follower
from actors.transport.base import BLOCKS, Offer, Region
from cache.lent import Bytes, WarmBuffers, lent
from cache.tiers import Room
from cache.transfer import Lease, SlotBook
from errors import ConfigError, IntegrityError, PeerGone, RecordCorrupt, SlotRecycled, TransferFailed, TransferPending

LOG = logging.getLogger("longtake.store")
WHOLE = 64 * BLOCKS  # bytes of a window are a multiple of these
FAILURES: dict[type[Exception], str] = {  # what a failure is counted as: the first that it is one of
    RecordCorrupt: "unverified",
    SlotRecycled: "recycled",
    PeerGone: "gone",
    TransferPending: "pending",
    TransferFailed: "failed",
}
REASONS = ("unreachable", "large", "full")  # why something goes within a call although there are slots


@dataclass(frozen=True)
class StagingConfig:
    """The slots of a generator; ``slots`` times ``slot_bytes`` of host memory, touched when it begins.

    Args:
        slot_bytes: a payload that is larger goes within its call; one slot should hold a chunk of the largest
            attention type.
        small_bytes: payloads at most this large go within their calls, which carry as much anyway.
        lands_bytes: payloads at least this large are put into their page while they come. With 4 MiB the call takes
            longer than the copies, with 64 MiB all takes half the time.
        lease_s: a slot that the store has been given for longer is given up, and used again once the store is
            known to have left it.
    """

    slots: int = 8
    slot_bytes: int = 8 << 20
    small_bytes: int = 32 << 10
    lands_bytes: int = 8 << 20
    lease_s: float = 30.0

    def __post_init__(self) -> None:
        least = min(self.small_bytes, self.lands_bytes)
        if self.slots < 2 or self.slot_bytes < 4096 or least < 0 or self.lease_s <= 0:
            raise ConfigError(f"{self}: expected 2 slots or more of 4,096 bytes or more, and a lease above 0 s")


class Landing(NamedTuple):
    """A slot that waits for what comes back; ``follower``: who puts it into a room while it comes, if somebody does."""

    offer: Offer
    lease: Lease
    follower: Follower | None = None


class Staging:
    """Slots of a region for one store's calls, and what went through them. For one thread.

    Nothing goes through the region before the store said that it reaches it. Answers free slots; what was given up is
    freed when the region says that nobody is in it, or, where it cannot tell, when the store has answered a later call.
    """

    def __init__(
        self, region: Region | None, config: StagingConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``region``: has the slots of ``config``; ``None``: everything goes within calls."""
        self.region, self.config, self.clock = region, config, clock
        self.book = SlotBook(config.slots, config.lease_s)
        self.open = False
        self.moved: Counter[tuple[str, str]] = Counter()  # bytes by direction and path
        self.inline: Counter[str] = Counter()  # payloads that went within calls although there is a region, by reason
        self.failures: Counter[str] = Counter()
        self.landed_bytes = 0  # of what came in, that was put into its page while it came
        self._calls = 0
        self._graves: dict[Lease, int] = {}  # the newest call when it was buried
        self._pending: dict[Lease, int] = {}  # of graves that no answer frees: the newest call then
        self._greet_at = float("inf")
        self._given_back: deque[Lease] = deque()
        self._warm = WarmBuffers(config.slots * config.slot_bytes // 2)

    # -- calls, in their order

    def called(self) -> int:
        """The number of a call that is sent now."""
        self._calls += 1
        return self._calls

    def answered(self, number: int) -> None:
        """The store has answered this call, and so has done with all before it."""
        self._reap(number)

    # -- slots

    def load(self, goods: Goods) -> tuple[Cargo, Lease | None]:
        """Goods for a call: in a slot, whose lease must be released or buried when the call is over, or within it."""
        lease = self._reserve(goods.nbytes)
        nbytes, checksum = goods.nbytes, goods.checksum()
        if lease is None or self.region is None:
            self.moved["out", "inline"] += nbytes
            return Cargo(goods.layout, goods.rest, nbytes, checksum, goods.to_bytes()), None
        goods.write(self.region.payload(lease.slot))
        offer = Offer(self.region.ticket, lease.slot, lease.generation, nbytes, checksum)
        self.region.announce(offer)
        self.moved["out", self.region.ticket.kind] += nbytes
        return Cargo(goods.layout, goods.rest, nbytes, checksum, offer), lease

    def landing(self, into: Room | None = None) -> Landing | None:
        """A slot for what a call brings back, which must be unloaded, released or buried; ``None``: within the call.

        Where the region has windows, what is large and asked for ``into`` a room goes through one, whatever its size.
        """
        lease = self._reserve(self.config.slot_bytes)
        region = self.region
        if lease is None or region is None:
            return None
        offer = Offer(region.ticket, lease.slot, lease.generation, self.config.slot_bytes)
        follower = None
        if into is not None and region.window_bytes and into.nbytes >= self.config.lands_bytes:
            window = min(region.window_bytes, self.config.slot_bytes) // WHOLE * WHOLE
            offer = replace(offer, nbytes=padded(into.nbytes), window=window)
            follower = Follower(region, offer, into)
        region.announce(offer)
        return Landing(offer, lease, follower)

    def unload(self, cargo: Cargo, landing: Landing | None) -> Goods:
        """What came back, verified: without tensors if it has landed, else with such as view the slot or a copy of it.

        The slot is free once they are gone.

        Raises:
            RecordCorrupt: it is not what was sent.
            TransferFailed: the slot was given up before the answer came.
        """
        if isinstance(cargo.where, bytes):
            if landing is not None:
                self.release(landing.lease)
            goods = unpacked_inline(cargo, cargo.where)
            self.moved["in", "inline"] += cargo.nbytes
            return goods
        if landing is None or cargo.where != landing.offer or self.region is None:
            raise TransferFailed("the store put what was asked for into another slot")
        lease, slot = landing.lease, landing.lease.slot
        self.region.revoke(slot)
        if self.region.deserted(slot) is False or not self.book.hold(lease):
            self.bury(lease)
            raise TransferFailed(f"slot {slot} was given up, or somebody is in it, when the answer came")
        try:
            landed = self._landed(cargo, landing)
            goods = landed or unpacked(cargo, self._kept(lease, cargo.nbytes))
        except (RecordCorrupt, TransferFailed):
            self.book.release(lease)
            raise
        if landed is not None:
            self.book.release(lease)
        self.moved["in", self.region.ticket.kind] += cargo.nbytes
        return goods

    def copied(self, cargo: Cargo, landing: Landing | None) -> Goods:
        """What came back, landed or in warm memory of its own, verified; in whatever thread, the slot stays leased.

        It is the copy that is verified: had the lease run out, somebody else's bytes would be in the slot by now.

        Raises:
            RecordCorrupt: it is not what was sent.
            TransferFailed: it was put somewhere else.
        """
        if isinstance(cargo.where, bytes):
            return unpacked_inline(cargo, cargo.where)
        if landing is None or cargo.where != landing.offer or self.region is None:
            raise TransferFailed("the store put what was asked for into another slot")
        landed = self._landed(cargo, landing)
        if landed is not None:
            return landed
        copy = self._warm.take(cargo.nbytes)
        copy[:] = self.region.payload(landing.lease.slot)[: cargo.nbytes]
        return unpacked(cargo, copy)

    def counted(self, cargo: Cargo) -> None:
        """Count what came back as a copy."""
        path = "inline" if self.region is None or isinstance(cargo.where, bytes) else self.region.ticket.kind
        self.moved["in", path] += cargo.nbytes

    def release(self, lease: Lease) -> None:
        """The call is over: the store has answered it."""
        if self.region is None or self.book.use(lease) is None or lease in self._pending:
            return
        self.region.revoke(lease.slot)
        if self.region.deserted(lease.slot) is False:
            self.bury(lease)  # somebody else is in it, who has no business there
        elif self.book.release(lease):
            self._graves.pop(lease, None)

    def bury(self, lease: Lease) -> None:
        """Nobody knows whether the call is over."""
        if self.region is not None and self.book.bury(lease):
            self.region.revoke(lease.slot)
            self._graves[lease] = self._calls

    def abandon(self, lease: Lease) -> None:
        """The store has given up and may still write; only a greeting that is sent from now on tells when not."""
        self.bury(lease)
        if self._graves.pop(lease, None) is not None:
            self._pending[lease] = self._calls
            self._close_until_greeted()

    def failed(self, error: Exception) -> None:
        """Count a transfer that failed."""
        for kind, name in FAILURES.items():
            if isinstance(error, kind):
                self.failures[name] += 1
                LOG.warning("a transfer failed", extra={"reason": str(error)})
                return

    def due(self) -> bool:
        """Whether it is time to greet the store once more."""
        return self.region is not None and not self.open and self.clock() >= self._greet_at

    def reachable(self, number: int, reason: str) -> None:
        """What the store said when it was greeted by this call: nothing, or why it cannot reach the region."""
        overtaken = any(abandoned > number for abandoned in self._pending.values())
        self.open = not reason and not overtaken
        if not reason:
            for lease in [lease for lease, abandoned in self._pending.items() if abandoned < number]:
                del self._pending[lease]
                self._graves[lease] = 0
        else:
            self._close_until_greeted()
            LOG.warning("the restore store cannot reach our memory; chunks go within calls", extra={"reason": reason})

    # -- books

    @property
    def graveyard_bytes(self) -> int:
        """Bytes that are not used because a transfer which was given up may still touch them."""
        return self.book.statistics().grave * self.config.slot_bytes

    def statistics(self) -> dict[str, int]:
        """Bytes by direction and path, slots by use, failures."""
        slots = self.book.statistics()
        return {
            **{f"{direction}_{path}_bytes": n for (direction, path), n in self.moved.items()},
            **{f"slots_{name}": getattr(slots, name) for name in ("free", "leased", "held", "grave")},
            **{f"inline_{reason}": n for reason, n in self.inline.items()},
            **{f"failed_{what}": n for what, n in self.failures.items()},
            "landed_bytes": self.landed_bytes,
            "graveyard_bytes": self.graveyard_bytes,
        }

    def check_integrity(self) -> None:
        """Every slot has one use, and graves are known."""
        self.book.check_integrity()
        self._warm.check_integrity()
        known = len(self._graves) + len(self._pending)
        if known != self.book.statistics().grave:
            raise IntegrityError(f"{known} graves are known, {self.book.statistics().grave} are there")

    def close(self) -> None:
        """Let nobody in any more."""
        self.open = False
        if self.region is not None:
            self.region.close()

    # -- inside

    def _reserve(self, nbytes: int) -> Lease | None:
        if self.region is None or nbytes <= self.config.small_bytes:
            return None
        reason = "unreachable" if not self.open else "large" if nbytes > self.config.slot_bytes else ""
        lease = None
        if not reason:
            self._reap(0)
            lease, reason = self.book.reserve(self.clock()), "full"
        if lease is None:
            self.inline[reason] += 1
        return lease

    def _reap(self, answered: int) -> None:
        """Bury what is over, free what was given back, and what is known to be dead."""
        while self._given_back:
            self.book.release(self._given_back.popleft())
        if self.region is None:
            return
        region = self.region
        for lease in self.book.expire(self.clock()):
            region.revoke(lease.slot)
            self._graves[lease] = self._calls

        def dead(lease: Lease) -> bool:
            if lease in self._pending:
                return False
            deserted = region.deserted(lease.slot)
            return self._graves[lease] < answered if deserted is None else deserted

        for lease in self.book.exhume(dead):
            del self._graves[lease]

    def _landed(self, cargo: Cargo, landing: Landing) -> Goods | None:
        """What its follower put into its room, if it has one; raises as ``Follower.finish``."""
        if landing.follower is None:
            return None
        landed = landing.follower.finish(cargo)
        self.landed_bytes += landed.landed_bytes
        return landed

    def _close_until_greeted(self) -> None:
        self.open, self._greet_at = False, self.clock() + self.config.lease_s

    def _kept(self, lease: Lease, nbytes: int) -> Bytes:
        """What is in a slot that is held: in place, or copied where every other slot is held already."""
        assert self.region is not None
        payload = self.region.payload(lease.slot)[:nbytes]
        if self.book.statistics().held * 2 <= self.config.slots:
            return lent(payload, lambda: self._given_back.append(lease))
        copy = self._warm.take(nbytes)
        copy[:] = payload
        self.book.release(lease)
        return copy

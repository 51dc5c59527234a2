"""Shared memory of one machine, for a store beside its generators. Linux.

A region is memory without a name, which its peers open by way of its owner's process. It goes with the last process
that has it mapped, so that no kill of anybody leaves anything. The kernel keeps the locks: a peer that is in a slot has
its byte locked, the owner has another one for life. A lock goes with its process, which is how each side knows for
certain that the other is not there any more, neither slow nor about to come back.
"""

import errno
import fcntl
import mmap
import os
import secrets
import struct
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from actors.transport.base import BLOCKS, HEAD_BYTES, REVOKED, Layout, Offer, Ticket, region_bytes, verify
from cache.lent import Bytes, flat
from errors import ConfigError, PeerGone, TransferFailed

WINDOW_BYTES = 4 << 20  # are small enough for the cache that cores share: only the page's memory is written then
SPIN_S, DOZE_S = 0.002, 0.0002  # for so long a store looks at once whether there is room in a window, then so often
WAITS_S, WAITED_BYTES_S = 0.25, 1e9  # a push waits for its reader at most so long, and a second for so many bytes
REGIONS = 64  # attached at most; the one that was used longest ago is let go of
_LOCK = struct.Struct("hhqqi4x")
_OWNER = 1 << 40  # this byte's lock is the owner's, a slot's byte that of the peer in it; neither need exist
_BUSY = (errno.EACCES, errno.EAGAIN)


def _take(fd: int, byte: int) -> bool:
    """Take a byte's lock for this open file; whether nobody else has it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def _give(fd: int, byte: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))


def _taken(fd: int, byte: int) -> bool:
    """Whether another open file has this byte's lock."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return bool(_LOCK.unpack(answer)[0] != fcntl.F_UNLCK)


class SharedRegion:
    """``actors.transport.base.Region`` in shared memory, all of it touched, so that no copy meets a fresh page."""

    window_bytes = WINDOW_BYTES

    def __init__(self, slots: int, slot_bytes: int) -> None:
        """Raises ``ConfigError`` where the system has no such memory."""
        size, token = region_bytes(slots, slot_bytes), secrets.token_bytes(16)
        try:
            if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
                raise OSError(errno.ENOMEM, "it is more than half of the machine's memory")
            self._fd = os.memfd_create("longtake", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self._fd, size)
            # No size may change any more: a peer that touches what is cut off would die of it.
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)
            memory = flat(mmap.mmap(self._fd, size))
        except (AttributeError, OSError) as error:
            raise ConfigError(
                f"service.transport is 'shared', but {size:,} bytes of shared memory are not to be had: {error}; "
                "expected room, and Linux; or 'inline'"
            ) from error
        memory[:] = 0
        _take(self._fd, _OWNER)
        self._layout = Layout(memory, slots, slot_bytes)
        memory[: len(token)] = np.frombuffer(token, np.uint8)
        where = f"/proc/{os.getpid()}/fd/{self._fd}".encode()
        self.ticket = Ticket("shared", token.hex(), where, 0, slots, slot_bytes)

    def payload(self, slot: int) -> Bytes:
        return self._layout.payload(slot)

    def announce(self, offer: Offer) -> None:
        self._layout.write_head(offer.slot, offer.head())

    def written(self, offer: Offer) -> int:
        return self._layout.written(offer)

    def say_read(self, offer: Offer, nbytes: int) -> None:
        self._layout.say_read(offer, nbytes)

    def revoke(self, slot: int) -> None:
        self._layout.write_head(slot, REVOKED)

    def deserted(self, slot: int) -> bool | None:
        """Who comes now finds the head revoked."""
        return not _taken(self._fd, slot)

    def close(self) -> None:
        if self._fd >= 0:
            for slot in range(self.ticket.slots):
                self.revoke(slot)
            _give(self._fd, _OWNER)  # the mapping, which may still be lent, has this open file too
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True)
class _Attached:
    fd: int
    layout: Layout

    def close(self) -> None:
        os.close(self.fd)


class SharedReach:
    """``actors.transport.base.Reach`` into shared memory."""

    def __init__(self) -> None:
        self._attached: OrderedDict[str, _Attached] = OrderedDict()

    def pull(self, offer: Offer, into: Bytes) -> None:
        with self._within(offer) as layout:
            np.copyto(into, layout.payload(offer.slot)[: offer.nbytes])
        verify(into, offer.nbytes, offer.checksum)

    def push(self, offer: Offer, payload: Bytes) -> None:
        if len(payload) > offer.nbytes:
            raise TransferFailed(f"{len(payload):,} bytes do not fit a slot of {offer.nbytes:,}")
        with self._within(offer) as layout:
            if offer.window:
                self._push_through(layout, offer, payload)
            else:
                np.copyto(layout.payload(offer.slot)[: len(payload)], payload)

    def _push_through(self, layout: Layout, offer: Offer, payload: Bytes) -> None:
        """Round and round a window, a block at a time, as there is room."""
        window, left_s = layout.payload(offer.slot)[: offer.window], WAITS_S + len(payload) / WAITED_BYTES_S
        for begin in range(0, len(payload), offer.block):
            end, at = min(begin + offer.block, len(payload)), begin % offer.window
            if layout.read(offer) < end - offer.window:
                left_s -= self._wait_for_room(layout, offer, end - offer.window, left_s)
            np.copyto(window[at : at + end - begin], payload[begin:end])
            layout.say_written(offer, end)

    def _wait_for_room(self, layout: Layout, offer: Offer, upto: int, most_s: float) -> float:
        """Until the owner has read so far; how long that took. Raises ``TransferFailed``."""
        begun = now = time.monotonic()
        while layout.read(offer) < upto:
            if now - begun < SPIN_S:
                time.sleep(0)
            else:
                offer.expect(layout.head(offer.slot).tobytes())
                if now - begun > most_s:
                    raise TransferFailed(f"nobody reads what is pushed into slot {offer.slot} of {offer.ticket.region}")
                time.sleep(DOZE_S)
            now = time.monotonic()
        return now - begun

    def greet(self, ticket: Ticket) -> None:
        self._attach(ticket)

    def sweep(self) -> None:
        for region, found in list(self._attached.items()):
            if not _taken(found.fd, _OWNER):
                self._attached.pop(region).close()

    def statistics(self) -> dict[str, int]:
        held = sum(found.layout.memory.nbytes for found in self._attached.values())
        return {"regions": len(self._attached), "attached_bytes": held, "graveyard_bytes": 0}

    def close(self) -> None:
        while self._attached:
            self._attached.popitem()[1].close()

    @contextmanager
    def _within(self, offer: Offer) -> Iterator[Layout]:
        """The region, while nobody else may be in the slot and its owner knows that we are."""
        found = self._attach(offer.ticket)
        needed = offer.window or offer.nbytes
        if (
            not 0 <= offer.slot < found.layout.slots
            or not 0 <= needed <= found.layout.slot_bytes
            or offer.window % BLOCKS
        ):
            raise TransferFailed(f"slot {offer.slot} with {needed:,} bytes is not one of {offer.ticket}")
        if not _take(found.fd, offer.slot):
            raise TransferFailed(f"somebody else is in slot {offer.slot} of {offer.ticket.region}")
        try:
            offer.expect(found.layout.head(offer.slot).tobytes())
            yield found.layout
        finally:
            _give(found.fd, offer.slot)

    def _attach(self, ticket: Ticket) -> _Attached:
        found = self._attached.get(ticket.region)
        if found is None:
            self.sweep()
            found = self._attached[ticket.region] = _attach(ticket)
            while len(self._attached) > REGIONS:
                self._attached.popitem(last=False)[1].close()
        self._attached.move_to_end(ticket.region)
        return found


def _attach(ticket: Ticket) -> _Attached:
    """Map a region. Its token tells it from whatever may have its owner's number by now."""
    size = region_bytes(ticket.slots, ticket.slot_bytes)
    try:
        fd = os.open(ticket.where.decode(), os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise PeerGone(f"the owner of region {ticket.region} has gone, or is not on this machine: {error}") from error
    try:
        found = _Attached(fd, Layout(flat(mmap.mmap(fd, size)), ticket.slots, ticket.slot_bytes))
    except (OSError, ValueError) as error:
        os.close(fd)
        raise PeerGone(f"there is another file in place of region {ticket.region}: {error}") from error
    token = found.layout.memory[:HEAD_BYTES].tobytes()[:16]
    if token.hex() != ticket.region or not _taken(fd, _OWNER):
        found.close()
        raise PeerGone(f"there is another process in place of the owner of region {ticket.region}")
    return found

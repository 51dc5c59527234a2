"""What a transport between generator and restore store is; two do it: shared memory, and NIXL.

The generator owns a ``Region`` of equal slots, made once. A call to the store carries an ``Offer``: a slot, its
generation, and length and checksum of what is in it, or how much fits. The store ``pull``s what was offered, or
``push``es what was asked for, through its ``Reach``, and nobody in the generator has a hand in it.

In front of every slot is a head, which the owner alone writes. It says under which generation the slot may be touched;
it is revoked before the slot is used for anything else, so that a peer which comes late finds that out by itself.
Where both have the memory, a push can go through a window, round and round: two lines beside each head say how far the
peer has written and how far the owner has read. What was read is a guess until the checksum of all was compared: no
order in which the two see each other's writes is relied on.
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import xxhash

from cache.lent import Bytes
from errors import RecordCorrupt, SlotRecycled

Kind = Literal["shared", "nixl"]
HEAD_BYTES, ALIGNMENT = 64, 4096
_HEAD = struct.Struct("<8sQQ16s")
BLOCKS = 8  # of a window
_MAGIC = b"LTSLOT02"
REVOKED = bytes(HEAD_BYTES)
NO_CHECKSUM = bytes(16)


@dataclass(frozen=True)
class Ticket:
    """How to reach a region; plain data.

    Args:
        region: its name, of which there is no other.
        where: what the transport needs to find it.
        address: of the region in its owner, where the transport wants to know.
        slots, slot_bytes: how many, and how many bytes of payload fit each.
    """

    kind: Kind
    region: str
    where: bytes
    address: int
    slots: int
    slot_bytes: int


@dataclass(frozen=True)
class Offer:
    """A slot for one transfer.

    Args:
        nbytes: of the payload that is in it; of what fits it, where it waits for one.
        checksum: of the payload that is in it.
        window: bytes of the slot that a payload of just ``nbytes`` goes through, read while it is written; 0: the
            payload stays in the slot.
    """

    ticket: Ticket
    slot: int
    generation: int
    nbytes: int
    checksum: bytes = NO_CHECKSUM
    window: int = 0

    @property
    def block(self) -> int:
        """Bytes that are written at a time, and read at a time at most: whole ones fill the window."""
        return self.window // BLOCKS

    def head(self) -> bytes:
        """What stands in front of the slot for as long as the offer does."""
        return _HEAD.pack(_MAGIC, self.generation, self.nbytes, self.checksum).ljust(HEAD_BYTES, b"\0")

    def expect(self, head: bytes) -> None:
        """Raises ``SlotRecycled`` if ``head`` is not of this offer: the slot is used for something else by now."""
        if head != self.head():
            raise SlotRecycled(
                f"slot {self.slot} of {self.ticket.region} is no longer under generation {self.generation}: it was "
                "given up or used again"
            )


class Region(Protocol):
    """Slots of a generator, for others to read and write. Only its owner has it."""

    ticket: Ticket
    window_bytes: int  # of a slot that a push goes through best; 0 where none can be read while it is written

    def payload(self, slot: int) -> Bytes:
        """The bytes of a slot, in place."""
        ...

    def announce(self, offer: Offer) -> None:
        """Let peers into the slot, under this offer's generation only; what is offered is there already."""
        ...

    def written(self, offer: Offer) -> int:
        """Bytes that a push under this offer has put through its window so far."""
        ...

    def say_read(self, offer: Offer, nbytes: int) -> None:
        """So many of them were read, and their part of the window may be written again."""
        ...

    def revoke(self, slot: int) -> None:
        """Let no peer in any more; one that is in stays in."""
        ...

    def deserted(self, slot: int) -> bool | None:
        """Whether certainly no peer is in the slot, nor can be; ``None`` where only an answer tells. Revoke first."""
        ...

    def close(self) -> None:
        """Let no peer in any more, ever. Memory that is still lent stays until it is given back."""
        ...


class Reach(Protocol):
    """A store's way to the regions of generators. For one thread at a time."""

    def pull(self, offer: Offer, into: Bytes) -> None:
        """Copy what is offered, and verify it; on any error ``into`` holds nothing of use.

        Raises:
            SlotRecycled: the slot is used for something else by now.
            RecordCorrupt: what arrived is not what was offered.
            PeerGone: its owner has gone.
            TransferFailed: anything else that kept it from arriving.
        """
        ...

    def push(self, offer: Offer, payload: Bytes) -> None:
        """Copy ``payload`` into the slot, all of it or, on any error, nothing that is believed.

        Raises:
            TransferPending: it may still be written; ``greet`` tells when not any more.
            SlotRecycled, PeerGone, TransferFailed: as ``pull``; nothing is written any more.
        """
        ...

    def greet(self, ticket: Ticket) -> None:
        """Find out whether the region can be reached, and no push that was given up is left; raises as ``push``."""
        ...

    def sweep(self) -> None:
        """Let go of what the dead have left: their regions, and buffers of transfers that are over by now."""
        ...

    def statistics(self) -> dict[str, int]:
        """Regions that are attached, their bytes, and bytes in the graveyard."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


def checksum(payload: Bytes) -> bytes:
    """xxh3-128; 25 GB/s here, faster than a copy."""
    return xxhash.xxh3_128_digest(payload.data)


def verify(payload: Bytes, nbytes: int, expected: bytes) -> None:
    """Raises ``RecordCorrupt`` if these bytes are not the ones that the checksum was made of."""
    if len(payload) != nbytes:
        raise RecordCorrupt(f"{len(payload):,} bytes arrived; expected {nbytes:,}")
    if checksum(payload) != expected:
        raise RecordCorrupt(f"{nbytes:,} bytes arrived that are not the ones that were sent: their checksum differs")


def stride(slot_bytes: int) -> int:
    """Bytes from one slot's payload to the next: whole pages, so that payloads are aligned for direct I/O."""
    return -(-slot_bytes // ALIGNMENT) * ALIGNMENT


def heads_bytes(slots: int) -> int:
    """Bytes before the first payload: a token for the region, and for each slot a head and two lines."""
    return stride(HEAD_BYTES * (3 * slots + 1))


def region_bytes(slots: int, slot_bytes: int) -> int:
    """Bytes of a whole region."""
    return heads_bytes(slots) + slots * stride(slot_bytes)


@dataclass(frozen=True)
class Layout:
    """Token, heads, lines and payloads in one stretch of memory."""

    memory: Bytes
    slots: int
    slot_bytes: int

    def head(self, slot: int) -> Bytes:
        """The head of a slot, in place."""
        return self.memory[self.head_at(slot) :][:HEAD_BYTES]

    def payload(self, slot: int) -> Bytes:
        """The payload of a slot, in place."""
        return self.memory[self.payload_at(slot) :][: self.slot_bytes]

    def write_head(self, slot: int, head: bytes) -> None:
        """Put a head in front of a slot."""
        self.head(slot)[:] = np.frombuffer(head, np.uint8)

    def say_written(self, offer: Offer, nbytes: int) -> None:
        """By the peer that is in the slot."""
        self._say(1, offer, nbytes)

    def written(self, offer: Offer) -> int:
        """What was said last under this offer, which need not be true; 0 if nothing was."""
        return self._said(1, offer)

    def say_read(self, offer: Offer, nbytes: int) -> None:
        """By the owner."""
        self._say(2, offer, nbytes)

    def read(self, offer: Offer) -> int:
        """As ``written``."""
        return self._said(2, offer)

    def _say(self, line: int, offer: Offer, nbytes: int) -> None:
        words, at = self._words, self._line_at(line, offer.slot)
        if words[at] != offer.generation:
            words[at + 1] = 0
            words[at] = offer.generation
        words[at + 1] = nbytes

    def _said(self, line: int, offer: Offer) -> int:
        words, at = self._words, self._line_at(line, offer.slot)
        return min(words[at + 1], offer.nbytes) if words[at] == offer.generation else 0

    @cached_property
    def _words(self) -> memoryview:
        """All before the payloads, as words of eight bytes; an access takes a tenth of what slices take."""
        return self.memory[: heads_bytes(self.slots)].data.cast("B").cast("Q")

    def _line_at(self, line: int, slot: int) -> int:
        """Where a line's two words are: a generation, and bytes under it."""
        return HEAD_BYTES // 8 * (line * self.slots + slot + 1)

    @staticmethod
    def head_at(slot: int) -> int:
        """Where the head of a slot begins; the token stands before all."""
        return HEAD_BYTES * (slot + 1)

    def payload_at(self, slot: int) -> int:
        """Where the payload of a slot begins."""
        return heads_bytes(self.slots) + slot * stride(self.slot_bytes)

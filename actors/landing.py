"""What a store pushes through a window is put into its page while it comes, block by block, and verified there.

Two processes copy at the same time: the store into the window, this one out of it, from the cache that their cores
share. No other process ever writes a page. What is hashed is what the page holds by then, so that nothing which happens
in the window meanwhile can be believed.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import xxhash

from actors.cargo import Cargo, Goods, padded
from actors.transport.base import Offer, Region
from cache.lent import Bytes
from cache.tiers import Arriving, Room
from errors import RecordCorrupt, TransferFailed

MOST_BYTES = 16 << 20  # are put at a time, so that whoever waits sees that its time is up


class Follower:
    """Fills one room through one window. For one thread at a time."""

    def __init__(self, region: Region, offer: Offer, room: Room) -> None:
        self._region, self._offer, self._room = region, offer, room
        self._window = region.payload(offer.slot)[: offer.window]
        self._state, self._at = xxhash.xxh3_128(), 0
        self._blocks = _blocks(room, offer)
        self._block = next(self._blocks, None)

    def follow(self) -> bool:
        """Put what the store says is there, or a part of it; whether there was anything."""
        before, written, offer = self._at, 0, self._offer
        while self._block is not None and self._at - before < MOST_BYTES:
            begin, end = self._at % offer.window, self._at + len(self._block)
            if end > written and end > (written := self._region.written(offer)):
                break
            self._block[:] = self._window[begin : begin + len(self._block)]
            self._state.update(self._block.data)
            self._at, self._block = end, next(self._blocks, None)
            self._region.say_read(offer, end)
        return self._at > before

    def finish(self, cargo: Cargo) -> Goods:
        """Put the rest, once the store has answered.

        Raises:
            TransferFailed: it is no page of the room's form.
            RecordCorrupt: what is in the room now is not what was sent.
        """
        room = self._room
        form = [(str(room.dtype).removeprefix("torch."), list(room.shape))]
        if (cargo.layout, cargo.rest[-1], cargo.nbytes) != (form, room.pages, padded(room.nbytes)):
            raise TransferFailed(f"{cargo.layout} came; expected {form} of {room.pages} pages")
        while self.follow():
            pass
        self._state.update(bytes(cargo.nbytes - room.nbytes))
        if self._block is not None or self._state.digest() != cargo.checksum:
            raise RecordCorrupt(f"{self._at:,} bytes are in a page that are not the ones that were sent")
        return Goods((), cargo.rest, room.nbytes)

    def dismiss(self) -> None:
        """Touch the room no more, and have the store not wait for us."""
        self._block = None
        self._region.say_read(self._offer, self._offer.nbytes)


def _blocks(room: Room, offer: Offer) -> Iterator[Bytes]:
    """The room in parts that do not reach across the end of a block of the window."""
    at = 0
    for piece in room.pieces:
        begin = 0
        while begin < len(piece):
            part = piece[begin : begin + offer.block - at % offer.block]
            yield part
            begin, at = begin + len(part), at + len(part)


class Followed(Arriving):
    """What a call brings back through a window.

    Args:
        take: settles this future by the call's, once that is done.
        again: settles it later, by another call.
    """

    def __init__(
        self, asked: "Future[Any]", follower: Follower, take: "Callable[[Future[Any]], None]", again: Callable[[], None]
    ) -> None:
        super().__init__()
        self._asked, self._take, self._again = asked, take, again
        self._follower: Follower | None = follower

    def follow(self) -> bool:
        if self._follower is None:
            return False
        if self._follower.follow():
            return True
        if self._asked.done():
            self._follower = None
            self._take(self._asked)
            return True
        return False

    def let_go(self) -> None:
        if self._follower is not None:
            self._follower.dismiss()
            self._follower = None
            self._again()

"""A restore store's end of the transport: takes what generators offer, gives what they ask for, verified both ways."""

import threading
import weakref
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch

from actors.cargo import Cargo, Goods, unpacked_inline, viewed
from actors.transport.base import Offer, Reach, Ticket
from actors.transport.choose import AnyReach
from cache.lent import Bytes, WarmBuffers
from errors import RecordCorrupt, TransferFailed


@dataclass
class Seals:
    """Checksums of tensors as they arrived, for as long as the tensors live.

    What is given back is sent under the checksum that its maker made, so that damage here is found there as well.
    """

    _of: dict[int, tuple[list["weakref.ref[torch.Tensor]"], bytes]] = field(default_factory=dict)

    def put(self, goods: Goods, checksum: bytes) -> None:
        """Remember a checksum."""
        key = id(goods.tensors[0])
        first = weakref.ref(goods.tensors[0], lambda _: self._of.pop(key, None) and None)
        self._of[key] = ([first, *map(weakref.ref, goods.tensors[1:])], checksum)

    def of(self, goods: Goods) -> bytes:
        """The checksum that these very tensors came with, else one that is made now."""
        refs, checksum = self._of.get(id(goods.tensors[0]), ([], b""))
        if [ref() is t for ref, t in zip(refs, goods.tensors, strict=False)] == [True] * len(goods.tensors):
            return checksum
        return goods.checksum()


class Dock:
    """Takes and gives; one caller at a time, a second one waits.

    Args:
        warm_bytes: idle buffers that are kept for what arrives next.
    """

    def __init__(self, warm_bytes: int, reach: Reach | None = None) -> None:
        self.reach: Reach = AnyReach() if reach is None else reach
        self.warm = WarmBuffers(warm_bytes)
        self.moved: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._seals = Seals()
        self._lock = threading.Lock()

    def take(self, cargo: Cargo) -> Goods:
        """What a call carries or offers. Raises ``TransferFailed`` and ``RecordCorrupt``."""
        with self._lock:
            try:
                goods = self._take(cargo)
            except RecordCorrupt:
                self.failures["unverified"] += 1
                raise
            except TransferFailed:
                self.failures["failed"] += 1
                raise
            self._seals.put(goods, cargo.checksum)
            return goods

    def give(self, goods: Goods, landing: Offer | None) -> Cargo:
        """Put goods into the slot that waits for them; if there is none, or it is too small, they go in the answer."""
        with self._lock:
            nbytes, checksum = goods.nbytes, self._seals.of(goods)
            if landing is None or (nbytes > landing.nbytes and not landing.window):
                self.moved["given_inline"] += nbytes
                return Cargo(goods.layout, goods.rest, nbytes, checksum, goods.to_bytes())
            try:
                if landing.window and nbytes != landing.nbytes:
                    raise TransferFailed(f"{nbytes:,} bytes are asked for as {landing.nbytes:,}")
                self.reach.push(landing, _whole(goods))
            except TransferFailed:
                self.failures["failed"] += 1
                raise
            self.moved[f"given_{landing.ticket.kind}"] += nbytes
            return Cargo(goods.layout, goods.rest, nbytes, checksum, landing)

    def greet(self, ticket: Ticket) -> str:
        """Nothing if the region can be reached from here, else why not."""
        with self._lock:
            try:
                self.reach.greet(ticket)
            except TransferFailed as error:
                return str(error)
            return ""

    def statistics(self) -> dict[str, int]:
        """Bytes by path, failures, what is attached, buried and warm; lets go of what the dead have left."""
        with self._lock:
            self.reach.sweep()
            return {
                **{f"{name}_bytes": n for name, n in self.moved.items()},
                **{f"failed_{what}": n for what, n in self.failures.items()},
                **self.reach.statistics(),
                **self.warm.statistics(),
            }

    def check_integrity(self) -> None:
        """Warm buffers are within their bound."""
        with self._lock:
            self.warm.check_integrity()

    def close(self) -> None:
        """Let go of every region."""
        with self._lock:
            self.reach.close()

    def _take(self, cargo: Cargo) -> Goods:
        if isinstance(cargo.where, bytes):
            goods = unpacked_inline(cargo, cargo.where)
            self.moved["taken_inline"] += cargo.nbytes
            return goods
        if (cargo.where.nbytes, cargo.where.checksum) != (cargo.nbytes, cargo.checksum):
            raise RecordCorrupt("a call and the slot that it names do not speak of the same bytes")
        memory = self.warm.take(cargo.nbytes)
        self.reach.pull(cargo.where, memory)
        goods = viewed(cargo, memory)
        self.moved[f"taken_{cargo.where.ticket.kind}"] += cargo.nbytes
        return goods


def _whole(goods: Goods) -> Bytes:
    """All bytes in one piece; copied only if they are in several."""
    if len(goods.tensors) == 1 and goods.tensors[0].nbytes == goods.nbytes:
        return goods.tensors[0].detach().contiguous().view(torch.uint8).numpy().reshape(-1)
    memory = np.empty(goods.nbytes, np.uint8)
    goods.write(memory)
    return memory

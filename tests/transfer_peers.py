"""The other end of a transport, in a process of its own that can be killed. Imports no torch: it begins at once."""

import multiprocessing as mp
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from actors.transport.base import Kind, Offer, Reach, Region, checksum
from actors.transport.choose import AnyReach, region
from actors.transport.shared import SharedReach
from cache.lent import Bytes
from errors import RecordLost

os.environ.setdefault("UCX_NET_DEVICES", "lo")  # UCX listens on every device else
os.environ.setdefault("UCX_LOG_LEVEL", "fatal")  # a killed peer is worth lines of it
os.environ.setdefault("NIXL_LOG_LEVEL", "FATAL")
DEADLINE_S = 60.0
POISON = 0xFF  # of floats, whatever their size: not a number
_CONTEXT = mp.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.transfer_peers"])


def pattern(seed: int, nbytes: int) -> Bytes:
    """Bytes that no other seed has, nowhere poison for long."""
    words = np.arange(-(-nbytes // 4), dtype=np.uint32) * np.uint32(2654435761) + np.uint32(seed * 40503 + 1)
    return words.view(np.uint8)[:nbytes].copy()


class Peer:
    """A process that answers calls in their order."""

    def __init__(self, target: Any, *arguments: Any) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=target, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def tell(self, call: str, *arguments: Any) -> None:
        """Send a call."""
        self.pipe.send((call, *arguments))

    def answer(self) -> Any:
        """The next answer; raises what was raised there, ``EOFError`` if the process has gone."""
        assert self.pipe.poll(DEADLINE_S), "the other process does not answer"
        found = self.pipe.recv()
        if isinstance(found, BaseException):
            raise found
        return found

    def ask(self, call: str, *arguments: Any) -> Any:
        """A call and its answer."""
        self.tell(call, *arguments)
        return self.answer()

    def answers(self) -> list[Any]:
        """All that came before the process went, errors of transfers among them."""
        found = []
        try:
            while self.pipe.poll(0):
                found.append(self.pipe.recv())
        except (EOFError, ConnectionResetError):
            pass
        return found

    def kill(self) -> None:
        """``SIGKILL``, and wait until nothing of it is left."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(DEADLINE_S)
        assert self.process.exitcode == -signal.SIGKILL

    def end(self) -> None:
        """End it in whatever state it is."""
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGCONT)
            self.process.kill()
        self.process.join(DEADLINE_S)
        self.process.close()
        self.pipe.close()


@contextmanager
def owner(kind: Kind, slots: int, slot_bytes: int) -> Iterator[Peer]:
    """A process with a region; see ``Owner`` for what it can be told."""
    peer = Peer(_serve_region, kind, slots, slot_bytes)
    try:
        peer.answer()
        yield peer
    finally:
        peer.end()


@contextmanager
def store() -> Iterator[Peer]:
    """A process that reaches regions: ``pull(offer)`` gives the bytes' checksum, ``push(offer, seed, nbytes)``."""
    peer = Peer(_serve_reach)
    try:
        peer.answer()
        yield peer
    finally:
        peer.end()


class Owner:
    """A region without books: does what it is told, at the wrong moment too."""

    def __init__(self, made: Region, pipe: Connection) -> None:
        self.region, self.pipe = made, pipe

    def offer(self, slot: int, generation: int, seed: int, nbytes: int) -> Offer:
        payload = pattern(seed, nbytes)
        self.region.payload(slot)[:nbytes] = payload
        offer = Offer(self.region.ticket, slot, generation, nbytes, checksum(payload))
        self.region.announce(offer)
        return offer

    def land(self, slot: int, generation: int) -> Offer:
        self.region.payload(slot)[:] = POISON
        offer = Offer(self.region.ticket, slot, generation, self.region.ticket.slot_bytes)
        self.region.announce(offer)
        return offer

    def look(self, slot: int, nbytes: int) -> bytes:
        return checksum(self.region.payload(slot)[:nbytes])

    def spoil(self, slot: int) -> None:
        self.region.payload(slot)[:] = POISON

    def revoke(self, slot: int) -> None:
        self.region.revoke(slot)

    def deserted(self, slot: int) -> bool | None:
        return self.region.deserted(slot)

    def close(self) -> None:
        self.region.close()

    def churn(self, slot: int, seeds: int, nbytes: int, seed: int) -> int:
        """Offer, and use the slot for something else a moment later, whoever reads."""
        payloads, rng = [pattern(one, nbytes) for one in range(seeds)], np.random.default_rng(seed)
        sums = [checksum(payload) for payload in payloads]
        memory = self.region.payload(slot)[:nbytes]
        for generation, payload in enumerate(payloads, 1):
            memory[:] = payload
            offer = Offer(self.region.ticket, slot, generation, nbytes, sums[generation - 1])
            self.region.announce(offer)
            self.pipe.send(offer)
            until = time.perf_counter() + rng.choice([0, 2e-4, 1e-3, 2e-2])
            while time.perf_counter() < until:
                pass
            if generation % 2:
                self.region.revoke(slot)  # as its book would; else as if it had none
            memory[:] = POISON
        return seeds


def _serve_region(pipe: Connection, kind: Kind, slots: int, slot_bytes: int) -> None:
    made = region(kind, slots, slot_bytes)
    assert made is not None
    _serve(pipe, Owner(made, pipe))


class Store:
    """A reach, and what it is told to do with it."""

    def __init__(self, pipe: Connection) -> None:
        self.reach: Reach = AnyReach()
        self.pipe = pipe

    def pull(self, offer: Offer) -> bytes:
        into: Bytes = np.full(offer.nbytes, POISON, np.uint8)
        self.reach.pull(offer, into)
        return checksum(into)

    def push(self, offer: Offer, seed: int, nbytes: int) -> tuple[int, bytes]:
        payload = pattern(seed, nbytes)
        self.reach.push(offer, payload)
        return seed, checksum(payload)

    def push_a_part(self, offer: Offer, seed: int, upto: int) -> None:
        """Say that so much is there, and go no further until somebody kills us."""
        with SharedReach()._within(offer) as layout:
            layout.payload(offer.slot)[:upto] = pattern(seed, upto)
            layout.say_written(offer, upto)
            self.pipe.send(upto)
            time.sleep(DEADLINE_S)

    def ready(self) -> None:
        """A call that does nothing."""


def _serve_reach(pipe: Connection) -> None:
    _serve(pipe, Store(pipe))


def _serve(pipe: Connection, served: Any) -> None:
    pipe.send("ready")
    while True:
        try:
            call, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(getattr(served, call)(*arguments))
        except RecordLost as error:
            pipe.send(error)

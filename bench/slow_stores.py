"""Restore stores that are farther away than this process' memory: behind a throttle, and in a process of its own."""

import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from actors.restore_store import Answer, RestoreStore
from cache.host_tier import HostTier
from cache.spec import AttentionType
from cache.tiers import KeyValues, Latents, Room, answered
from errors import LongtakeError, ServiceError

READY_S = 120.0  # a process begins with its imports


@dataclass
class Throttled(HostTier):
    """A host tier that gives back at most ``bytes_s``, one after the other, as a slow disk or line would."""

    bytes_s: float = 50e6
    latency_s: float = 0.001
    _free_at: float = 0.0
    _going: "SimpleQueue[tuple[float, Future[Any], Future[Any]] | None]" = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        super().__post_init__()
        Thread(target=self._deliver, name="throttle", daemon=True).start()

    def begin_fetch(
        self, session: str, chunk: int, type: AttentionType, into: Room | None = None
    ) -> "Future[KeyValues]":
        return self._later(answered(self.fetch, session, chunk, type))

    def begin_latents(self, session: str, chunk: int) -> "Future[Latents]":
        return self._later(answered(self.latents, session, chunk))

    def where(self, session: str, chunk: int) -> str:
        return "throttled"

    def shut(self) -> None:
        """End the thread."""
        self._going.put(None)

    def _later(self, found: "Future[Any]") -> "Future[Any]":
        nbytes = found.result().nbytes if found.exception() is None else 0
        self._free_at = max(self._free_at, time.perf_counter()) + nbytes / self.bytes_s
        told: Future[Any] = Future()
        self._going.put((self._free_at + self.latency_s, told, found))
        return told

    def _deliver(self) -> None:
        while (parcel := self._going.get()) is not None:
            due, told, found = parcel
            time.sleep(max(0.0, due - time.perf_counter()))
            error = found.exception()
            if error is None:
                told.set_result(found.result())
            else:
                told.set_exception(error)


class StoreProcess:
    """A ``RestoreStore`` in a process of its own, behind a pipe; ``call`` is for ``RemoteTier``."""

    def __init__(self, host_bytes: int) -> None:
        context = get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, host_bytes), name="store", daemon=True)
        self._process.start()
        theirs.close()
        self._waiting: deque[Future[Answer]] = deque()
        self._lock = Lock()
        self._calls: SimpleQueue[tuple[str, tuple[Any, ...]] | None] = SimpleQueue()
        for work in (self._send, self._listen):
            Thread(target=work, name="line", daemon=True).start()
        self.call("holdings", []).result(READY_S)

    def call(self, name: str, *arguments: Any) -> "Future[Answer]":
        """Carried out in the order in which they are sent; never waits."""
        told: Future[Answer] = Future()
        with self._lock:
            self._waiting.append(told)
            self._calls.put((name, arguments))
        return told

    def shut(self) -> None:
        """End the process."""
        self._calls.put(None)
        self._process.join(10)
        self._line.close()

    def _send(self) -> None:
        while (call := self._calls.get()) is not None:
            self._line.send(call)
        self._line.send(None)

    def _listen(self) -> None:
        try:
            while True:
                found = self._line.recv()
                told = self._waiting.popleft()
                if isinstance(found, LongtakeError):
                    told.set_exception(found)
                else:
                    told.set_result(found)
        except (EOFError, OSError):
            for told in self._waiting:
                told.set_exception(ServiceError("the store's process has ended"))


def _serve(line: Connection, host_bytes: int) -> None:
    store = RestoreStore(host_bytes, 0)
    while (call := line.recv()) is not None:
        name, arguments = call
        try:
            line.send(getattr(store, name)(*arguments))
        except LongtakeError as error:
            line.send(error)

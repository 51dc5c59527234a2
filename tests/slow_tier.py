"""A restore store that answers by a script of delays, on a clock that moves only when somebody waits."""

import heapq
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from cache.host_tier import HostTier
from cache.spec import AttentionType
from cache.tiers import KeyValues, Latents, Room, answered
from models.backbone import Backbone

Delay = Callable[[int, AttentionType | None], float | None]


def at_once(chunk: int, type: AttentionType | None) -> float | None:
    """No delay."""
    return 0.0


@dataclass
class SlowTier(HostTier):
    """A ``HostTier`` whose fetches take as long as ``delay(chunk, type)`` says; ``None`` is never.

    Of type ``None`` are latents.

    ``clock`` and ``wait`` are for the engine. What is fetched is looked up when it is answered, as in a real store.
    """

    delay: Delay = at_once
    now: float = 0.0
    _due: list[tuple[float, int, "Future[Any]", Callable[..., Any], tuple[Any, ...]]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=count)

    def clock(self) -> float:
        return self.now

    def wait(self, answers: Collection["Future[Any]"], seconds: float) -> None:
        until = self.now + seconds
        while not any(answer.done() for answer in answers) and self._due and self._due[0][0] <= until:
            self.pass_until(self._due[0][0])
        if not any(answer.done() for answer in answers):
            self.pass_until(until)

    def pass_until(self, when: float) -> None:
        """Let time pass, and answer what is due by then."""
        while self._due and self._due[0][0] <= when:
            due, _, told, call, arguments = heapq.heappop(self._due)
            self.now = max(self.now, due)
            found = answered(call, *arguments)
            error = found.exception()
            if error is None:
                told.set_result(found.result())
            else:
                told.set_exception(error)
        self.now = max(self.now, when)

    def begin_fetch(
        self, session: str, chunk: int, type: AttentionType, into: Room | None = None
    ) -> "Future[KeyValues]":
        return self._later(self.delay(chunk, type), self.fetch, session, chunk, type)

    def begin_latents(self, session: str, chunk: int) -> "Future[Latents]":
        return self._later(self.delay(chunk, None), self.latents, session, chunk)

    def where(self, session: str, chunk: int) -> str:
        return "slow"

    def _later(self, seconds: float | None, call: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        if seconds == 0:
            return answered(call, *arguments)
        told: Future[Any] = Future()
        if seconds is not None:
            heapq.heappush(self._due, (self.now + seconds, next(self._order), told, call, arguments))
        return told


@contextmanager
def passes_take(model: Backbone, tier: SlowTier, seconds: float) -> Iterator[None]:
    """Let every pass of ``model`` take so long on the clock of ``tier``."""
    forward = model.forward

    def timed(*arguments: Any, **options: Any) -> Any:
        tier.pass_until(tier.now + seconds)
        return forward(*arguments, **options)

    model.forward = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.forward

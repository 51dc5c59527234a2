"""What leaves a GPU for the restore store: copied beside the passes that follow, and given to the store once it landed.

Whoever asks meanwhile is answered as if the store had all of it: what is asked for is given from where it still is, and
what is to be forgotten is not given to the store at all.
"""

import logging
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from cache.spec import AttentionType
from cache.tiers import Held, KeyValues, Latents, Record, RestoreTier, Room, answered
from errors import LongtakeError
from kernels.copies import Landing

LOG = logging.getLogger("longtake.store")
FAILURES = (LongtakeError, OSError, RuntimeError, MemoryError)


@dataclass
class Departure:
    """Keys and values of one ``type``, or for ``None`` latents, on their way to host memory.

    Args:
        payload: as it is on the device.
        unwanted: it was to be forgotten before it landed.
        asked: who is to be told when all until here has been given.
    """

    session: str
    chunk: int
    type: AttentionType | None
    payload: KeyValues | Latents
    landing: Landing
    unwanted: bool = False
    asked: "list[Future[bool]]" = field(default_factory=list)


class Departures(RestoreTier):
    """A restore tier that takes payloads in the memory of a GPU, and may give them back there. For one thread.

    Args:
        tier: what they are for; it must not keep pinned memory.
        bound_bytes: on their way at most, in the memory of the GPU and of the host; whoever is beyond it waits.
    """

    def __init__(self, tier: RestoreTier, bound_bytes: int) -> None:
        self.tier, self.bound_bytes, self.nbytes = tier, bound_bytes, 0
        self._leaving: deque[Departure] = deque()
        self._lost = False

    # -- what leaves

    def offload(self, session: str, chunk: int, type: AttentionType, payload: KeyValues) -> None:
        if self._leaves(payload.tensor, payload.nbytes):
            self._leave(Departure(session, chunk, type, payload, Landing([payload.tensor], beside=True)))
        else:
            self.tier.offload(session, chunk, type, payload)

    def keep_latents(self, session: str, chunk: int, latents: Latents) -> None:
        if self._leaves(latents.video, latents.nbytes):
            self._leave(Departure(session, chunk, None, latents, Landing([latents.video, latents.audio], beside=True)))
        else:
            self.tier.keep_latents(session, chunk, latents)

    @property
    def leaving(self) -> bool:
        """Whether something is on its way."""
        return bool(self._leaving)

    def settle(self) -> None:
        """Give the store what has landed, without waiting."""
        while self._leaving and self._leaving[0].landing.here():
            self._give()

    def drain(self) -> None:
        """Give the store all that is on its way."""
        while self._leaving:
            self._give()

    def landed(self) -> "Future[bool]":
        """See ``RestoreTier``. If something is on its way the future is done by a later ``settle`` or ``drain``."""
        self.settle()
        if not self._leaving:
            return self._told()
        asked: Future[bool] = Future()
        self._leaving[-1].asked.append(asked)
        return asked

    # -- what there is

    def holds(self, session: str, chunk: int) -> Held:
        held, leaving = self.tier.holds(session, chunk), self._of(session, chunk)
        types = {one.type for one in leaving if one.type is not None}
        return Held(held.types | types, held.latents or any(one.type is None for one in leaving))

    def where(self, session: str, chunk: int) -> str:
        return self.tier.where(session, chunk)

    def fetch(self, session: str, chunk: int, type: AttentionType, into: Room | None = None) -> KeyValues:
        here = self._here(session, chunk, type)
        return here if isinstance(here, KeyValues) else self.tier.fetch(session, chunk, type, into)

    def latents(self, session: str, chunk: int) -> Latents:
        here = self._here(session, chunk, None)
        return here if isinstance(here, Latents) else self.tier.latents(session, chunk)

    def begin_fetch(
        self, session: str, chunk: int, type: AttentionType, into: Room | None = None
    ) -> "Future[KeyValues]":
        if self._here(session, chunk, type) is not None:
            return answered(self.fetch, session, chunk, type)
        return self.tier.begin_fetch(session, chunk, type, into)

    def begin_latents(self, session: str, chunk: int) -> "Future[Latents]":
        if self._here(session, chunk, None) is not None:
            return answered(self.latents, session, chunk)
        return self.tier.begin_latents(session, chunk)

    def records(self, session: str) -> dict[int, Record]:
        self.drain()
        return self.tier.records(session)

    def chunks(self, session: str) -> list[int]:
        """Chunks of ``session`` with a record, of a tier that can tell."""
        self.drain()
        found: list[int] = self.tier.chunks(session)  # type: ignore[attr-defined]
        return found

    def forget(self, session: str, chunk: int) -> None:
        self._cancel(self._of(session, chunk))
        self.tier.forget(session, chunk)

    def fork(self, parent: str, child: str) -> None:
        self.drain()
        self.tier.fork(parent, child)

    def adopt(self, parent: str, child: str) -> None:
        self.drain()
        self.tier.adopt(parent, child)

    def introduce(self, session: str, owner: str, model: str) -> None:
        self.tier.introduce(session, owner, model)

    def close(self, session: str) -> None:
        self._cancel([one for one in self._leaving if one.session == session])
        self.tier.close(session)

    # -- inside

    def _leaves(self, tensor: torch.Tensor, nbytes: int) -> bool:
        """Whether it is on a GPU; there is room for it on the way then, else it overtakes nothing."""
        there = tensor.device.type != "cpu"
        while self._leaving and (not there or self.nbytes + nbytes > self.bound_bytes):
            self._give()
        return there

    def _leave(self, one: Departure) -> None:
        self._leaving.append(one)
        self.nbytes += one.payload.nbytes

    def _give(self) -> None:
        one = self._leaving.popleft()
        self.nbytes -= one.payload.nbytes
        found = one.landing.wait()
        try:
            if not one.unwanted:
                self._hand_over(one, found)
        except FAILURES as error:  # it is one stream's, and whoever is here now may be another's
            self._lost = True
            said = {"session": one.session, "chunk": one.chunk, "reason": str(error)}
            LOG.warning("a chunk was not kept", extra=said)
        if one.asked:
            told = self._told()
            for asked in one.asked:
                told.add_done_callback(partial(_pass_on, asked))

    def _hand_over(self, one: Departure, landed: list[torch.Tensor]) -> None:
        if isinstance(one.payload, Latents):
            latents = replace(one.payload, video=landed[0], audio=landed[1])
            self.tier.keep_latents(one.session, one.chunk, latents)
        elif one.type is not None:
            self.tier.offload(one.session, one.chunk, one.type, replace(one.payload, tensor=landed[0]))

    def _told(self) -> "Future[bool]":
        """What the store says of all that it was given; that something was lost, if it could not even be given."""
        told, lost, self._lost = self.tier.landed(), self._lost, False
        if not lost:
            return told
        failed: Future[bool] = Future()
        failed.set_result(False)
        return failed

    def _cancel(self, unwanted: list[Departure]) -> None:
        """These take their memory until they have landed."""
        for one in unwanted:
            one.unwanted = True

    def _of(self, session: str, chunk: int) -> list[Departure]:
        wanted = (one for one in self._leaving if not one.unwanted)
        return [one for one in wanted if (one.session, one.chunk) == (session, chunk)]

    def _here(self, session: str, chunk: int, type: AttentionType | None) -> KeyValues | Latents | None:
        """The newest that is on its way."""
        return next((one.payload for one in reversed(self._of(session, chunk)) if one.type == type), None)


def _pass_on(asked: "Future[bool]", told: "Future[bool]") -> None:
    if asked.set_running_or_notify_cancel():
        asked.set_result(told.exception() is None and told.result())

"""The restore stores that a generator knows: its node's own, perhaps mirrored, and those of other nodes."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import ray

from actors.mirrored import MirroredTier, MirroredVault
from actors.remote import NAMESPACE, Around, Handle, RemoteVault, restore_store, staging, store_calls, store_name
from actors.remote_tier import RemoteTier
from actors.worker import Site, Vault
from errors import RecordLost, ServiceError

LOG = logging.getLogger("longtake.store")


class LaterVault(RemoteVault):
    """The vault of another node, which is not waited for when something is put there."""

    def put(self, session: str, data: bytes) -> None:
        asked = self.handle.put.remote(session, data)
        asked.future().add_done_callback(partial(_tell, session))

    def take(self, session: str) -> bytes:
        try:
            return super().take(session)
        except ServiceError as error:
            raise RecordLost(f"the store that may have {session} does not answer: {error}") from error


def _tell(session: str, done: Any) -> None:
    if done.exception() is not None:
        said = {"session": session, "reason": repr(done.exception())}
        LOG.warning("a stream was put away without a mirror", extra=said)


class Sites:
    """``names``: stores of other nodes, the one to mirror to first; set by the event loop, read by the other thread."""

    def __init__(self, around: Around) -> None:
        own = restore_store(around)
        self.name = store_name(around)
        self.names: tuple[str, ...] = ()
        self.mirrors: tuple[str, ...] = ()
        self._known: dict[str, tuple[Handle, Site]] = {}
        tier, vault = RemoteTier(store_calls(own), staging=staging(around)), RemoteVault(own)
        self._mirrored = (MirroredTier(tier), MirroredVault(vault)) if around.mirror == "latents" else None
        self.tier: RemoteTier | MirroredTier = tier if self._mirrored is None else self._mirrored[0]
        self.vault: Vault = vault if self._mirrored is None else self._mirrored[1]

    def others(self) -> Sequence[Site]:
        """The stores of other nodes that live."""
        return [site for name in self.names if (site := self._site(name)) is not None]

    def mirror(self) -> None:
        """Mirror to the first of the others from now on."""
        self.mirrors = self.names[:1]
        if self._mirrored is None:
            return
        site = next(iter(self.others()), None)
        tier, vault = self._mirrored
        tier.mirror_to(None if site is None else site.tier)
        vault.mirror = None if site is None else site.vault

    def _site(self, name: str) -> Site | None:
        try:
            handle = ray.get_actor(name, NAMESPACE)
        except ValueError:
            self._known.pop(name, None)
            return None
        if name not in self._known or self._known[name][0] != handle:  # one that ended was made anew under its name
            self._known[name] = handle, Site(RemoteTier(store_calls(handle)), LaterVault(handle))
        return self._known[name][1]

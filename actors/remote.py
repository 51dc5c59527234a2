"""Other processes as a generator and a gateway call them: Ray actors by their names, and their errors made plain."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.bookkeeping import Ledger
from actors.directory import SessionDirectory
from actors.ledger_service import Entry, LedgerShard, Statement, Verdict, shard_of
from actors.ray_meter import RayMeter
from actors.remote_tier import Call
from actors.restore_store import Answer, RestoreStore
from actors.telemetry import Telemetry
from actors.worker import Vault
from errors import LongtakeError, ServiceError

NAMESPACE = "longtake"
GAUGES_S, VAULT_S = 5.0, 20.0
REPLICAS = "serve"  # the namespace of Serve's own actors
DIRECTORY, STORE, LEDGER = "session-directory", "restore-store", "ledger"


Handle = Any  # Ray makes the methods of handles up as they are called


@cache
def actor_of(kind: type) -> Handle:
    """The class as an actor's; Ray keeps each one that it ever made, so there is one."""
    return ray.remote(num_cpus=0, max_restarts=-1)(kind)


def shared(name: str, kind: type, *arguments: Any, **options: Any) -> Handle:
    """The actor of that name, made if there is none; it outlives whoever made it, and is made anew if it dies."""
    named = actor_of(kind).options(name=name, namespace=NAMESPACE, get_if_exists=True, lifetime="detached", **options)
    return named.remote(*arguments)


class DirectoryActor(SessionDirectory):
    """A session directory that does not wait for the silence of a generator which Ray knows to be dead."""

    def find(self, session: str) -> str | None:
        """See ``SessionDirectory.find``."""
        home = self.home.get(session)
        member = self.members.get(home or "")
        if home is not None and member is not None and member.actor:
            try:
                ray.get_actor(member.actor, REPLICAS)
            except ValueError:
                self.bury(home)
        return super().find(session)


def directory() -> Handle:
    """The cluster's session directory."""
    return shared(DIRECTORY, DirectoryActor)


@dataclass(frozen=True)
class Around:
    """What a generator is told of the processes around it; see ``settings.ServiceSettings``."""

    store: Literal["node", "cluster"]
    store_resources: dict[str, float]
    mirror: Literal["none", "latents"]
    host_bytes: int
    vault_bytes: int
    ledgers: int
    stuck_s: float
    sight_s: float
    telemetry: Telemetry


def plainly(error: BaseException) -> BaseException:
    """An error of another process as it was raised there, without Ray's traceback in its text."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        return type(cause)(*cause.args) if isinstance(cause, LongtakeError) else error
    if isinstance(error, (RayError, BackPressureError, DeploymentUnavailableError)):
        return ServiceError(f"the process that was asked has gone or is overloaded: {type(error).__name__}")
    return error


@contextmanager
def told_plainly() -> Iterator[None]:
    """Errors of another process, made plain; ``ServiceError`` if it has gone or does not answer."""
    try:
        yield
    except (RayError, BackPressureError, DeploymentUnavailableError) as error:
        raise plainly(error) from None


class StoreActor(RestoreStore):
    """A restore store that tells what it holds every few seconds, as ``node`` in metrics."""

    def __init__(self, host_bytes: int, vault_bytes: int, node: str) -> None:
        super().__init__(host_bytes, vault_bytes)
        self.node, self.meter = node, RayMeter()
        threading.Thread(target=self._tell, name="gauges", daemon=True).start()

    def _tell(self) -> None:
        while True:
            for name, value in self.statistics().items():
                metric = "store_dropped" if name.startswith("dropped") else "store_bytes"
                if metric == "store_dropped" or "bytes" in name:
                    self.meter.set(metric, value, node=self.node, what=name)
            time.sleep(GAUGES_S)


def restore_store(around: Around) -> Handle:
    """The restore store of this node, or the one of the cluster."""
    options: dict[str, Any] = {"resources": around.store_resources}
    node = STORE
    if around.store == "node":
        node = ray.get_runtime_context().get_node_id()
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
    return shared(store_name(around), StoreActor, around.host_bytes, around.vault_bytes, node[:12], **options)


def store_name(around: Around) -> str:
    """The name of this node's restore store, or of the cluster's."""
    return f"{STORE}-{ray.get_runtime_context().get_node_id()[:12]}" if around.store == "node" else STORE


def store_calls(handle: Handle) -> Call:
    """Calls of a restore store, whose futures raise plain errors."""

    def call(name: str, *arguments: Any) -> "Future[Answer]":
        asked, told = getattr(handle, name).remote(*arguments).future(), Future[Answer]()

        def tell(done: "Future[Answer]") -> None:
            error = done.exception()
            if error is None:
                told.set_result(done.result())
            else:
                told.set_exception(plainly(error))

        asked.add_done_callback(tell)
        return told

    return call


class RemoteVault(Vault):
    """The vault of a restore store, as the compute thread sees it. Snapshots go as bytes, never as tensors."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    def put(self, session: str, data: bytes) -> None:
        with told_plainly():
            ray.get(self.handle.put.remote(session, data), timeout=VAULT_S)

    def take(self, session: str) -> bytes:
        with told_plainly():
            return bytes(ray.get(self.handle.take.remote(session), timeout=VAULT_S))

    def drop(self, session: str) -> None:
        self.handle.drop.remote(session)


class RemoteLedger(Ledger):
    """The ledger service's shards, each a named actor that Ray makes anew, empty, if it dies."""

    def __init__(self, shards: int) -> None:
        self.shards = [shared(f"{LEDGER}-{i}", LedgerShard) for i in range(shards)]

    def shard(self, session: str) -> int:
        return shard_of(session, len(self.shards))

    async def open(self, statement: Statement) -> int:
        with told_plainly():
            epoch: int = await self.shards[self.shard(statement.session)].open.remote(statement)
            return epoch

    async def state(self, statement: Statement, epoch: int) -> None:
        with told_plainly():
            await self.shards[self.shard(statement.session)].state.remote(statement, epoch)

    async def commit(self, shard: int, entries: Sequence[Entry]) -> list[Verdict]:
        with told_plainly():
            verdicts: list[Verdict] = await self.shards[shard].commit.remote(list(entries))
            return verdicts

    async def claim(self, session: str) -> tuple[int, Statement]:
        with told_plainly():
            epoch, statement = await self.shards[self.shard(session)].claim.remote(session)
            return epoch, statement

    async def close(self, session: str, epoch: int) -> None:
        self.shards[self.shard(session)].close.remote(session, epoch)

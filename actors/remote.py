"""Other processes as a generator and a gateway call them: Ray actors by their names, and their errors made plain."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.bookkeeping import Ledger
from actors.directory import FIRST_S, SessionDirectory
from actors.journals import JournalSettings, build_journal
from actors.ledger_service import Entry, LedgerShard, Statement, Verdict, shard_of
from actors.need import Need
from actors.ray_meter import RayMeter
from actors.remote_tier import Call
from actors.restore_store import Answer, RestoreStore, metric_of
from actors.staging import Staging, StagingConfig
from actors.telemetry import Telemetry
from actors.transport.choose import Transport, region
from actors.worker import Vault
from cache.tiered_config import TiersConfig
from errors import LongtakeError, ServiceError

NAMESPACE = "longtake"
LOG = logging.getLogger("longtake.ledger")
GAUGES_S, VAULT_S, TEND_S = 5.0, 20.0, 1.0
KNOWS_S = 1.0  # how long the directory, which everybody asks, waits for a shard of the ledger service
ALONE_S = 900.0  # a generator that begins beside a store reports before that
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
    """A session directory that does not wait out the silence of a generator which Ray knows to be dead."""

    def __init__(self) -> None:
        super().__init__(lives=replica_lives, booked=in_the_books, first_s=FIRST_S)


def replica_lives(actor: str) -> bool:
    """Whether Ray knows a replica's actor; it may say no of one that lives, for a moment."""
    try:
        ray.get_actor(actor, REPLICAS)
    except ValueError:
        return False
    return True


def in_the_books(session: str) -> bool:
    """Whether a shard of the ledger service has books of a session; ``ServiceError`` if it does not answer."""
    names = {one["name"] for one in list_named_actors(all_namespaces=True) if one["namespace"] == NAMESPACE}
    shards = sum(name.startswith(f"{LEDGER}-") for name in names)
    if not shards:
        return False
    try:
        shard = ray.get_actor(f"{LEDGER}-{shard_of(session, shards)}", NAMESPACE)
    except ValueError:
        raise ServiceError("the ledger service is being made anew; ask again") from None
    with told_plainly():
        return bool(ray.get(shard.knows.remote(session), timeout=KNOWS_S))


def directory(resources: Mapping[str, float]) -> Handle:
    """The cluster's session directory; ``resources``: custom ones that it takes, if it is made now."""
    return shared(DIRECTORY, DirectoryActor, resources=dict(resources))


@dataclass(frozen=True)
class Around:
    """What a generator is told of the processes around it; see ``settings.ServiceSettings``."""

    store: Literal["node", "cluster"]
    store_resources: dict[str, float]
    books_resources: dict[str, float]
    mirror: Literal["none", "latents"]
    host_bytes: int
    vault_bytes: int
    transport: Transport
    staging: StagingConfig
    restore: TiersConfig
    ledgers: int
    journal: JournalSettings
    stuck_s: float
    sight_s: float
    telemetry: Telemetry
    store_key: bytes = field(default=b"", repr=False)


def plainly(error: BaseException) -> BaseException:
    """An error of another process as it was raised there, without Ray's traceback in its text."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, RayTaskError):
            return plainly(cause)
        if isinstance(cause, (RayError, BackPressureError, DeploymentUnavailableError)):
            return ServiceError(f"a process behind the one that was asked does not answer: {type(cause).__name__}")
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

    def __init__(self, host_bytes: int, vault_bytes: int, tiers: TiersConfig, key: bytes, node: str) -> None:
        super().__init__(host_bytes, vault_bytes, tiers, key)
        self.node, self.meter, self.need, self.ttl_s = node, RayMeter(), Need(), tiers.ttl_s
        me = ray.get_runtime_context().current_actor
        threading.Thread(target=self._tell, args=(me,), name="gauges", daemon=True).start()

    def expected(self) -> None:
        """A generator begins beside it."""
        self.need.seen()

    def _tell(self, me: Handle) -> None:
        while self.node == STORE or self._needed():
            for name, value in self.statistics().items():
                metric = metric_of(name)
                if metric is not None:
                    self.meter.set(metric, value, node=self.node, what=name)
            time.sleep(GAUGES_S)
        LOG.info("a restore store without generators ends", extra={"node": self.node})
        ray.kill(me, no_restart=True)

    def _needed(self) -> bool:
        """Whether a generator has it or may be about to, or streams that are put away wait here for one."""
        try:
            asked: Handle = ray.get_actor(DIRECTORY, NAMESPACE).generators.remote()
            generators: list[dict[str, Any]] = ray.get(asked, timeout=GAUGES_S)
        except (RayError, ValueError):
            return True  # nothing can be learnt now
        if any(generator["store"] == f"{STORE}-{self.node}" for generator in generators):
            self.need.seen()
        return self.need.there(self.ttl_s if self.statistics()["vault_streams"] else ALONE_S)


def restore_store(around: Around) -> Handle:
    """The restore store of this node, or the one of the cluster."""
    options: dict[str, Any] = {"resources": around.store_resources}
    node = STORE
    if around.store == "node":
        node = ray.get_runtime_context().get_node_id()
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
    given = (around.host_bytes, around.vault_bytes, around.restore, around.store_key, node[:12])
    make = partial(shared, store_name(around), StoreActor, *given, **options)
    found = make()
    try:
        ray.get(found.expected.remote())
    except RayActorError:  # it ended just now, for want of a generator
        found = make()
    return found


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


def staging(around: Around) -> Staging:
    """A generator's end of the transport; raises ``ConfigError`` if what the settings want is not to be had here."""
    config = around.staging
    return Staging(region(around.transport, config.slots, config.slot_bytes), config)


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


class ShardActor(LedgerShard):
    """A shard with its journal, which it tends every second, and how that fares as ``shard`` in metrics."""

    def __init__(self, shard: int, of: int, settings: JournalSettings) -> None:
        super().__init__(journal=build_journal(settings, shard, of, session_folder()))
        self.name, self.meter = str(shard), RayMeter()
        me = ray.get_runtime_context().current_actor
        threading.Thread(target=self._beat, args=(me,), name="tend", daemon=True).start()

    @staticmethod
    def _beat(me: Handle) -> None:
        while True:  # by way of the actor's own queue: books and journal are for one thread
            try:
                ray.get(me.tend.remote())
            except RayError as error:
                LOG.error("the journal could not be tended", extra={"reason": repr(error)})
            time.sleep(TEND_S)

    def commit(self, entries: Sequence[Entry]) -> list[Verdict]:
        """See ``LedgerShard.commit``."""
        began = time.perf_counter()
        verdicts = super().commit(entries)
        self.meter.observe("commit_seconds", time.perf_counter() - began, shard=self.name)
        return verdicts

    def tend(self) -> None:
        """See ``LedgerShard.tend``."""
        super().tend()
        found = {name: float(n) for name, n in self.statistics().items()}
        self.meter.set("journal_down", found["journal_down"], shard=self.name)
        self.meter.set("journal_unwritten", found["journal_unwritten"], shard=self.name)
        for what in ("live", "held"):
            self.meter.set("journal_bytes", found[f"journal_{what}_bytes"], shard=self.name, what=what)
        for what in ("failures", "damaged", "lost"):
            self.meter.set("journal_troubles", found[f"journal_{what}"], shard=self.name, what=what)


def session_folder() -> Path:
    """A folder in Ray's directory of this session on this node: it goes with the cluster."""
    node: Any = ray._private.worker._global_node  # Ray has no public name for it
    return Path(node.get_session_dir_path()) / "longtake"


def near_the_head(settings: JournalSettings) -> dict[str, Any]:
    """Where a shard is to be: with a file, on the node that lives as long as the cluster, while that lives."""
    if settings.kind != "file":
        return {}
    heads = _heads()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(heads[0], soft=True)} if heads else {}


def _heads() -> list[str]:
    nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["NodeID"] for node in nodes if node["Alive"] and "node:__internal_head__" in node["Resources"]]


def is_head(node: str) -> bool:
    """Whether a node is the cluster's head."""
    return node in _heads()


class RemoteLedger(Ledger):
    """The ledger service's shards, named actors that Ray makes anew if they die, and that read their journals then."""

    def __init__(self, shards: int, journal: JournalSettings, resources: Mapping[str, float]) -> None:
        where = near_the_head(journal) | {"resources": dict(resources)}
        self.shards = [shared(f"{LEDGER}-{i}", ShardActor, i, shards, journal, **where) for i in range(shards)]

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

    async def claim(self, session: str, number: int | None = None) -> tuple[int, Statement]:
        with told_plainly():
            epoch, statement = await self.shards[self.shard(session)].claim.remote(session, number)
            return epoch, statement

    async def close(self, session: str, epoch: int) -> None:
        self.shards[self.shard(session)].close.remote(session, epoch)

"""A stream's evicted chunks on a real Ray cluster: they go and come back through slots, and a killed store leaks none.

Beside a cluster and its actors this sees what the store's process and this one have open.
"""

import gc
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

import ray  # noqa: E402
import ray.util  # noqa: E402

from actors import remote  # noqa: E402
from actors.remote import StoreActor, shared, store_calls  # noqa: E402
from actors.remote_tier import RemoteTier  # noqa: E402
from actors.staging import Staging, StagingConfig  # noqa: E402
from actors.transport.base import Kind  # noqa: E402
from actors.transport.choose import region  # noqa: E402
from cache.keep_set import Role  # noqa: E402
from cache.spec import TYPES  # noqa: E402
from cache.tiered_config import TiersConfig  # noqa: E402
from cache.tiers import NOTHING, KeyValues  # noqa: E402
from errors import RecordLost  # noqa: E402
from tests.builders import engine  # noqa: E402
from tests.test_restore_store import film  # noqa: E402
from tests.transfer_peers import DEADLINE_S  # noqa: E402

HAS_NIXL = importlib.util.find_spec("nixl_cu12") is not None
KINDS = ["shared", pytest.param("nixl", marks=pytest.mark.skipif(not HAS_NIXL, reason="NIXL is not installed"))]
CONFIG = StagingConfig(slots=3, slot_bytes=1 << 20, small_bytes=0)


@pytest.fixture(scope="module")
def handle() -> Iterator[Any]:
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        yield shared("store", StoreActor, 1 << 26, 0, TiersConfig(), b"", "here")
    finally:
        ray.shutdown()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def store_process() -> psutil.Process:
    return next(p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::StoreActor"))


def fetched(tier: RemoteTier) -> Any:
    """A chunk that was kept after the store was made anew, if it has come that far."""
    try:
        return tier.fetch("c", 0, TYPES[0]).tensor
    except RecordLost:
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_take_goes_on_through_slots_and_the_kill_of_its_store_leaks_nothing(kind: Kind, handle: Any) -> None:
    files = len(os.listdir("/proc/self/fd"))
    staging = Staging(region(kind, CONFIG.slots, CONFIG.slot_bytes), CONFIG)
    tier = RemoteTier(store_calls(handle), staging=staging)
    until(lambda: tier.holds("a", 0) == NOTHING and staging.open)

    def quiet() -> None:  # while slots are taken by what leaves, what returns goes within its call
        until(lambda: tier.holds("a", 0) == NOTHING and not tier._sent)

    here, there = film(engine()), film(engine(tier=tier), before_return=quiet)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert min(staging.moved["out", kind], staging.moved["in", kind]) > 0
    assert not staging.failures

    kept = KeyValues(torch.rand(1, 2, 1, 100_000), 3, Role.RECENT)
    for chunk in range(20):
        tier.offload("b", chunk, TYPES[0], kept)
    process = store_process()
    process.kill()
    process.wait(DEADLINE_S)

    def back() -> bool:
        before = staging.moved["in", kind]
        tier.offload("c", 0, TYPES[0], kept)
        found = fetched(tier)
        return found is not None and torch.equal(found, kept.tensor) and staging.moved["in", kind] > before

    until(back)
    assert staging.failures["unverified"] == 0
    until(lambda: tier.holds("c", 0) != NOTHING and not tier._sent)
    gc.collect()
    assert staging.landing() is not None  # which frees what came back
    assert staging.book.statistics().free == CONFIG.slots - 1
    staging.check_integrity()
    staging.close()
    until(lambda: kind == "nixl" or not ray.get(handle.statistics.remote())["transfer_regions"])
    if kind == "shared":
        del tier, staging
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= files + 4  # Ray's own come and go


def impatient_store() -> type[StoreActor]:
    """A store that waits for a generator a third of a second; made here, so that Ray sends it along whole."""

    class ImpatientStore(StoreActor):
        def __init__(self, *arguments: Any) -> None:
            remote.GAUGES_S, remote.ALONE_S = 0.1, 0.3  # in the actor's process only
            super().__init__(*arguments)

        def alone(self) -> bool:
            """Whether it would have ended long ago, if nothing waited in it."""
            return not self.need.there(5 * remote.ALONE_S)

    return ImpatientStore


def test_a_store_ends_that_no_generator_has_but_not_while_a_stream_waits_in_it(handle: Any) -> None:
    """An actor keeps its node: where nobody needs it, no autoscaler could take the node away."""

    def there() -> bool:
        return any(actor["name"] == "restore-store-a" for actor in ray.util.list_named_actors(all_namespaces=True))

    directory = remote.directory({})
    store = shared("restore-store-a", impatient_store(), 1 << 20, 1 << 20, TiersConfig(), b"", "a")
    ray.get(directory.report.remote("generator", 1, [], "", "restore-store-a"))
    ray.get(store.put.remote("take", b"a stream that is put away"))
    assert not ray.get(store.alone.remote())
    ray.get(directory.bury.remote("generator"))
    until(lambda: bool(ray.get(store.alone.remote())))
    assert there()
    ray.get(store.drop.remote("take"))
    until(lambda: not there())
    assert ray.get(shared("restore-store-a", StoreActor, 1, 1, TiersConfig(), b"", "a").statistics.remote())
    ray.kill(directory)

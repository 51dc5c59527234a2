"""The restore store as a named actor that is killed: Ray makes it anew, and its records on disk are there again."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
ray = pytest.importorskip("ray")

from actors.remote import STORE, StoreActor, shared, store_calls  # noqa: E402
from actors.remote_tier import RemoteTier  # noqa: E402
from cache.spec import TYPES  # noqa: E402
from cache.tiered_config import TiersConfig  # noqa: E402
from errors import RecordLost  # noqa: E402
from tests.records import KEY, key_values, latents, same  # noqa: E402

KIND = TYPES[0]


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    yield
    ray.shutdown()


def until(done: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_store_is_made_anew_with_all_that_had_landed(cluster: None, tmp_path: Path) -> None:
    config = TiersConfig(disk=str(tmp_path / "store"), disk_bytes=1 << 24, admission="always", safe="disk")
    handle = shared(STORE, StoreActor, 1 << 24, 0, config, KEY, "node")
    tier = RemoteTier(store_calls(handle), patience_s=30)
    for chunk in range(4):
        tier.offload("a", chunk, KIND, key_values(chunk))
        tier.keep_latents("a", chunk, latents(chunk))
    tier.fork("a", "b")
    assert tier.landed().result(60)
    os.kill(ray.get(handle.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)

    def there_again() -> bool:
        try:
            tier._away_until = float("-inf")
            return same(tier.fetch("a", 0, KIND), key_values(0))
        except RecordLost:
            return False

    until(there_again)
    until(lambda: all(tier.holds("b", chunk).types == {KIND} for chunk in range(4)))
    for name in "ab":
        for chunk in range(4):
            assert same(tier.fetch(name, chunk, KIND), key_values(chunk))
            assert same(tier.latents(name, chunk), latents(chunk))

"""The application as the manifest has it, on nodes that are begun as the manifest begins them: while it is watched it
is changed and upgraded, and loses a worker and the head. No take is cut, and no viewer misses a chunk.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bench.real_redis import found, real_redis
from client import Client
from errors import LongtakeError
from tests.kube_service import kube_service
from tests.open_ports import TABLE, documented, listening
from tests.ray_nodes import HOST, Nodes, quiet_ports
from tests.service import QUICK
from tests.test_gateway import BALL, RING
from tests.test_losses import Viewer

K8S = Path(__file__).parent.parent / "k8s"
pytestmark = [
    pytest.mark.nodes,
    pytest.mark.skipif(not found(), reason="no redis-server, in which the manifest has the journal"),
    pytest.mark.timeout(900),
]


class Deployed:
    """The nodes, and the address that viewers have."""

    def __init__(self, nodes: Nodes, url: str) -> None:
        self.nodes, self.url = nodes, url

    async def until_held(self, client: Client, condition: Callable[[dict[str, int]], bool]) -> None:
        """Wait for something about how many sessions each generator says that it has."""
        held: dict[str, int] = {}
        try:
            async with asyncio.timeout(60):
                while not condition(held):
                    await asyncio.sleep(0.5)
                    with suppress(LongtakeError):
                        held = {g["generator"]: g["sessions"] for g in await client.generators()}
        except TimeoutError:
            pytest.fail(f"sessions by generator: {held}")


async def until(condition: Callable[[], bool], seconds: float = 240.0) -> None:
    """Wait for something that takes a call of the dashboard to see."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.5)


def manifest() -> dict[str, Any]:
    """The ``spec`` of the RayService for any cluster, without GPUs."""
    base = next(
        d for d in yaml.safe_load_all((K8S / "base" / "rayservice.yaml").read_text()) if d["kind"] == "RayService"
    )
    patch = yaml.safe_load((K8S / "overlays" / "cpu-demo" / "serve.yaml").read_text())
    spec: dict[str, Any] = {**base["spec"], **patch["spec"]}
    return spec


PASSWORD = "of-this-test-too"
redis_alone = pytest.mark.parametrize("deployed", ["redis"], indirect=True)
wherever_tables_are = pytest.mark.parametrize("deployed", ["redis", "rocksdb"], indirect=True)


@pytest.fixture(scope="module")
def deployed(request: pytest.FixtureRequest) -> Iterator[Deployed]:
    """Parameter: what has the tables of Ray's head; the base's Redis, or the component's embedded store."""
    folder = Path(tempfile.mkdtemp(prefix="lt"))  # pytest's own are too long for a socket's path
    (port,) = quiet_ports(1)
    with real_redis(folder, port=port, password=PASSWORD) as redis:
        # What KubeRay makes of gcsFaultToleranceOptions.
        in_redis = {"RAY_REDIS_ADDRESS": f"{HOST}:{port}", "RAY_external_storage_namespace": "longtake"}
        embedded = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "gcs")}
        given = {
            **QUICK,
            "LONGTAKE_SERVICE__JOURNAL__URL": redis.url,
            "STORE_KEY": "5a" * 32,
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        }
        if request.param == "redis":
            nodes = Nodes(manifest(), folder, given, in_redis, {"redis-password": PASSWORD})
        else:
            nodes = Nodes(manifest(), folder, given, embedded)
        try:
            for count, begin in enumerate((nodes.begin_head, nodes.begin_worker, nodes.begin_worker), 1):
                begin()
                asyncio.run(until(lambda count=count: nodes.begun() == count, 120.0))
            with kube_service(lambda: [w.port for w in nodes.workers if w.process.poll() is None]) as url:
                made = Deployed(nodes, url)
                asyncio.run(until(lambda: nodes.details() != {}))
                nodes.serve_deploy(quickly)
                asyncio.run(until(nodes.running))
                yield made
        finally:
            nodes.end()

            shutil.rmtree(folder, ignore_errors=True)


def quickly(config: dict[str, Any]) -> None:
    """Viewers connect again to another gateway after three seconds, not twenty."""
    (application,) = config["applications"]
    gateway = next(d for d in application["deployments"] if d["name"] == "gateway")
    gateway["graceful_shutdown_timeout_s"] = 3.0


@redis_alone
def test_gateways_and_generators_are_on_the_workers_that_are_theirs_and_a_take_is_watched(deployed: Deployed) -> None:
    async def test() -> None:
        async with Client(deployed.url) as client:
            found = deployed.nodes.details()["applications"]["longtake"]["deployments"]
            assert deployed.nodes.head is not None
            workers = sorted(worker.number for worker in deployed.nodes.workers)
            for name in ("gateway", "generator", "segmenter"):
                assert sorted(one["node_id"] for one in found[name]["replicas"]) == workers, name
            session = await created(client)
            viewer = Viewer(client, session)
            await viewer.more(8)
            await viewer.leave()
            await client.stop(session)

    asyncio.run(test())


@redis_alone
def test_nothing_listens_for_other_machines_that_is_not_documented(deployed: Deployed) -> None:
    allowed = documented(TABLE.read_text())
    found = listening(deployed.nodes.processes(), deployed.nodes.usual())
    assert {"HAProxy", "GCS", "raylet", "worker"} <= {who for who, _ in found}
    for who, port in sorted(found):
        assert any(port in ports for ports in allowed.get(who, [])), (
            f"{who} listens on {port}, which k8s/README.md lacks"
        )


INSIDE = [
    "/api/version",
    "/api/serve/applications/",
    "/api/jobs/",
    "/api/v0/actors",
    "/nodes",
    "/logs",
    "/metrics",
    "/stats",
]


@redis_alone
def test_viewers_reach_the_gateway_and_nothing_of_ray_besides(deployed: Deployed) -> None:
    for path in INSIDE:
        assert httpx.get(deployed.url + path).status_code == 404, path
    assert httpx.put(deployed.url + "/api/serve/applications/", json={}).status_code in (404, 405)
    assert httpx.get(deployed.url + "/-/healthz").text == "success"
    assert httpx.get(deployed.url + "/-/routes").json() == {"/": "longtake"}
    assert httpx.get(deployed.url + "/healthz").json() == {"status": "ok"}
    for path in INSIDE[1:3]:
        assert httpx.get(deployed.nodes.dashboard + path).status_code in (401, 403), path


@redis_alone
def test_a_change_of_pace_replaces_nobody_and_no_viewer_notices(deployed: Deployed) -> None:
    async def test() -> None:
        async with Client(deployed.url) as client:
            session = await created(client)
            before = deployed.nodes.replicas("generator") | deployed.nodes.replicas("gateway")
            seen = []
            async with client.watch(session) as watch:
                async for message in watch:
                    if message["type"] == "chunk":
                        seen.append(message["index"])
                    if len(seen) == 4:
                        await asyncio.to_thread(deployed.nodes.deploy, slower)
                    if len(seen) == 40:
                        break
                assert watch.reconnected == 0
            await until(lambda: deployed.nodes.running() and lead() == 2)
            assert deployed.nodes.replicas("generator") | deployed.nodes.replicas("gateway") == before
            await client.stop(session)

    def lead() -> int:
        found = deployed.nodes.details()["applications"]["longtake"]["deployments"]["generator"]
        return int(found["deployment_config"]["user_config"]["pace"]["lead"])

    def slower(config: dict[str, Any]) -> None:
        quickly(config)
        (application,) = config["applications"]
        generator = next(d for d in application["deployments"] if d["name"] == "generator")
        generator["user_config"]["pace"]["lead"] = 2

    asyncio.run(test())


@redis_alone
def test_a_rolling_upgrade_moves_every_session_and_cuts_none(deployed: Deployed) -> None:
    async def test() -> None:
        async with Client(deployed.url) as client:
            names = [await created(client, prompt) for prompt in (BALL, RING, BALL)]
            viewers = [Viewer(client, name) for name in names[:2]]  # nobody watches the third
            for viewer in viewers:
                await viewer.more(6)
            before = deployed.nodes.replicas("generator")
            await asyncio.to_thread(deployed.nodes.deploy, upgraded)
            await until(lambda: deployed.nodes.running() and not before & deployed.nodes.replicas("generator"), 400)
            for viewer in viewers:
                await viewer.more(6)
                await viewer.leave()
            third = Viewer(client, names[2])
            await third.more(6)
            await third.leave()
            new = deployed.nodes.replicas("generator")
            await deployed.until_held(client, lambda held: sum(n for name, n in held.items() if name in new) == 3)
            for name in names:
                await client.stop(name)

    asyncio.run(test())


async def created(client: Client, prompt: str = BALL) -> str:
    """A session, as soon as there can be one: Serve waits neither for directory nor books when these begin."""
    async with asyncio.timeout(90):
        while True:
            with suppress(LongtakeError):
                return str((await client.create(prompt))["session"])
            await asyncio.sleep(0.5)


def upgraded(config: dict[str, Any]) -> None:
    """An argument of the application is another, and every replica with it."""
    quickly(config)
    config["applications"][0]["args"]["settings"]["engine"]["sessions"] = 3


@wherever_tables_are
def test_a_take_goes_on_after_the_loss_of_a_worker_and_then_of_the_head(deployed: Deployed) -> None:
    async def test() -> None:
        async with Client(deployed.url) as client:
            session = await created(client)
            viewer = Viewer(client, session)
            await viewer.more(8)
            await deployed.until_held(client, lambda held: sum(held.values()) == 1)
            (store,) = [g["store"] for g in await client.generators() if g["sessions"]]
            lost = next(w for w in deployed.nodes.workers if store.removeprefix("restore-store-") == w.number[:12])
            await asyncio.to_thread(lost.kill)
            await viewer.more(8, 300)
            assert deployed.nodes.head is not None
            await asyncio.to_thread(deployed.nodes.head.kill)
            await asyncio.sleep(3)  # a head is not back at once
            deployed.nodes.begin_head()
            await viewer.more(8, 300)
            await until(lambda: deployed.nodes.details().get("applications", {}).get("longtake") is not None)
            await viewer.more(8, 300)
            another = await created(client, RING)
            second = Viewer(client, another)
            await second.more(4)
            for one in (viewer, second):
                await one.leave()
                await client.stop(one.session)

    asyncio.run(test())

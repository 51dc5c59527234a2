"""Two nodes on one machine: a generator on one, its restore store on the other."""

import asyncio
import io
from collections.abc import Iterator
from dataclasses import replace

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
ray = pytest.importorskip("ray")

from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.util import list_named_actors  # noqa: E402

from actors.remote import NAMESPACE, STORE  # noqa: E402
from client import Client  # noqa: E402
from media.reading import read  # noqa: E402
from serve_app import NAME, application  # noqa: E402
from settings import load  # noqa: E402
from tests.service import QUICK  # noqa: E402
from tests.test_serve import BALL, RING, film  # noqa: E402
from tests.test_telemetry import Spans, collecting  # noqa: E402

PORT = 8124
POOL = 200_000_000  # bytes of each node's object store


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[str, Spans]]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def service(collector: tuple[str, Spans]) -> Iterator[str]:
    settings = load(environ={**QUICK, "LONGTAKE_SERVICE__TELEMETRY__TRACES": collector[0]})
    stored = replace(settings.service, cpus=0.5, store="cluster", store_resources={"memory_node": 0.01})
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "resources": {"memory_node": 1}, "object_store_memory": POOL},
    )
    try:
        cluster.add_node(num_cpus=2, object_store_memory=POOL)
        ray.init(cluster.address, log_to_driver=False)
        serve.start(http_options={"port": PORT})
        serve.run(application(replace(settings, service=stored)), name=NAME)
        yield f"http://127.0.0.1:{PORT}"
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def node_of(actor: object) -> str:
    return ray.get(actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()))  # type: ignore[attr-defined]


def test_a_take_returns_and_resumes_by_a_restore_store_on_another_node(service: str) -> None:
    store = ray.get_actor(STORE, NAMESPACE)
    name = next(a["name"] for a in list_named_actors(all_namespaces=True) if "#generator#" in (a["name"] or ""))
    assert node_of(store) != node_of(ray.get_actor(name, "serve"))

    async def test() -> None:
        async with Client(service) as client:
            session = (await client.create(BALL))["session"]
            await film(client, session, 8)
            await client.cut(session, "yellow", RING)
            await film(client, session, 18)
            assert ray.get(store.statistics.remote())["records"] > 0
            await client.return_to(session, "opening")
            await film(client, session, 24)
            decided = (await client.inspect(session))["decisions"]
            assert any(d["action"] == "restore" and "keys and values" in d["reason"] for d in decided)
            await client.pause(session)
            assert ray.get(store.statistics.remote())["vault_streams"] == 1
            await client.resume(session)
            assert len(read(io.BytesIO(await film(client, session, 30))).frames) >= 8
            await client.stop(session)
            left = ray.get(store.statistics.remote())
            assert (left["records"], left["bytes_held"], left["vault_streams"]) == (0, 0, 0)

    asyncio.run(test())


def test_a_request_is_one_trace_through_gateway_and_generator(service: str, collector: tuple[str, Spans]) -> None:
    def whole(call: str, times: int) -> bool:
        """Whether so many calls of generators have come, each in the trace of a gateway's request."""
        spans = list(collector[1])
        asked = {trace for process, name, trace, _ in spans if (process, name) == ("longtake-gateway", "request")}
        done = [trace for process, name, trace, _ in spans if (process, name) == ("longtake-generator", call)]
        return len(done) >= times and set(done) <= asked

    async def test() -> None:
        async with Client(service) as client:
            session = (await client.create(BALL))["session"]
            await film(client, session, 2)
            await client.stop(session)
            async with asyncio.timeout(60):  # spans are sent every few seconds
                while not whole("stop", 2):
                    await asyncio.sleep(0.1)

    asyncio.run(test())
    assert whole("create", 2)
    generators = [s for s in collector[1] if s[0] == "longtake-generator"]
    assert all(parent for _, name, _, parent in generators if name in ("create", "stop"))
    assert {"step", "encode", "ledger"} <= {name for _, name, _, _ in generators}

"""Two nodes with a generator and a restore store each: one is drained, each process is killed alone, a node is lost.

A viewer watches all the while, and misses no chunk.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
ray = pytest.importorskip("ray")

from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.util import list_named_actors  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from actors.ledger_service import LedgerShard  # noqa: E402
from actors.remote import DIRECTORY, LEDGER, NAMESPACE, STORE, DirectoryActor, shared  # noqa: E402
from client import Client  # noqa: E402
from errors import LongtakeError, ServiceError  # noqa: E402
from serve_app import NAME, application  # noqa: E402
from settings import load  # noqa: E402
from tests.service import QUICK  # noqa: E402
from tests.test_serve import BALL, RING  # noqa: E402

PORT, POOL = 8125, 100_000_000


class Two:
    """The cluster, and the node that can be lost; ``away`` is its id."""

    def __init__(self, cluster: Cluster, node: Any) -> None:
        self.cluster, self.node, self.away = cluster, node, node.node_id

    @property
    def directory(self) -> Any:
        return ray.get_actor(DIRECTORY, NAMESPACE)

    def generators(self) -> dict[str, bool]:
        """Generators that report, and whether each is on the node that can be lost."""
        found = ray.get(self.directory.generators.remote())
        return {g["generator"]: self.away.startswith(g["store"].removeprefix(f"{STORE}-")) for g in found}


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    settings = load(environ={**QUICK, "LONGTAKE_ENGINE__SESSIONS": "2", "LONGTAKE_SERVICE__GENERATORS": "2"})
    settings = replace(settings, service=replace(settings.service, cpus=1.0, mirror="latents"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": POOL})
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=POOL)
        ray.init(cluster.address, log_to_driver=False)
        here = {
            "scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        }
        shared(DIRECTORY, DirectoryActor, **here)  # what there is one of is where nothing is lost
        shared(f"{LEDGER}-0", LedgerShard, **here)
        serve.start(http_options={"port": PORT, "location": "HeadOnly"})
        serve.run(application(settings), name=NAME)
        for name in [a["name"] for a in list_named_actors(all_namespaces=True) if (a["name"] or "").startswith(STORE)]:
            ray.get(ray.get_actor(name, NAMESPACE).statistics.remote())  # Serve does not wait for them
        yield Two(cluster, node)
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


class Viewer:
    """Watches a session whatever happens, and connects again for as long as it takes."""

    def __init__(self, client: Client, session: str) -> None:
        self.client, self.session = client, session
        self.seen: list[int] = []
        self.trouble: Exception | None = None
        self.task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            try:
                after = self.seen[-1] if self.seen else -1
                async with self.client.watch(self.session, after=after, fresh=False) as watch:
                    async for message in watch:
                        if message["type"] == "chunk":
                            self.seen.append(message["index"])
            except (ServiceError, OSError) as error:
                self.trouble = error
            await asyncio.sleep(0.2)

    async def more(self, chunks: int = 4, seconds: float = 200.0) -> None:
        """Wait for some more; nothing may have been missed or have come twice."""
        wanted = len(self.seen) + chunks
        until = asyncio.get_running_loop().time() + seconds
        while len(self.seen) < wanted:
            assert not self.task.done(), self.task
            assert asyncio.get_running_loop().time() < until, f"{self.seen[-3:]} after {seconds:g} s; {self.trouble!r}"
            await asyncio.sleep(0.05)
        assert self.seen == list(range(len(self.seen)))

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def until(condition: Callable[[], bool], seconds: float = 200.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.2)


def url() -> str:
    return f"http://127.0.0.1:{PORT}"


async def on_the_node(two: Two, client: Client) -> str:
    """A session on the node that can be lost."""
    await until(lambda: sorted(two.generators().values()) == [False, True])
    (away,) = (name for name, is_away in two.generators().items() if is_away)
    session: str = (await client.create(BALL, subject="red ball"))["session"]
    if ray.get(two.directory.find.remote(session)) != away:
        await client.move(session, away)
    return session


def test_a_generator_is_drained_while_its_session_is_watched(two: Two) -> None:
    async def test() -> None:
        async with Client(url()) as client:
            session = await on_the_node(two, client)
            viewer = Viewer(client, session)
            await viewer.more(6)
            home, now, told = await drained(two, session)
            assert f"{session}: goes on in {now}" in told, (home, now, told, await client.generators())
            assert now != home
            await viewer.more()
            await until(lambda: reported(two) == {home: 0, now: 1})  # where it is said to be, not only promised to
            assert not [g for g in await client.generators() if g["generator"] == home and g["taken"]]
            await client.undrain(home)
            await client.move(session, home)
            await viewer.more()
            await until(lambda: reported(two) == {home: 1, now: 0})
            await viewer.leave()
            await client.stop(session)

    asyncio.run(test())


def reported(two: Two) -> dict[str, int]:
    """Sessions that each generator says it has."""
    return {g["generator"]: g["sessions"] for g in ray.get(two.directory.generators.remote())}


async def drained(two: Two, session: str) -> tuple[str, str, str]:
    """Drain the generator that has ``session``; returns which, where the session is then, and what the command says."""
    home: str = ray.get(two.directory.find.remote(session))
    command = [sys.executable, "-m", "cli", "drain", home, "--url", url()]
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-2)
    told = (await process.communicate())[0].decode()
    assert process.returncode == 0, told
    return home, ray.get(two.directory.find.remote(session)), told


def actor(part: str) -> Any:
    """A Serve replica or named actor by a part of its name."""
    found = next(a for a in list_named_actors(all_namespaces=True) if part in (a["name"] or ""))
    return ray.get_actor(found["name"], found["namespace"])


def end(handle: Any) -> None:
    """Kill a process as a machine would that runs out of memory."""
    pid = ray.get(handle.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("part", ["#gateway#", "#segmenter#", "restore-store"])
def test_a_take_goes_on_when_one_process_is_killed(two: Two, part: str) -> None:
    async def test() -> None:
        async with Client(url()) as client:
            session = await on_the_node(two, client)
            viewer = Viewer(client, session)
            await viewer.more(6)
            end(actor(f"{STORE}-{two.away[:12]}" if part == "restore-store" else part))
            await viewer.more(12)
            async with asyncio.timeout(60):
                while True:
                    with suppress(LongtakeError):  # the gateway is being made anew
                        await client.cut(session, "yellow", RING)
                        break
                    await asyncio.sleep(0.5)
            await viewer.more(6)
            if part == "restore-store":  # it has begun anew, and holds again what is written to it
                async with asyncio.timeout(120):
                    while not records(f"{STORE}-{two.away[:12]}"):
                        await asyncio.sleep(0.5)
            await viewer.leave()
            await client.stop(session)

    asyncio.run(test())


def test_a_session_goes_on_after_the_loss_of_its_node(two: Two) -> None:
    async def test() -> None:
        async with Client(url()) as client:
            session = await on_the_node(two, client)
            home = ray.get(two.directory.find.remote(session))
            viewer = Viewer(client, session)
            await viewer.more(8)
            names = [a["name"] or "" for a in list_named_actors(all_namespaces=True)]
            assert records(next(name for name in names if _elsewhere(two, name)))
            two.cluster.remove_node(two.node, allow_graceful=False)
            await viewer.more(8)
            now = ray.get(two.directory.find.remote(session))
            assert now not in (None, home)
            assert not two.generators()[now]
            await viewer.leave()
            await client.stop(session)

    asyncio.run(test())


def records(store: str) -> int:
    """What a store holds; nothing while it is being made anew."""
    with suppress(ray.exceptions.RayActorError):
        return int(ray.get(ray.get_actor(store, NAMESPACE).statistics.remote())["records"])
    return 0


def _elsewhere(two: Two, name: str) -> bool:
    return name.startswith(STORE) and not two.away.startswith(name.removeprefix(f"{STORE}-"))

"""The service on a real Ray cluster: sticky sessions, even placement, media through Serve, and what a death costs.

A real Prometheus scrapes it all the while, and in the end every panel and alert must have had something to show.
"""

import asyncio
import io
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
ray = pytest.importorskip("ray")

from ray import serve  # noqa: E402
from ray.serve.config import RequestRouterConfig  # noqa: E402
from ray.util import list_named_actors  # noqa: E402
from websockets.asyncio.client import connect  # noqa: E402

from actors.apart import Apart  # noqa: E402
from actors.remote import DIRECTORY, LEDGER, NAMESPACE, STORE, session_folder  # noqa: E402
from client import Client  # noqa: E402
from errors import NoCapacity, UnknownSession  # noqa: E402
from media.reading import read  # noqa: E402
from monitoring import alerts, dashboards  # noqa: E402
from monitoring.plot import View  # noqa: E402
from monitoring.prometheus import Prometheus  # noqa: E402
from monitoring.reading import filled  # noqa: E402
from serve_app import NAME, application  # noqa: E402
from settings import load  # noqa: E402
from tests.prometheus import EVERY_S, prometheus  # noqa: E402
from tests.service import QUICK, warmed  # noqa: E402
from tests.test_web import eventually, page_of  # noqa: E402
from wire import pack_message, unpack_message  # noqa: E402

PORT = 8123
BALL, RING = "a red ball bouncing in a blue room", "a black ring bouncing in a yellow room"
PATIENCE_S, LEAD, WINDOW = 12.0, 4, f"{4 * EVERY_S}s"
SKIPPED = {"a GPU": "this test runs on a CPU"}  # what panels and alerts may need, and why they need not have it here


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = load(environ={**QUICK, "LONGTAKE_ENGINE__SESSIONS": "2", "LONGTAKE_SERVICE__GENERATORS": "2"})
    disk = replace(settings.service.restore, disk=str(tmp_path_factory.mktemp("disk")))
    pace = replace(settings.service.pace, patience_s=PATIENCE_S, lead=LEAD)
    settings = replace(settings, service=replace(settings.service, cpus=0.5, restore=disk, pace=pace))
    quick = {"metrics_report_interval_ms": 1000}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=quick)
    try:
        serve.start(http_options={"port": PORT})
        serve.run(application(settings), name=NAME)
        asyncio.run(warmed(f"http://127.0.0.1:{PORT}"))
        yield f"http://127.0.0.1:{PORT}"
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def scraped(service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    targets = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
    with prometheus(tmp_path_factory.mktemp("prometheus"), targets) as found:
        yield found


def test_sessions_are_placed_evenly_and_always_meet_their_own_state(service: str) -> None:
    async def test() -> None:
        async with Client(service) as client:
            made = [await client.create(BALL, seed=i) for i in range(4)]
            names = [m["session"] for m in made]
            with pytest.raises(NoCapacity):
                await client.create(RING)
            films = await asyncio.gather(*(film(client, name) for name in names))
            for name, data in zip(names, films, strict=True):
                assert len(read(io.BytesIO(data)).frames) == 32
                assert (await client.inspect(name))["next_chunk"] >= 4
            assert sorted(s["session"] for s in await client.sessions()) == sorted(names)
            for name in names:
                await client.stop(name)
            with pytest.raises(UnknownSession, match=f"^no session '{names[0]}'$"):
                await client.inspect(names[0])

    asyncio.run(test())


def test_the_segmenter_looks_at_what_is_published_from_a_process_of_its_own(service: str) -> None:
    async def test() -> None:
        async with Client(service) as client:
            session = (await client.create(BALL, subject="red ball"))["session"]
            await film(client, session, 12)
            async with asyncio.timeout(60):
                while not any("subject" in d["action"] for d in (await client.inspect(session))["decisions"]):
                    await asyncio.sleep(0.2)
            await client.stop(session)

    asyncio.run(test())


def test_a_viewer_whose_generator_is_killed_misses_no_chunk_and_others_notice_nothing(service: str) -> None:
    async def test() -> None:
        async with Client(service) as client:
            names = [(await client.create(BALL, seed=i))["session"] for i in range(2)]
            for name in names:
                await film(client, name)
            directory = ray.get_actor(DIRECTORY, NAMESPACE)
            homes = [ray.get(directory.find.remote(name)) for name in names]
            assert homes[0] != homes[1]
            seen: list[int] = []
            data, headers = b"", set()
            async with client.watch(names[0]) as watch:
                async for message in watch:
                    if message["type"] == "init":
                        headers.add(message["data"])
                    if (message["type"] == "init" and not data) or message["type"] == "chunk":
                        data += message["data"]
                    if message["type"] == "chunk":
                        seen.append(message["index"])
                        if len(seen) == 6:
                            kill(homes[0])
                        if len(seen) == 24:
                            break
                assert watch.reconnected >= 1
            assert seen == list(range(24))
            assert len(headers) == 1
            found = read(io.BytesIO(data))
            assert len(found.frames) == 24 * 8
            assert {round(float(t) * 12.5, 3) for t in found.frame_times} == set(range(24 * 8))
            assert len(read(io.BytesIO(await film(client, names[1], 8))).frames) == 64
            assert ray.get(directory.find.remote(names[0])) == homes[1]
            assert (await client.cut(names[0], "hall", RING))["from"] >= 24
            async with asyncio.timeout(90):
                while len(ray.get(directory.places.remote())) < 2 or homes[0] in ray.get(directory.places.remote()):
                    await asyncio.sleep(0.5)
            for name in names:
                await client.stop(name)
            with pytest.raises(UnknownSession):
                await client.inspect(names[0])

    asyncio.run(test())


def test_a_player_in_a_browser_goes_on_after_its_generator_was_killed(service: str) -> None:
    async def test() -> None:
        async with Client(service) as client:
            session = (await client.create(BALL))["session"]
            async with page_of(f"{service}/?session={session}") as (page, _):
                await eventually(page, "document.getElementById('video').currentTime > 2")
                home = ray.get(ray.get_actor(DIRECTORY, NAMESPACE).find.remote(session))
                kill(home)
                await eventually(page, "document.getElementById('log').textContent.includes('trying again')", 60)
                at = await page.evaluate("document.getElementById('video').currentTime")
                await eventually(page, f"document.getElementById('video').currentTime > {at} + 4", 60)
                await page.fill("#next", RING)
                await page.click("text=Cut to it")
                await eventually(page, "document.querySelectorAll('#scenes img[src]').length === 2", 60)
                assert await page.evaluate("document.getElementById('video').error") is None
                assert ray.get(ray.get_actor(DIRECTORY, NAMESPACE).find.remote(session)) not in (None, home)
                if shots := os.environ.get("LONGTAKE_TEST_SHOTS"):
                    await page.screenshot(path=f"{shots}/after-kill.png")
            await client.stop(session)

    asyncio.run(test())


def kill(member: str) -> None:
    """End a generator's process, as a machine would that runs out of memory."""
    name = next(a["name"] for a in list_named_actors(all_namespaces=True) if member in (a["name"] or ""))
    ray.kill(ray.get_actor(name, "serve"))


def test_two_calls_of_one_request_wait_for_their_replica_apart_and_one_that_is_given_up_takes_none_with_it(
    service: str,
) -> None:
    """A viewer's acknowledgement waits while its generator dies, is given up, and its leave waits too."""

    class SlowDirectory:
        def __init__(self) -> None:
            self.asked, self.open = 0, asyncio.Event()

        async def find(self, session: str) -> None:
            self.asked += 1
            await self.open.wait()

        async def state(self) -> int:
            return self.asked

        async def answer(self) -> None:
            self.open.set()

        def stops(self, name: str) -> None:
            pass

    class Called:
        async def call(self) -> str:
            return "answered"

    class Caller:
        def __init__(self, handle: Any) -> None:
            self.handle = Apart(handle)

        async def two(self, directory: Any) -> list[Any]:
            of = self.handle.options(session_id="take")
            calls = [asyncio.ensure_future(of.call.remote()) for _ in range(3)]
            while await directory.state.remote() < 2:  # as many as a router with one replica routes at a time
                await asyncio.sleep(0.01)
            calls[0].cancel()
            await directory.answer.remote()
            return list(await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30))

    slow = ray.remote(num_cpus=0)(SlowDirectory).options(name="slow", namespace=NAMESPACE).remote()
    router = {
        "request_router_class": "actors.router.SessionRouter",
        "request_router_kwargs": {"directory": "slow", "namespace": NAMESPACE},
    }
    called = serve.deployment(
        Called, ray_actor_options={"num_cpus": 0}, request_router_config=RequestRouterConfig.model_validate(router)
    )
    caller = serve.deployment(Caller, ray_actor_options={"num_cpus": 0})
    handle = serve.run(caller.bind(called.bind()), name="apart", route_prefix=None)
    try:
        given_up, *answers = handle.two.remote(slow).result(timeout_s=60)
        assert isinstance(given_up, asyncio.CancelledError)
        assert answers == ["answered", "answered"]
    finally:
        serve.delete("apart")
        ray.kill(slow)


def test_a_stream_goes_on_when_its_ledger_shard_is_killed_and_no_epoch_is_lost(service: str) -> None:
    async def test() -> None:
        async with Client(service) as client:
            session, still = [(await client.create(BALL))["session"] for _ in range(2)]
            for one in (session, still):
                await film(client, one, 4)
            await client.pause(still)
            shard = ray.get_actor(f"{LEDGER}-0", NAMESPACE)
            before, statement = ray.get(shard.read.remote(session))
            at_rest = ray.get(shard.read.remote(still))
            seen: list[int] = []
            async with client.watch(session) as watch:
                async for message in watch:
                    if message["type"] == "chunk":
                        seen.append(message["index"])
                        if len(seen) == 6:
                            ray.kill(shard, no_restart=False)
                        if len(seen) == 16:
                            break
                assert watch.reconnected == 0
            assert seen == list(range(16))
            after, found = ray.get(shard.read.remote(session))
            told = ray.get(shard.statistics.remote())
            assert after == before == 1
            assert found.number > statement.number
            assert found.order == statement.order
            assert ray.get(shard.read.remote(still)) == at_rest  # nobody wrote it since, so it is from the journal
            assert told["booked"] > 0
            assert (told["differs"], told["journal_down"], told["journal_lost"]) == (0, 0, 0)
            assert [f.name for f in session_folder().glob("*.journal")] == ["ledger-0-of-1.journal"]
            for one in (session, still):
                await client.stop(one)

    asyncio.run(test())


def test_every_panel_and_every_alert_has_data_in_a_prometheus_under_load(service: str, scraped: Prometheus) -> None:
    begin = time.time()
    asyncio.run(asyncio.wait_for(load_of_all_kinds(service, scraped), 120))
    panels = [(d.name, p.title, p.needs, q.expression) for d in dashboards.ALL for p in d.panels for q in p.queries]
    wanted = panels + [("alert", a.name, a.needs, a.value) for a in alerts.ALL]
    missing = {(*_, filled(expression, WINDOW)) for *_, needs, expression in wanted if needs not in SKIPPED}
    until = time.monotonic() + 30
    while missing and time.monotonic() < until:
        missing = {one for one in missing if not scraped.over(one[-1], begin, time.time(), 1)}
        time.sleep(0.2)
    assert not missing, "\n".join(map(str, sorted(missing)))
    until = time.monotonic() + 90
    while "unknown" in (rules := scraped.rules()).values() and time.monotonic() < until:
        time.sleep(0.2)  # not evaluated yet
    assert rules == {alert.name: "ok" for alert in alerts.ALL}
    drawn = View(scraped, time.time(), time.time() - begin, WINDOW, ".*").drawn(dashboards.VIEWERS)
    assert all(axes.lines for axes in drawn.axes)


async def load_of_all_kinds(service: str, scraped: Prometheus) -> None:
    """Something of everything that is counted, but for what must not happen."""
    begin = time.time()
    async with Client(service) as client:
        made = [(await client.create(BALL, subject="red ball", seed=seed))["session"] for seed in range(4)]
        with pytest.raises(NoCapacity):
            await client.create(RING)
        async with client.watch(made[2]):  # who never says anything
            await asyncio.gather(journey(client, made[0]), film(client, made[1], 16), never_ahead(service, made[3]))
            async with asyncio.timeout(3 * PATIENCE_S):
                while (await client.inspect(made[2]))["state"] != "paused":
                    await asyncio.sleep(0.2)
        for session in made[1:]:
            await client.stop(session)
        async with asyncio.timeout(30):
            while all(one["taken"] for one in await client.generators()):
                await asyncio.sleep(0.2)
        await client.move(made[0])
        # The store's counts end with it. On a busy machine returns are encoded, and all it answered was for the move.
        async with asyncio.timeout(30):
            while not scraped.over(f"rate(ray_longtake_store_hits[{WINDOW}]) > 0", begin, time.time(), 1):
                await asyncio.sleep(0.2)
        store = next(a for a in list_named_actors(all_namespaces=True) if (a["name"] or "").startswith(STORE))
        ray.kill(ray.get_actor(store["name"], NAMESPACE), no_restart=False)
        await film(client, made[0], (await client.inspect(made[0]))["next_chunk"] + 12)
        await client.stop(made[0])


async def journey(client: Client, session: str) -> None:
    """A take that leaves its scene, comes back, and lasts into another epoch."""
    await client.cut(session, "hall", RING)
    await film(client, session, 18)
    await client.return_to(session, "opening")
    await film(client, session, 40)


async def never_ahead(service: str, session: str, chunks: int = 16) -> None:
    """A player that has run dry whenever it says that it got something, so that the next chunk is late."""
    url = f"{service.replace('http', 'ws')}/v1/sessions/{session}/watch?credits=8"
    async with connect(url, max_size=None, compression=None) as socket:
        while chunks:
            message = unpack_message(await socket.recv(decode=False), None)
            chunks -= message["type"] == "chunk"
            if message["type"] == "chunk" and message["index"] % LEAD == LEAD - 1:
                dry = {"type": "ack", "chunk": message["index"], "credits": 8, "buffered": 0.0}
                await socket.send(pack_message(dry))


async def film(client: Client, session: str, chunks: int = 4) -> bytes:
    found = b""
    async with client.watch(session) as watch:
        async for message in watch:
            found += message.get("data", b"")
            if message["type"] == "chunk" and message["index"] == chunks - 1:
                return found
    raise AssertionError("the take ended early")

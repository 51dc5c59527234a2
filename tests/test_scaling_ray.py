"""Generators come and go in a real cluster, by Serve's own autoscaler, and a watched session is not cut."""

import asyncio
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
pytest.importorskip("ray")

from client import Client  # noqa: E402
from tests.real_service import RealService, real_service  # noqa: E402

BALL = "a red ball bouncing in a blue room"
SETTINGS = {
    "LONGTAKE_ENGINE__SESSIONS": "4",
    "LONGTAKE_SERVICE__GENERATORS": "1",
    "LONGTAKE_SERVICE__GENERATORS_MAX": "2",
    "LONGTAKE_SERVICE__FLEET": "{start_s: 1.0, out_s: 1.0, in_s: 3.0}",
    "LONGTAKE_SERVICE__PACE__LINGER_S": "1",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",  # 10 s by default
    "RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR": "0.05",
}
SOON_S = 90.0


@pytest.fixture(scope="module")
def service() -> Iterator[RealService]:
    with real_service("proxy", SETTINGS) as made:
        yield made


async def generators(service: RealService, count: int) -> set[str]:
    """Their names, once there are so many."""
    async with asyncio.timeout(SOON_S):
        while len(found := set((await asyncio.to_thread(service.books))["places"])) != count:
            await asyncio.sleep(0.25)
    return found


async def watch(client: Client, session: str, chunks: list[int]) -> None:
    """A viewer that connects again by itself and takes all it gets."""
    async with client.watch(session) as watching:
        async for message in watching:
            if message["type"] == "chunk":
                chunks.append(message["index"])


async def more(chunks: list[int]) -> None:
    """Some more chunks have been seen."""
    last = len(chunks)
    async with asyncio.timeout(SOON_S):
        while len(chunks) < last + 8:
            await asyncio.sleep(0.1)


def test_a_second_generator_comes_with_load_and_goes_when_it_is_drained_without_cutting_who_is_watched(
    service: RealService,
) -> None:
    async def test() -> None:
        async with Client(service.url) as client:
            first = await generators(service, 1)
            crowd = [(await client.create(BALL, seed=i))["session"] for i in range(4)]
            second = next(iter(await generators(service, 2) - first))
            session = (await client.create(BALL, seed=9))["session"]
            assert {g["generator"]: g["taken"] for g in await client.generators()}[second] == 1
            chunks: list[int] = []
            viewer = asyncio.create_task(watch(client, session, chunks))
            await more(chunks)
            for name in crowd:
                await client.stop(name)
            assert await generators(service, 1) == first  # the newest of a node is the one that Serve stops
            await more(chunks)
            assert not viewer.done()
            assert chunks == list(range(len(chunks)))
            viewer.cancel()
            await asyncio.gather(viewer, return_exceptions=True)

    asyncio.run(test())

"""One data plane of Ray Serve, in a process of its own: what ``bench.serve`` runs twice. Prints JSON as its last line.

The model is the one that ships; its chunks are padded to 64 KiB and say when they were made, which a viewer on the same
machine compares with its own clock.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray import serve

from actors.ledger_service import Entry, Statement, Terms
from actors.remote import RemoteLedger
from actors.worker import Made, Stepped, Vault, Worker
from cache.host_tier import HostTier
from cache.manager import CacheManager
from cache.replica import digest
from cache.state import dump
from cache.tiers import RestoreTier
from client import Client
from serve_app import NAME, application
from settings import Settings, build_engine, build_worker, load

PORT, PADDED = 8321, 64 * 1024
PROMPT = "a red ball bouncing in a blue room"
QUICK = {
    "LONGTAKE_THREADS": "1",
    "LONGTAKE_ENGINE__FIRST_SCHEDULE": "{sigmas: [1.0]}",
    "LONGTAKE_ENGINE__SCHEDULE": "{sigmas: [1.0]}",
    "LONGTAKE_SERVICE__TELEMETRY__LOG_LEVEL": "error",
}


class Padded(Worker):
    """Chunks of 64 KiB that begin with the time at which they were encoded."""

    def show(self, stepped: Mapping[str, Stepped]) -> dict[str, Made]:
        """See ``Worker.show``."""
        return {session: self._padded(made) for session, made in super().show(stepped).items()}

    @staticmethod
    def _padded(made: Made) -> Made:
        assert made.piece is not None
        data = time.monotonic_ns().to_bytes(8, "big") + bytes(PADDED - 8)
        return replace(made, piece=replace(made.piece, data=data))


def build_padded(settings: Settings, vault: Vault, tier: RestoreTier | None = None) -> Worker:
    """As ``settings.build_worker``, with padded chunks."""
    made = build_worker(settings, vault, tier)
    made.__class__ = Padded
    return made


def delay_ms(data: bytes) -> float:
    """Milliseconds since a padded chunk was encoded."""
    return (time.monotonic_ns() - int.from_bytes(data[:8], "big")) / 1e6


async def delays(client: Client, chunks: int) -> list[float]:
    """Of one session's chunks at a viewer, the first ten left out."""
    found = []
    session = (await client.create(PROMPT))["session"]
    async with client.watch(session) as watch:
        async for message in watch:
            if message["type"] == "chunk":
                found.append(delay_ms(message["data"]))
                if len(found) == chunks + 10:
                    break
    await client.stop(session)
    return found[10:]


async def first_chunks(client: Client, times: int) -> list[float]:
    """Milliseconds from asking for a session to its first chunk."""
    found = []
    for seed in range(times):
        began = time.perf_counter()
        session = (await client.create(PROMPT, seed=seed))["session"]
        async with client.watch(session) as watch:
            async for message in watch:
                if message["type"] == "chunk":
                    break
        found.append(1e3 * (time.perf_counter() - began))
        await client.stop(session)
    return found


async def ledger_calls(settings: Settings, times: int) -> list[float]:
    """Milliseconds of one commit at the ledger service's actor."""
    engine = build_engine(settings)
    terms = Terms(engine.specs, engine.policy, engine.config.cache)
    books = CacheManager("bench", terms.specs, terms.policy, terms.config, HostTier(0))
    books.open_scene("opening", "p")
    ledger = RemoteLedger(settings.service.ledgers, settings.service.journal, {})
    epoch = await ledger.open(Statement("bench", terms, dump(books), books.recorder.noted))
    found = []
    for _ in range(times + 10):
        books.begin()
        books.commit(books.next_chunk)
        number, operations = books.recorder.take()
        entry = Entry("bench", books.next_chunk - 1, number, operations, digest(books), epoch)
        began = time.perf_counter()
        verdicts: Sequence[Any] = await ledger.commit(ledger.shard("bench"), [entry])
        found.append(1e3 * (time.perf_counter() - began))
        assert verdicts == ["booked"]
    await ledger.close("bench", epoch)
    return found[10:]


def main(chunks: int, times: int) -> None:
    """Serve, measure, print."""
    settings = load(environ=QUICK)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"port": PORT})
        serve.run(application(settings, build_padded), name=NAME)

        async def measure() -> dict[str, list[float]]:
            async with Client(f"http://127.0.0.1:{PORT}") as client:
                await delays(client, 10)
                return {
                    "delay": await delays(client, chunks),
                    "first": await first_chunks(client, times),
                    "ledger": await ledger_calls(settings, chunks),
                }

        measured = asyncio.run(measure())
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
    print(json.dumps(measured))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

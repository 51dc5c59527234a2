"""A restore store that says nothing holds chunks up once, and then not for a while."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import pytest

from actors import step_loop
from actors.metrics import Tally
from actors.step_loop import ALONE_S, StepLoop
from tests.service import generator, run

NEVER_S = 1000.0  # longer than these tests may take


@asynccontextmanager
async def stepping(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> AsyncIterator[StepLoop]:
    """A step loop whose books take whatever comes."""

    async def confirm(group: list[Any]) -> dict[str, None]:
        return dict.fromkeys(group)

    async with generator(meter=Tally()) as made:
        monkeypatch.setattr(made.loop, "clock", lambda: now[0])
        monkeypatch.setattr(made.loop.books, "confirm", confirm)
        yield made.loop


def undurable(loop: StepLoop) -> float:
    assert isinstance(loop.meter, Tally)
    return sum(n for (name, *_), n in loop.meter.counts.items() if name == "undurable")


async def booked(loop: StepLoop, session: str, landed: "Future[bool]") -> None:
    group: list[Any] = [session]
    assert await loop._booked(group, landed) == {session: None}


def test_after_one_wait_in_vain_no_chunk_waits_for_the_store_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        now = [100.0]
        async with stepping(monkeypatch, now) as loop:
            monkeypatch.setattr(step_loop, "LANDING_S", 0.001)
            await booked(loop, "a", Future())
            assert undurable(loop) == 1
            monkeypatch.setattr(step_loop, "LANDING_S", NEVER_S)
            for chunk in range(5):
                now[0] = 100 + chunk * ALONE_S / 5
                await booked(loop, "a", Future())
                assert undurable(loop) == 2 + chunk
            now[0] = 100 + ALONE_S
            landed, other = Future[bool](), Future[bool]()
            waiting = [asyncio.create_task(booked(loop, "a", x)) for x in (landed, other)]
            while not landed._done_callbacks or not other._done_callbacks:  # type: ignore[attr-defined]
                await asyncio.sleep(0)
            landed.set_result(True)
            other.set_result(False)
            await asyncio.gather(*waiting)
            assert undurable(loop) == 7  # one of the two

    run(test)


def test_what_has_landed_is_durable_even_while_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with stepping(monkeypatch, [100.0]) as loop:
            monkeypatch.setattr(step_loop, "LANDING_S", 0.001)
            await booked(loop, "a", Future())
            there = Future[bool]()
            there.set_result(True)
            await booked(loop, "a", there)
            assert undurable(loop) == 1

    run(test)


def test_a_group_that_no_longer_waits_does_not_end_the_waiting_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with stepping(monkeypatch, [100.0]) as loop:
            landed = Future[bool]()
            monkeypatch.setattr(step_loop, "LANDING_S", NEVER_S)
            patient = asyncio.create_task(booked(loop, "b", landed))
            while not landed._done_callbacks:  # type: ignore[attr-defined]
                await asyncio.sleep(0)
            monkeypatch.setattr(step_loop, "LANDING_S", 0.001)
            await booked(loop, "a", landed)
            assert not landed.cancelled()
            assert not patient.done()
            landed.set_result(True)
            await patient
            assert undurable(loop) == 1

    run(test)

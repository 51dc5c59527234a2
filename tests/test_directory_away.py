"""While the directory cannot be asked, a generator that lives is not taken for one that has gone."""

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError

from actors.backend import found_again
from actors.deployments import GeneratorReplica
from actors.remote import plainly, told_plainly
from errors import BadMessage, LongtakeError, NoCapacity, ServiceError, SessionMoved
from tests.service import generator, run
from tests.test_generator import BALL, take

GONE: list[Callable[[], RayActorError]] = [
    lambda: ActorUnavailableError("it begins anew", None),
    ActorDiedError,
    RayActorError,
]


def raised_there(cause: Exception) -> Exception:
    """What a caller gets if ``cause`` is raised inside the actor that it asked: of both classes, as Ray makes it."""
    found: Exception = RayTaskError("ask", "the traceback", cause).as_instanceof_cause()
    assert isinstance(found, RayTaskError)
    return found


@pytest.mark.parametrize("made", GONE)
def test_a_generator_that_misses_another_process_is_not_taken_for_gone(made: Callable[[], RayActorError]) -> None:
    error = raised_there(made())
    assert isinstance(error, RayActorError)  # as that of a generator that has gone
    with pytest.raises(ServiceError, match="behind the one that was asked"), found_again():
        raise error
    with pytest.raises(ServiceError, match="behind the one that was asked"), told_plainly():
        raise error


@pytest.mark.parametrize("made", GONE)
def test_a_generator_that_has_gone_is_looked_for_again(made: Callable[[], RayActorError]) -> None:
    with pytest.raises(SessionMoved), found_again():
        raise made()
    with pytest.raises(ServiceError, match="has gone or is overloaded"), told_plainly():
        raise made()


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (raised_there(NoCapacity("all taken")), NoCapacity, "all taken"),
        (raised_there(raised_there(NoCapacity("all taken"))), NoCapacity, "all taken"),
        (raised_there(raised_there(ActorDiedError())), ServiceError, "behind the one that was asked"),
        (RayTaskError("ask", "the traceback", BackPressureError(1, 1)), ServiceError, "behind the one that was asked"),
        (raised_there(RayError("lost")), ServiceError, "behind the one that was asked"),
    ],
)
def test_an_error_of_another_process_is_made_plain_however_far_behind_it_was_raised(
    error: Exception, kind: type[LongtakeError], text: str
) -> None:
    found = plainly(error)
    assert type(found) is kind
    assert text in str(found)
    assert "the traceback" not in str(found)


@pytest.mark.parametrize("call", ["fork", "stop"])
def test_what_is_done_stays_done_when_the_directory_cannot_be_told(call: str, caplog: pytest.LogCaptureFixture) -> None:
    async def away(*arguments: Any) -> None:
        raise ActorUnavailableError("it begins anew", None)

    async def asked(*arguments: Any) -> dict[str, Any]:
        return {"do": call}

    made: Any = GeneratorReplica.__new__(GeneratorReplica)
    made.name, made.generator = "a", SimpleNamespace(ask=asked)
    made.directory = SimpleNamespace(adopt=SimpleNamespace(remote=away), release=SimpleNamespace(remote=away))
    with caplog.at_level(logging.WARNING, "longtake.generator"):
        assert asyncio.run(made.ask({}, "session", "", call, "child")) == {"do": call}
    assert "the directory was not told" in caplog.text


def test_a_session_that_cannot_be_reported_yet_has_begun() -> None:
    async def away() -> None:
        raise ActorUnavailableError("it begins anew", None)

    async def created(*arguments: Any) -> dict[str, Any]:
        return {"session": arguments[0]}

    made: Any = GeneratorReplica.__new__(GeneratorReplica)
    made.generator, made._report = SimpleNamespace(create=created), away
    assert asyncio.run(made.create({}, "session", BALL, "")) == {"session": "session"}


def test_a_fork_that_is_asked_for_twice_is_made_once() -> None:
    async def test() -> None:
        async with generator() as made:
            await made.create("a", BALL)
            await take(made, "a", 2)
            await made.fork("a", "child")
            first = made.sessions["child"]
            with pytest.raises(BadMessage, match="'child' exists already"):
                await made.fork("a", "child")
            assert made.sessions["child"] is first
            assert len(made.worker.engine.sessions) == 2
            await made.stop("child")
            assert len(made.worker.engine.sessions) == 1

    run(test)

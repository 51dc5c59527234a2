"""What a process remembers of where sessions are: bounded, the newest, and nothing that it was told to forget.

And what the router makes of a directory that does not answer.
"""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorUnavailableError, RayActorError

from actors import router
from actors.router import SessionRouter
from actors.routes import Routes

STEPS = st.lists(st.tuples(st.sampled_from(["found", "forget"]), st.sampled_from("abcdef"), st.sampled_from("xy")))


@given(STEPS, st.integers(1, 4))
def test_routes_are_those_last_found_or_found_again_at_most_so_many_and_nothing_that_was_forgotten(
    steps: list[tuple[str, str, str]], most: int
) -> None:
    routes, truth = Routes(most), dict[str, str]()
    for step, session, home in steps:
        truth.pop(session, None)
        if step == "found":
            routes.found(session, home)
            truth[session] = home
        else:
            routes.forget(session)
        known = dict(list(truth.items())[-most:])
        assert {s: h for s in "abcdef" if (h := routes.home(s)) is not None} == known
        truth = known


@pytest.mark.parametrize(
    "error",
    [
        RayActorError(),
        ActorUnavailableError("it begins anew", None),
        ValueError("no actor of that name"),
        TimeoutError("it says nothing"),
    ],
)
def test_a_request_waits_while_the_directory_cannot_be_asked_and_then_goes_where_its_session_is(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve forgets a request for ever whose ``choose_replicas`` raises."""
    errors = [error]

    async def find(session: str) -> str:
        if errors:
            raise errors.pop()
        return "b"

    def asked(name: str, namespace: str) -> Any:
        if errors and isinstance(errors[0], ValueError):  # as ``ray.get_actor`` does while there is none
            raise errors.pop()
        return SimpleNamespace(find=SimpleNamespace(remote=find))

    monkeypatch.setattr(router, "ray", SimpleNamespace(get_actor=asked))
    made = SessionRouter.__new__(SessionRouter)
    made.initialize_state(directory="session-directory", namespace="longtake")
    replicas: list[Any] = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in "ab"]
    request: Any = SimpleNamespace(
        metadata=SimpleNamespace(session_id=f"asked for in vain: {type(error).__name__}"),
        routing_context=SimpleNamespace(should_backoff=False),
    )
    assert asyncio.run(made.choose_replicas(replicas, request)) == []
    assert request.routing_context.should_backoff
    assert made._directory is None  # its handle may be of one that has gone
    assert asyncio.run(made.choose_replicas(replicas, request)) == [[replicas[1]]]

"""What leaves a GPU is with the store as soon as it may be asked for, whatever is asked of both meanwhile.

There is no GPU here: it is pretended, see ``tests.pretend_gpu``.
"""

from concurrent.futures import Future
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.host_tier import HostTier
from cache.keep_set import Role
from cache.spec import TYPES, AttentionType
from cache.tiers import KeyValues, Latents
from errors import RecordLost
from streams.departures import Departures
from tests.pretend_gpu import PretendGpu, pretend_gpu

T = TYPES[0]
BYTES = 3 * 4


def key_values(content: float, device: str = "cuda:0") -> KeyValues:
    return KeyValues(torch.full((3,), float(content), device=device), 7, Role.RECENT, 5)


def latents(content: float, device: str = "cuda:0") -> Latents:
    return Latents(
        torch.full((2,), float(content), device=device), torch.full((1,), -float(content), device=device), "prompt"
    )


def numbers(payload: Any) -> list[float]:
    tensors = [payload.video, payload.audio] if isinstance(payload, Latents) else [payload.tensor]
    return [x for tensor in tensors for x in tensor.cpu().tolist()]


def catch_up(gpu: PretendGpu) -> None:
    """The GPU does all that it was given."""
    gpu.reached = gpu.events


def told(tier: Any, call: str, *arguments: Any) -> list[float] | str:
    try:
        found = getattr(tier, call)(*arguments)
        return numbers(found.result() if isinstance(found, Future) else found)
    except RecordLost:
        return "lost"


SESSIONS, CHUNKS = st.sampled_from(["a", "b"]), st.integers(0, 2)
OPERATIONS = st.one_of(
    st.tuples(st.just("offload"), SESSIONS, CHUNKS, st.sampled_from(["cuda:0", "cuda:0", "cpu"])),
    st.tuples(st.just("keep_latents"), SESSIONS, CHUNKS, st.sampled_from(["cuda:0", "cuda:0", "cpu"])),
    st.tuples(st.sampled_from(["forget", "fetch", "latents", "begin_fetch", "begin_latents"]), SESSIONS, CHUNKS),
    st.tuples(st.sampled_from(["close", "fork", "records"]), SESSIONS),
    st.tuples(st.sampled_from(["catch up", "settle", "drain", "landed"])),
)


@settings(deadline=None)
@given(st.lists(OPERATIONS, max_size=30), st.sampled_from([0, 2 * BYTES, 1 << 20]))
def test_whoever_asks_is_answered_as_by_a_store_that_had_everything_at_once(
    operations: list[tuple[Any, ...]], bound: int
) -> None:
    with pretend_gpu() as gpu:
        store, twin = HostTier(1 << 20), HostTier(1 << 20)
        made = Departures(store, bound)
        asked: list[Future[bool]] = []
        for content, (name, *rest) in enumerate(operations):
            match name, rest:
                case "offload", [session, chunk, device]:
                    made.offload(session, chunk, T, key_values(content, device))
                    twin.offload(session, chunk, T, key_values(content, "cpu"))
                case "keep_latents", [session, chunk, device]:
                    made.keep_latents(session, chunk, latents(content, device))
                    twin.keep_latents(session, chunk, latents(content, "cpu"))
                case ("forget", [session, chunk]):
                    made.forget(session, chunk)
                    twin.forget(session, chunk)
                case (("fetch" | "begin_fetch"), [session, chunk]):
                    assert told(made, name, session, chunk, T) == told(twin, name, session, chunk, T)
                case (("latents" | "begin_latents"), [session, chunk]):
                    assert told(made, name, session, chunk) == told(twin, name, session, chunk)
                case "close", [session]:
                    made.close(session)
                    twin.close(session)
                case "fork", [session]:
                    made.fork(session, session + "'")
                    twin.fork(session, session + "'")
                case "records", [session]:
                    assert made.records(session).keys() == twin.records(session).keys()
                case "catch up", []:
                    catch_up(gpu)
                case "landed", []:
                    asked.append(made.landed())
                case _:
                    getattr(made, name)()
            for s in ("a", "b"):
                for c in range(3):
                    assert made.holds(s, c) == twin.holds(s, c)
            assert made.nbytes <= max(bound, BYTES)
        made.drain()
        assert not made.leaving
        assert made.nbytes == 0
        assert all(future.done() and future.result() for future in asked)
        for s in ("a", "b", "a'", "b'"):
            assert store.chunks(s) == twin.chunks(s)
            for c in range(3):
                assert told(store, "fetch", s, c, T) == told(twin, "fetch", s, c, T)
                assert told(store, "latents", s, c) == told(twin, "latents", s, c)
        assert not [wait for wait in gpu.waits if not wait.where.startswith("tests/")]


def test_what_has_not_landed_is_not_waited_for_and_nothing_overtakes_it() -> None:
    with pretend_gpu() as gpu:
        store = HostTier(1 << 20)
        made = Departures(store, 1 << 20)
        made.offload("a", 0, T, key_values(1.0))
        asked = made.landed()
        made.settle()
        assert (store.chunks("a"), asked.done(), gpu.landings) == ([], False, [])
        catch_up(gpu)
        made.settle()
        assert (store.chunks("a"), asked.result(0), gpu.landings) == ([0], True, [])
        assert numbers(store.fetch("a", 0, T)) == [1.0, 1.0, 1.0]


def test_beyond_the_bound_the_oldest_is_waited_for() -> None:
    with pretend_gpu() as gpu:
        store = HostTier(1 << 20)
        made = Departures(store, 2 * BYTES)
        for chunk in range(3):
            made.offload("a", chunk, T, key_values(chunk))
        assert store.chunks("a") == [0]
        assert len(gpu.landings) == 1


def test_what_a_store_does_not_take_is_said_to_be_lost_and_hurts_no_other_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = HostTier(1 << 20)
    offload = store.offload

    def broken(session: str, chunk: int, type: AttentionType, payload: KeyValues) -> None:
        if session == "a":
            raise OSError("no room")
        offload(session, chunk, type, payload)

    monkeypatch.setattr(store, "offload", broken)
    with pretend_gpu():
        made = Departures(store, 1 << 20)
        made.offload("a", 0, T, key_values(1.0))
        made.offload("b", 0, T, key_values(1.0))
        asked = made.landed()
        made.drain()
        assert (store.chunks("a"), store.chunks("b")) == ([], [0])
        assert asked.result(0) is False
        assert made.landed().result(0) is True


def test_whoever_no_longer_waits_is_not_told() -> None:
    with pretend_gpu():
        made = Departures(HostTier(1 << 20), 1 << 20)
        made.offload("a", 0, T, key_values(1.0))
        asked = made.landed()
        asked.cancel()
        made.drain()
        assert asked.cancelled()


def test_a_store_keeps_no_pinned_memory() -> None:
    with pretend_gpu():
        store = HostTier(1 << 20)
        made = Departures(store, 1 << 20)
        made.offload("a", 0, T, key_values(1.0))
        made.drain()
        assert not store.fetch("a", 0, T).tensor.is_pinned()

"""The restore store behind calls: the cache sees what it would see of a store of its own, late answers and all."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from actors.remote_tier import RemoteTier
from actors.restore_store import Answer, RestoreStore
from actors.staging import Staging, StagingConfig
from actors.transport.shared import SharedRegion
from cache.host_tier import HostTier
from cache.keep_set import Role
from cache.spec import TYPES, AttentionType
from cache.tiers import NOTHING, KeyValues, Latents
from errors import NoCapacity, RecordLost, ServiceError, SlotRecycled
from streams.engine import Engine
from streams.stream import Stream
from tests.builders import engine

SESSIONS, CHUNKS = st.sampled_from(["a", "b", "c"]), st.integers(0, 4)


class Line:
    """Calls to a store that are carried out in order, some of them later; and a store that can die."""

    def __init__(self, store: RestoreStore) -> None:
        self.store: RestoreStore | None = store
        self.waiting: deque[tuple[Future[Answer], str, tuple[Any, ...]]] = deque()
        self.late = False

    def call(self, name: str, *arguments: Any) -> "Future[Answer]":
        told: Future[Answer] = Future()
        self.waiting.append((told, name, arguments))
        if not self.late or name in ("fetch", "latents", "records"):
            self.carry_out()
        return told

    def carry_out(self, calls: int = 1000) -> None:
        for _ in range(min(calls, len(self.waiting))):
            told, name, arguments = self.waiting.popleft()
            try:
                if self.store is None:
                    raise ServiceError("the store has gone")
                told.set_result(getattr(self.store, name)(*arguments))
            except (ServiceError, RecordLost) as error:
                told.set_exception(error)


def key_values(role: Role, size: int = 8) -> KeyValues:
    return KeyValues(torch.rand(1, 2, 1, size), 3, role)


class Twins(RuleBasedStateMachine):
    """A tier here and one behind calls, told the same."""

    @initialize(budget=st.sampled_from([0, 200, 1 << 20]))
    def build(self, budget: int) -> None:
        self.line = Line(RestoreStore(budget, 0))
        self.remote, self.twin = self.tier(), HostTier(budget)
        self.other = self.tier()  # of another generator

    def tier(self) -> RemoteTier:
        return RemoteTier(self.line.call)

    @rule(session=SESSIONS, chunk=CHUNKS, kind=st.sampled_from(TYPES), role=st.sampled_from([Role.RECENT, *Role]))
    def offload(self, session: str, chunk: int, kind: AttentionType, role: Role) -> None:
        payload = key_values(role)
        self.remote.offload(session, chunk, kind, payload)
        self.twin.offload(session, chunk, kind, payload)

    @rule(session=SESSIONS, chunk=CHUNKS)
    def keep_latents(self, session: str, chunk: int) -> None:
        latents = Latents(torch.rand(2, 3), torch.rand(1, 3), "p")
        self.remote.keep_latents(session, chunk, latents)
        self.twin.keep_latents(session, chunk, latents)

    @rule(chunk=CHUNKS)
    def another_generator_keeps_something(self, chunk: int) -> None:
        payload = key_values(Role.SCENE_SINK)
        self.other.offload("theirs", chunk, TYPES[0], payload)
        self.twin.offload("theirs", chunk, TYPES[0], payload)

    @rule(session=SESSIONS, chunk=CHUNKS)
    def forget(self, session: str, chunk: int) -> None:
        self.remote.forget(session, chunk)
        self.twin.forget(session, chunk)

    @rule(parent=SESSIONS)
    def fork(self, parent: str) -> None:
        self.remote.close("child")
        self.twin.close("child")
        self.remote.fork(parent, "child")
        self.twin.fork(parent, "child")

    @rule(session=SESSIONS)
    def close(self, session: str) -> None:
        self.remote.close(session)
        self.twin.close(session)

    @rule(session=SESSIONS, chunk=CHUNKS, kind=st.sampled_from(TYPES))
    def fetch(self, session: str, chunk: int, kind: AttentionType) -> None:
        if kind in self.twin.holds(session, chunk).types:
            here, there = self.twin.fetch(session, chunk, kind), self.remote.fetch(session, chunk, kind)
            assert torch.equal(here.tensor, there.tensor)
            assert (here.slot, here.role) == (there.slot, there.role)
        else:
            with pytest.raises(RecordLost):
                self.remote.fetch(session, chunk, kind)
            with pytest.raises(RecordLost):
                self.twin.fetch(session, chunk, kind)

    @rule(session=SESSIONS, chunk=CHUNKS, kind=st.sampled_from(TYPES))
    def begin_to_fetch(self, session: str, chunk: int, kind: AttentionType) -> None:
        """What comes later is what the store had when the call was carried out."""
        answers = [self.remote.begin_fetch(session, chunk, kind), self.remote.begin_latents(session, chunk)]
        self.line.carry_out()
        twins = [self.twin.begin_fetch(session, chunk, kind), self.twin.begin_latents(session, chunk)]
        for answer, twin in zip(answers, twins, strict=True):
            assert answer.done()
            assert type(answer.exception()) is type(twin.exception())
            if answer.exception() is None:
                assert answer.result().nbytes == twin.result().nbytes

    @rule(late=st.booleans())
    def answers_come_late(self, late: bool) -> None:
        self.line.late = late

    @rule(calls=st.integers(1, 4))
    def some_answers_come(self, calls: int) -> None:
        self.line.carry_out(calls)

    @rule()
    def the_store_begins_anew(self) -> None:
        self.line.carry_out()
        assert self.line.store is not None
        self.line.store = RestoreStore(self.line.store.host_bytes, 0)
        self.twin = HostTier(self.line.store.host_bytes)

    @rule(session=SESSIONS)
    def once_all_answers_have_come_they_hold_the_same(self, session: str) -> None:
        latents = Latents(torch.rand(2, 3), torch.rand(1, 3), "p")
        self.remote.keep_latents(session, 9, latents)
        self.twin.keep_latents(session, 9, latents)
        for _ in range(3):  # an answer, what was asked for because of it, and what that told
            self.line.carry_out()
            self.remote.holds(session, 9)
        for name in ("a", "b", "c", "child"):
            for chunk in range(10):
                assert self.remote.holds(name, chunk) == self.twin.holds(name, chunk), (name, chunk)
            here, there = self.twin.records(name), self.remote.records(name)
            assert here.keys() == there.keys()

    @invariant()
    def the_store_counts_right(self) -> None:
        if hasattr(self, "line") and self.line.store is not None:
            self.line.store.tier.check_integrity()


TestTwins = Twins.TestCase
TestTwins.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def film(made: Engine, seed: int = 5, before_return: Callable[[], None] = lambda: None) -> list[torch.Tensor]:
    stream = Stream.open(made, "one", seed)
    chunks = stream.take(7)
    stream.cut("elsewhere", "two", keep_subject=False)
    chunks += stream.take(7)
    before_return()
    stream.return_to("opening")
    chunks += stream.take(3)
    made.check_integrity()
    stream.close()
    return [chunk.video for chunk in chunks]


def test_a_take_with_its_store_elsewhere_equals_one_with_its_store_here() -> None:
    line = Line(RestoreStore(1 << 26, 0))
    here, there = film(engine()), film(engine(tier=RemoteTier(line.call)))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    assert line.store is not None
    assert line.store.statistics()["records"] == 0


def test_a_take_goes_on_without_its_past_when_the_store_has_gone() -> None:
    line = Line(RestoreStore(1 << 26, 0))
    tier = RemoteTier(line.call)
    made = engine(tier=tier)
    stream = Stream.open(made, "one", 5)
    stream.take(7)
    stream.cut("elsewhere", "two")
    stream.take(7)
    line.store = None
    stream.return_to("opening")
    stream.take(3)
    assert {"not restored", "give up"} & {d.action for d in stream.decisions}
    line.store = RestoreStore(1 << 26, 0)
    stream.cut("third", "three")
    stream.take(7)
    assert line.store.statistics()["records"] > 0
    made.check_integrity()


def test_what_does_not_fit_on_its_way_is_not_kept_and_counted() -> None:
    line = Line(RestoreStore(1 << 20, 0))
    tier = RemoteTier(line.call, in_flight=3 * 64)
    line.late = True
    for chunk in range(5):
        tier.offload("a", chunk, TYPES[0], key_values(Role.RECENT))
    assert (tier.refused, len(line.waiting)) == (2, 3)
    assert [tier.holds("a", chunk) != NOTHING for chunk in range(5)] == [True] * 3 + [False] * 2
    line.carry_out()
    tier.offload("a", 5, TYPES[0], key_values(Role.RECENT))
    assert tier.holds("a", 5) != NOTHING


def test_streams_that_are_put_away_have_a_budget_of_their_own() -> None:
    store = RestoreStore(0, 100)
    store.put("a", b"x" * 60)
    with pytest.raises(NoCapacity, match="do not fit 100"):
        store.put("b", b"x" * 60)
    assert store.take("a") == b"x" * 60
    assert store.statistics()["vault_bytes_held"] == 60
    store.drop("a")
    with pytest.raises(RecordLost):
        store.take("a")


def test_one_call_that_failed_costs_what_it_carried_and_nothing_else() -> None:
    line = Line(RestoreStore(1 << 20, 0))
    tier = RemoteTier(line.call)
    for chunk in range(3):
        tier.offload("a", chunk, TYPES[0], key_values(Role.RECENT))
    store, line.store = line.store, None
    tier.offload("a", 3, TYPES[0], key_values(Role.RECENT))
    line.store = store
    tier.offload("a", 4, TYPES[0], key_values(Role.RECENT))
    tier.holds("a", 0)
    assert [tier.holds("a", chunk) != NOTHING for chunk in range(5)] == [True, True, True, False, True]
    assert tier.failures == 1


def test_a_fetch_is_begun_without_waiting_and_a_store_that_goes_is_a_lost_record() -> None:
    line = Line(RestoreStore(1 << 20, 0))
    waiting: list[Future[Answer]] = []

    def call(name: str, *arguments: Any) -> "Future[Answer]":
        if name != "fetch":
            return line.call(name, *arguments)
        waiting.append(Future())
        return waiting[-1]

    tier = RemoteTier(call)
    payload = key_values(Role.RECENT)
    tier.offload("a", 0, TYPES[0], payload)
    asked = [tier.begin_fetch("a", 0, TYPES[0]) for _ in range(2)]
    assert not any(answer.done() for answer in asked)
    assert line.store is not None
    waiting[0].set_result(line.store.fetch("a", 0, TYPES[0].value))
    assert torch.equal(asked[0].result().tensor, payload.tensor)
    waiting[1].set_exception(ServiceError("the store has gone"))
    with pytest.raises(RecordLost, match="has gone"):
        asked[1].result()
    tier.holds("a", 0)
    assert tier.failures == 1


def test_a_fetch_that_cannot_be_asked_for_again_is_a_lost_record_and_not_one_that_never_comes() -> None:
    line = Line(RestoreStore(1 << 20, 0))
    region = SharedRegion(2, 1 << 16)
    asked: list[Future[Answer]] = []

    def call(name: str, *arguments: Any) -> "Future[Answer]":
        if name != "fetch":
            return line.call(name, *arguments)
        if asked:
            raise ServiceError("there is no such actor any more")
        asked.append(Future())
        return asked[-1]

    tier = RemoteTier(call, staging=Staging(region, StagingConfig(2, 1 << 16, small_bytes=0)))
    tier.holds("a", 0)  # the store has been greeted by now
    tier.offload("a", 0, TYPES[0], key_values(Role.RECENT))
    answer = tier.begin_fetch("a", 0, TYPES[0])
    asked[0].set_exception(SlotRecycled("the slot was used again"))
    with pytest.raises(RecordLost, match="no such actor"):
        answer.result(0)
    region.close()


def test_a_store_that_does_not_answer_is_not_waited_for_again_and_again() -> None:
    now = [0.0]
    line = Line(RestoreStore(1 << 20, 0))
    tier = RemoteTier(lambda *_: Future(), patience_s=0.01, clock=lambda: now[0])
    with pytest.raises(RecordLost, match=r"has not answered for 0\.01 s"):
        tier.fetch("a", 0, TYPES[0])
    with pytest.raises(RecordLost, match="a moment ago"):
        tier.fetch("a", 0, TYPES[0])
    now[0], tier.call = 11.0, line.call
    with pytest.raises(RecordLost, match="not in host memory"):
        tier.fetch("a", 0, TYPES[0])

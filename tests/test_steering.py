"""The directory decides on what generators say, and generators do what they are told while their sessions go on."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from actors.autoscaling import DECISION, WANTED, generators_wanted
from actors.directory import SessionDirectory, Standing
from actors.following import Follower
from actors.movement import Mover
from actors.steering import Load, Orders
from errors import NoCapacity, UnknownSession
from scaling.rules import Balance, Fleet, Rules
from tests.service import run, until
from tests.test_gateway import BALL
from tests.test_movement import seen
from tests.town import gate, town

RULES = Rules(1, 3, Balance(moves=1, settle_s=5.0), Fleet(start_s=0.0, out_s=1.0, in_s=5.0))


def watched_by(*sessions: str, viewers: int = 1) -> list[dict[str, Any]]:
    return [
        {"session": s, "owner": "", "on": True, "state": "running", "viewers": viewers, "chunk_seconds": 0.64}
        for s in sessions
    ]


class Desk:
    """A directory with a clock, and generators that report when told to."""

    def __init__(self, rules: Rules = RULES, capacity: int = 4) -> None:
        self.now, self.capacity = 0.0, capacity
        self.directory = SessionDirectory(clock=lambda: self.now)
        self.load = Load(0.1, 0.1, rules=rules)
        self.held: dict[str, list[str]] = {}

    def report(self, name: str) -> Standing:
        began = sorted(self.held).index(name)
        load = replace(self.load, began=float(began), node="n")
        return self.directory.report(name, self.capacity, watched_by(*self.held[name]), load=load)

    def beat(self, seconds: float) -> dict[str, Orders]:
        """Everybody reports every second; the last orders of each, and all the moves."""
        orders: dict[str, Orders] = {}
        for _ in range(int(seconds)):
            self.now += 1.0
            for name in list(self.held):
                given = self.report(name).orders
                before = orders.get(name, given)
                orders[name] = replace(given, moves=tuple(dict.fromkeys((*before.moves, *given.moves))))
        return orders


def test_nothing_is_decided_before_every_generator_had_time_to_say_what_it_has() -> None:
    desk = Desk()
    desk.held = {"a": ["1", "2", "3", "4"]}
    assert desk.beat(9)["a"].generators == 0
    assert desk.beat(3)["a"].generators == 2


def test_refused_sessions_and_full_places_ask_for_generators_up_to_the_most() -> None:
    desk = Desk()
    desk.held = {"a": ["1", "2", "3"]}
    assert desk.beat(15)["a"].generators == 1
    desk.held["a"].append("4")
    desk.report("a")
    for _ in range(9):
        with pytest.raises(NoCapacity):
            desk.directory.place("x")
    assert desk.beat(1)["a"].generators == 3


def test_scale_in_drains_first_and_lowers_the_number_only_when_the_generator_is_empty() -> None:
    desk = Desk()
    desk.held = {"a": ["1"], "b": ["2"]}
    orders = desk.beat(20)
    assert (orders["a"].leave, orders["b"].leave) == (False, True)  # of one node the newest is stopped first
    assert orders["a"].generators == 2
    assert desk.directory.place("3") == "a"
    desk.directory.release("3")
    desk.held = {"a": ["1", "2"], "b": []}
    desk.directory.desert("2")
    orders = desk.beat(3)
    assert (orders["a"].generators, orders["b"].generators, orders["b"].leave) == (1, 1, True)
    desk.directory.stops("b")
    assert desk.beat(3)["a"].generators == 1
    del desk.held["b"]
    assert desk.beat(60)["a"] == Orders(generators=1, decision=2)


def test_if_serve_stops_another_than_was_drained_that_one_gives_its_sessions_away_and_the_drained_one_stays() -> None:
    desk = Desk()
    desk.held = {"a": ["1"], "b": []}
    assert desk.beat(13)["a"].generators == 1
    desk.directory.stops("a")
    orders = desk.beat(1)
    assert (orders["a"].leave, orders["b"].leave) == (True, False)
    assert desk.directory.reserve("1") == "b"
    del desk.held["a"]
    desk.held["b"] = ["1"]
    assert desk.beat(30)["b"] == Orders(generators=1, decision=2)


def test_a_replica_that_is_stopped_for_a_new_version_gives_its_sessions_away_and_is_replaced() -> None:
    desk = Desk(Rules(2, 2))
    desk.held = {"a": ["1"], "b": ["2"]}
    desk.beat(15)
    desk.directory.stops("a")
    orders = desk.beat(1)
    assert (orders["a"].leave, orders["b"].leave, orders["b"].generators) == (True, False, 2)
    desk.directory.goes_on("a")
    assert not desk.beat(1)["a"].leave


def test_what_a_person_drained_is_not_opened_again_and_what_a_person_opens_stays_open() -> None:
    desk = Desk(Rules(1, 2, fleet=RULES.fleet))
    desk.held = {"a": [], "b": []}
    desk.beat(11)
    desk.directory.drain("a")
    desk.held["b"] = ["1", "2", "3", "4"]
    orders = desk.beat(3)
    assert not orders["a"].leave
    assert desk.directory.members["a"].draining
    desk = Desk()
    desk.held = {"a": ["1"], "b": []}
    assert desk.beat(13)["b"].generators == 1
    desk.directory.undrain("b")
    orders = desk.beat(1)
    assert (orders["b"].generators, orders["b"].leave) == (2, False)


def test_sessions_that_come_at_once_are_spread_though_nobody_has_reported_them_yet() -> None:
    desk = Desk(capacity=8)
    desk.held = {"a": [], "b": ["1", "2"]}
    desk.beat(3)
    assert [desk.directory.place(f"new {i}") for i in range(6)] == ["a", "a", "a", "b", "a", "b"]


def test_moves_that_pay_are_ordered_once_and_no_more_than_are_allowed_at_a_time() -> None:
    desk = Desk(replace(RULES, least=2, most=2), capacity=8)
    desk.held = {"a": ["1", "2", "3", "4"], "b": []}
    orders = desk.beat(20)
    assert len(orders["a"].moves) == 1, "the one that was ordered has not arrived"
    (session, to), = orders["a"].moves  # fmt: skip
    assert to == "b"
    desk.held["a"].remove(session)
    desk.directory.desert(session)
    desk.held["b"].append(session)
    later = desk.beat(10)["a"].moves
    assert len(later) == 1
    assert later != orders["a"].moves


def test_the_autoscaler_is_told_the_newest_decision_and_keeps_what_it_has_while_nobody_knows() -> None:
    def series(value: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(value=0.0), SimpleNamespace(value=float(value))]

    def recorded(**told: tuple[int, int]) -> dict[str, dict[str, list[SimpleNamespace]]]:
        """By generator the number and the decision that it was told last, after others."""
        return {name: {g: series(t[i]) for g, t in told.items()} for i, name in enumerate((WANTED, DECISION))}

    context = SimpleNamespace(raw_metrics={}, running_replicas=["a", "b"], target_num_replicas=2)
    assert generators_wanted(context) == (2, {})
    context.raw_metrics = recorded(a=(3, 7), b=(2, 6))
    assert generators_wanted(context)[0] == 3
    context.raw_metrics = recorded(a=(3, 7), b=(2, 8), gone=(5, 9))
    assert generators_wanted(context)[0] == 2
    context.raw_metrics = {"sessions": {"a": []}}
    assert generators_wanted(context)[0] == 2


@pytest.mark.parametrize("given_away", [False, True])
def test_of_a_session_that_nobody_came_back_to_nothing_is_left(given_away: bool) -> None:
    async def test() -> None:
        async with town("kv") as made, gate(made) as (client, _):
            made.settle("first")
            session = (await client.create(BALL))["session"]
            await seen(client, session, 8)
            if given_away:
                await made.hand_over(session)
            await made.kill("first")
            store = made.nodes[0].store
            assert store is not None
            assert store.statistics()["vault_streams" if given_away else "records"] > 0
            made.settle("second")
            follower = Follower(Mover(made), "second", lambda: False, asyncio.Lock())
            follower.follow(Orders(), (session, ""))
            await until(lambda: (store.statistics()["records"], store.statistics()["vault_streams"]) == (0, 0))
            await until(lambda: made.ledger.service.statistics()["sessions"] == 0)
            assert not made.directory.orphans
            with pytest.raises(UnknownSession):
                await client.inspect(session)

    run(test)


def test_a_generator_that_is_told_to_leave_moves_its_watched_sessions_and_they_miss_nothing() -> None:
    async def test() -> None:
        async with town("latents", sessions=3) as made, gate(made) as (client, _):
            made.settle("first")
            names = [(await client.create(BALL, seed=i))["session"] for i in range(2)]
            made.settle("second")
            follower = Follower(Mover(made), "first", lambda: bool(made.named["first"].sessions), asyncio.Lock())
            begun = {2: asyncio.Event()}
            watching = [asyncio.create_task(seen(client, name, 14, begun)) for name in names]
            await begun[2].wait()
            follower.follow(Orders(moves=((names[0], "second"), ("nobody", "second"))))
            await until(lambda: made.directory.find(names[0]) == "second")
            await until(lambda: follower.idle)
            follower.follow(Orders(leave=True, moves=((names[1], "second"),)))
            follower.follow(Orders(leave=True))
            await until(lambda: made.directory.find(names[1]) == "second" and not made.named["first"].sessions)
            assert await asyncio.gather(*watching) == [list(range(14))] * 2

    run(test)

"""Placement and number of generators: never too many in one place, no ping-pong, nothing drained that is needed."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import ConfigError
from scaling.decide import Decisions, decide
from scaling.fleet import needed, resize
from scaling.measuring import Least, StepTimes, Trend, fitted
from scaling.placement import Move, place
from scaling.rules import Balance, Fleet, Rules
from scaling.snapshot import Generator, Session, Snapshot

CHUNK_S = 0.64
COSTS = st.sampled_from([0.02, 0.05, 0.06, 0.11, 0.2])


def fleet(*loads: list[float], places: int = 8, base_s: float = 0.1) -> tuple[Generator, ...]:
    """Generators named ``a``, ``b``, ... with sessions of these costs."""
    return tuple(
        Generator(name, places, base_s, tuple(Session(f"{name}{i}", cost) for i, cost in enumerate(costs)))
        for name, costs in zip("abcdefgh", loads, strict=False)
    )


class World:
    """Generators that do what is decided, with sessions that come, fall silent and go."""

    def __init__(self, rules: Rules, places: int) -> None:
        self.rules, self.places, self.now = rules, places, 0.0
        self.homes: dict[str, dict[str, Session]] = {f"g{i}": {} for i in range(rules.least)}
        self.draining: set[str] = set()
        self.waiting: dict[str, Session] = {}
        self.moved: dict[str, float] = {}
        self.starting: list[str] = []
        self.made, self.out, self.into = rules.least, -math.inf, -math.inf

    def snapshot(self) -> Snapshot:
        generators = tuple(
            Generator(
                name,
                self.places,
                0.1,
                tuple(replace(s, settled_s=self.now - self.moved.get(n, -math.inf)) for n, s in held.items()),
                draining=name in self.draining,
            )
            for name, held in self.homes.items()
        )
        waiting = tuple(self.waiting.values())
        since = (self.now - self.out, self.now - self.into)
        return Snapshot(CHUNK_S, generators, waiting, len(self.starting), 0, 0.0, *since)

    def carry_out(self, decided: Decisions) -> None:
        resized = decided.fleet
        if resized.add or resized.reopen:
            self.out = self.now
        if resized.drain:
            self.into = self.now
        self.draining = (self.draining | set(resized.drain)) - set(resized.reopen)
        for name in resized.remove:
            assert not self.homes.pop(name), "a generator with sessions was ended"
            self.draining.discard(name)
        for _ in range(resized.add):
            self.starting.append(f"g{self.made}")
            self.made += 1
        for placed in decided.placed:
            self.homes[placed.to][placed.session] = self.waiting.pop(placed.session)
        for move in decided.moves:
            assert self.now - self.moved.get(move.session, -math.inf) >= self.rules.balance.settle_s
            self.homes[move.to][move.session] = self.homes[move.source].pop(move.session)
            self.moved[move.session] = self.now

    def started(self) -> None:
        for name in self.starting:
            self.homes[name] = {}
        self.starting.clear()

    def check(self) -> None:
        assert all(len(held) <= self.places for held in self.homes.values())
        assert self.rules.least <= len(self.homes) + len(self.starting) <= self.rules.most


RULES = st.builds(
    lambda least, more, moves, gain: Rules(
        least, least + more, Balance(1.0, 30.0, gain, 20.0, moves), Fleet(start_s=10.0, out_s=5.0, in_s=30.0)
    ),
    st.integers(1, 2),
    st.integers(0, 4),
    st.integers(1, 3),
    st.sampled_from([0.03, 0.1]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), COSTS),
        st.tuples(st.sampled_from(["go", "idle", "wake"]), st.integers(0, 40)),
        st.tuples(st.just("wait"), st.sampled_from([1.0, 7.0, 40.0])),
    ),
    max_size=50,
)


def act(world: World, kind: str, value: float, number: int) -> None:
    """One thing that happens to a world."""
    held = [(home, name) for home in world.homes.values() for name in home]
    if kind == "come":
        world.waiting[f"s{number}"] = Session(f"s{number}", value)
    elif kind == "wait":
        world.now += value
        world.started()
    elif held:
        home, name = held[int(value) % len(held)]
        if kind == "go":
            del home[name]
        else:
            home[name] = replace(home[name], activity=float(kind == "wake"))


@settings(max_examples=150, deadline=None)
@given(RULES, st.integers(1, 6), STEPS)
def test_whatever_comes_no_place_is_given_twice_nobody_moves_too_often_and_the_bounds_hold(
    rules: Rules, places: int, steps: list[tuple[str, float]]
) -> None:
    world = World(rules, places)
    for number, (kind, value) in enumerate(steps):
        act(world, kind, value, number)
        before = world.snapshot()
        decided = decide(before, rules)
        assert decide(before, rules) == decided
        assert len(decided.moves) <= rules.balance.moves
        assert len({m.session for m in decided.moves}) == len(decided.moves)
        left = len(before.open) - len(decided.fleet.drain)
        if decided.fleet.drain:
            assert left >= rules.least
            assert left * places >= sum(len(g.sessions) for g in before.generators) + len(before.waiting)
        world.carry_out(decided)
        world.check()


@settings(max_examples=150, deadline=None)
@given(RULES, st.integers(2, 6), STEPS)
def test_on_a_load_that_stays_decisions_come_to_an_end(
    rules: Rules, places: int, steps: list[tuple[str, float]]
) -> None:
    world = World(rules, places)
    for number, (kind, value) in enumerate(steps):
        act(world, kind, value, number)
        world.carry_out(decide(world.snapshot(), rules))
    quiet = 0
    for _ in range(400):
        world.now += 31.0
        world.started()
        decided = decide(world.snapshot(), rules)
        quiet = 0 if decided.moves or decided.fleet != resize_nothing() or decided.placed else quiet + 1
        world.carry_out(decided)
        if quiet == 5:
            break
    assert quiet == 5, "sessions or generators go to and fro"
    assert not world.waiting or len(world.homes) == rules.most


def resize_nothing() -> object:
    return decide(Snapshot(CHUNK_S, fleet([])), Rules()).fleet


@given(st.lists(st.lists(COSTS, max_size=7), min_size=2, max_size=6), st.integers(1, 8))
def test_evening_out_never_makes_the_slowest_chunk_slower(loads: list[list[float]], moves: int) -> None:
    generators = fleet(*loads)
    rules = Rules(len(loads), len(loads), Balance(moves=moves))
    before = Snapshot(CHUNK_S, generators)
    homes = {g.name: {s.name: s for s in g.sessions} for g in generators}
    for move in decide(before, rules).moves:
        slow = max(sum(s.cost_s for s in homes[n].values()) for n in (move.source, move.to))
        homes[move.to][move.session] = homes[move.source].pop(move.session)
        assert max(sum(s.cost_s for s in homes[n].values()) for n in (move.source, move.to)) < slow
    after = Snapshot(CHUNK_S, tuple(replace(g, sessions=tuple(homes[g.name].values())) for g in generators))
    assert after.worst_s <= before.worst_s


@given(st.lists(COSTS, min_size=1, max_size=10), st.integers(2, 4))
def test_many_moves_come_near_the_best_partition_that_exists(costs: list[float], generators: int) -> None:
    """The reference tries everything: within half a session of the best, as one move at a time can be."""
    assume_small = costs[:7]
    rules = Rules(generators, generators, Balance(gain=0.001, horizon_s=1e6, moves=100))
    now = Snapshot(CHUNK_S, fleet(assume_small, *[[]] * (generators - 1), places=10, base_s=0.0))
    while moves := decide(now, rules).moves:
        now = moved(now, moves)
    fullest = max(sum(s.cost_s for s in g.sessions) for g in now.generators)
    assert fullest <= best_partition(assume_small, generators) + max(assume_small) / 2 + 1e-9


def moved(snapshot: Snapshot, moves: tuple[Move, ...]) -> Snapshot:
    """When all moves are done."""
    homes = {g.name: {s.name: s for s in g.sessions} for g in snapshot.generators}
    for move in moves:
        homes[move.to][move.session] = homes[move.source].pop(move.session)
    return replace(
        snapshot, generators=tuple(replace(g, sessions=tuple(homes[g.name].values())) for g in snapshot.generators)
    )


def test_a_generator_takes_part_in_one_move_at_a_time() -> None:
    generators = fleet([0.1] * 6, [0.1] * 6, [], [0.02])
    rules = Rules(4, 4, Balance(moves=8))
    moves = decide(Snapshot(CHUNK_S, generators), rules).moves
    assert [(move.source, move.to) for move in moves] == [("a", "c"), ("b", "d")]
    busy = tuple(replace(g, moving=g.name in "ac") for g in generators)
    assert [(move.source, move.to) for move in decide(Snapshot(CHUNK_S, busy), rules).moves] == [("b", "d")]


def best_partition(costs: list[float], generators: int) -> float:
    """The least possible load of the fullest, by trying all."""
    loads = {(0.0,) * generators}
    for cost in costs:
        loads = {
            tuple(sorted((*one[:i], round(one[i] + cost, 6), *one[i + 1 :]))) for one in loads for i in range(len(one))
        }
    return min(one[-1] for one in loads)


def test_a_session_goes_where_it_makes_the_slowest_chunk_least_slow_not_where_fewest_are() -> None:
    snapshot = Snapshot(CHUNK_S, fleet([0.2, 0.2], [0.05, 0.05, 0.05]))
    assert place(snapshot, Session("new", 0.1)) == "b"
    assert place(Snapshot(CHUNK_S, fleet([0.2] * 8, [0.2] * 8)), Session("new", 0.1)) is None


def test_a_move_is_made_when_it_pays_and_not_when_the_session_would_stand_still_for_longer_than_it_saves() -> None:
    snapshot = Snapshot(CHUNK_S, fleet([0.1, 0.1, 0.1, 0.1], [0.1]))
    rules = Rules(2, 2, Balance(move_s=1.0, horizon_s=30.0, moves=2))
    assert decide(snapshot, rules).moves == (Move("a0", "a", "b"),)
    assert (
        decide(snapshot, Rules(2, 2, Balance(move_s=6.0, horizon_s=30.0, moves=2))).moves == ()
    )  # 0.1 s of 46 chunks: 4.7 s
    assert decide(replace(snapshot, moving=2), rules).moves == ()


def test_idle_sessions_weigh_what_they_are_expected_to() -> None:
    one = Session("idle", 0.4, activity=0.25)
    assert Generator("a", 4, 0.1, (one, Session("busy", 0.1))).latency_s == pytest.approx(0.3)
    assert Generator("a", 4, 0.1, (replace(one, activity=0.0),)).latency_s == 0.0


def test_generators_are_added_before_slack_is_gone_and_no_more_while_they_start() -> None:
    rules = Rules(1, 8)
    full = Snapshot(CHUNK_S, fleet([0.1] * 4))  # 0.5 s of 0.512 s
    assert resize(full, rules).add == 0
    assert resize(replace(full, growth=0.004), rules).add == 1  # 0.12 s more in the 30 s that one takes to start
    assert resize(replace(full, waiting=(Session("w", 0.1),)), rules).add == 1
    assert resize(replace(full, waiting=(Session("w", 0.1),), starting=1), rules).add == 0
    assert resize(replace(full, waiting=(Session("w", 0.1),), since_out_s=1.0), rules).add == 0
    assert resize(replace(full, growth=1e9), rules).add == 7


def test_chunks_that_come_close_to_their_deadlines_ask_for_a_generator_unless_steps_are_short() -> None:
    rules = Rules(1, 4)
    late = Snapshot(CHUNK_S, tuple(replace(g, slack_s=0.05) for g in fleet([0.2])))
    assert resize(late, rules).add == 1
    assert resize(replace(late, since_out_s=20.0), rules).add == 0  # the one that was added has not come yet
    assert not resize(replace(late, generators=late.generators + fleet([], [])[1:]), Rules(1, 2)).drain
    slow_network = Snapshot(CHUNK_S, tuple(replace(g, slack_s=-9.0) for g in fleet([0.05])))
    assert resize(slow_network, rules).add == 0


def test_the_emptiest_is_drained_unless_another_would_be_taken_away_and_comes_back_before_one_is_started() -> None:
    rules = Rules(1, 4)
    quiet = Snapshot(CHUNK_S, fleet([0.1], [], [0.1]))
    assert resize(quiet, rules).drain == ("b",)
    assert resize(replace(quiet, since_in_s=10.0), rules).drain == ()
    ranked = tuple(replace(g, leaves=rank) for g, rank in zip(quiet.generators, (2, 1, 0), strict=True))
    assert resize(replace(quiet, generators=ranked), rules).drain == ("c",)
    drained = tuple(replace(g, draining=g.name == "b") for g in fleet([0.1] * 4, [0.1], places=8))
    resized = resize(Snapshot(CHUNK_S, drained), rules)
    assert (resized.add, resized.reopen) == (0, ("b",))
    assert resize(Snapshot(CHUNK_S, (drained[0], replace(drained[1], sessions=()))), rules).reopen == ()
    assert resize(Snapshot(CHUNK_S, (drained[0], replace(drained[1], sessions=()))), rules).remove == ("b",)


@given(st.lists(COSTS, max_size=20), st.integers(1, 6))
def test_needed_is_the_least_number_whose_fullest_is_fast_enough(costs: list[float], places: int) -> None:
    """Against trying: sessions of equal cost dealt out evenly."""
    mean = sum(costs) / len(costs) if costs else 0.1
    snapshot = Snapshot(CHUNK_S, fleet([mean] * len(costs), places=places))
    count = needed(snapshot, 0.8, 1.0, 0.0)

    def enough(n: int) -> bool:
        most = math.ceil(len(costs) / n)
        return most <= places and (most <= 1 or 0.1 + most * mean <= 0.8 * CHUNK_S + 1e-9)

    assert count == 0 or enough(count)
    assert count <= 1 or not enough(count - 1)


def test_step_times_give_back_the_line_they_came_from_and_never_a_cost_below_nothing() -> None:
    times = StepTimes()
    assert times.line() == (0.0, 0.0)
    for sessions in (1, 2, 4):
        for _ in range(40):
            times.observe(sessions, 0.1 + 0.05 * sessions)
    base, each = times.line()
    assert (base, each) == (pytest.approx(0.1), pytest.approx(0.05))
    assert fitted({2: 0.3}) == (0.0, pytest.approx(0.15))
    assert fitted({1: 0.4, 4: 0.2}) == (0.0, pytest.approx(0.12))


def test_a_trend_follows_what_grows_and_forgets_what_has_stopped() -> None:
    trend = Trend(over_s=10.0)
    for second in range(100):
        trend.observe(float(second), 0.5 * second)
    assert trend.rate == pytest.approx(0.5, rel=1e-3)
    for second in range(100, 200):
        trend.observe(float(second), 50.0)
    assert trend.rate == pytest.approx(0.0, abs=1e-3)


@given(st.lists(st.tuples(st.floats(0.1, 4.0), st.floats(-5.0, 5.0)), min_size=1, max_size=40))
def test_the_least_is_that_of_the_last_ten_seconds_or_of_up_to_twice_as_many(steps: list[tuple[float, float]]) -> None:
    least, seen, now = Least(10.0), [], 0.0
    assert least.value(0.0) == math.inf
    for wait, value in steps:
        now += wait
        least.observe(now, value)
        seen.append((now, value))
        found = least.value(now)
        assert found <= min(v for t, v in seen if now - t < 10.0)
        assert found >= min(v for t, v in seen if now - t <= 24.0)
    assert least.value(now + 40.0) == math.inf


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Rules(2, 1), "at least 2, at most 1"),
        (lambda: Fleet(calm=0.9, busy=0.8), "generators would come and go"),
        (lambda: Fleet(share=0.0), r"fleet\.share"),
        (lambda: Fleet(in_s=-1.0), r"fleet\.in_s"),
        (lambda: Balance(gain=0.0), r"balance\.gain"),
        (lambda: Balance(moves=-1), r"balance\.moves"),
        (lambda: Balance(settle_s=0.0), r"balance\.settle_s"),
    ],
)
def test_rules_that_make_no_sense_are_refused(wrong: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        wrong()  # type: ignore[operator]

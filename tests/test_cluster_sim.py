"""The simulated cluster: what it counts is what its costs say, and everybody is given the same trace."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.cluster_costs import Costs, measured
from bench.cluster_run import provisioned, run
from bench.cluster_sim import FIXED_NAME, contenders, rules
from bench.cluster_state import DRAINING, OFF, OPEN, Cluster, Contender
from bench.cluster_trace import ARRIVE, AWAY, END, REST, WAKE, Shape, Trace, draw

COSTS = Costs(start_s=10.0)
SHAPE = Shape(seconds=900.0, calm_rate=0.1, calm_s=300.0, burst_s=100.0)


def always(costs: list[float]) -> Trace:
    """Sessions that come at once and never rest."""
    count = len(costs)
    return Trace(np.array(costs), np.zeros(count), np.full(count, ARRIVE), np.arange(count))


def test_a_step_takes_what_the_line_says_and_a_fixed_session_stays_where_it_came() -> None:
    outcome = run(always([1.0, 1.0, 2.0]), COSTS, Contender("", fixed=2), 700.0)
    assert outcome.worst_s == pytest.approx(COSTS.base_s + 3 * COSTS.each_s)  # of three on two GPUs one has two
    assert outcome.gpu_hours == pytest.approx(2 * 100 / 3600, rel=0.02)
    assert (outcome.moves, outcome.misses, outcome.peak) == (0, 0.0, 2)


def test_one_gpu_with_too_much_makes_its_viewers_run_dry_and_two_do_not() -> None:
    trace = always([1.0] * 14)
    assert run(trace, COSTS, Contender("", fixed=1), 700.0).misses > 0.5
    assert run(trace, COSTS, Contender("", fixed=2), 700.0).misses == 0.0


def test_who_finds_no_place_waits_and_its_chunks_are_late() -> None:
    outcome = run(always([0.1] * 17), COSTS, Contender("", fixed=1), 700.0)
    assert outcome.waits > 0
    assert outcome.misses == pytest.approx(1 / 17, rel=0.05)


def test_the_same_seed_gives_the_same_outcome_and_every_contender_the_same_sessions() -> None:
    first, again = draw(SHAPE, 10.0, 3), draw(SHAPE, 10.0, 3)
    assert np.array_equal(first.when, again.when)
    for who in contenders(first, COSTS):
        assert run(first, COSTS, who, SHAPE.seconds) == run(again, COSTS, who, SHAPE.seconds)
    assert not np.array_equal(first.when[:50], draw(SHAPE, 10.0, 4).when[:50])


def test_a_session_comes_once_rests_before_it_wakes_and_nothing_follows_its_end() -> None:
    trace = draw(SHAPE, 10.0, 5)
    follows = {ARRIVE: {REST, END}, WAKE: {REST, END}, REST: {AWAY, WAKE, END}, AWAY: {WAKE, END}, END: set()}
    last: dict[int, int] = {}
    for what, who in zip(trace.what, trace.who, strict=True):
        assert what == ARRIVE if who not in last else what in follows[last[who]]
        last[who] = what
    assert set(last) == set(range(len(trace.cost)))
    assert np.all(np.diff(trace.when) >= 0)


def test_bursts_change_when_sessions_come_and_not_how_many() -> None:
    for burst in (1.0, 3.0, 12.0):
        assert SHAPE.burstier(burst).mean_rate == pytest.approx(SHAPE.mean_rate)


def test_no_gpu_has_more_sessions_than_places_and_none_is_switched_off_with_any() -> None:
    trace, costs = draw(SHAPE, 10.0, 6), replace(COSTS, places=5)
    cluster, event = Cluster(trace, costs, Contender("", rules=rules(costs)), 0), 0
    states = set()
    for number in range(1400):
        now = number * costs.chunk_s
        while event < len(trace.when) and trace.when[event] <= now:
            cluster.happen(int(trace.what[event]), int(trace.who[event]))
            event += 1
        cluster.settle(now)
        if number % 4 == 0:
            cluster.steer(now)
        cluster.chunk(now)
        copied = np.bincount(cluster.to[cluster.to >= 0], minlength=len(cluster.state))
        taken = copied + np.bincount(cluster.home[cluster.here], minlength=len(cluster.state))
        assert taken.max() <= 5
        assert not taken[(cluster.state != OPEN) & (cluster.state != DRAINING)].any()
        states |= set(cluster.state)
    assert {OFF, OPEN, DRAINING} <= states
    assert cluster.moves > 0


def test_who_moves_is_copied_first_which_lengthens_both_steps_and_stands_still_then() -> None:
    costs = replace(COSTS, copy_s=3 * COSTS.chunk_s, copy_step_s=0.01, move_s=0.5)
    cluster = Cluster(always([1.0, 1.0, 1.0]), costs, Contender("", rules=rules(costs), moves=False), 0)
    for who, home in enumerate((0, 0, 1)):
        cluster.happen(ARRIVE, who)
        del cluster.waiting[who]
        cluster.home[who], cluster.here[who] = home, True
    cluster._move(0, 1, 0.0)
    plain, each = costs.base_s, costs.each_s
    steps = []
    for number in range(6):
        chunks = cluster.chunk(number * costs.chunk_s)
        steps.append((round(float(chunks.step[0]), 6), round(float(chunks.step[1]), 6), 0 in chunks.made))
    copied = (round(plain + 2 * each + 0.01, 6), round(plain + each + 0.01, 6), True)
    still = (round(plain + each, 6), round(plain + each, 6), False)
    gone = (round(plain + each, 6), round(plain + 2 * each, 6), True)
    assert steps == [copied, copied, copied, still, gone, gone]
    assert cluster.standing_s == 0.5


def test_the_fixed_cluster_is_as_large_as_the_peak_needs() -> None:
    trace = draw(SHAPE, 10.0, 7)
    count = provisioned(trace, COSTS, 0.8)
    fewest = next(c for c in contenders(trace, COSTS) if c.name == FIXED_NAME)
    assert fewest.fixed == count > provisioned(trace, COSTS, 1.0) - 1
    assert provisioned(trace, COSTS, 0.4) > count


def test_costs_say_where_they_are_from_and_a_file_replaces_them(tmp_path: Path) -> None:
    found = measured(None)
    assert set(found.sources) >= {"solo_s", "base_share", "move_s", "start_s", "places"}
    assert found.base_s + found.each_s == pytest.approx(found.solo_s)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"solo_s": 0.3}))
    assert measured(file).solo_s == 0.3
    assert measured(file).sources["solo_s"] == "given: mine.json"
    file.write_text(json.dumps({"solo": 0.3}))
    with pytest.raises(SystemExit, match="solo; expected keys of Costs"):
        measured(file)

"""The session directory: places are promised once, generators that are silent are forgotten."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.directory import BEAT_S, DOUBT_S, END_AGAIN_S, ENDS, FIRST_S, ORPHAN_S, SILENCE_S, SessionDirectory
from actors.vault import HostVault
from errors import NoCapacity, RecordLost, ServiceError, UnknownSession


def held(*sessions: str, on: bool = True, owner: str = "") -> list[dict[str, Any]]:
    return [{"session": s, "owner": owner, "on": on, "state": "running"} for s in sessions]


@given(st.lists(st.sampled_from(["place", "report", "release"]), max_size=60), st.integers(1, 4))
def test_no_generator_is_ever_promised_more_than_it_has_places_and_placement_is_even(
    steps: list[str], capacity: int
) -> None:
    now = [0.0]
    directory = SessionDirectory(clock=lambda: now[0])
    truth: dict[str, set[str]] = {"a": set(), "b": set(), "c": set()}
    for name in truth:
        directory.report(name, capacity, [])
    for number, step in enumerate(steps):
        session = f"s{number}"
        if step == "place":
            try:
                home = directory.place(session)
            except NoCapacity:
                assert all(len(s) == capacity for s in truth.values())
                continue
            assert len(truth[home]) == min(map(len, truth.values()))
            truth[home].add(session)
            assert directory.find(session) == home
        elif step == "report":
            for name, sessions in truth.items():
                directory.report(name, capacity, held(*sessions))
        elif gone := next((s for sessions in truth.values() for s in sessions), ""):
            directory.release(gone)
            for sessions in truth.values():
                sessions.discard(gone)
            assert directory.find(gone) is None
        assert all(len(s) <= capacity for s in truth.values())


def test_a_generator_that_is_silent_is_forgotten_with_its_sessions() -> None:
    now = [0.0]
    directory = SessionDirectory(silence_s=5.0, clock=lambda: now[0])
    directory.report("a", 1, held("one"))
    directory.report("b", 1, held("two"))
    now[0] = 4.0
    directory.report("b", 1, held("two"))
    now[0] = 6.0
    assert directory.find("one") is None
    assert directory.find("two") == "b"
    with pytest.raises(NoCapacity, match="1 places of 1 generators"):
        directory.place("three")
    now[0] = 60.0
    with pytest.raises(NoCapacity, match="no generator has reported"):
        directory.place("three")


def test_a_generator_is_buried_early_only_if_it_is_both_silent_and_said_to_be_dead() -> None:
    now, dead, asked = [0.0], set[str](), list[str]()

    def lives(actor: str) -> bool:
        asked.append(actor)
        return actor not in dead

    directory = SessionDirectory(clock=lambda: now[0], lives=lives)
    directory.report("a", 1, held("one"), actor="a's")
    directory.report("b", 1, held("two"), actor="b's")
    dead |= {"a's", "b's"}  # as the cluster may say of the living, for a moment
    now[0] = DOUBT_S
    assert (directory.find("one"), directory.find("two"), asked) == ("a", "b", [])
    directory.report("b", 1, held("two"), actor="b's")
    now[0] += BEAT_S / 2
    assert (directory.find("one"), directory.find("two")) == (None, "b")
    assert asked == ["a's"]
    assert directory.rescue("two") == ("b", False)
    dead.clear()
    now[0] += SILENCE_S - BEAT_S  # late, and said to live
    assert directory.find("two") == "b"
    now[0] += BEAT_S
    assert directory.find("two") is None


def test_a_generator_that_is_not_said_to_live_and_reports_again_has_its_sessions_still() -> None:
    now = [0.0]
    directory = SessionDirectory(clock=lambda: now[0], lives=lambda _: False)
    for beat in range(20):
        now[0] = beat * DOUBT_S
        directory.report("a", 1, held("one"), actor="a's")
        now[0] += DOUBT_S
        assert directory.find("one") == "a"
    assert not directory.orphans


def test_a_directory_that_begins_anew_says_of_nobody_that_there_is_none_before_all_have_reported() -> None:
    now = [100.0]
    directory = SessionDirectory(clock=lambda: now[0], first_s=FIRST_S)
    with pytest.raises(ServiceError, match="has just begun"):
        directory.rescue("one")
    directory.report("a", 2, held("one"))
    assert directory.rescue("one") == ("a", False)
    now[0] += FIRST_S
    directory.report("a", 2, held("one"))
    with pytest.raises(UnknownSession):
        directory.rescue("two")


def test_a_session_that_was_lost_together_with_the_directory_is_taken_over_from_its_books() -> None:
    directory = SessionDirectory(booked=lambda session: session == "booked")
    directory.report("a", 1, [])
    assert directory.rescue("booked") == ("a", True)
    with pytest.raises(UnknownSession):
        directory.rescue("nobody's")
    assert directory.places() == {"a": {"capacity": 1, "taken": 1}}


def test_while_the_directory_waits_for_the_books_nobody_is_silent() -> None:
    now = [0.0]

    def booked(session: str) -> bool:
        now[0] += SILENCE_S / 4
        raise ServiceError("the shard does not answer")

    directory = SessionDirectory(clock=lambda: now[0], booked=booked, lives=lambda _: False)
    directory.report("a", 1, held("one"), actor="a's")
    for number in range(8):
        with pytest.raises(ServiceError, match="does not answer"):
            directory.rescue(f"lost {number}")
    assert directory.find("one") == "a"
    assert not directory.orphans
    now[0] += SILENCE_S + 1  # it could have been heard in this time
    assert directory.find("one") is None


def test_a_session_goes_only_where_its_model_and_configuration_are() -> None:
    directory = SessionDirectory(clock=lambda: 0.0)
    mine = [{**held("one")[0], "identity": "old"}]
    directory.report("a", 2, mine, identity="old")
    directory.report("new", 2, [], identity="new")
    with pytest.raises(NoCapacity, match="that can go on with it"):
        directory.reserve("one")
    with pytest.raises(NoCapacity):
        directory.refuge("a")
    directory.bury("a")
    with pytest.raises(NoCapacity, match="another model"):
        directory.rescue("one")
    assert directory.place("another") == "new"
    directory.report("b", 2, [], identity="old")
    assert directory.rescue("one") == ("b", True)


def test_who_is_put_away_takes_no_place_and_owners_see_their_own() -> None:
    directory = SessionDirectory()
    directory.report("a", 1, held("one", on=False, owner="me"))
    assert directory.place("two") == "a"
    assert [s["session"] for s in directory.listing("me")] == ["one"]
    assert directory.listing("you") == []
    assert directory.places() == {"a": {"capacity": 1, "taken": 1}}


def test_a_promise_that_is_not_kept_is_taken_back() -> None:
    now = [0.0]
    directory = SessionDirectory(clock=lambda: now[0])
    directory.report("a", 1, [])
    directory.place("lost")
    now[0] = 61.0
    directory.report("a", 1, [])
    assert directory.find("lost") is None
    assert directory.place("next") == "a"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60)), max_size=40))
def test_the_vault_never_holds_more_than_its_bytes_and_loses_nothing_silently(steps: list[tuple[str, int]]) -> None:
    vault = HostVault(100)
    truth: dict[str, bytes] = {}
    for name, size in steps:
        if size == 0:
            vault.drop(name)
            truth.pop(name, None)
            continue
        try:
            vault.put(name, bytes(size))
            truth[name] = bytes(size)
        except NoCapacity:
            assert sum(map(len, truth.values())) - len(truth.get(name, b"")) + size > 100
        assert vault.bytes_held == sum(map(len, truth.values())) <= 100
    for name in "abc":
        if name in truth:
            assert vault.take(name) == truth[name]
        else:
            with pytest.raises(RecordLost):
                vault.take(name)


def test_the_sessions_of_a_generator_that_has_gone_are_orphans_until_somebody_asks_for_them() -> None:
    now = [0.0]
    directory = SessionDirectory(silence_s=5.0, clock=lambda: now[0])
    directory.report("a", 2, held("one", owner="me"))
    directory.report("b", 2, [])
    assert directory.rescue("one") == ("a", False)
    directory.bury("a")
    assert directory.find("one") is None
    assert directory.listing("me")[0]["state"] == "paused"
    assert directory.listing("you") == []
    assert directory.rescue("one") == ("b", True)
    assert directory.rescue("one") == ("b", True)
    directory.report("b", 2, held("one", owner="me"))
    assert directory.rescue("one") == ("b", False)
    assert directory.listing("me")[0]["state"] == "running"
    with pytest.raises(UnknownSession):
        directory.rescue("nobody")


def test_a_generator_that_was_only_slow_does_not_get_its_sessions_back() -> None:
    directory = SessionDirectory(clock=lambda: 0.0)
    directory.report("slow", 2, held("one", "two"))
    directory.report("b", 1, [])
    directory.bury("slow")
    assert directory.rescue("one") == ("b", True)
    directory.report("b", 1, held("one"))
    directory.report("slow", 2, held("one", "two"))
    assert directory.find("one") == "b"
    assert directory.find("two") == "slow"
    assert directory.places() == {"b": {"capacity": 1, "taken": 1}, "slow": {"capacity": 2, "taken": 1}}


def test_an_orphan_that_cannot_be_taken_over_now_stays_one_and_one_that_is_over_does_not() -> None:
    now = [0.0]
    directory = SessionDirectory(silence_s=1e9, clock=lambda: now[0])
    directory.report("a", 2, [*held("one", "two"), {"session": "done", "owner": "", "on": True, "state": "finished"}])
    directory.report("b", 1, [])
    directory.bury("a")
    assert set(directory.orphans) == {"one", "two"}
    assert directory.rescue("one") == ("b", True)
    with pytest.raises(NoCapacity):
        directory.rescue("two")
    directory.unplace("one")
    assert directory.rescue("two") == ("b", True)
    directory.release("two")
    with pytest.raises(UnknownSession):
        directory.rescue("two")
    assert directory.rescue("one") == ("b", True)
    directory.report("b", 1, held("one"))
    directory.desert("one")
    assert directory.rescue("one") == ("b", True)
    directory.desert("one")  # promised only: there is nothing to give away
    assert set(directory.orphans) == {"one"}


def test_an_orphan_that_nobody_asks_for_is_ended_by_one_that_can_go_on_with_it_and_forgotten_at_last() -> None:
    now = [0.0]
    directory = SessionDirectory(silence_s=1e9, clock=lambda: now[0])
    directory.report("a", 2, [{**held("one", owner="me")[0], "identity": "model"}], identity="model")
    directory.desert("one")
    now[0] = ORPHAN_S
    assert directory.report("a", 2, [], identity="model").over is None
    now[0] += 1.0
    assert directory.report("b", 2, [], identity="another").over is None
    directory.drain("a")
    assert directory.report("a", 2, [], identity="model").over is None
    directory.undrain("a")
    for _ in range(ENDS):
        assert directory.report("a", 2, [], identity="model").over == ("one", "me")
        assert directory.report("a", 2, [], identity="model").over is None
        assert directory.rescue("one") == ("a", True)
        directory.unplace("one")
        now[0] += 1.0 + END_AGAIN_S
    assert directory.report("a", 2, [], identity="model").over is None
    assert not directory.orphans

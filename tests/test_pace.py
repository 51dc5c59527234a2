"""Pace: what one viewer may have, who is waited for, and whose clock decides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.pace import Pace, Viewer, deadline, has_room, slowest
from errors import BadMessage, ConfigError

PACE = Pace(lead=3, kept=10)


@given(st.lists(st.tuples(st.integers(-3, 30), st.integers(-2, 14), st.booleans()), max_size=40))
def test_a_viewer_is_never_sent_more_than_it_acknowledged_plus_its_credits(steps: list[tuple[int, int, bool]]) -> None:
    viewer = Viewer(-1, 2, 0.0)
    for chunk, offered, sends in steps:
        before = (viewer.acked, viewer.credits, viewer.sent)
        try:
            viewer.acknowledge(chunk, offered, None, 1.0, PACE)
            assert before[0] <= chunk <= before[2]
            assert 0 <= offered <= PACE.kept
        except BadMessage:
            assert before == (viewer.acked, viewer.credits, viewer.sent)
            assert not (before[0] <= chunk <= before[2] and 0 <= offered <= PACE.kept)
        if sends and viewer.sent < viewer.window:
            viewer.sent += 1
        assert viewer.acked <= viewer.sent
        assert viewer.sent - viewer.acked <= PACE.kept


@given(st.integers(0, 50), st.lists(st.integers(-1, 50), max_size=4), st.integers(-1, 50))
def test_generation_runs_ahead_of_the_slowest_viewer_by_the_lead_at_most(
    next_chunk: int, acked: list[int], base: int
) -> None:
    viewers = [Viewer(a, 1, 0.0) for a in acked]
    floor = min(acked) if acked else base
    assert has_room(next_chunk, base, viewers, PACE) == (next_chunk - floor <= PACE.lead)
    assert slowest(viewers) is None if not acked else slowest(viewers).acked == floor  # type: ignore[union-attr]


def test_the_deadline_is_when_the_first_viewer_runs_dry() -> None:
    player = Viewer(9, 4, heard=100.0, buffered=2.0)
    assert deadline(10, [player], 0.5) == 102.0
    assert deadline(12, [player], 0.5) == 103.0
    late = Viewer(9, 4, heard=100.0, buffered=0.25)
    file = Viewer(3, 4, heard=100.0)
    assert deadline(10, [player, file, late], 0.5) == 100.25
    assert deadline(10, [file], 0.5) == float("inf")
    assert deadline(10, [], 0.5) == float("inf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"lead": 0}, "pace.lead is 0"), ({"kept": 2}, "pace.kept is 2"), ({"idle_s": 0.0}, "pace.idle_s is 0.0")],
)
def test_a_pace_that_cannot_be_kept_is_named(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Pace(**changes)  # type: ignore[arg-type]

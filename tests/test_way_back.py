"""Which way back is sooner: predictions from measurements, and from guesses until there are any."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.way_back import TIERS, Prospect, WayBack, WayBackConfig
from errors import ConfigError

CONFIG = WayBackConfig(latency_s=0.001, bytes_s={"host": 10e9}, elsewhere_bytes_s=1e9, encode_s=0.1)
MB = 1_000_000


def prospect(nbytes: int, tier: str = "disk", **known: int | bool) -> Prospect:
    return Prospect(7, tier, nbytes, unpack_bytes=nbytes, **known)  # type: ignore[arg-type]


def test_the_sooner_way_is_taken_and_both_predictions_are_said() -> None:
    made = WayBack(CONFIG)
    assert str(made.choose(prospect(50 * MB))) == "load: load from disk 61.0 ms, rebuild 100.0 ms"
    assert str(made.choose(prospect(500 * MB))) == "rebuild: load from disk 601.0 ms, rebuild 100.0 ms"
    assert str(made.choose(prospect(500 * MB, "host"))) == "rebuild: load from host 151.0 ms, rebuild 100.0 ms"
    alone = made.choose(prospect(500 * MB, latents=False))
    assert str(alone) == "load: load from disk 601.0 ms, nothing to rebuild from"


def test_what_is_ahead_counts_on_both_ways() -> None:
    made = WayBack(CONFIG)
    assert made.choose(prospect(50 * MB, ahead_bytes=200 * MB)).way == "rebuild"
    assert made.choose(prospect(50 * MB, ahead_bytes=200 * MB, ahead_chunks=2)).way == "load"


def test_a_rebuild_must_be_clearly_sooner_for_what_is_loaded_is_exact() -> None:
    made = WayBack(CONFIG)
    assert made.choose(prospect(100 * MB)).way == "load"  # 121 ms against 100
    assert made.choose(prospect(110 * MB)).way == "rebuild"  # 133 ms


def test_measurements_replace_guesses_and_one_hiccup_does_not_turn_the_choice() -> None:
    made = WayBack(CONFIG)
    for _ in range(40):
        made.loaded("disk", 100 * MB, 0.026)
    assert made.load_s(prospect(100 * MB)) == pytest.approx(0.046, abs=0.001)
    made.loaded("disk", 100 * MB, 10.0)  # somebody else had the processor
    assert made.choose(prospect(100 * MB)).way == "load"
    for _ in range(10):
        made.loaded("disk", 100 * MB, 1.0)
    assert made.choose(prospect(100 * MB)).way == "rebuild"


def test_small_fetches_teach_the_latency_and_large_ones_the_bandwidth() -> None:
    made = WayBack(CONFIG)
    for _ in range(60):
        made.loaded("disk", 1000, 0.005)
        made.loaded("disk", 100 * MB, 0.055)
    latency, speed = made.statistics().tiers["disk"]
    assert latency == pytest.approx(0.005, rel=0.01)
    assert speed == pytest.approx(2e9, rel=0.02)


def test_a_way_that_was_slow_once_is_tried_again() -> None:
    made = WayBack(CONFIG)
    for _ in range(30):
        made.loaded("disk", 50 * MB, 5.0)
    ways = [made.choose(prospect(50 * MB)).way for _ in range(400)]
    assert ways[0] == "rebuild"
    assert ways[-1] == "load"


def test_a_pass_of_the_model_is_the_first_guess_of_an_encoding_and_no_more() -> None:
    made = WayBack(CONFIG)
    made.passed(0.02)
    assert made.rebuild_s(3) == pytest.approx(0.06)
    made.encoded(0.04)
    made.passed(0.5)
    assert made.rebuild_s(1) == pytest.approx(0.024)


@given(st.lists(st.tuples(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), st.floats(0, 1e4), st.integers(0, 1 << 40))))
def test_whatever_is_measured_predictions_stay_times_and_memory_is_bounded(measured: list) -> None:
    made = WayBack(CONFIG)
    for tier, seconds, nbytes in measured:
        made.loaded(tier, nbytes, seconds)
        made.unpacked(nbytes, seconds)
        made.encoded(seconds)
        made.passed(seconds)
        choice = made.choose(prospect(nbytes, tier))
        assert choice.rebuild_s is not None
        assert (choice.way == "rebuild") == (choice.rebuild_s * CONFIG.margin < choice.load_s)
        made.check_integrity()
    assert len(made.lines) <= TIERS


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"weight": 1.5}, "weight is 1.5; expected a factor between 0 and 1"),
        ({"margin": 0.5}, "margin is 0.5; expected 1 or more"),
        ({"encode_s": 0.0}, "encode_s is 0.0; expected more than 0"),
        ({"bytes_s": {"disk": -1.0}}, "bytes_s of disk is -1.0; expected more than 0"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        WayBackConfig(**wrong)

"""Bytes of strangers give an answer or the documented error; `python -m tests.fuzz` tries more of them."""

import json
import random
from itertools import islice
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import ScriptError, SnapshotCorrupt
from tests.fuzz import READERS, by_mutation
from tests.readers import TARGETS, Target

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
WORDS = st.sampled_from(["do", "type", "scene", "scenes", "duration", "prompt", "chunk", "credits", "script", "owner"])
VALUES = st.sampled_from(["cut", "ack", "control", "1h", "", "hall"]) | PLAIN


def test_the_command_knows_every_reader() -> None:
    assert sorted(READERS) == sorted(TARGETS)
    assert all(target.holds(seed) for target in TARGETS.values() for seed in target.seeds)


@pytest.mark.parametrize("name", READERS)
def test_what_is_damaged_is_read_or_refused_as_documented(name: str) -> None:
    held = [target.holds(data) for target, data in islice(by_mutation([TARGETS[name]], 60.0, random.Random(7)), 100)]
    assert not all(held)


@given(st.dictionaries(WORDS | st.text(max_size=4), VALUES, max_size=5))
@settings(max_examples=150)
def test_any_map_is_read_or_refused_as_documented(plain: dict[str, Any]) -> None:
    packed = msgpack.packb({"v": 1, "type": "control", **plain})
    for name in ("message", "order"):
        TARGETS[name].holds(packed)
    TARGETS["session"].holds(json.dumps(plain, default=str).encode())


@pytest.mark.parametrize("duration", ["9" * 5000, "1h" + "9" * 5000 + "s", "9" * 4000, 10**300, 1e308, "1e9999"])
def test_a_duration_that_no_take_has_is_refused_before_it_is_counted(duration: object) -> None:
    """Python itself refuses numbers of more than 4300 digits, with an error that is not ours: found by fuzzing."""
    with pytest.raises(ScriptError, match="duration is"):
        read("session", json.dumps({"scenes": [{"duration": duration, "prompt": "a ball"}]}).encode())


@pytest.mark.parametrize("plain", [6, [], {"owner": 3}, {"owner": "me", "seed": "x"}, {"owner": "me", "prompt": 5}])
def test_an_order_that_is_whole_but_says_nonsense_is_corrupt(plain: object) -> None:
    with pytest.raises(SnapshotCorrupt, match="the order does not say"):
        read("order", msgpack.packb(plain))


@pytest.mark.parametrize(
    "yaml",
    [
        b"scenes: &a [*a]",
        b"? [a]\n: b",
        b"scenes: [{1: 2}]",
        b"a: 2001-99-99",
        b"a: !!bool x",
        b"[" * 1000,
        b"{3: {2000-01-01: 1}}",
    ],
)
def test_yaml_that_no_script_can_be_is_refused_as_one(yaml: bytes) -> None:
    with pytest.raises(ScriptError):
        read("script", yaml)
    assert not TARGETS["settings"].holds(yaml)


def read(name: str, data: bytes) -> object:
    target: Target = TARGETS[name]
    return target.read(data)

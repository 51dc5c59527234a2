"""Scripts: what is refused before any work is done, and when each directive is given."""

import itertools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import ConfigError, ScriptError
from settings import read_shots
from streams.director import Director, Script, Shot
from streams.stream import Stream
from tests.builders import engine

CHUNK = Fraction(16, 25)
Write = Callable[[str], Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "script.yaml"
        path.write_text(text)
        return path

    return write


def test_a_script_is_read_scene_by_scene(written: Write) -> None:
    script = read_shots(
        written(
            """
scenes:
  - {name: lab, prompt: a red ball, subject: red ball, duration: 90s}
  - {prompt: a green box, duration: 2}
  - {return-to: lab, duration: 1m30s}
"""
        )
    )
    assert script.scenes[0] == Shot("90s", "lab", "a red ball", "red ball")
    assert [script.name(i) for i in range(3)] == ["lab", "scene-2", "lab"]
    assert script.seconds == 182


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [(1, 1), (0.5, Fraction(1, 2)), ("45", 45), ("45s", 45), ("2m", 120), ("1h30m5s", 5405), ("0.25s", Fraction(1, 4))],
)
def test_durations_are_seconds_or_hours_minutes_and_seconds(duration: float | str, seconds: Fraction) -> None:
    assert Shot(duration, prompt="a ball").seconds == seconds


@pytest.mark.parametrize("duration", [0, -1, float("nan"), float("inf"), "", "s", "soon", "5 minutes", "-3s", "0s"])
def test_a_duration_that_is_none_is_refused(duration: float | str) -> None:
    with pytest.raises(ScriptError, match="duration"):
        Shot(duration, prompt="a ball")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scenes: [{prompt: a, duration: 1}, {return-to: attic, duration: 1}]", ("scene 2", "'attic'", "'scene-1'")),
        ("scenes: [{return-to: a, duration: 1}]", ("scene 1", "'a'", "none")),
        ("scenes: [{prompt: a, duration: 1}, {return-to: scene-1, duration: 1}]", ("scene 2", "on air")),
        ("scenes: [{name: a, prompt: b, duration: 1}, {name: a, prompt: b, duration: 1}]", ("scene 2", "exists")),
        ("scenes: [{prompt: '  ', duration: 1}]", ("prompt '  '", "expected a prompt")),
        ("scenes: [{prompt: a, return-to: b, duration: 1}]", ("prompt 'a'", "return-to 'b'")),
        ("scenes: [{prompt: a}]", ("scenes.0.duration", "missing")),
        ("scenes: [{prompt: a, duration: 1, subjet: b}]", ("subjet", "no such key", "subject")),
        ("scenes: []", ("no scenes",)),
        ("scenes: 3", ("scenes", "3")),
        ("shots: []", ("shots", "scenes")),
        ("- a", ("list", "mapping")),
        ("just words", ("str", "mapping")),
        ("a: [", ("YAML",)),
        ("\x00", ("YAML",)),
    ],
)
def test_a_script_that_cannot_be_played_says_why(written: Write, text: str, words: tuple[str, ...]) -> None:
    path = written(text)
    with pytest.raises(ScriptError) as raised:
        read_shots(path)
    for word in (*words,):
        assert word in str(raised.value)


def test_a_script_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        read_shots(tmp_path / "absent.yaml")
    (tmp_path / "film.mp4").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ScriptError, match=r"film\.mp4"):
        read_shots(tmp_path / "film.mp4")


@given(st.lists(st.fractions(Fraction(1, 100), 50), min_size=1, max_size=20))
def test_every_shot_has_a_chunk_and_rounding_never_adds_up(durations: list[Fraction]) -> None:
    script = Script(tuple(Shot(float(d), prompt="a") for d in durations))
    borders = script.chunks(CHUNK)
    assert all(b > a for a, b in itertools.pairwise(borders))
    if all(shot.seconds >= CHUNK for shot in script.scenes):
        assert abs(borders[-1] - script.seconds / CHUNK) <= Fraction(1, 2)


def test_directives_are_given_before_the_first_chunk_of_each_shot() -> None:
    script = Script((Shot(1.92, "a", "a ball", "ball"), Shot(1.28, "b", "a box", "box"), Shot(1.28, return_to="a")))
    director = Director(script, CHUNK)
    stream = Stream.open(engine(), director.opening.prompt, 0, script.name(0))
    seen = []
    for chunk in range(director.total):
        director.before(chunk, stream)
        seen.append((stream.next().scene, director.subject))
    assert seen == [("a", "ball")] * 3 + [("b", "box")] * 2 + [("a", "ball")] * 2


def test_a_scene_s_first_chunk_has_the_first_schedule_and_a_return_has_not() -> None:
    made = engine()
    stream = Stream.open(made, "a ball", 0, "a")
    begins = []
    for chunk in range(6):
        if chunk == 2:
            stream.cut("b", "a box")
        if chunk == 4:
            stream.return_to("a")
        begins.append(stream.session.manager.begins_scene)
        stream.next()
    assert begins == [True, False, True, False, False, False]


def test_a_return_is_announced_so_many_chunks_before_and_a_cut_is_not() -> None:
    script = Script(
        (Shot(6.4, "a", "a ball"), Shot(6.4, "b", "a box"), Shot(6.4, return_to="a"), Shot(1, "c", "a cone"))
    )
    director = Director(script, Fraction(16, 25))
    announced = [director.announced(chunk, 3) for chunk in range(director.total)]
    assert [(i, scene) for i, scene in enumerate(announced) if scene] == [(17, "a"), (18, "a"), (19, "a")]
    assert not any(director.announced(chunk, 0) for chunk in range(director.total))

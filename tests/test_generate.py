"""``longtake generate``: what the film holds, what is refused before the work, and what an interruption leaves."""

import re
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import cli
from media.reading import read
from media.report import History, Moment
from settings import build_studio, load
from streams.director import Script, Shot
from streams.production import Production

ROOT = Path(__file__).parent.parent
ONE_THREAD = {"LONGTAKE_THREADS": "1", "LONGTAKE_ENGINE__FIRST_SCHEDULE": "{sigmas: [1.0, 0.5]}"}
SCRIPT = """
scenes:
  - {name: lab, prompt: a red ball bouncing in a blue room, subject: red ball, duration: 2}
  - {name: attic, prompt: a black ring bouncing in a yellow room, duration: 1.3}
  - {return-to: lab, duration: 1.3}
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["generate", *map(str, arguments)], env=ONE_THREAD)


def test_a_script_becomes_a_film_with_picture_and_sound_of_the_same_length_and_a_report(tmp_path: Path) -> None:
    (tmp_path / "script.yaml").write_text(SCRIPT)
    film, report = tmp_path / "film.mp4", tmp_path / "report"
    result = run("--script", tmp_path / "script.yaml", "--out", film, "--report", report)
    assert result.exit_code == 0, result.output
    chunks = 7
    media = read(film)
    assert media.frames.shape == (chunks * 8, 128, 128, 3)
    assert abs(len(media.samples) / media.sample_rate - chunks * 0.64) < 0.08
    assert "chunk 7 of 7" in result.output
    assert re.search(r"[\d.]+ fps, [\d.]+ x real time, \d+ chunks kept .* drift", result.output)
    pictures = sorted(report.iterdir())
    assert [p.name for p in pictures] == ["contact-sheet.png", "drift.png", "keep-set.png"]
    assert all(np.asarray(Image.open(p).convert("L")).std() > 5 for p in pictures)


def test_a_take_is_a_function_of_weights_script_and_seed() -> None:
    script = Script((Shot(1.3, "a", "a red ball in a blue room"), Shot(0.6, "b", "a box"), Shot(0.6, return_to="a")))
    takes = []
    for seed in (3, 3, 4):
        studio = build_studio(load(environ=ONE_THREAD))
        takes.append([s.chunk for s in Production(studio.engine, studio.codecs, script, seed) if s.chunk is not None])
    first, again, other = takes
    for a, b in zip(first, again, strict=True):
        assert a.video.numpy().tobytes() == b.video.numpy().tobytes()
        assert a.audio.numpy().tobytes() == b.audio.numpy().tobytes()
    assert not torch.equal(first[0].video, other[0].video)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["  "], ("prompt is empty", "--script")),
        ([], ("prompt is empty",)),
        (["a ball", "--duration", "soon"], ("duration", "'soon'", "90s")),
        (["a ball", "--out", "{tmp}/absent/film.mp4"], ("absent", "no folder")),
        (["a ball", "--out", "{tmp}"], ("is a folder",)),
        (["a ball", "--out", "{tmp}/there.mp4"], ("there.mp4", "exists already")),
        (["a ball", "--report", "{tmp}/there.mp4"], ("--report", "there.mp4")),
        (["--script", "{tmp}/absent.yaml"], ("absent.yaml", "cannot be read")),
        (["--script", "{tmp}/unknown.yaml"], ("return-to 'cellar'", "'lab'")),
        (["--script", "{tmp}/prose.yaml"], ("prose.yaml", "mapping")),
        (["--script", "{tmp}/binary.yaml"], ("binary.yaml", "YAML")),
        (["--script", "{tmp}/unknown.yaml", "a ball"], ("--script and a prompt",)),
        (["a ball", "--model", "random"], ("random", "decode")),
        (["a ball", "--model", "{tmp}/nowhere"], ("nowhere", "expected a folder in diffusers")),
    ],
)
def test_bad_input_is_refused_before_any_work_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], words: tuple[str, ...]
) -> None:
    (tmp_path / "there.mp4").write_text("precious")
    (tmp_path / "unknown.yaml").write_text(
        "scenes: [{name: lab, prompt: a, duration: 1}, {return-to: cellar, duration: 1}]"
    )
    (tmp_path / "prose.yaml").write_text("a red ball, then a blue one")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    before = sorted(tmp_path.iterdir())
    filled = [a.format(tmp=tmp_path) for a in arguments]
    result = run(*filled, *([] if "--out" in filled else ["--out", str(tmp_path / "film.mp4")]))
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in " ".join(result.output.split())
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.mp4").read_text() == "precious"


def test_ctrl_c_in_the_middle_leaves_a_film_that_plays_up_to_there(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    command = ["generate", "a green box bouncing in a pink room", "--duration", "1h", "--out", str(film)]
    assignments = [f"{name}={value}" for name, value in ONE_THREAD.items()]
    process = subprocess.Popen(
        ["env", *assignments, sys.executable, "-m", "cli", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("chunk "):
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    seconds = float(re.search(r"([\d.]+) s of media", rest)[1])  # type: ignore[index]
    media = read(film)
    assert seconds >= 20 * 0.64 - 0.1
    assert abs(len(media.frames) / 12.5 - seconds) < 0.1
    assert abs(len(media.samples) / media.sample_rate - seconds) < 0.1


def moment(chunk: int) -> Moment:
    frame = np.full((4, 4, 3), chunk % 256, np.uint8)
    kept = {"video_self": {"recent": [chunk]}}
    return Moment(chunk, chunk * 0.64, f"scene {chunk // 50}", 0.1, 0, kept, frame, (-chunk / 1000, chunk / 1000))


def test_the_history_of_an_endless_take_stays_bounded_and_loses_no_peak() -> None:
    history = History(capacity=16)
    for chunk in range(1000):
        history.add(moment(chunk))
    assert len(history.moments) <= 16
    assert history.moments[0].chunk == 0
    gaps = {b.chunk - a.chunk for a, b in zip(history.moments, history.moments[1:], strict=False)}
    assert gaps == {history.stride}
    assert max(m.peaks[1] for m in history.moments) == 0.999
    assert len(history.borders) <= 16


def test_a_short_take_keeps_every_chunk_in_its_history() -> None:
    history = History(capacity=16)
    for chunk in range(16):
        history.add(moment(chunk))
    assert [m.chunk for m in history.moments] == list(range(16))
    assert Fraction(history.stride) == 1

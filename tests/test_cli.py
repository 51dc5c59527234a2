"""The command: what a take leaves on disk, what is shown, what is refused, and what an interruption leaves behind."""

import inspect
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
import typer
from click.testing import Result
from rich.console import Console
from safetensors import safe_open
from typer.testing import CliRunner

import cli
from cache.spec import AttentionType
from cli import stream as stream_command
from cli.common import MODULES
from errors import LongtakeError
from settings import Settings, build_engine, load, read_script
from streams.making import Chunk
from streams.session import Session
from streams.stream import Stream

ROOT = Path(__file__).parent.parent
SMALL = {
    "LONGTAKE_MODEL__SOURCE": "random",
    "LONGTAKE_GEOMETRY__HEIGHT": "32",
    "LONGTAKE_GEOMETRY__WIDTH": "32",
    "LONGTAKE_ENGINE__SCHEDULE__SIGMAS": "[1.0, 0.5]",
}


def run(*arguments: object, **variables: str) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={**SMALL, **variables})


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def decisions(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "decisions.jsonl").read_text().splitlines()]


def small_stream(prompt: str = "a ball", seed: int = 0, **variables: str) -> Stream:
    return Stream.open(build_engine(load(environ={**SMALL, **variables})), prompt, seed)


# -- what is written


def test_a_take_holds_the_published_latents_and_says_what_made_them(tmp_path: Path) -> None:
    result = run("stream", "a ball", "--chunks", 6, "--seed", 7, "--out", tmp_path / "take")
    assert result.exit_code == 0, result.output
    tensors, about = read(tmp_path / "take" / "take-00000.safetensors")
    expected = small_stream("a ball", 7)
    made = expected.take(2)
    expected.cut("kitchen", stream_command.KITCHEN)
    made += expected.take(2)
    expected.return_to("opening")
    made += expected.take(2)
    assert torch.equal(tensors["video"], torch.stack([c.video for c in made]))
    assert torch.equal(tensors["audio"], torch.stack([c.audio for c in made]))
    assert about["model"] == expected.engine.backbone.fingerprint
    assert (about["seed"], about["fps"], about["first_chunk"]) == ("7", "25", "0")
    assert json.loads(about["geometry"])["frames"] == Settings().geometry.frames
    assert json.loads(about["prompts"]) == [
        [0, "opening", "a ball"],
        [2, "kitchen", stream_command.KITCHEN],
        [4, "opening", "a ball"],
    ]
    assert [d["action"] for d in decisions(tmp_path / "take")] == [d.action for d in expected.decisions]


def test_without_a_script_there_is_one_scene(tmp_path: Path) -> None:
    assert run("stream", "a ball", "--chunks", 3, "--no-script", "--out", tmp_path).exit_code == 0
    assert {d["action"] for d in decisions(tmp_path)} == {"scene"}


def test_a_script_is_played_at_its_chunks(tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    script.write_text(
        "- {at: 1, do: prompt, prompt: it rolls}\n"
        "- {at: 2, do: cut, scene: hall, prompt: a hall}\n"
        "- {at: 3, do: return, scene: opening}\n"
    )
    assert run("stream", "a ball", "--chunks", 4, "--script", script, "--out", tmp_path).exit_code == 0
    _, about = read(tmp_path / "take-00000.safetensors")
    scenes = [[0, "opening", "a ball"], [1, "opening", "it rolls"], [2, "hall", "a hall"], [3, "opening", "it rolls"]]
    assert json.loads(about["prompts"]) == scenes


def test_a_long_take_is_cut_into_shards_and_only_one_is_held(tmp_path: Path) -> None:
    stream, take = small_stream(), stream_command.Take(tmp_path, {}, shard_chunks=2)
    take.open(overwrite=False)
    for chunk in stream.chunks(5):
        take.append(chunk, stream)
        assert len(take.pending) < 2
    take.flush()
    found = [read(path) for path in sorted(tmp_path.glob("take-*"))]
    assert [len(tensors["video"]) for tensors, _ in found] == [2, 2, 1]
    assert [about["first_chunk"] for _, about in found] == ["0", "2", "4"]


def test_a_log_that_is_too_short_says_what_it_lost(tmp_path: Path) -> None:
    result = run("stream", "--chunks", 11, "--no-script", "--out", tmp_path, LONGTAKE_ENGINE__CACHE__LOG_CAPACITY="1")
    assert result.exit_code == 0
    lost = [d for d in decisions(tmp_path) if d["action"] == "dropped"]
    assert [d["reason"] for d in lost] == ["3 decisions", "3 decisions"]


def test_an_earlier_take_is_replaced_only_if_asked_and_then_as_a_whole(tmp_path: Path) -> None:
    stale = tmp_path / "take-00007.safetensors"
    stale.write_bytes(b"earlier")
    refused = run("stream", "--chunks", 1, "--out", tmp_path)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert stale.read_bytes() == b"earlier"
    assert run("stream", "--chunks", 1, "--out", tmp_path, "--overwrite").exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["decisions.jsonl", "take-00000.safetensors"]


# -- what is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stream", ""), ("error [stream]", "prompt is empty")),
        (("stream", "--chunks", "0"), ("--chunks",)),
        (("stream", "--config", "absent.yaml"), ("error [config]", "absent.yaml")),
        (("stream", "--model", "./absent"), ("error [checkpoint]", "absent")),
        (("stream", "--script", "absent.yaml"), ("error [config]", "absent.yaml")),
        (("stream", "--script", "x.yaml", "--no-script"), ("error [config]", "--no-script")),
    ],
)
def test_a_wrong_call_ends_with_2_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, "--out", "take")
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("cues", "word"),
    [
        ("- {at: 9, do: return, scene: opening}", "from 1 to 3"),
        ("- {at: 0, do: prompt, prompt: b}", "from 1 to 3"),
        ("- {at: 1, do: return, scene: hall}", "return to 'hall'"),
        ("- {at: 1, do: return, scene: opening}", "return to 'opening'"),
        ("- {at: 1, do: cut, scene: opening, prompt: b}", "cut to 'opening'"),
        ("- {at: 2, do: prompt, prompt: b}\n- {at: 2, do: prompt, prompt: c}", "from 3 to 3"),
    ],
)
def test_a_script_that_cannot_be_played_is_refused_before_the_first_chunk(tmp_path: Path, cues: str, word: str) -> None:
    script = tmp_path / "script.yaml"
    script.write_text(cues)
    result = run("stream", "--chunks", 4, "--script", script, "--out", tmp_path / "take")
    assert result.exit_code == 2
    assert word in result.stderr
    assert not (tmp_path / "take").exists()


def test_a_setting_with_a_typo_is_one_red_line(tmp_path: Path) -> None:
    result = run("stream", "--out", tmp_path / "take", LONGTAKE_ENGINE__SESIONS="2")
    assert result.exit_code == 2
    error = "engine.sesions (LONGTAKE_ENGINE__SESIONS) is 2 but there is no such key; expected engine.sessions"
    assert result.stderr == f"error [config]: {error}\n"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("stream", "--chunks", 1, "--out", tmp_path / "file" / "take")
    assert result.exit_code == 2
    assert "not writable" in result.stderr


def test_an_error_in_the_middle_ends_with_1_and_keeps_what_was_made(tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    script.write_text(
        "- {at: 1, do: cut, scene: a, prompt: a}\n"
        "- {at: 2, do: cut, scene: b, prompt: b}\n"
        "- {at: 3, do: return, scene: opening}\n"
    )
    forgetful = {"LONGTAKE_ENGINE__CACHE__SCENES__MAX_SCENES": "2"}
    result = run("stream", "--chunks", 5, "--script", script, "--out", tmp_path / "take", **forgetful)
    assert result.exit_code == 1
    assert result.stderr.startswith("error [unknown_scene]: no scene 'opening'")
    assert len(read(tmp_path / "take" / "take-00000.safetensors")[0]["video"]) == 3


def test_a_disk_that_fails_is_an_error_of_ours(tmp_path: Path) -> None:
    stream, take = small_stream(), stream_command.Take(tmp_path, {})
    take.open(overwrite=False)
    take.append(stream.next(), stream)
    (tmp_path / "take-00000.safetensors.part").mkdir()
    with pytest.raises(LongtakeError, match=r"take-00000.*cannot be written"):
        take.flush()
    (tmp_path / "decisions.jsonl").unlink()
    (tmp_path / "decisions.jsonl").mkdir()
    with pytest.raises(LongtakeError, match=r"decisions.*cannot be written"):
        take.append(stream.next(), stream)


# -- what is shown


def test_lines_come_when_memory_changes_and_every_ten_chunks(tmp_path: Path) -> None:
    output = run("stream", "--chunks", 21, "--out", tmp_path, LONGTAKE_POLICY="sink_recent").stdout
    assert re.findall(r"^chunk (\d+) of 21, scene (\w+):", output, re.M) == [
        ("0", "opening"),
        ("10", "kitchen"),
        ("20", "opening"),
    ]
    assert "all types: scene sink 0, recent 8 9 10 11 12 13 14 15 16 17 18 19 20" in output
    for figure in ("chunk/s", "x real time", "MB held", "epoch 0", "drift"):
        assert figure in output
    assert output.endswith(f"decisions in {tmp_path}\n")


def test_a_return_shows_sink_and_restored_chunks_again(tmp_path: Path) -> None:
    output = run("stream", "--chunks", 12, "--out", tmp_path).stdout
    assert "scene sink 4" in output
    assert re.search(r"chunk 8 of 12, scene opening:.*\n    all types: scene sink 0, restored 1 2 3, recent", output)


def test_types_that_keep_different_chunks_have_their_own_lines() -> None:
    poor = "{scene_sink: 0, scene_anchor: 0, restored: 0, recent: 1}"
    stream = small_stream(LONGTAKE_BUDGETS__VIDEO_SELF=poor)
    stream.take(3)
    assert stream_command.keep_sets(stream) == [
        "video_self: recent 2",
        "audio_self, audio_to_video, video_to_audio: scene sink 0, recent 1 2",
    ]


def test_the_timeline_shows_each_role_at_its_distance() -> None:
    stream = small_stream(LONGTAKE_POLICY="sink_recent")
    stream.take(20)
    sink_at_20_then_13_recent = "." * 10 + "S" + "." * 6 + "o" * 13 + ">"
    assert stream_command.timeline(stream, AttentionType.VIDEO_SELF).plain == sink_at_20_then_13_recent


def test_on_a_terminal_there_is_a_panel() -> None:
    stream = small_stream()
    console = Console(force_terminal=True, file=io.StringIO(), width=100, color_system=None)
    with stream_command.panel(console) as show:
        for chunk in stream.chunks(2):
            show(stream_command.Frame(stream, chunk, 2.0, 4))
    last = console.file.getvalue().rsplit("longtake", 1)[1]
    for part in ("chunk 1 of 4", "2.0 chunk/s, 1.28 x real time", "video_to_audio  ....", "R restored", "all types:"):
        assert part in last


def test_version_names_the_program() -> None:
    assert run("version").output.startswith("longtake")


# -- what an interruption leaves


def test_ctrl_c_in_the_middle_leaves_a_valid_take_up_to_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli", "stream", "--chunks", "100000", "--no-script", "--out", str(tmp_path)]
    variables = {**SMALL, "LONGTAKE_THREADS": "1", "LONGTAKE_POLICY": "sink_recent"}
    assignments = [f"{name}={value}" for name, value in variables.items()]
    process = subprocess.Popen(
        ["env", *assignments, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += line.startswith("chunk ")
        if seen == 2:
            break
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    stopped = re.search(r"^(\d+) of 100000 chunks", rest, re.M)
    assert stopped is not None
    assert int(stopped[1]) > 10
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["decisions.jsonl", "take-00000.safetensors"]
    assert len(read(tmp_path / "take-00000.safetensors")[0]["video"]) == int(stopped[1])
    assert decisions(tmp_path)[0]["action"] == "scene"


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """A shell ignores Ctrl-C for what it runs in the background, tests too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_a_second_ctrl_c_breaks_off_and_still_writes_what_was_finished(tmp_path: Path) -> None:
    stream, take = small_stream(), stream_command.Take(tmp_path, {})
    take.open(overwrite=False)
    handler = signal.getsignal(signal.SIGINT)
    step = stream.engine.step

    def interrupted(sessions: Sequence[Session]) -> list[Chunk]:
        if sessions[0].manager.next_chunk == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return step(sessions)

    stream.engine.step = interrupted  # type: ignore[method-assign]
    stream_command._play(stream, {}, 9, take, stream_command.lines(Console(file=io.StringIO())))
    assert take.chunks == 2
    assert len(read(tmp_path / "take-00000.safetensors")[0]["video"]) == 2
    assert signal.getsignal(signal.SIGINT) is handler


# -- what the README promises


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_settings_and_the_script_of_the_readme_are_true(tmp_path: Path) -> None:
    path = tmp_path / "readme.yaml"
    script, settings = blocks("yaml")
    path.write_text(settings)
    shown = load(path, {"LONGTAKE_MODEL__SOURCE": "random"})
    defaults = Settings()
    assert shown == replace(defaults, model=replace(defaults.model, source="random", dtype="float32"), threads=2)
    path.write_text(script)
    assert [cue.do for cue in read_script(path)] == ["cut", "prompt", "return"]


# -- how soon it begins


def test_every_command_is_in_the_module_that_is_imported_for_it() -> None:
    for module, names in MODULES.items():
        import_module(f"cli.{module}")
        for name in names:
            command = typer.main.get_group(cli.app).commands[name]
            assert inspect.unwrap(command.callback).__module__ == f"cli.{module}"
    assert set(typer.main.get_group(cli.app).commands) == {"version", *(n for names in MODULES.values() for n in names)}


@pytest.mark.parametrize("command", MODULES["service"] + MODULES["fleet"])
def test_whoever_looks_at_a_service_waits_for_no_library_of_tensors(command: str) -> None:
    code = f"import sys, cli; cli.app(['{command}', '--help'], standalone_mode=False); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)

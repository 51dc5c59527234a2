"""``longtake plan``: what it prints and refuses, and that a service with the settings it writes admits the plan."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from actors.generator import Generator
from actors.order import Order
from cache.spec import TYPES
from cli import app
from errors import ConfigError, NoCapacity
from settings import build_worker, load, question_of, recommended
from sizing import machine_named, plan
from tests.service import QUICK, Shelf, run

ROOT = Path(__file__).parent.parent
BALL = Order("a red ball bouncing in a blue room", seed=1)


def planned(*arguments: str, width: int = 200) -> str:
    done = CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": str(width)})
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["plan", *arguments])
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


def test_a_plan_says_of_every_figure_where_it_is_from(tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    shown = planned("--model", "ltx-2", "--gpu", "h200", "--plot", str(picture))
    for source in ("computed", "data sheet", "assumed"):
        assert source in shown
    assert "1 session per generator, 3.8 per stream-hour; chunk time is reached first." in shown
    assert re.search(r"half the recent chunks of video types \(8 → 4\) +│ +1 ", shown)
    with Image.open(picture) as image:
        assert image.size[0] > 1000
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 50


def test_the_same_plan_as_json_for_programs() -> None:
    found = json.loads(planned("--model", "ltx-2", "--gpu", "b200", "--price", "5", "--json"))
    expected = plan(question_of(load(environ={}, model="ltx-2"), machine_named("b200")))
    assert found["sessions"] == expected.sessions
    assert found["binding"] == expected.binding.name
    assert found["cost_hour"]["value"] == 5 / expected.sessions
    assert {t: sum(roles.values()) for t, roles in found["session_bytes"].items()} == {
        t.value: expected.session.of_type(t) for t in TYPES
    }
    assert all(line["source"] in ("computed", "measured", "data sheet", "assumed") for line in found["lines"].values())
    assert {"change", "how", "built", "sessions"} <= set(found["what_if"][0])


def test_the_keep_set_can_be_said_by_role_and_by_type() -> None:
    found = json.loads(
        planned("--model", "ltx-2", "--gpu", "h200", "--keep-set", "recent=6,video_self.recent=4", "--json")
    )
    recent = {t: roles["recent"] // roles["in progress"] for t, roles in found["session_bytes"].items()}
    assert recent == {"video_self": 4, "audio_self": 6, "audio_to_video": 6, "video_to_audio": 6}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h900"], "gpu is 'h900', which is not known; expected one of h100, h200, b200, l40s, rtx4090, cpu"),
        (["--model", "nobody/nothing"], "expected toy, random, ltx-2, ltx-2.3, or such a folder"),
        (
            ["--keep-set", "recnt=3"],
            "keep-set has 'recnt=3'; expected ROLE=N or TYPE.ROLE=N, where ROLE is one of subject",
        ),
        (["--keep-set", "recent=0"], "recent is 0; expected at least 1"),
        (["--pages", "fp4"], "pages is 'fp4'; expected one of exact, fp8, int8"),
        (["--spare", "1.5"], "spare is 1.5; expected a share from 0 to below 1"),
        (["--generators", "0"], "generators is 0; expected at least 1"),
        (["--measured", "nowhere.json"], "nowhere.json cannot be read"),
        (["--price", "-1"], "price_hour, as given, is -1.0; expected 0 or more"),
    ],
)
def test_what_cannot_be_planned_is_said_with_what_was_expected(arguments: list[str], message: str) -> None:
    assert message in refused(*arguments)


def test_settings_are_written_for_plans_that_can_run_alone(tmp_path: Path) -> None:
    file = str(tmp_path / "my.yaml")
    said = refused("--model", "ltx-2", "--gpu", "h100", "--write-settings", file)
    assert "not one session fits: device memory is reached first; what would do: on h200" in said
    assert not list(tmp_path.iterdir())
    Path(file).write_text("mine")
    assert "my.yaml exists; expected another name, or --overwrite" in refused("--write-settings", file)
    assert Path(file).read_text() == "mine"


def test_what_is_written_keeps_the_settings_it_was_made_from(tmp_path: Path) -> None:
    mine, file = tmp_path / "mine.yaml", tmp_path / "planned.yaml"
    mine.write_text("service: {durability: kv, pace: {lead: 3}}\nmodel: {dtype: float32}\n")
    planned("--config", str(mine), "--keep-set", "recent=3", "--pages", "int8", "--write-settings", str(file))
    settings = load(file, environ={})
    assert settings.engine.pages == "int8"
    assert (settings.service.durability, settings.service.pace.lead) == ("kv", 3)
    assert settings.model.dtype == "float32"
    assert all(settings.budgets[t].recent == 3 for t in TYPES)
    again = plan(question_of(settings, machine_named("cpu")))
    assert again.sessions == settings.engine.sessions
    assert recommended(again)["engine"]["sessions"] == settings.engine.sessions


def test_what_a_large_model_sends_to_its_store_fits_the_slots_that_are_written(tmp_path: Path) -> None:
    file = tmp_path / "planned.yaml"
    planned("--model", "ltx-2", "--gpu", "h200", "--write-settings", str(file))
    settings = load(file, environ={})
    question = question_of(settings, machine_named("h200"))
    largest = max(spec.bytes_per_chunk for spec in question.model.specs().values())
    assert settings.service.staging.slot_bytes > largest
    assert settings.engine.restore.staging_bytes > plan(question).needs.return_bytes.value
    assert settings.service.host_bytes >= plan(question).needs.records.value
    assert (settings.model.device, settings.service.gpus) == ("cuda", 1.0)
    assert settings.model.path == "Lightricks/LTX-2"


def test_a_service_with_the_written_settings_admits_the_plan_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "planned.yaml"
    # So little memory that it, and not time, is reached first: with a bound on prompts and the driver's share.
    found = json.loads(
        planned("--model", "toy", "--gpu", "cpu", "--memory", "0.655", "--json", "--write-settings", str(file))
    )
    assert found["binding"] == "device memory"
    settings = load(file, environ={**QUICK, "LONGTAKE_SEGMENTER__KIND": "none"})
    assert settings.engine.sessions == found["sessions"] == 3
    worker = build_worker(settings, Shelf())
    capacity = worker.engine.pool.statistics().capacity_bytes
    bytes_of = {t: sum(found["session_bytes"][t.value].values()) for t in TYPES}
    assert capacity == {t: found["sessions"] * bytes_of[t] for t in TYPES}

    async def admit() -> None:
        made = Generator(worker)
        made.start()
        for i in range(found["sessions"]):
            await made.create(f"s{i}", BALL)
        with pytest.raises(NoCapacity, match="all 3 places of this generator are taken"):
            await made.create("one more", BALL)
        await made.close()

    run(admit)
    assert not worker.engine.sessions


def test_the_readme_s_example_runs_and_prints_what_stands_there() -> None:
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## How many fit") :]
    command, shown = re.findall(r"```(?:bash)?\n(.*?)```", section, re.DOTALL)[:2]
    words = shlex.split(command.splitlines()[0], comments=True)
    assert words[:2] == ["longtake", "plan"]
    printed = [" ".join(line.split()) for line in planned(*words[2:]).splitlines()]
    for line in shown.splitlines():
        assert not line.strip() or " ".join(line.split()) in printed, line


def test_written_settings_are_refused_like_any_others_when_they_are_changed_to_nonsense(tmp_path: Path) -> None:
    file = tmp_path / "planned.yaml"
    planned("--write-settings", str(file))
    plain: dict[str, Any] = yaml.safe_load(file.read_text())
    plain["engine"]["sessions"] = 0
    with pytest.raises(ConfigError, match="sessions is 0; expected room for at least 1 stream"):
        load(plain, environ={})

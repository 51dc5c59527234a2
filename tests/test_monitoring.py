"""Dashboards, alerts and runbook: nothing undeclared, left out or out of date, and each alert fires and rests."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from actors.metrics import METRICS
from cli import app
from errors import ConfigError
from monitoring import alerts, dashboards
from monitoring.files import files
from monitoring.panels import Panel
from monitoring.plot import named, written
from monitoring.prometheus import Line
from monitoring.queries import ADDED, Scope, exported
from monitoring.reading import filled
from tests.manifests import validate

ROOT = Path(__file__).parent.parent
MADE, TESTS = ROOT / "k8s" / "monitoring", ROOT / "tests" / "alerts.yaml"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", RUNBOOK, re.DOTALL | re.MULTILINE))
PANELS: dict[str, dict[str, Panel]] = {d.name: {p.title: p for p in d.panels} for d in dashboards.ALL}
BY_SERIES = {name: metric for metric in METRICS.values() for name in exported(metric)}
SHOWN = [query.expression for d in dashboards.ALL for panel in d.panels for query in panel.queries]
ASKED = SHOWN + [alert.expression for alert in alerts.ALL]
MARKS = ("**Means:**", "**Viewers:**", "**Look at:**", "**Do:**")


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_committed_is_what_would_be_made() -> None:
    """If this fails: ``python -m monitoring``."""
    made = files()
    assert {str(p.relative_to(MADE)) for p in MADE.rglob("*") if p.is_file()} == {*made, "README.md"}
    for path, contents in made.items():
        assert (MADE / path).read_text() == contents, path


def test_every_declared_metric_is_on_a_dashboard() -> None:
    read = {BY_SERIES[name].name for expression in SHOWN for name in re.findall(r"ray_longtake_\w+", expression)}
    assert read == set(METRICS)


@pytest.mark.parametrize("expression", ASKED)
def test_an_expression_names_only_what_is_declared(expression: str) -> None:
    """As written in the files, whatever wrote it."""
    series = re.findall(r"(ray_longtake_\w+)(?:\{([^}]*)\})?", expression)
    assert series
    tags = set(ADDED)
    for name, matchers in series:
        assert name in BY_SERIES, name
        assert set(re.findall(r"(\w+)=", matchers)) <= {*BY_SERIES[name].tags, *ADDED}
        tags |= set(BY_SERIES[name].tags)
    for by in re.findall(r"by \(([^)]*)\)", expression):
        assert set(by.split(", ")) <= tags, by


def test_what_is_not_declared_cannot_be_asked_for() -> None:
    scope = Scope("", "5m")
    with pytest.raises(ConfigError, match=r"^chunk is no metric; expected one of actors\.metrics: "):
        scope.rate("chunk")
    with pytest.raises(ConfigError, match=r"^sessions has tags \('state',\); got \('stat',\)$"):
        scope.now("sessions", stat="running")
    with pytest.raises(ConfigError, match=r"^chunks: chunks is a counter; expected \('_total',\) after it$"):
        scope.now("chunks")
    with pytest.raises(ConfigError, match=r"^sessions_bucket: sessions is a gauge"):
        scope.quantile(0.5, "sessions")


def test_prometheus_can_parse_every_expression(tmp_path: Path) -> None:
    recorded = [{"record": f"panel_{i}", "expr": filled(e, "1m", "a|b")} for i, e in enumerate(ASKED)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    assert f"SUCCESS: {len(ASKED)} rules found" in promtool("check", "rules", file)
    assert f"SUCCESS: {len(alerts.ALL)} rules found" in promtool("check", "rules", MADE / "rules.yaml")


def test_each_alert_fires_when_it_should_and_rests_when_it_should_not() -> None:
    checks = [c for test in yaml.safe_load(TESTS.read_text())["tests"] for c in test["promql_expr_test"]]
    for alert in alerts.ALL:
        mine = [bool(c["exp_samples"]) for c in checks if f'"{alert.name}"' in c["expr"]]
        assert {True, False} == set(mine), f"{TESTS.name} does not show {alert.name} both firing and resting"
    promtool("test", "rules", TESTS)


def test_an_alert_has_its_paragraph_in_the_runbook_and_a_panel_that_shows_it() -> None:
    assert set(SECTIONS) == {alert.name for alert in alerts.ALL}
    rules = yaml.safe_load((MADE / "rules.yaml").read_text())["groups"]
    urls = {rule["alert"]: rule["annotations"]["runbook_url"] for group in rules for rule in group["rules"]}
    for alert in alerts.ALL:
        assert urls[alert.name] == f"docs/runbook.md#{alert.name.lower()}"
        text = SECTIONS[alert.name]
        at = [text.find(mark) for mark in MARKS]
        assert -1 not in at, f"{alert.name} lacks one of {MARKS}"
        assert at == sorted(at), alert.name
        dashboard, panel = alert.panel
        assert panel in PANELS[dashboard], alert.panel
        looked = re.findall(r"\*(\w+): ([^*]+)\*", text[at[2] : at[3]])
        assert alert.panel in looked, alert.name
        for where, title in looked:
            assert title in PANELS[where], f"{alert.name}: no panel {where}: {title}"


def test_every_command_of_the_runbook_exists() -> None:
    group: Any = typer.main.get_command(app)
    known = {name: group.get_command(None, name) for name in group.list_commands(None)}
    named = re.findall(r"`longtake ([^`]+)`", RUNBOOK)
    assert len(named) > 10
    for line in named:
        name, *words = line.split()
        assert name in known, f"longtake {line}"
        options = {option for p in known[name].params for option in p.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options, f"longtake {line}"


@pytest.mark.parametrize("shown", dashboards.ALL, ids=lambda d: d.name)
def test_a_dashboard_is_one_that_grafana_and_its_sidecar_load(shown: Any) -> None:
    text = (MADE / "dashboards" / f"longtake-{shown.name}.json").read_text()
    assert len(text) < 250_000  # of a ConfigMap that kubectl can apply
    plain = json.loads(text)
    assert [p["title"] for p in plain["panels"]] == list(PANELS[shown.name])  # none has the name of another
    taken = {(x, y) for p in plain["panels"] for x, y in [(p["gridPos"]["x"], p["gridPos"]["y"])]}
    assert len(taken) == len(plain["panels"])
    variables = {v["name"] for v in plain["templating"]["list"]}
    for name in re.findall(r"\$\{?(\w+)", " ".join(t["expr"] for p in plain["panels"] for t in p["targets"])):
        assert name in {*variables, "__rate_interval"}
    component = yaml.safe_load((MADE / "kustomization.yaml").read_text())["configMapGenerator"]
    one = next(made for made in component if made["files"] == [f"dashboards/longtake-{shown.name}.json"])
    assert one["options"]["labels"] == {"grafana_dashboard": "1"}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_the_component_makes_a_labelled_config_map_of_each_dashboard_in_an_overlay(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay"
    shutil.copytree(MADE, tmp_path / "monitoring")
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text("namespace: there\ncomponents: [../monitoring]\n")
    done = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    assert {m["metadata"]["namespace"] for m in made} == {"there"}
    maps = [m for m in made if m["kind"] == "ConfigMap"]
    assert {key for m in maps for key in m["data"]} == {f"longtake-{d.name}.json" for d in dashboards.ALL}
    assert all(m["metadata"]["labels"]["grafana_dashboard"] == "1" for m in maps)
    (rule,) = [m for m in made if m["kind"] == "PrometheusRule"]
    validate(rule)


def test_plots_name_lines_and_values_as_grafana_does() -> None:
    line = Line({"what": "held", "replica": "a1"}, (0.0,), (1.0,))
    assert named("{{what}}, {{replica}}{{absent}}", line) == "held, a1"
    values = [("s", 0.0123, "12.3 ms"), ("bytes", 3 << 20, "3 MiB"), ("Bps", 512, "512 B/s"), ("ops", 2.5, "2.5/s")]
    assert [written(unit, value) for unit, value, _ in values] == [shown for *_, shown in values]
    assert written("percentunit", 0.25) == "25 %"

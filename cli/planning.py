"""``longtake plan``: how many sessions fit on which machine, what runs out first, what would move it, what it costs."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from cache.keep_set import Role
from cache.spec import AttentionType
from cli.common import app, fail
from cli.plan_plot import draw
from cli.plan_tables import as_json, counted, show
from errors import ConfigError, LongtakeError, MediaError
from settings import load, overridden, question_of, read_measured, written
from sizing import Demand, Plan, machine_named, plan, what_ifs
from sizing.machines import GB
from sizing.pages import FORMATS, Format

DEFAULT = Demand()
ROLES = [role.value for role in Role]


@app.command("plan")
def plan_capacity(
    config: Annotated[
        Path | None, typer.Option(help="Settings, YAML; what is not said here is taken from there.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="toy, random, ltx-2, ltx-2.3, or a model folder.")] = None,
    gpu: Annotated[str, typer.Option(help="h100, h200, b200, l40s, rtx4090 or cpu.")] = "cpu",
    keep_set: Annotated[str, typer.Option(help="Chunks by role: recent=8,scene_anchor=2,video_self.recent=4.")] = "",
    pages: Annotated[
        str, typer.Option(help="Format of the pool's pages: exact, fp8, int8; by default engine.pages.")
    ] = "",
    measured: Annotated[list[Path] | None, typer.Option(help="Measurements; may be given several times.")] = None,
    price: Annotated[float | None, typer.Option(help="Of an hour of the GPU and its share of a node.")] = None,
    memory: Annotated[float | None, typer.Option(help="Of the GPU, GB.")] = None,
    host_memory: Annotated[float | None, typer.Option(help="Of the node, by GPU, GB.")] = None,
    disk_space: Annotated[float | None, typer.Option("--disk", help="Of the node, by GPU, GB.")] = None,
    generators: Annotated[int, typer.Option(help="Generators that share a restore store.")] = DEFAULT.generators,
    cuts: Annotated[float, typer.Option(help="Cuts of a take, per hour.")] = DEFAULT.cuts_hour,
    returns: Annotated[float, typer.Option(help="Returns of a take, per hour.")] = DEFAULT.returns_hour,
    hours: Annotated[float, typer.Option(help="Length of a take.")] = DEFAULT.take_hours,
    away: Annotated[float, typer.Option(help="Streams put away, for every one that runs.")] = DEFAULT.away,
    spare: Annotated[float, typer.Option(help="Share of time and bandwidth left over.")] = DEFAULT.spare,
    plot: Annotated[Path | None, typer.Option(help="A picture of the plan, PNG.")] = None,
    plain: Annotated[bool, typer.Option("--json", help="All of it, as JSON.")] = False,
    write: Annotated[
        Path | None, typer.Option("--write-settings", help="Settings by which a service admits this.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is written.")] = False,
) -> None:
    """Compute how many sessions fit, what runs out first, what would move it, and what a stream costs by the hour."""
    try:
        demand = Demand(cuts, returns, hours, away, DEFAULT.lost_hour, DEFAULT.text_tokens, spare, generators)
        over = _keep_set(keep_set)
        settings = load(config, model=model, over=over)
        sizes = {"memory_bytes": memory, "host_bytes": host_memory, "disk_bytes": disk_space}
        given = {field: None if gb is None else gb * GB for field, gb in sizes.items()} | {"price_hour": price}
        machine = overridden(machine_named(gpu), given)
        files = [read_measured(path) for path in measured or ()]
        shipped = load({}, environ={}, model=settings.model.source)
        question = question_of(settings, machine, demand, _pages(pages), files, shipped)
        found, changes = plan(question), what_ifs(question)
        console = Console(highlight=False)
        if plain:
            typer.echo(json.dumps(as_json(found, changes), indent=1))
        else:
            show(console, found, changes)
        if plot is not None:
            _write(plot, overwrite, draw(found))
        if write is not None:
            _write(write, overwrite, _settings_file(found, config, over).encode())
    except LongtakeError as error:
        fail(error, 2)


def _pages(name: str) -> Format | None:
    if not name:
        return None
    for known in FORMATS:
        if name == known:
            return known
    raise ConfigError(f"pages is {name!r}; expected one of {', '.join(FORMATS)}")


def _keep_set(text: str) -> dict[str, Any]:
    """Budgets by type and role of ``role=N`` (all types) and ``type.role=N``, as a settings file has them."""
    budgets: dict[str, dict[str, int]] = {}
    types = [t.value for t in AttentionType]
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, _, number = part.partition("=")
        kind, _, role = key.rpartition(".")
        if role not in ROLES or (kind and kind not in types) or not number.isdecimal():
            raise ConfigError(
                f"keep-set has {part!r}; expected ROLE=N or TYPE.ROLE=N, where ROLE is one of {', '.join(ROLES)} and "
                f"TYPE one of {', '.join(types)}"
            )
        for t in [kind] if kind else types:
            budgets.setdefault(t, {})[role] = int(number)
    return {"budgets": budgets} if budgets else {}


def _settings_file(found: Plan, config: Path | None, over: dict[str, Any]) -> str:
    """YAML that loads, with the plan's account of itself above it."""
    plain = written(found, config, over)
    load(plain, environ={})
    limit, question = found.binding, found.question
    head = [
        f"# longtake plan: {counted(found.sessions)} of {question.model.name} on {question.machine.name};",
        f"# {limit.name} is reached first ({limit.used.source}).",
    ]
    return "\n".join(head) + "\n" + yaml.safe_dump(plain, sort_keys=False)


def _write(file: Path, overwrite: bool, content: bytes) -> None:
    if file.exists() and not overwrite:
        raise ConfigError(f"{file} exists; expected another name, or --overwrite")
    try:
        file.write_bytes(content)
    except OSError as error:
        raise MediaError(f"{file} cannot be written: {error}") from error

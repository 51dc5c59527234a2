"""A plan as tables and as JSON: every line with where its figure is from."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cache.spec import TYPES
from sizing import Figure, Plan, WhatIf
from sizing.figures import derived
from sizing.pages import FORMATS, SessionBytes
from sizing.plan import MOST, take_hour_bytes, written_hour_bytes

STYLES = {"computed": "", "measured": "green", "data sheet": "cyan", "assumed": "yellow"}


def show(console: Console, found: Plan, changes: Sequence[WhatIf]) -> None:
    """The whole plan, for a terminal."""
    question = found.question
    model, machine = question.model, question.machine
    console.print(
        f"{model.name} in {model.dtype}, a chunk of {model.chunk_seconds:g} s is {' + '.join(_tokens(found))} tokens; "
        f"{machine.name}",
        markup=False,
    )
    for table in (_session_table(found), _formats_table(found), _lines_table(found), _limits_table(found)):
        console.print()
        console.print(table)
    console.print()
    console.print(_verdict(found))
    console.print()
    console.print(_changes_table(found, changes))
    console.print(
        "\nMeasure it: python -m bench.capacity --out measured.json; then --measured measured.json", markup=False
    )


def _tokens(found: Plan) -> list[str]:
    return [f"{count:,} {modality}" for modality, count in found.question.model.tokens.items()]


def _session_table(found: Plan) -> Table:
    table = Table(title="A session in the pool (MB; computed)", title_justify="left")
    roles = list(next(iter(found.session.by_role.values())))
    for i, column in enumerate(("", *(role.replace("_", " ") for role in roles), "places", "all")):
        table.add_column(column, justify="right" if i else "left")
    for t in TYPES:
        by_role = found.session.by_role[t]
        cells = [_number(by_role[role] / 1e6) for role in roles]
        table.add_row(t.value, *cells, str(found.session.pages[t]), _number(found.session.of_type(t) / 1e6))
    sums = [_number(sum(found.session.by_role[t][role] for t in TYPES) / 1e6) for role in roles]
    table.add_row("all", *sums, "", _number(found.session.total / 1e6), style="bold")
    return table


def _formats_table(found: Plan) -> Table:
    question = found.question
    table = Table(title="The same in other pages (MB; computed)", title_justify="left")
    for i, column in enumerate(("pages", *(t.value for t in TYPES), "all", "of exact")):
        table.add_column(column, justify="right" if i else "left")
    native = SessionBytes.of(question.model.specs(), question.keeping.budgets, "exact").total
    for pages in FORMATS:
        session = SessionBytes.of(question.model.specs(), question.keeping.budgets, pages)
        name = question.model.dtype if pages == "exact" else pages
        cells = [_number(session.of_type(t) / 1e6) for t in TYPES]
        table.add_row(name, *cells, _number(session.total / 1e6), f"{session.total / native:.0%}")
    return table


def lines(found: Plan) -> list[tuple[str, str, Figure]]:
    """Every figure of a plan that has a name: what it is, its unit, and the figure."""
    needs, back, many = found.needs, found.returns, f"of {counted(max(1, found.sessions))}"
    return [
        *((f"device: {name}", "bytes", figure) for name, figure in found.device),
        *((f"host: {name}", "bytes", figure) for name, figure in found.host),
        ("a pass, one session", "s", found.pass_s),
        (f"a step {many}", "s", found.step_s),
        ("slack of a chunk", "s", found.slack_s),
        ("first chunk of a scene, one session", "s", found.first_chunk_s),
        ("to the restore store, one session", "bytes/s", needs.offload_s),
        ("to the restore store in a take-hour", "bytes", written_hour_bytes(found)),
        ("kept of a take-hour", "bytes", take_hour_bytes(found)),
        ("records of a session", "bytes", needs.records),
        ("records of a session on disk", "bytes", needs.disk),
        ("a stream that is put away", "bytes", needs.away),
        ("a return brings back", "bytes", back.nbytes),
        ("  from host memory", "s", back.host_s),
        ("  from disk", "s", back.disk_s),
        ("  encoded from latents", "s", back.rebuild_s),
        ("  may be spent in a chunk", "s", back.allowance_s),
    ]


def _lines_table(found: Plan) -> Table:
    table = Table("", title="A generator", title_justify="left")
    table.add_column("", justify="right")
    table.add_column("from")
    for name, unit, figure in lines(found):
        if figure.value:
            table.add_row(name, quantity(figure.value, unit), source(figure))
    return table


def _limits_table(found: Plan) -> Table:
    table = Table("what may run out", title="Limits", title_justify="left")
    for column in ("sessions", "used", "of"):
        table.add_column(column, justify="right")
    table.add_column("from")
    for limit in found.limits:
        count = f"{MOST} or more" if limit.sessions == MOST else str(limit.sessions)
        row = (limit.name, count, quantity(limit.used.value, limit.unit), quantity(limit.available.value, limit.unit))
        rests = derived(limit.used.value, (limit.used, limit.available))
        table.add_row(*row, source(rests), style="bold" if limit is found.binding else "")
    return table


def _verdict(found: Plan) -> Text:
    limit = found.binding
    if not found.sessions:
        short = quantity(limit.used.value, limit.unit), quantity(limit.available.value, limit.unit)
        return Text(f"Not one session fits: {limit.name}, {short[0]} of {short[1]}.", style="bold red")
    cost = "" if found.cost_hour is None else f", {found.cost_hour.value:.3g} per stream-hour"
    return Text(f"{counted(found.sessions)} per generator{cost}; {limit.name} is reached first.", style="bold green")


def counted(sessions: int) -> str:
    """So many sessions, in words."""
    return "1 session" if sessions == 1 else f"{sessions} sessions"


def _changes_table(found: Plan, changes: Sequence[WhatIf]) -> Table:
    table = Table("what if", title="What would move it", title_justify="left")
    for column in ("sessions", "MB a session", "a step", "cost"):
        table.add_column(column, justify="right")
    table.add_column("then first")
    table.add_column("how")
    table.add_row("as planned", *_outcome(found), "", style="bold")
    for change in changes:
        style = "dim" if not change.built else ""
        table.add_row(change.change, *_outcome(change.plan), change.how, style=style)
    return table


def _outcome(found: Plan) -> tuple[str, ...]:
    cost = "" if found.cost_hour is None else f"{found.cost_hour.value:.3g}"
    step = quantity(found.step_s.value, "s")
    limit = found.binding
    first = f"{limit.name}, {quantity(limit.used.value, limit.unit)} of {quantity(limit.available.value, limit.unit)}"
    return str(found.sessions), _number(found.session.total / 1e6), step, cost, first


def source(figure: Figure) -> Text:
    """Where a figure is from, in its colour."""
    return Text(figure.source.value, style=STYLES[figure.source.value])


def quantity(value: float, unit: str) -> str:
    """A number with a unit that a person reads."""
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:,.3g} {name}{unit.removeprefix('bytes')}"
    return f"{value:,.0f} B{unit.removeprefix('bytes')}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def as_json(found: Plan, changes: Sequence[WhatIf]) -> dict[str, Any]:
    """All of a plan as plain data; numbers in bytes, seconds and bytes a second."""
    limit = found.binding
    return {
        "model": found.question.model.name,
        "gpu": found.question.machine.name,
        "sessions": found.sessions,
        "binding": limit.name,
        "cost_hour": None if found.cost_hour is None else asdict(found.cost_hour),
        "session_bytes": {t.value: dict(found.session.by_role[t]) for t in TYPES},
        "lines": {name.strip(): {"unit": unit, **asdict(figure)} for name, unit, figure in lines(found)},
        "limits": [asdict(limit) for limit in found.limits],
        "return_chunks": found.returns.chunks,
        "what_if": [
            {
                "change": change.change,
                "how": change.how,
                "built": change.built,
                "sessions": change.plan.sessions,
                "binding": change.plan.binding.name,
                "session_bytes": change.plan.session.total,
                "step_s": change.plan.step_s.value,
                "cost_hour": None if change.plan.cost_hour is None else change.plan.cost_hour.value,
            }
            for change in changes
        ],
    }

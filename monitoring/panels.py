"""What a dashboard is, whoever draws it."""

from dataclasses import dataclass
from typing import Literal

Unit = Literal["s", "bytes", "Bps", "short", "ops", "percentunit"]


@dataclass(frozen=True)
class Query:
    """One expression; ``legend`` names its lines, with ``{{tag}}`` for what a tag says."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A plot.

    Args:
        says: what is seen, and what is to be made of it.
        stacked: lines are parts of a whole.
        needs: what must be there for it to have data, if that is not so everywhere.
    """

    title: str
    says: str
    unit: Unit
    queries: tuple[Query, ...]
    stacked: bool = False
    needs: str = ""


@dataclass(frozen=True)
class Dashboard:
    """Panels about one part; ``name`` is its file and address."""

    name: str
    title: str
    panels: tuple[Panel, ...]

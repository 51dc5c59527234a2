"""``python -m monitoring.plot``: draws dashboards from a Prometheus by their own queries, where there is no Grafana."""

import argparse
import re
import time
from pathlib import Path

import httpx
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from monitoring.dashboards import ALL
from monitoring.panels import Dashboard, Panel
from monitoring.prometheus import Line, Prometheus
from monitoring.reading import filled

matplotlib.use("Agg")
COLUMNS, PANEL_INCHES, DPI, LEGENDS = 3, (5.2, 2.9), 80, 8
BACK, INSIDE, TEXT, GRID = "#111217", "#181b1f", "#ccccdc", "#2c3235"
COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#f2495c", "#b877d9", "#8ab8ff", "#96d98d", "#ffb357", "#ca95e5")
POINTS, HEADROOM = 240, 1.3  # samples a line; space above it for the legend


def main() -> None:
    """Draw what was asked for."""
    names = [one.name for one in ALL]
    parser = argparse.ArgumentParser(description="Draw dashboards from a Prometheus, one PNG each.")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="address (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder (default: this one)")
    parser.add_argument("--minutes", type=float, default=15, help="how far back (default: %(default)g)")
    parser.add_argument("--window", default="1m", help="of rates; at least four scrape intervals (%(default)s)")
    parser.add_argument("--cluster", default=".*", help="Ray cluster, a regular expression (default: all)")
    parser.add_argument("dashboards", nargs="*", help=f"some of {', '.join(names)} (default: all)")
    given = parser.parse_args()
    if unknown := set(given.dashboards) - set(names):
        parser.error(f"no dashboard {', '.join(sorted(unknown))}; expected some of {', '.join(names)}")
    given.out.mkdir(parents=True, exist_ok=True)
    with httpx.Client(base_url=given.prometheus, timeout=60) as http:
        view = View(Prometheus(http), time.time(), 60 * given.minutes, given.window, given.cluster)
        for shown in ALL:
            if shown.name in (given.dashboards or names):
                path = given.out / f"longtake-{shown.name}.png"
                view.drawn(shown).savefig(path, dpi=DPI, facecolor=BACK)
                print(path)


class View:
    """A stretch of time in a Prometheus; ``window``: of rates."""

    def __init__(self, asked: Prometheus, end: float, seconds: float, window: str, cluster: str) -> None:
        self.asked, self.end, self.seconds = asked, end, seconds
        self.window, self.cluster, self.step_s = window, cluster, max(1.0, seconds / POINTS)

    def drawn(self, shown: Dashboard) -> Figure:
        """A dashboard as it would look."""
        rows = -(-len(shown.panels) // COLUMNS)
        size = (COLUMNS * PANEL_INCHES[0], rows * PANEL_INCHES[1] + 0.4)
        figure = Figure(figsize=size, facecolor=BACK, layout="constrained")
        figure.suptitle(shown.title, color=TEXT, x=0.01, ha="left", fontsize=14)
        grid = figure.subplots(rows, COLUMNS, squeeze=False).flat
        for axes, panel in zip(grid, shown.panels, strict=False):
            self._panel(axes, panel)
        for axes in list(figure.axes)[len(shown.panels) :]:
            axes.set_visible(False)
        return figure

    def _panel(self, axes: Axes, panel: Panel) -> None:
        _dress(axes, panel)
        lines = [(named(q.legend, line), line) for q in panel.queries for line in self._lines(q.expression)]
        lines.sort(key=lambda named: named[0])
        if not lines:
            why = f"no data: needs {panel.needs}" if panel.needs else "no data"
            axes.text(0.5, 0.5, why, color=TEXT, alpha=0.6, ha="center", va="center", transform=axes.transAxes)
        below: dict[float, float] = {}
        for i, (label, line) in enumerate(lines):
            colour, shown = COLOURS[i % len(COLOURS)], label if i < LEGENDS else None
            floor = [below.get(at, 0.0) if panel.stacked else 0.0 for at in line.times]
            values = [value + under for value, under in zip(line.values, floor, strict=True)]
            if panel.stacked:
                below |= dict(zip(line.times, values, strict=True))
            for part in _unbroken(line.times, 1.5 * self.step_s):
                minutes = [(at - self.end) / 60 for at in line.times[part]]
                fill = 0.3 if panel.stacked else 0.06
                axes.fill_between(minutes, floor[part], values[part], color=colour, alpha=fill, linewidth=0)
                layer = 3 if any(line.values) else 2  # nothing, on top of a stack, would hide what is there
                axes.plot(minutes, values[part], color=colour, linewidth=1.2, label=shown, zorder=layer)
                shown = None
        axes.set_xlim(-self.seconds / 60, 0)
        axes.set_ylim(0, HEADROOM * max((0.0, *(max(line.values) for _, line in lines), *below.values())) or 1)
        if lines:
            axes.legend(fontsize=7, frameon=False, labelcolor=TEXT, ncols=2, loc="upper left")

    def _lines(self, expression: str) -> list[Line]:
        asked = filled(expression, self.window, self.cluster)
        return self.asked.over(asked, self.end - self.seconds, self.end, self.step_s)


def _unbroken(times: tuple[float, ...], apart: float) -> list[slice]:
    """The stretches of a line between which there was nothing."""
    breaks = [i for i in range(1, len(times)) if times[i] - times[i - 1] > apart]
    return [slice(a, b) for a, b in zip([0, *breaks], [*breaks, len(times)], strict=True)]


def named(legend: str, line: Line) -> str:
    """What a line is called: its legend with what its tags say."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: line.labels.get(found[1], ""), legend)


def written(unit: str, value: float) -> str:
    """A value with its unit, short."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 or not value else f"{1000 * value:.3g} ms"
    if unit in ("bytes", "Bps"):
        for name in ("B", "KiB", "MiB", "GiB"):
            if value < 1024 or name == "GiB":
                break
            value /= 1024
        return f"{value:.3g} {name}{'/s' if unit == 'Bps' else ''}"
    return f"{value:.3g}{'/s' if unit == 'ops' else ''}"


def ago(minutes: float) -> str:
    """A time before now."""
    if not minutes:
        return "now"
    return f"{minutes:g} min" if minutes == int(minutes) else f"{60 * minutes:.0f} s"


def _dress(axes: Axes, panel: Panel) -> None:
    axes.set_facecolor(INSIDE)
    axes.set_title(panel.title, color=TEXT, fontsize=9, loc="left")
    axes.grid(color=GRID, linewidth=0.6)
    axes.tick_params(colors=TEXT, labelsize=7, length=0)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda minutes, _: ago(minutes)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(panel.unit, value)))


if __name__ == "__main__":
    main()

"""A picture of a plan: what lies on the device, what a session takes in each page format, and time by sessions."""

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from cache.spec import TYPES
from cli.plan_tables import counted
from sizing import Plan
from sizing.chunk_time import ChunkTime
from sizing.pages import FORMATS, SessionBytes
from sizing.plan import MOST


def draw(found: Plan) -> bytes:
    """The picture as PNG."""
    matplotlib.use("Agg")
    picture = Picture(figsize=(14, 4.5), layout="constrained")
    axes = picture.subplots(1, 3)
    _device(axes[0], found)
    _formats(axes[1], found)
    _time(axes[2], found)
    name = f"{found.question.model.name} on {found.question.machine.name}: {counted(found.sessions)}"
    picture.suptitle(f"{name}; {found.binding.name} is reached first")
    out = io.BytesIO()
    picture.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _device(axes: Axes, found: Plan) -> None:
    bottom = 0.0
    for name, figure in found.device:
        axes.bar([0], [figure.value / 1e9], bottom=bottom, label=f"{name} ({figure.source})")
        bottom += figure.value / 1e9
    capacity = found.question.machine.memory_bytes
    axes.axhline(capacity.value / 1e9, color="black", linestyle="--", label=f"device ({capacity.source})")
    axes.set_xlim(-0.6, 2.4)
    axes.set_xticks([])
    axes.legend(fontsize=7, loc="upper right")
    _label(axes, f"Device memory, {counted(max(1, found.sessions))}", "", "GB")


def _formats(axes: Axes, found: Plan) -> None:
    question = found.question
    for column, pages in enumerate(FORMATS):
        session, bottom = SessionBytes.of(question.model.specs(), question.keeping.budgets, pages), 0.0
        for number, t in enumerate(TYPES):
            height = session.of_type(t) / 1e6
            axes.bar([column], [height], bottom=bottom, color=f"C{number}", label="" if column else t.value)
            bottom += height
    axes.set_xticks(range(len(FORMATS)), [question.model.dtype if f == "exact" else f for f in FORMATS])
    axes.legend(fontsize=7)
    _label(axes, "A session in the pool, by page format", "", "MB")


def _time(axes: Axes, found: Plan) -> None:
    time, ends = ChunkTime(found.question), [limit.sessions for limit in found.limits if limit.sessions < MOST]
    most = max(4, min(256, 2 * max((end for end in ends if end <= 128), default=4)))
    counts = list(range(1, most + 1))
    axes.plot(counts, [time.step_s(count).value for count in counts], marker=".", label=f"step ({found.step_s.source})")
    axes.axhline(found.question.model.chunk_seconds, color="black", linestyle="--", label="a chunk's own time")
    for number, limit in enumerate(found.limits):
        if limit.sessions <= most:
            axes.axvline(limit.sessions, color=f"C{number + 1}", alpha=0.6, label=f"{limit.name}: {limit.sessions}")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)
    _label(axes, "Time of a step", "sessions", "s")


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, alpha=0.25)
    axes.set_axisbelow(True)

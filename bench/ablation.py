"""Why the shipped defaults are what they are: strength, EMA rate and threshold of AdaStat, anchors, budgets, moves.

One thing is changed at a time in the full manager; ten minutes of the toy model, three seeds each. The last variants
have no memory beside a window of ten chunks, to see what AdaStat does where nothing else holds a take.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bench.common import Report, kept, label, options, parser
from bench.quality import interval, play
from bench.takes import Contender, contenders
from cache.drift import DriftConfig
from cache.keep_set import RoleBudget
from settings import Settings

SHOWN = ("room", "channels", "spreads", "shape", "colour", "synchrony", "drift")


@dataclass(frozen=True)
class Variant(Contender):
    """A contender with one thing changed in its settings."""

    change: Callable[[Settings], Settings] = lambda settings: settings

    def settings(self, sessions: int) -> Settings:
        """The contender's settings, changed."""
        return self.change(super().settings(sessions))


def positions(**changes: object) -> Callable[[Settings], Settings]:
    """A change of how memory is placed and moved."""

    def change(settings: Settings) -> Settings:
        cache = settings.engine.cache
        placed = replace(cache.positions, **changes)  # type: ignore[arg-type]
        return replace(settings, engine=replace(settings.engine, cache=replace(cache, positions=placed)))

    return change


def variants() -> list[Variant]:
    """The shipped manager, and one change at a time."""
    full = next(c for c in contenders() if c.name == "full manager")

    def made(name: str, **changes: object) -> Variant:
        plain = {f: getattr(full, f) for f in ("policy", "budget", "drift", "subject")}
        return Variant(name, **{**plain, **changes})  # type: ignore[arg-type]

    def drift(name: str, **changes: object) -> Variant:
        return made(name, drift=replace(DriftConfig(), **changes))  # type: ignore[arg-type]

    def window(name: str, **changes: object) -> Variant:
        corrected = replace(DriftConfig(), **changes)  # type: ignore[arg-type]
        return made(name, policy="sliding_window", budget=RoleBudget(1, 0, 0, 0, 10), drift=corrected, subject=False)

    def budget(name: str, *roles: int) -> Variant:
        names = ("subject_anchor", "scene_sink", "scene_anchor", "restored", "recent")
        return made(name, budget=RoleBudget(**dict(zip(names, roles, strict=True))))

    def held_at(s: float) -> dict[str, object]:
        return {"strength": {"video": s, "audio": s / 2}, "strong": {"video": s, "audio": s / 2}}

    strengths = [drift(f"strength {s:g}", **held_at(s)) for s in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return [
        made("as shipped"),
        *strengths,
        *(drift(f"EMA rate {r:g}", ema_rate=r) for r in (0.0, 0.1)),
        *(drift(f"reference threshold {t:g}", reference_threshold=t) for t in (0.9, 1e6)),
        made("no subject anchor", subject=False),
        budget("no sink", 1, 0, 2, 2, 5),
        budget("no anchors", 1, 1, 0, 2, 5),
        budget("3 recent", 1, 1, 2, 2, 3),
        budget("8 recent", 1, 1, 2, 2, 8),
        made("memory follows", change=positions(memory="following")),
        made("rebuild, not relocate", change=positions(move="rebuild")),
        window("window, no AdaStat", **held_at(0.0)),
        window("window, AdaStat 0.5", **held_at(0.5)),
        window("window, AdaStat 1", **held_at(1.0)),
    ]


def main() -> None:
    """Run every variant, print, and leave JSON and plot."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--seeds", type=int, default=3, help="streams per variant (default: 3)")
    arguments.add_argument("--minutes", type=int, default=10, help="length of the takes (default: 10)")
    arguments.add_argument("--only", action="append", help="variants to run (default: all)")
    given = arguments.parse_args()
    shared = options(given)
    seeds, minutes = (range(2), (1, 2)) if shared.quick else (range(given.seeds), (1, given.minutes))
    chosen = variants()[:2] if shared.quick else [v for v in variants() if not given.only or v.name in given.only]
    report = Report("ablation", "What the defaults do", shared, {"seeds": list(seeds), "minutes": list(minutes)})
    late = {}
    for variant in chosen:
        settings = variant.settings(len(seeds))
        tried = (settings.policy, settings.budgets, settings.engine.cache, settings.segmenter.kind)
        what = [*tried, list(seeds), list(minutes)]
        late[variant.name] = kept(shared.work, variant.name, what, partial(play, variant, seeds, minutes))[-1]
    rows = []
    for name, measured in late.items():
        rows.append([name, *("{:.3g} ± {:.2g}".format(*interval([m[s] for m in measured])) for s in SHOWN)])
    report.figures["late"] = late
    report.table(f"Minute {minutes[-1]} against minute 1, mean over seeds ± 95 %", ["", *SHOWN], rows)
    report.finish(plot({name: [m["room"] for m in measured] for name, measured in late.items()}))


def plot(room: dict[str, Sequence[float]]) -> Figure:
    """Error of the room by variant: every seed, and their median."""
    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    for at, values in enumerate(room.values()):
        axes.plot(values, [at] * len(values), "o", color="#6c8ebf", alpha=0.7)
        axes.plot(np.median(values), at, "|", color="black", markersize=16)
    axes.axvline(float(np.median(next(iter(room.values())))), color="grey", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(room)), list(room))
    axes.set_xscale("log")
    axes.invert_yaxis()
    label(axes, "What one change does to the room, by seed (median: bar)", "mean absolute difference to minute 1", "")
    return figure


if __name__ == "__main__":
    main()

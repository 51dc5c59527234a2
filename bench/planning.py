"""What a commit costs in plain Python: four ledgers and 31 position slots, all full, under every policy; no tensors.

One commit is ``begin`` + ``judge`` + ``commit`` of the cache manager. It stands between two chunks of a stream, so it
has to be nothing beside a generation pass.
"""

import cProfile
import io
import pstats
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bench.common import NANOSECONDS_PER_MS, Laps, Options, Report, label, options, parser, progress
from cache.books import CacheConfig
from cache.drift import ChannelStatistics
from cache.keep_set import Budgets, RoleBudget
from cache.manager import CacheManager
from cache.plan import Cut, ReturnTo
from cache.policies import ALL, Policy, SceneMemory
from cache.positions import PositionConfig
from cache.scenes import SceneConfig
from cache.spec import TYPES, AttentionSpec, AttentionType, Modality
from cache.tiers import Held

BUDGET = RoleBudget(subject_anchor=1, scene_sink=2, scene_anchor=4, restored=5, recent=18)
SCENES = SceneConfig(sink_chunks=2, anchors=4, last_chunks=5)
CHANNELS = 128
GOAL_MS = 0.3
BLOCK = 50  # commits of one contender before the next has its turn
VISIT = 24  # commits between two directives: enough to fill the recent budget again


class Everything:
    """A restore store that has whatever it is asked for."""

    def holds(self, session: str, chunk: int) -> Held:
        """All types and the latents."""
        return Held(frozenset(TYPES), latents=True)


@dataclass
class Contender:
    """One policy with one way of holding memory in range, full before it is measured."""

    policy: Policy
    memory: Literal["pinned", "following"]
    scenes: SceneConfig = SCENES
    keep_set: str = ""
    laps: Laps = field(default_factory=Laps)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    epochs: int = 0
    visits: int = 0

    def __post_init__(self) -> None:
        positions = PositionConfig(slots=31, memory=self.memory)
        config = CacheConfig(positions=positions, scenes=self.scenes)
        self.manager = CacheManager("bench", specs(), self.policy, config, Everything())
        self.manager.open_scene("opening", "a prompt")
        self.run(80)
        self.manager.set_subject(self.manager.kept()[-1], dict.fromkeys(TYPES, 1), score=0.5)
        self.visit()
        self.run(60)
        self.laps = Laps()

    @property
    def name(self) -> str:
        """Policy, memory, and the keep-set where it is not the full one."""
        return f"{type(self.policy).__name__}, {self.memory}{self.keep_set}"

    def run(self, commits: int, kind: str = "commit") -> None:
        """Commit chunks, each timed in its three parts."""
        for _ in range(commits):
            self._commit(kind)

    def visit(self) -> None:
        """Cut to a new scene, fill the window, return to the opening; directives and the commits after them timed."""
        self.visits += 1
        for kind, directive in (
            ("cut", Cut(f"scene-{self.visits}", "another prompt")),
            ("return", ReturnTo("opening")),
        ):
            with self.laps.lap(kind):
                self.manager.direct(directive)
            self._commit(f"commit after {kind}")
            self.run(VISIT, "commit between directives")

    def _commit(self, kind: str) -> None:
        manager = self.manager
        chunk, seen = manager.next_chunk, self._seen()
        begun = time.perf_counter_ns()
        manager.begin()
        judging = time.perf_counter_ns()
        manager.judge(seen)
        judged = time.perf_counter_ns()
        mass = self._mass() if self.policy.wants_mass else None
        committing = time.perf_counter_ns()
        plan = manager.commit(chunk, mass)
        done = time.perf_counter_ns()
        parts = {"begin": judging - begun, "judge": judged - judging, "book and plan": done - committing}
        for part, nanoseconds in parts.items():
            self.laps.add(f"{kind}: {part}", nanoseconds / NANOSECONDS_PER_MS)
        self.laps.add(kind, sum(parts.values()) / NANOSECONDS_PER_MS)
        self.epochs += plan.epoch_ended

    def _seen(self) -> dict[str, ChannelStatistics]:
        """Statistics of a chunk that hardly drifts, so that anchors change as they do in a stream."""
        mean = self.random.normal(0.0, 0.05, CHANNELS)
        return {m.value: ChannelStatistics(mean, np.ones(CHANNELS)) for m in Modality}

    def _mass(self) -> dict[AttentionType, dict[int, float]]:
        """Shares of the attention, drawn at random; what the engine would have measured."""
        shares = {}
        for t, ledger in self.manager.ledgers.items():
            chunks = [*ledger.entries, self.manager.next_chunk]
            shares[t] = dict(zip(chunks, self.random.dirichlet(np.ones(len(chunks))).tolist(), strict=True))
        return shares


def specs() -> dict[AttentionType, AttentionSpec]:
    """LTX-2's sizes, which are only multiplied."""
    tokens = {Modality.VIDEO: 768, Modality.AUDIO: 16}
    width = {t: 4096 if t is AttentionType.VIDEO_SELF else 2048 for t in TYPES}
    return {t: AttentionSpec(t, 48, tokens[t.keyed_by], width[t], 2) for t in TYPES}


def contenders() -> Iterator[Contender]:
    """Every policy, with memory pinned and following; then the default keep-set, which leaves slots unused."""
    for policy in ALL:
        yield Contender(policy.of(Budgets.uniform(BUDGET)), "pinned")
        yield Contender(policy.of(Budgets.uniform(BUDGET)), "following")
    yield Contender(SceneMemory(Budgets()), "pinned", SceneConfig(), ", 15 places")


@dataclass(frozen=True)
class Figures:
    """Of one contender, in milliseconds; ``kept`` counts chunks and subject anchor after the run."""

    kept: int
    epochs: int
    median_ms: float
    p95_ms: float
    p99_ms: float
    begin_ms: float
    judge_ms: float
    plan_ms: float
    cut_ms: float
    return_ms: float
    after_cut_ms: float
    after_return_ms: float


def figures(contender: Contender) -> Figures:
    """Medians, and the tail of the steady commit."""
    laps, manager = contender.laps, contender.manager
    return Figures(
        kept=len(manager.kept()) + bool(manager.subject_chunks()),
        epochs=contender.epochs,
        median_ms=laps.median("commit"),
        p95_ms=laps.percentile("commit", 95),
        p99_ms=laps.percentile("commit", 99),
        begin_ms=laps.median("commit: begin"),
        judge_ms=laps.median("commit: judge"),
        plan_ms=laps.median("commit: book and plan"),
        cut_ms=laps.median("cut"),
        return_ms=laps.median("return"),
        after_cut_ms=laps.median("commit after cut"),
        after_return_ms=laps.median("commit after return"),
    )


def play(commits: int, visits: int) -> dict[str, Contender]:
    """Steady commits in turns, then cuts and returns in turns."""
    everyone = list(contenders())
    with progress() as bar:
        for _ in bar.track(range(commits // BLOCK), description="steady"):
            for contender in everyone:
                contender.run(BLOCK)
        for _ in bar.track(range(visits), description="cuts and returns"):
            for contender in everyone:
                contender.visit()
    return {contender.name: contender for contender in everyone}


def profiled(commits: int, top: int = 18) -> str:
    """Where the default policy's commits spend their time."""
    contender = Contender(SceneMemory(Budgets.uniform(BUDGET)), "pinned")
    profile = cProfile.Profile()
    profile.enable()
    contender.run(commits)
    profile.disable()
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(top)
    return text.getvalue()


def report_on(measured: Mapping[str, Figures], report: Report) -> None:
    """Tables and goals."""
    steady, directed = [], []
    for name, f in measured.items():
        times = (f.median_ms, f.p95_ms, f.p99_ms, f.begin_ms, f.judge_ms, f.plan_ms)
        steady.append([name, f.kept, f.epochs, *(f"{x:.3f}" for x in times)])
        directed.append([name, *(f"{x:.3f}" for x in (f.cut_ms, f.after_cut_ms, f.return_ms, f.after_return_ms))])
        measured_as = f"{f.median_ms:.3f} ms, p95 {f.p95_ms:.3f} ms"
        report.goal(f"{name}: median commit under {GOAL_MS} ms", measured_as, f.median_ms < GOAL_MS)
    columns = ["commit, ms", "kept", "epochs", "median", "p95", "p99", "begin", "judge", "book and plan"]
    report.table("One commit, keep-set full, one scene", columns, steady)
    columns = ["median ms", "cut", "commit after cut", "return", "commit after return"]
    report.table("A directive, and the commit that follows it", columns, directed)
    report.figures = {name: asdict(f) for name, f in measured.items()}


def plotted(played: Mapping[str, Contender]) -> Figure:
    """The distribution of steady commits, and the parts of the median."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), constrained_layout=True)
    names = list(played)
    left.boxplot(
        [c.laps.ms["commit"] for c in played.values()], whis=(5, 95), showfliers=False, orientation="horizontal"
    )
    left.set_yticks(range(1, len(names) + 1), names)
    left.axvline(GOAL_MS, color="tab:red", linestyle="--", label=f"goal: median under {GOAL_MS} ms")
    left.set_xlim(left=0)
    left.invert_yaxis()
    label(left, "One commit; whiskers from 5th to 95th percentile", "ms per commit", "")
    start = np.zeros(len(names))
    for part in ("begin", "judge", "book and plan"):
        medians = [c.laps.median(f"commit: {part}") for c in played.values()]
        right.barh(names, medians, left=start, label=part)
        start += medians
    right.invert_yaxis()
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    label(right, "Parts of a commit, medians", "ms per commit", "")
    return figure


def run(shared: Options, commits: int, visits: int, profile: bool) -> None:
    """Measure every policy; on request, profile the default one."""
    configuration = {
        "slots": 31,
        "budget of every type": BUDGET,
        "scenes": SCENES,
        "commits": commits,
        "cuts and returns": visits,
        "interleaved in blocks of": BLOCK,
    }
    report = Report("planning", "Planning and bookkeeping of a commit", shared, configuration)
    played = play(commits, visits)
    report_on({name: figures(contender) for name, contender in played.items()}, report)
    report.notes += [
        "begin + judge + commit of the cache manager, all four ledgers; attention mass is drawn outside of the clock.",
        "With 31 places in 31 slots, pinned memory leaves the range at every commit, so that each ends an epoch. The "
        "last row is the default keep-set of 15 places, which leaves room for longer ones.",
    ]
    report.finish(plotted(played))
    if profile:
        print(profiled(commits))


def main() -> None:
    """The command line."""
    made = parser(__doc__ or "")
    made.add_argument("--commits", type=int, help="steady commits per policy (default: 2000; with --quick 200)")
    made.add_argument("--profile", action="store_true", help="also run cProfile on the default policy")
    arguments = made.parse_args()
    shared = options(arguments)
    commits = arguments.commits or (200 if shared.quick else 2000)
    if commits < BLOCK:
        raise SystemExit(f"--commits is {commits}; expected at least {BLOCK}")
    run(shared, commits, visits=3 if shared.quick else 40, profile=arguments.profile)


if __name__ == "__main__":
    main()

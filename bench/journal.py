"""What the ledger's journal costs: a commit by kind of journal and fsync policy, and a new beginning by entries.

A commit is one call of a ledger shard in this process with so many sessions' entries, as a generator's batch makes it;
what of it is the journal's shows beside the journal that is none.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from actors.ledger_service import LedgerShard
from actors.redis_journal import RedisJournal
from actors.statements import Entry, Statement, Verdict
from bench.common import Laps, Options, Report, label, options, parser
from bench.lives import CONFIG, SPECS, Everything
from bench.real_redis import found, real_redis
from cache.drift import ChannelStatistics
from cache.file_journal import FileJournal, Fsync, Keeping
from cache.journal import Journal, Nowhere
from cache.keep_set import Budgets, RoleBudget
from cache.manager import CacheManager
from cache.policies import SceneMemory
from cache.replica import digest
from cache.state import dump
from cache.terms import Terms

TERMS = Terms(SPECS, SceneMemory(Budgets.uniform(RoleBudget())), CONFIG)
CHANNELS = 128  # of an LTX-2 latent, whose statistics go with every commit
ASIDE = bytes(600)  # about what a continuity report has
GROUPS = (1, 4, 16)
MakeJournal = Callable[[], Journal]


@dataclass(frozen=True)
class Size:
    """Commits by group, and entries of which a new beginning reads; ``warm``: commits before, for full books."""

    commits: int
    warm: int
    entries: tuple[int, ...]


QUICK = Size(commits=20, warm=5, entries=(64, 256))
FULL = Size(commits=400, warm=40, entries=(64, 512, 4096, 16384))


@dataclass(frozen=True)
class Beginning:
    """How long a shard takes to take its books up."""

    kind: str
    entries: int
    sessions: int
    megabytes: float
    ms: float


class Generator:
    """Sessions that commit chunk after chunk."""

    def __init__(self, shard: LedgerShard, sessions: int, first: int = 0) -> None:
        self.shard = shard
        kept_by = TERMS.specs, TERMS.policy, TERMS.config
        self.managers = [CacheManager(f"s{first + i}", *kept_by, Everything()) for i in range(sessions)]
        self.statistics = {m: ChannelStatistics(np.zeros(CHANNELS), np.ones(CHANNELS)) for m in ("video", "audio")}
        for manager in self.managers:
            manager.open_scene("opening", "a red ball bouncing in a blue room")
            shard.open(Statement(manager.session, TERMS, dump(manager), manager.recorder.noted))

    def entries(self) -> list[Entry]:
        """The next chunk of every session."""
        return [self._entry(manager) for manager in self.managers]

    def _entry(self, manager: CacheManager) -> Entry:
        manager.begin()
        manager.judge(self.statistics)
        manager.commit(manager.next_chunk)
        number, operations = manager.recorder.take()
        aside = number.to_bytes(8, "big") + ASIDE
        return Entry(manager.session, manager.next_chunk - 1, number, operations, digest(manager), 1, aside)

    def commit(self, entries: list[Entry]) -> None:
        """One call of the shard."""
        verdicts = self.shard.commit(entries)
        assert verdicts == [Verdict.BOOKED] * len(entries), verdicts


@contextmanager
def journals() -> Iterator[dict[str, MakeJournal]]:
    """Kinds of journals by name, each in a place of its own; Redis' server ends with this."""
    folder = Path(tempfile.mkdtemp(prefix="lt"))  # short, for the sockets' sake
    made: dict[str, MakeJournal] = {"none": Nowhere}
    policies: tuple[Fsync, ...] = ("commit", "interval", "never")
    for fsync in policies:
        keeping = Keeping(fsync=fsync)
        made[f"file, fsync {fsync}"] = partial(FileJournal, folder / fsync, keeping, time.monotonic)
    try:
        if not found():
            yield made
            return
        for name in ("r1", "r2"):
            (folder / name).mkdir()
        with real_redis(folder / "r1", "always") as strict, real_redis(folder / "r2", "everysec") as quick:
            made["redis, fsync always"] = partial(RedisJournal, strict.url, "bench", time.monotonic)
            made["redis, fsync everysec"] = partial(RedisJournal, quick.url, "bench", time.monotonic)
            yield made
    finally:
        shutil.rmtree(folder)


def commits(kinds: dict[str, MakeJournal], size: Size) -> Laps:
    """Every kind in turns, so that what else the machine does falls on all."""
    laps = Laps()
    for group in GROUPS:
        shards = {name: LedgerShard(journal=make()) for name, make in kinds.items()}
        generators = {name: Generator(shard, group) for name, shard in shards.items()}
        for turn in range(size.warm + size.commits):
            for name, generator in generators.items():
                entries, begun = generator.entries(), time.perf_counter_ns()
                generator.commit(entries)
                if turn >= size.warm:
                    laps.add(f"{name}/{group}", (time.perf_counter_ns() - begun) / 1e6)
        for shard in shards.values():
            for session in list(shard.books):
                shard.close(session, 1)
            shard.journal.close()
    return laps


def beginnings(kinds: dict[str, MakeJournal], size: Size) -> Iterator[Beginning]:
    """Each kind that has something to begin from, with ever more sessions of 64 entries."""
    for name in [n for n in kinds if n in ("file, fsync never", "redis, fsync everysec")]:
        sessions = 0
        for entries in size.entries:
            shard = LedgerShard(journal=kinds[name]())
            generator = Generator(shard, entries // 64 - sessions, sessions)
            for _ in range(64):
                generator.commit(generator.entries())
            sessions = entries // 64
            shard.journal.close()
            again, begun = LedgerShard(journal=kinds[name]()), time.perf_counter()
            again.tend()
            ms = 1e3 * (time.perf_counter() - begun)
            assert len(again.books) == sessions
            yield Beginning(name, entries, sessions, again.journal.statistics().live_bytes / 1e6, ms)
            again.journal.close()


def report_on(report: Report, kinds: list[str], laps: Laps, begun: list[Beginning]) -> None:
    """Tables and figures."""
    rows: list[list[object]] = []
    for name in kinds:
        cells = [f"{laps.median(f'{name}/{g}'):.2f} / {laps.percentile(f'{name}/{g}', 99):.2f}" for g in GROUPS]
        rows.append([name, *cells])
    title = "Milliseconds of one commit call, median / 99th percentile, by sessions in it"
    report.table(title, ["journal", *map(str, GROUPS)], rows)
    rows = [[b.kind, b.entries, b.sessions, f"{b.megabytes:.2f}", f"{b.ms:.0f}"] for b in begun]
    report.table("A new beginning", ["journal", "entries", "sessions", "MB", "ms"], rows)
    report.figures = {"commits": laps.ms, "beginnings": [asdict(b) for b in begun]}
    report.notes += [
        "Every 64 lines a session's books are written whole; that is in the figures.",
        "A new beginning applies every entry to books and compares their digest with the one that was acknowledged.",
    ]


def plotted(kinds: list[str], laps: Laps, begun: list[Beginning]) -> Figure:
    """A commit by group, a beginning by entries."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), constrained_layout=True)
    for name in kinds:
        left.plot(GROUPS, [laps.median(f"{name}/{g}") for g in GROUPS], marker="o", label=name)
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    label(left, "One commit call, median", "sessions in the call", "ms")
    left.legend(fontsize=8)
    for name in sorted({b.kind for b in begun}):
        points = [b for b in begun if b.kind == name]
        right.plot([b.entries for b in points], [b.ms for b in points], marker="o", label=name)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    label(right, "A new beginning", "entries", "ms")
    right.legend(fontsize=8)
    return figure


def run(shared: Options, size: Size) -> None:
    """Measure, print, and leave JSON and plot."""
    report = Report("journal", "The ledger's journal", shared, {"size": size, "channels": CHANNELS})
    with journals() as kinds:
        laps = commits(kinds, size)
        begun = list(beginnings(kinds, size))
    report_on(report, list(kinds), laps, begun)
    if not found():
        report.notes.append("No redis-server on this machine: its rows are missing.")
    report.finish(plotted(list(kinds), laps, begun))


def main() -> None:
    """The command line."""
    shared = options(parser(__doc__ or "").parse_args())
    run(shared, QUICK if shared.quick else FULL)


if __name__ == "__main__":
    main()

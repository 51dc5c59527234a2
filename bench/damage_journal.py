"""What the ledger's journal has after writers, Redis and files were damaged, counted: lost and wrong must be nothing.

A writer is a process with a ledger shard that gets random calls (commits of several sessions, claims, restatements,
ends). It is killed with SIGKILL, and a shard that begins anew is asked for its books: every call that was acknowledged
must be in them, the one that was under way may be, and nothing else.
"""

import logging
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from actors.ledger_service import LedgerShard
from actors.redis_journal import RedisJournal
from bench.common import Options, Report, label, options, parser, progress
from bench.killing import Deadly, Death, Rounds, Tally
from bench.lives import Books, Life, books_of
from bench.real_redis import RealRedis, found, real_redis
from cache.file_journal import FileJournal, Fsync, Keeping
from errors import JournalDown

ROUNDS = 20  # after which a journal is begun anew


@dataclass(frozen=True)
class Size:
    """How much of each kind: kills of writers by journal, kills of Redis, steps of a writer that dies at each call."""

    kills: int
    redis_kills: int
    steps: int
    flips: int


QUICK = Size(kills=6, redis_kills=2, steps=2, flips=100)
FULL = Size(kills=150, redis_kills=30, steps=12, flips=5_000)


@dataclass(frozen=True)
class Row:
    """One kind of damage, and what came of it; ``named``: sessions that were given up, and said to be."""

    damage: str
    times: int
    acknowledged: int
    lost: int
    wrong: int
    half_done: int = 0
    named: int = 0


def row(damage: str, tally: Tally) -> Row:
    """What was counted over kills."""
    return Row(damage, tally.kills, tally.acknowledged, tally.lost, tally.wrong, tally.half_done)


def file_journal(path: Path, fsync: Fsync = "commit") -> FileJournal:
    """One that is written anew often."""
    return FileJournal(path, Keeping(fsync=fsync, slack_bytes=32 << 10), time.monotonic)


def killed_writers(folder: Path, fsync: Fsync, times: int, tick: Callable[[], None]) -> Tally:
    """At random moments, over a file."""
    tally = Tally()
    for first in range(0, times, ROUNDS):
        rounds = Rounds(partial(file_journal, folder / f"{fsync}-{first}", fsync), seed=first + len(fsync), tally=tally)
        for number in range(min(ROUNDS, times - first)):
            rounds.round(number)
            tick()
    return tally


def killed_at_each_call(folder: Path, steps: int, tick: Callable[[], None]) -> Tally:
    """Before, after and in the middle of each call of the system that a writer makes, until it lives to its end."""
    tally = Tally()
    for moment in ("before", "after", "amid"):
        at, done = 0, 0
        while done < steps:
            at += 1
            make = partial(FileJournal, folder / f"{moment}-{at}", Keeping(slack_bytes=2048), time.monotonic)
            rounds = Rounds(make, seed=11, tally=tally)
            done = rounds.round(0, Death(Deadly(at, moment, random.Random(at)).set, steps))
            tick()
        tally.kills -= 1  # the last one lived
    return tally


def killed_around_redis(server: RealRedis, size: Size, tick: Callable[[], None]) -> tuple[Tally, Tally]:
    """Writers, and then Redis itself while a writer works."""
    make = partial(RedisJournal, server.url, "campaign", time.monotonic)
    writers, servers = Rounds(make, seed=1), Rounds(make, seed=2)
    for number in range(size.kills):
        if number % ROUNDS == 0:
            _emptied(server, writers)
        writers.round(number)
        tick()
    for number in range(size.redis_kills):
        if number % ROUNDS == 0:
            _emptied(server, servers)
        servers.round(number, Death(kill=lambda _: server.kill()), server.start)
        tick()
    return writers.tally, servers.tally


def _emptied(server: RealRedis, rounds: Rounds) -> None:
    with server.client() as client:
        client.flushall()
    rounds.kept = {}


def lived(path: Path, steps: int) -> tuple[bytes, Books, Books, int]:
    """A journal, its books, those before the last call, and where that call's lines begin."""
    shard, life = LedgerShard(journal=file_journal(path, "never")), Life(4, ("a", "b"))
    for _ in range(steps):
        life.step(shard)
    before, size = books_of(shard), path.stat().st_size
    shard.commit([life._entry(sorted(life.live)[0])])
    after = books_of(shard)
    shard.journal.close()
    return path.read_bytes(), before, after, size


def torn(folder: Path) -> Row:
    """The last append, cut at every byte."""
    data, before, _, begin = lived(folder / "torn", 6)
    lost = wrong = 0
    for end in range(begin, len(data)):
        replay, _ = _taken_up(folder / "torn-copy", data[:end])
        lost += any(s not in replay or replay[s][1] < books[1] for s, books in before.items())
        wrong += replay != before
    return Row("file: last append cut at every byte", len(data) - begin, 6 * (len(data) - begin), lost, wrong - lost)


def flipped(folder: Path, times: int) -> Row:
    """A bit anywhere; what is damaged must be missing and named, and nothing may be wrong."""
    data, _, books, _ = lived(folder / "flipped", 6)
    draw = random.Random(0)
    every = [(at, bit) for at in range(len(data)) for bit in range(8)]
    chosen = every if len(every) <= times else draw.sample(every, times)
    unnamed = wrong = named = 0
    for at, bit in chosen:
        damaged = bytearray(data)
        damaged[at] ^= 1 << bit
        replay, said = _taken_up(folder / "flipped-copy", bytes(damaged))
        missing = set(books) - set(replay)
        wrong += any(replay[s] != books[s] for s in replay)
        unnamed += bool(missing) and not said
        named += len(missing) if said else 0
    return Row("file: a flipped bit", len(chosen), 7 * len(chosen), unnamed, wrong, named=named)


def _taken_up(path: Path, data: bytes) -> tuple[Books, int]:
    path.write_bytes(data)
    shard = LedgerShard(journal=file_journal(path, "never"))
    try:
        shard.tend()
        if not shard.taken_up:
            raise JournalDown(shard.journal.statistics().down)
        return books_of(shard), shard.statistics()["journal_lost"]
    finally:
        shard.journal.close()


def campaign(folder: Path, size: Size) -> list[Row]:
    """All kinds of damage."""
    with progress() as bar:
        task = bar.add_task("damage", total=None)
        tick = partial(bar.advance, task)
        rows = [
            row(f"file, fsync {fsync}: writer killed", killed_writers(folder, fsync, size.kills, tick))
            for fsync in ("commit", "interval", "never")
        ]
        rows.append(row("file: writer killed at each system call", killed_at_each_call(folder, size.steps, tick)))
        if found():
            with real_redis(folder) as server:
                writers, servers = killed_around_redis(server, size, tick)
            rows += [row("redis: writer killed", writers), row("redis: redis killed", servers)]
        rows += [torn(folder), flipped(folder, size.flips)]
    return rows


def plotted(rows: list[Row]) -> Figure:
    """How often what was done."""
    figure, axes = plt.subplots(figsize=(9, 4), constrained_layout=True)
    axes.barh([r.damage for r in rows][::-1], [r.times for r in rows][::-1])
    axes.set_xscale("log")
    bad = sum(r.lost + r.wrong for r in rows)
    label(axes, f"Damage to the journal: {bad} lost or wrong", "times", "")
    return figure


def run(shared: Options, size: Size) -> None:
    """Damage, look, print, and leave JSON and plot."""
    report = Report("damage_journal", "Damage to the ledger's journal", shared, {"size": size})
    logging.getLogger("longtake.ledger").setLevel(logging.CRITICAL)  # the damage is on purpose
    folder = Path(tempfile.mkdtemp(prefix="lt"))  # short, for the socket's sake
    try:
        rows = campaign(folder, size)
    finally:
        shutil.rmtree(folder)
    columns = ["damage", "times", "acknowledged", "lost", "wrong", "under way and kept", "given up and named"]
    cells = [[r.damage, r.times, r.acknowledged, r.lost, r.wrong, r.half_done, r.named] for r in rows]
    report.table("Calls that were acknowledged, and what a new beginning had of them", columns, cells)
    kills = sum(r.times for r in rows if "killed" in r.damage)
    report.goal("acknowledged calls lost over all kills", f"0 expected, {kills} kills", not sum(r.lost for r in rows))
    report.goal("books that are wrong", str(sum(r.wrong for r in rows)), not sum(r.wrong for r in rows))
    report.figures = {"rows": [asdict(r) for r in rows], "kills": kills}
    if not found():
        report.notes.append("No redis-server on this machine: its rows are missing.")
    report.finish(plotted(rows))


def main() -> None:
    """The command line."""
    made = parser(__doc__ or "")
    made.add_argument("--kills", type=int, help="killed writers by kind of journal (default: 150; with --quick 6)")
    arguments = made.parse_args()
    shared = options(arguments)
    size = QUICK if shared.quick else FULL
    run(shared, replace(size, kills=arguments.kills) if arguments.kills else size)


if __name__ == "__main__":
    main()

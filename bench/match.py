"""The contest of ``bench.traffic``: one geometry, every contender, pass by pass, with the contents of reads checked."""

import random
from dataclasses import dataclass, field

import numpy as np
import torch

from bench.common import Laps, progress
from bench.contenders import Case, Contender, Longtake, Pair, Source
from bench.references import Ring, ShiftCopy

WARM_UP = 2
REPEATS = 6


@dataclass(frozen=True)
class Figures:
    """One contender: medians over rounds in milliseconds, and the bytes that one read copies.

    ``one_pass_ms``: write, read and evict of the clean pass. ``chunk_ms``: with the denoising passes before it.
    ``write_ratio``: Longtake's write over this one's, median over rounds of the ratio within a round.
    """

    stage_ms: float
    write_ms: float
    read_ms: float
    evict_ms: float
    one_pass_ms: float
    chunk_ms: float
    write_ratio: float
    read_bytes: int


@dataclass
class Match:
    """The contenders of one geometry, and what was measured of each."""

    case: Case
    dtype: torch.dtype
    steps: int
    chance: random.Random
    source: Source = field(init=False)
    longtake: Longtake = field(init=False)
    contenders: list[Contender] = field(init=False)
    laps: dict[str, Laps] = field(default_factory=dict)
    read_bytes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.source = Source(self.case, self.dtype)
        self.longtake = Longtake(self.case, self.dtype, self.source)
        window = self.longtake.kept(recent=False), self.longtake.kept(recent=True)
        self.contenders = [
            self.longtake,
            ShiftCopy("shift-copy", *window, self.source, whole=True),
            ShiftCopy("shift-copy, no clone", *window, self.source, whole=False),
            Ring("ring + cat", *window, self.source, fresh=True),
            Ring("ring + cat, kept buffer", *window, self.source, fresh=False),
        ]
        self.laps = {c.name: Laps() for c in self.contenders}

    def round(self, check: bool) -> None:
        """One chunk through every contender, pass by pass."""
        chunk = self.longtake.session.manager.next_chunk
        key, value = self.source.of(chunk)
        for step in range(self.steps + 1):
            for contender in self._shuffled():
                self._pass(contender, key, value, clean=step == self.steps)
            if check:
                self._verify(chunk)
        for contender in self._shuffled():
            with self.laps[contender.name].lap("evict"):
                contender.evict()

    def _shuffled(self) -> list[Contender]:
        """Another order each time: what went before decides what is in the processor's cache."""
        return self.chance.sample(self.contenders, len(self.contenders))

    def _pass(self, contender: Contender, key: torch.Tensor, value: torch.Tensor, clean: bool) -> None:
        laps = self.laps[contender.name]
        for tensor in (key, value):
            tensor.view(torch.int16).max()  # as warm as just computed, whoever went before
        if clean:
            with laps.lap("write"):
                contender.commit(key, value)
        else:
            with laps.lap("stage"):
                contender.stage(key, value)
        with laps.lap("read"):
            delivered = contender.read()
        own = {s.untyped_storage().data_ptr() for s in contender.storages()}
        self.read_bytes[contender.name] = sum(x.nbytes for x in delivered if x.untyped_storage().data_ptr() not in own)

    def _verify(self, chunk: int) -> None:
        """Every contender delivers the same chunks, and each chunk's own keys and values."""
        expected = sorted(self.longtake.order(chunk))
        for contender in self.contenders:
            order, tokens = contender.order(chunk), self.case.tokens
            delivered: Pair = contender.read()
            whole = all(len(x) == len(order) * tokens for x in delivered)
            if sorted(order) != expected or not whole:
                raise SystemExit(f"{self.case.name}: {contender.name} delivers {order}; expected {expected}")
            for i, one in enumerate(order):
                key, value = (x[i * tokens : (i + 1) * tokens] for x in delivered)
                if not self.source.matches(one, key, value):
                    raise SystemExit(f"{self.case.name}: {contender.name} delivers other contents for chunk {one}")
            self.source.of(chunk)  # checking older chunks has overwritten the stamp of the one in progress


def figures(laps: Laps, longtake: Laps, read_bytes: int) -> Figures:
    """Medians over rounds; sums are formed per round first."""
    rounds = len(laps.ms["evict"])
    stage, read = (np.array(laps.ms[name]).reshape(rounds, -1) for name in ("stage", "read"))
    write, evict = np.array(laps.ms["write"]), np.array(laps.ms["evict"])
    one_pass = write + read[:, -1] + evict
    sums = {"one_pass_ms": one_pass, "chunk_ms": one_pass + stage.sum(1) + read[:, :-1].sum(1)}
    phases = {"stage_ms": stage, "write_ms": write, "read_ms": read, "evict_ms": evict}
    medians = {name: float(np.median(ms)) for name, ms in {**phases, **sums}.items()}
    ratio = float(np.median(np.array(longtake.ms["write"]) / write))
    return Figures(**medians, write_ratio=ratio, read_bytes=read_bytes)


def play(case: Case, dtype: torch.dtype, steps: int, rounds: int) -> tuple[Longtake, dict[str, Figures]]:
    """Measure in ``REPEATS`` parts, each in memory of its own; returns the last Longtake and everybody's figures.

    Where the operating system puts the pages of a tensor decides some 10 % of a copy's time. In each part the contents
    of every read are checked during warm-up and after the last round.
    """
    pooled: dict[str, Laps] = {}
    with progress() as bar:
        task = bar.add_task(case.name, total=REPEATS * (WARM_UP + rounds))
        for repeat in range(REPEATS):
            match = Match(case, dtype, steps, random.Random(repeat))
            for turn in range(WARM_UP + rounds):
                if turn == WARM_UP:
                    match.laps = {c.name: Laps() for c in match.contenders}
                match.round(check=turn < WARM_UP)
                bar.advance(task)
            for name, laps in match.laps.items():
                pooled.setdefault(name, Laps()).extend(laps)
            match.round(check=True)
    own = pooled[Longtake.name]
    return match.longtake, {name: figures(laps, own, match.read_bytes[name]) for name, laps in pooled.items()}

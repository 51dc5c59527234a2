"""Damage to the restore store's files and processes, done again and again and counted; see ``bench.damage``."""

import contextlib
import itertools
import os
import random
import shutil
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cache.keep_set import Role
from cache.spec import TYPES
from cache.storage.disk import DiskTier
from cache.storage.disk_config import DiskConfig
from cache.storage.files import Files
from cache.storage.packing import Payload, kind_of
from cache.storage.seals import Seal
from cache.tiered import TieredStore
from cache.tiered_config import TiersConfig
from cache.tiers import KeyValues
from errors import IntegrityError, RecordLost

TYPE = TYPES[0]
KIND = kind_of(TYPE)
SESSIONS = ("a", "b", "c")


@dataclass
class Tally:
    """What a kind of damage led to. ``wrong``, ``lost`` and ``leaks`` must be 0.

    Args:
        done: times that damage was done.
        right: the record came back as it was written.
        missed: it did not come back, and that was counted.
        wrong: other bytes than those that were written were given back.
        lost: what had been acknowledged and not been damaged was not there.
        leaks: files that nobody knew, or books that did not fit the files.
    """

    done: int = 0
    right: int = 0
    missed: int = 0
    wrong: int = 0
    lost: int = 0
    leaks: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def good(self) -> bool:
        """Whether nothing happened that must not."""
        return self.done > 0 and not (self.wrong or self.lost or self.leaks)


def payload_of(seed: int, tokens: int = 1) -> KeyValues:
    """Keys and values of this seed, which they carry, so that a reader can tell whether they are."""
    drawn = torch.randn(1, 2, tokens, 8, generator=torch.Generator().manual_seed(seed))
    return KeyValues(drawn, seed % 31, list(Role)[seed % len(Role)], seed)


def genuine(found: Payload, tokens: int = 1) -> bool:
    """Whether a payload is what ``payload_of`` gave for the seed that it carries."""
    if not isinstance(found, KeyValues):
        return False
    expected = payload_of(found.written, tokens)
    return torch.equal(found.tensor, expected.tensor) and (found.slot, found.role) == (expected.slot, expected.role)


def opened(root: Path, seal: Seal, budget: int = 1 << 30) -> DiskTier:
    """A tier in ``root``."""
    return DiskTier(root, DiskConfig(budget, files=Files("never"), seal=seal), time.time)


def files_of(root: Path) -> list[Path]:
    """Heads and contents."""
    return sorted(p for name in ("heads", "contents") for p in (root / name).rglob("*") if p.is_file())


def flips(root: Path, seal: Seal, step: int) -> Tally:
    """Every ``step``-th bit of every file of a small record, with the store running and over a restart."""
    return _one_record(root, seal, lambda path: range(0, 8 * path.stat().st_size, step), _flip)


def cuts(root: Path, seal: Seal, step: int) -> Tally:
    """Every file of a small record, cut off at every ``step``-th length, with the store running and over a restart."""
    return _one_record(root, seal, lambda path: range(0, path.stat().st_size, step), os.truncate)


def swaps(root: Path, seal: Seal) -> Tally:
    """Every file of three sessions' records in place of every other, with the store running and over a restart."""
    tally = Tally()
    count = len(_three(root / "first", seal)[1])
    for one, other in itertools.permutations(range(count), 2):
        for restart in (False, True):
            tier, names = _three(root / "one", seal)
            names[one].write_bytes(names[other].read_bytes())
            tier = _restarted(tier, seal) if restart else tier
            tally.done += 1
            for session in SESSIONS:
                _read(tier, session, ord(session), tally)
            _whole(tier, seal, tally)
    return tally


def torn(root: Path, seal: Seal, step: int) -> Tally:
    """Heads and contents of a record that were written up to every ``step``-th byte, as a crash leaves them."""
    tally = Tally()
    for restart_of in ("content", "head"):
        tier = opened(root, seal)
        tier.put("a", 0, KIND, payload_of(1))
        path = next(p for p in files_of(root) if (p.parent.name == "contents") == (restart_of == "content"))
        data, name = path.read_bytes(), path  # a head's name is the same each time, a content's never
        tier.close("a")
        tier.shut()
        for length in range(0, len(data), step):
            tier = opened(root, seal)
            tier.put("a", 0, KIND, payload_of(1))
            tier.put("b", 0, KIND, payload_of(2))
            tier.shut()
            (name if restart_of == "head" else root / "contents" / "torn").write_bytes(data[:length])
            tier = opened(root, seal)
            tally.done += 1
            tally.reasons.update(tier.removed)
            _read(tier, "a", 1, tally)
            if not (tier.has("b", 0, KIND) and genuine(tier.get("b", 0, KIND))):
                tally.lost += 1
            for session in SESSIONS:
                tier.close(session)
            _whole(tier, seal, tally)
    return tally


def _one_record(root: Path, seal: Seal, places: Callable[[Path], range], harm: Callable[[Path, int], object]) -> Tally:
    tally = Tally()
    tier = opened(root, seal)
    for restart in (False, True):
        for which in range(2 + bool(seal.overhead)):
            tier.put("a", 0, KIND, payload_of(1))
            for place in places(files_of(root)[which]):
                tier.put("a", 0, KIND, payload_of(1))
                path = files_of(root)[which]  # a sealed head is as long as its label, which varies by a few bytes
                harm(path, place % places(path).stop)
                tier = _restarted(tier, seal) if restart else tier
                tally.done += 1
                tally.reasons.update(tier.removed)
                _read(tier, "a", 1, tally)
                tier.close("a")
                with _leaks(tally):
                    tier.check_integrity()
    tier.shut()
    return tally


def _flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def _three(root: Path, seal: Seal) -> tuple[DiskTier, list[Path]]:
    shutil.rmtree(root, ignore_errors=True)
    tier = opened(root, seal)
    names: list[Path] = []
    for session in SESSIONS:
        before = set(files_of(root))
        tier.put(session, 0, KIND, payload_of(ord(session)))
        names += sorted(set(files_of(root)) - before)
    return tier, names


def _restarted(tier: DiskTier, seal: Seal) -> DiskTier:
    tier.shut()
    return opened(tier.root, seal)


def _read(tier: DiskTier, session: str, seed: int, tally: Tally) -> None:
    before = Counter(tier.misses)
    try:
        found = tier.get(session, 0, KIND)
    except RecordLost:
        tally.missed += 1
        tally.reasons.update(tier.misses - before)
        return
    if isinstance(found, KeyValues) and genuine(found) and found.written == seed:
        tally.right += 1
    else:
        tally.wrong += 1


@contextlib.contextmanager
def _leaks(tally: Tally) -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        tally.leaks += 1


def _whole(tier: DiskTier, seal: Seal, tally: Tally) -> None:
    """After one more start, files and books must fit each other."""
    tier = _restarted(tier, seal)
    with _leaks(tally):
        tier.check_integrity()
    tier.shut()


# -- processes that are killed


def kills(root: Path, count: int, seed: int, key: bytes = b"") -> Tally:
    """A store that writes, forks and erases is killed ``count`` times at random moments; the next one goes on.

    What it acknowledged before (put, with ``safe: disk``; close) must be so afterwards.
    """
    tally, rng = Tally(), random.Random(seed)
    state: dict[tuple[str, int], int] = {}
    for life in range(count):
        told = _one_life(root, key, rng.randrange(1 << 30), rng.uniform(0.0, 0.04))
        tally.done += 1
        _after(root, key, state, told, tally)
        if life % 50 == 49:
            state = {}
            shutil.rmtree(root)
    return tally


def _store(root: Path, key: bytes) -> TieredStore:
    config = TiersConfig(disk=str(root), admission="always", safe="disk", ttl_s=None)
    return TieredStore(1 << 14, config, time.time, key)


def _one_life(root: Path, key: bytes, seed: int, seconds: float) -> list[str]:
    """What a process told before it was killed ``seconds`` after its first word."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own threads, which the child does not need
        child = os.fork()
    if not child:
        os.close(reading)
        _live(root, key, seed, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = [pipe.readline()]
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        told += pipe.readlines()
    os.waitpid(child, 0)
    return [line.strip() for line in told if line.endswith("\n")]


def _live(root: Path, key: bytes, seed: int, pipe: int) -> None:
    """Write, fork and erase until killed, and say so before and after each."""
    rng, store = random.Random(seed), _store(root, key)
    threading.Thread(target=store.work, daemon=True).start()
    os.write(pipe, b"ready\n")
    for number in itertools.count():
        session, chunk = rng.choice(SESSIONS), rng.randrange(4)
        if number % 11 == 10:
            os.write(pipe, f"begin close {session}\n".encode())
            store.close(session)
            os.write(pipe, f"done close {session}\n".encode())
            continue
        drawn = rng.randrange(1 << 16)
        os.write(pipe, f"begin put {session} {chunk} {drawn}\n".encode())
        store.offload(session, chunk, TYPE, payload_of(drawn))
        if store.landed().result():
            os.write(pipe, f"done put {session} {chunk} {drawn}\n".encode())


def _after(root: Path, key: bytes, state: dict[tuple[str, int], int], told: list[str], tally: Tally) -> None:
    """Compare what is there with what was acknowledged; ``state`` becomes what is there."""
    open_keys: set[tuple[str, int]] = set()
    closing = ""
    for line in told[1:]:
        moment, call, *rest = line.split()
        if call == "close":
            closing = rest[0] if moment == "begin" else ""
            if moment == "done":
                for known in [k for k in state if k[0] == rest[0]]:
                    del state[known]
            continue
        where = (rest[0], int(rest[1]))
        if moment == "begin":
            open_keys = {where}
        else:
            open_keys = set()
            state[where] = int(rest[2])
    store = _store(root, key)
    with _leaks(tally):
        store.check_integrity()
    disk = store.lower.disk
    assert disk is not None
    tally.reasons.update(disk.removed)
    for session, chunk in itertools.product(SESSIONS, range(4)):
        where = (session, chunk)
        doubtful = where in open_keys or session == closing
        if not store.holds(session, chunk).types:
            tally.lost += where in state and not doubtful
            state.pop(where, None)
            continue
        found = store.fetch(session, chunk, TYPE)
        tally.right += 1
        if not genuine(found):
            tally.wrong += 1
        elif not doubtful and state.get(where) != found.written:
            tally.wrong += 1  # an older record, or one of a session that was erased
        state[where] = found.written
    store.shut()


# -- disks that are full, and memory that is used again


def full_disk(disk: Path, rounds: int, remount: Callable[[str], None]) -> tuple[Tally, Tally]:
    """A store on a small disk fills it, and goes on; and the disk turns read-only and back. Counts of both."""
    full, read_only = Tally(), Tally()
    clock = itertools.count(0, 100)
    config = TiersConfig(disk=str(disk / "store"), admission="always", retry_s=1.0, ttl_s=None)
    store = TieredStore(1 << 22, config, lambda: float(next(clock)))
    for number in range(rounds):
        before = store.statistics().degradations
        for chunk in range(1000):
            store.offload("a", chunk, TYPE, payload_of(1000 * number + chunk, tokens=400))
            store.write_next()
            if store.statistics().degradations > before:
                break
        _all_genuine(store, full)
        store.close("a")
        store.tend()
        full.lost += bool(store.statistics().degraded)
        store.offload("b", 0, TYPE, payload_of(number, tokens=400))
        store.write_next()
        remount("ro")
        store.offload("b", 1, TYPE, payload_of(number + 1, tokens=400))
        store.write_next()
        read_only.missed += bool(store.statistics().degraded)
        _all_genuine(store, read_only)
        remount("rw")
        store.tend()
        read_only.lost += bool(store.statistics().degraded)
        for tally in (full, read_only):
            with _leaks(tally):
                store.check_integrity()
        store.close("b")
    store.shut()
    return full, read_only


def _all_genuine(store: TieredStore, tally: Tally) -> None:
    tally.done += 1
    for session in ("a", "b"):
        for chunk in store.chunks(session):
            if genuine(store.fetch(session, chunk, TYPE), tokens=400):
                tally.right += 1
            else:
                tally.wrong += 1


def recycled(root: Path, rounds: int) -> Tally:
    """Readers that keep a view of what they were given, while its buffer would be used again if it were free."""
    tally, tier = Tally(), opened(root, DiskConfig(0).seal)
    for seed in range(8):
        tier.put("a", seed, KIND, payload_of(seed, tokens=100))
    kept: list[tuple[int, torch.Tensor]] = []
    for number in range(rounds):
        seed = number % 8
        found = tier.get("a", seed, KIND)
        assert isinstance(found, KeyValues)
        kept.append((seed, found.tensor[:, 0]))
        del found
        if len(kept) > 5:
            was, view = kept.pop(number % 5)
            tally.done += 1
            if torch.equal(view, payload_of(was, tokens=100).tensor[:, 0]):
                tally.right += 1
            else:
                tally.wrong += 1
            del view
    tally.reasons["buffers used again"] = tier.buffers.reused
    tier.shut()
    return tally

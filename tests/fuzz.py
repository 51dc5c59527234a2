"""Bytes of strangers against whatever reads them: nothing may come of it but an answer or the documented error.

python -m tests.fuzz --minutes 10 message script

Guided by coverage if ``atheris`` is installed, else by mutation of what was good before. Ends with the first finding,
which is printed and kept in a file.
"""

import argparse
import importlib.util
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.readers import Target

READERS = ["message", "session", "order", "sealed", "script", "cues", "settings"]
INSTRUMENTED = [
    "wire",
    "errors",
    "actors.order",
    "actors.requests",
    "streams.director",
    "settings",
    "msgpack",
    "yaml",
    "json",
]

TOKENS = (
    *(
        b"\xc1",
        b"\xdc\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xd6\xff",
        b"\xcb\x7f\xf8\0\0\0\0\0\0",
        b"\x81",
    ),
    *(b"9" * 5000, b"[" * 1000, b"{" * 1000, b"\x91" * 2000, b"&a [*a]", b"!!python/name:x", b"? [a]\n: b"),
    *(b"2001-99-99", b"0x", b"1_0", b".inf", b"\xff\xfe", "\u0661".encode(), b"null", b"~", b"-", b": ", b"\n"),
)


def mutated(chance: random.Random, good: list[bytes]) -> bytes:
    """One of what was good before, or two of them, a little damaged."""
    data = bytearray(chance.choice(good))
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        kind = chance.randrange(6)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] = chance.randrange(256)
        elif kind == 1:
            data[at:at] = chance.choice(TOKENS)
        elif kind == 2:
            del data[at : min(end, at + 16)]
        elif kind == 3:
            data[at:at] = data[at : min(end, at + 64)]
        elif kind == 4:
            other = chance.choice(good)
            data[at:] = other[chance.randrange(len(other) + 1) :]
        else:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
    return bytes(data[:100_000])


def by_mutation(chosen: Sequence["Target"], seconds: float, chance: random.Random) -> Iterator[tuple["Target", bytes]]:
    """Inputs for targets in turn, for so many seconds."""
    good = [list(target.seeds) for target in chosen]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for target, known in zip(chosen, good, strict=True):
            data = mutated(chance, known)
            yield target, data
            if len(known) < 500 and target.holds(data):
                known.append(data)


def guided(names: Sequence[str], seconds: float) -> None:
    """Atheris, over the targets, which the first byte chooses from; ends this process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.readers import TARGETS
    chosen = [TARGETS[name] for name in names]

    def one(data: bytes) -> None:
        if data:
            chosen[data[0] % len(chosen)].holds(data[1:])

    with tempfile.TemporaryDirectory() as folder:
        for i, target in enumerate(chosen):
            for j, seed in enumerate(target.seeds):
                (Path(folder) / f"{i}-{j}").write_bytes(bytes([i]) + seed)
        limits = [f"-max_total_time={seconds:.0f}", "-max_len=8192", "-rss_limit_mb=2048", "-timeout=20"]
        atheris.Setup([sys.argv[0], folder, *limits, "-print_final_stats=1"], one)
        atheris.Fuzz()


def unguided(names: Sequence[str], seconds: float, seed: int) -> None:
    """By mutation."""
    from tests.readers import TARGETS

    begun, count = time.monotonic(), 0
    for target, data in by_mutation([TARGETS[name] for name in names], seconds, random.Random(seed)):
        count += 1
        try:
            target.holds(data)
        except BaseException:
            Path("finding.bin").write_bytes(data)
            print(f"after {count} inputs {target.read.__name__} failed on {data!r}", file=sys.stderr)
            raise
    print(f"{count:,} inputs in {time.monotonic() - begun:.0f} s, no finding")


def main() -> None:
    """Fuzz for so many minutes; the exit status says whether there was a finding."""
    parser = argparse.ArgumentParser(description="Bytes of strangers against whatever reads them.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="by mutation, even if atheris is installed")
    parser.add_argument("targets", nargs="*", default=READERS, metavar="READER", help=f"by default {' '.join(READERS)}")
    given = parser.parse_args()
    if not given.plain and importlib.util.find_spec("atheris") is not None:
        guided(given.targets, 60 * given.minutes)
    else:
        unguided(given.targets, 60 * given.minutes, given.seed)


if __name__ == "__main__":
    main()

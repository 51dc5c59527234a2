"""Other stores' file tiers, for ``bench.restore``: run by an interpreter that has them installed.

    OTHER_PYTHON bench/restore_others.py NAME FOLDER MEBIBYTES ROUNDS

Prints one line of JSON: seconds of each round of ``put``, ``warm`` and ``cold`` (``null`` for what it has not), or
``missing`` with why. Needs torch and the store that is named, nothing of this repository.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def drop(folder: str) -> None:
    """Out of the page cache."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def timed(do: Callable[[], Any]) -> float:
    """Seconds."""
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


def rounds_of(put: Callable[[int], Any], get: Callable[[int], Any], folder: str, rounds: int) -> dict[str, list[float]]:
    """Puts, warm gets, cold gets."""
    found: dict[str, list[float]] = {"put": [], "warm": [], "cold": []}
    for number in range(rounds):
        found["put"].append(timed(lambda number=number: put(number)))  # type: ignore[misc]
    for number in range(rounds):
        get(number)
        found["warm"].append(timed(lambda number=number: get(number)))  # type: ignore[misc]
        drop(folder)
        found["cold"].append(timed(lambda number=number: get(number)))  # type: ignore[misc]
    return found


def lmcache(folder: str, nbytes: int, rounds: int) -> dict[str, list[float]]:
    """LMCache's ``LocalDiskBackend``: the calls that write and read its files, into one warm buffer."""
    import torch

    kind = importlib.import_module("lmcache.v1.storage_backend.local_disk_backend").LocalDiskBackend
    # Only what its file calls look at: an engine around it would not make them faster.
    backend = kind.__new__(kind)
    backend.path, backend.use_odirect, backend.os_disk_bs, backend.dict = folder, False, os.statvfs(folder).f_bsize, {}
    data = torch.randint(0, 255, (nbytes,), dtype=torch.uint8).numpy().data
    target = torch.zeros(nbytes, dtype=torch.uint8).numpy().data

    def put(number: int) -> None:
        backend.write_file(data, os.path.join(folder, f"{number}.pt"))

    def get(number: int) -> None:
        backend.read_file("", target, os.path.join(folder, f"{number}.pt"))

    return rounds_of(put, get, folder, rounds)


def cacheseek(folder: str, nbytes: int, rounds: int) -> dict[str, list[float]]:
    """CacheSeek's ``LocalFileKVStore``: ``put`` and ``get`` of bytes by key."""
    store: Any = importlib.import_module("cacheseek.stores.local_file").LocalFileKVStore(folder)
    data = os.urandom(nbytes)
    return rounds_of(lambda n: store.put(str(n), data), lambda n: store.get(str(n)), folder, rounds)


def main() -> None:
    """See the module."""
    name, folder, mebibytes, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    try:
        found: dict[str, Any] = {"lmcache": lmcache, "cacheseek": cacheseek}[name](folder, mebibytes << 20, rounds)
    except (ImportError, AttributeError, TypeError) as error:  # not installed, or another release of it
        found = {"missing": repr(error)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()

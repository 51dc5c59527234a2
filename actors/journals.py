"""Which journal the ledger service keeps, and where."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from actors.redis_journal import RedisJournal
from cache.file_journal import FileJournal, Keeping
from cache.journal import Journal, Nowhere
from errors import ConfigError

SCHEMES = ("redis://", "rediss://", "unix://")


@dataclass(frozen=True)
class JournalSettings:
    """The journal of the ledger service.

    Args:
        kind: ``file``, an append-only file of the node that has the shard; ``redis``; or ``none``, and books last as
            long as their process.
        path: for ``file``, the folder; by default one in Ray's session directory, which outlives every process of the
            cluster and goes with the cluster. A named folder outlives the cluster; a change of ``service.ledgers``
            begins with empty books.
        url: for ``redis``, as ``redis://:password@host:6379/0``; it is never printed, and best given by the environment
            (``LONGTAKE_SERVICE__JOURNAL__URL``).
        name: for ``redis``, what keys begin with, after ``longtake:``; services that share a Redis need different ones.
        keeping: how the file is kept.
    """

    kind: Literal["file", "redis", "none"] = "file"
    path: str = ""
    url: str = field(default="", repr=False)
    name: str = "service"
    keeping: Keeping = field(default_factory=Keeping)

    def __post_init__(self) -> None:
        if self.kind == "redis" and not self.url.startswith(SCHEMES):
            raise ConfigError(f"service.journal.url does not begin with one of {', '.join(SCHEMES)}; expected it to")
        if self.kind != "file" and self.path:
            raise ConfigError(
                f"service.journal.path is {self.path!r} but kind is {self.kind}; expected file or no path"
            )
        if not self.name or set(self.name) & set("{}"):
            raise ConfigError(f"service.journal.name is {self.name!r}; expected a name without braces")


def build_journal(
    settings: JournalSettings, shard: int, of: int, folder: Path, clock: Callable[[], float] = time.monotonic
) -> Journal:
    """The journal of one shard of so many; ``folder``: where files go if the settings name no path."""
    name = f"ledger-{shard}-of-{of}"
    if settings.kind == "redis":
        return RedisJournal(settings.url, f"{settings.name}:{name}", clock)
    if settings.kind == "file":
        return FileJournal(Path(settings.path or folder) / f"{name}.journal", settings.keeping, clock)
    return Nowhere()

"""What generators tell the ledger service of a session's books, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from cache.operations import Operation
from cache.terms import Terms


@dataclass(frozen=True)
class Statement:
    """Whole books as their generator has them.

    Args:
        number: operations that are in them.
        aside: what else the generator wants to be kept with the books, as it was then.
        order: what the session was to be; never changes.
    """

    session: str
    terms: Terms
    state: dict[str, Any]
    number: int
    aside: bytes = b""
    order: bytes = b""


@dataclass(frozen=True)
class Entry:
    """The operations up to the commit of ``chunk``, after ``number`` others; ``digest``: of the books then.

    ``aside``: what the generator wants to be kept with the books; the latest is.
    """

    session: str
    chunk: int
    number: int
    operations: Sequence[Operation]
    digest: bytes
    epoch: int = 0
    aside: bytes = b""

    def under(self, epoch: int) -> "Entry":
        """The same, written under a fencing epoch."""
        return replace(self, epoch=epoch)


class Verdict(StrEnum):
    """What became of an entry. After ``behind`` and ``differs`` the service wants a ``Statement``."""

    BOOKED = "booked"
    BEHIND = "behind"
    DIFFERS = "differs"
    FENCED = "fenced"

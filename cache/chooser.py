"""What a cache manager is told of the restore store, where the way back is computed: what is worth fetching.

A chunk that would be rebuilt sooner than loaded is said to be there as latents only. The answer is recorded with the
operation like any other, so that books elsewhere come to the same plan without knowing the time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cache.spec import AttentionType
from cache.tiers import Held, Holdings
from cache.way_back import Choice, Prospect, WayBack


class Stock(Holdings, Protocol):
    """What is known of a store besides what it holds; see ``cache.staging.Staging``."""

    def where(self, session: str, chunk: int) -> str:
        """Name of the tier that ``chunk`` would come from."""
        ...

    def to_come(self, session: str, chunk: int, kinds: list[AttentionType | None]) -> int:
        """Bytes of ``chunk`` that are not here yet."""
        ...

    def ahead(self, tier: str) -> int:
        """Bytes on their way from ``tier``."""
        ...


@dataclass
class Chooser(Holdings):
    """Answers the manager of one session; to be asked once for each chunk of a plan, until ``take``."""

    stock: Stock
    bytes_of: Mapping[AttentionType | None, int]
    way_back: WayBack
    _choices: dict[int, Choice] = field(default_factory=dict)
    _planned_bytes: int = 0

    def holds(self, session: str, chunk: int) -> Held:
        """What the store has, without keys and values that would come later than they can be rebuilt."""
        held = self.stock.holds(session, chunk)
        if not held.types:
            return held
        choice = self._choices.get(chunk) or self._choose(session, chunk, held)
        return held if choice.way == "load" else Held(latents=True)

    def take(self) -> dict[int, Choice]:
        """What was chosen since the last ``take``, by chunk."""
        taken, self._choices, self._planned_bytes = self._choices, {}, 0
        return taken

    def _choose(self, session: str, chunk: int, held: Held) -> Choice:
        tier = self.stock.where(session, chunk)
        nbytes = self.stock.to_come(session, chunk, [None, *sorted(held.types)])
        choice = self.way_back.choose(
            Prospect(
                chunk,
                tier,
                nbytes,
                unpack_bytes=sum(self.bytes_of[t] for t in held.types),
                ahead_bytes=self.stock.ahead(tier) + self._planned_bytes,
                ahead_chunks=sum(c.way == "rebuild" for c in self._choices.values()),
                latents=held.latents,
            )
        )
        self._choices[chunk] = choice
        self._planned_bytes += nbytes if choice.way == "load" else 0
        return choice

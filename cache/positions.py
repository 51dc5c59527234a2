"""Position slots: where on the RoPE time axis each chunk stands. One map serves all four attention types.

A slot is one chunk long. RoPE attention sees only differences of time, so slots grow without end and never wrap; what
is bounded is the *distance* from the chunk in progress to every kept chunk, which stays below the number of slots that
the model was trained on. Running chunks keep the slot they were generated in. Memory (subject anchor, sink, anchors,
restored chunks) is placed just before them, in media order, and moved when it would fall out of range.

An epoch is one pass of the running chunks through the trained range. At its end the memory gets new slots: by
``relocate`` (its keys are rotated by the difference) or by ``rebuild`` (everything kept is encoded again from slot 0,
as MaineCoon does, for models with absolute positions).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from errors import BudgetError, ConfigError, IntegrityError


@dataclass(frozen=True)
class PositionConfig:
    """How memory follows the running chunks.

    Args:
        slots: chunk slots in the trained range, the current chunk included (31 for 0.64 s chunks and 20 s).
        memory: ``pinned`` keeps memory where it is until the epoch ends; ``following`` keeps it directly behind the
            recent chunks, which moves a few chunks at every commit.
        move: ``relocate`` rotates stored keys; ``rebuild`` encodes the retained clean latents again.
    """

    slots: int = 31
    memory: Literal["pinned", "following"] = "pinned"
    move: Literal["relocate", "rebuild"] = "relocate"

    def __post_init__(self) -> None:
        if self.slots < 3:
            raise BudgetError(f"slots is {self.slots}; expected at least 3 (memory, one recent chunk, the current one)")
        if self.memory == "following" and self.move == "rebuild":
            raise ConfigError(
                "memory='following' with move='rebuild' would encode the whole keep-set again at every chunk; "
                "use memory='pinned' or move='relocate'"
            )


@dataclass(frozen=True)
class Move:
    """The keys of a chunk (``None``: the subject anchor) must be brought from one position slot to another."""

    chunk: int | None
    from_slot: int
    to_slot: int


@dataclass
class PositionMap:
    """The slot of every kept chunk, of the subject anchor, and of the chunk that comes next.

    Mutated by ``place`` and ``advance`` only; ``next_slot`` may be set before the first chunk, which shifts the
    whole axis: no output may depend on it.
    """

    config: PositionConfig
    next_slot: int = 0
    slots: dict[int, int] = field(default_factory=dict)
    subject: int | None = None
    epoch: int = 0

    @property
    def lowest(self) -> int:
        """The farthest slot that the chunk in progress may still attend to."""
        return self.next_slot - self.config.slots + 1

    def advance(self, chunk: int) -> None:
        """Book the chunk in progress at its slot and open the next one."""
        self.slots[chunk] = self.next_slot
        self.next_slot += 1

    def place(self, kept: Sequence[int], running_from: int, has_subject: bool) -> bool:
        """Give every kept chunk a slot; forget all others.

        Args:
            kept: the kept chunks of the richest attention type in media order; one without a slot is arriving.
            running_from: the first chunk that counts as recent; recent chunks are not moved.
            has_subject: whether a subject anchor exists; its slot comes first.

        Returns:
            Whether an epoch ended: memory was packed anew, or, with ``move='rebuild'``, everything was.
        """
        split = len(kept)
        while split and kept[split - 1] >= running_from and kept[split - 1] in self.slots:
            split -= 1
        running = kept[split:]
        members: list[int | None] = [None, *kept[:split]] if has_subject else list(kept[:split])
        limit = self.slots[running[0]] if running else self.next_slot
        placed = None if self.config.memory == "following" else self._stay(members, limit)
        full = self.config.move == "rebuild" and self.next_slot >= self.config.slots
        if placed is not None and not full:
            self._book(members, placed, running)
            return False
        if self.config.move == "rebuild":
            everything = [*members, *running]
            self._book(everything, range(len(everything)), ())
            self.next_slot = len(everything)
        else:
            self._book(members, range(limit - len(members), limit), running)
        ended = self.config.memory == "pinned" or self.next_slot // self.config.slots > self.epoch
        self.epoch += ended
        return ended

    def _stay(self, members: Sequence[int | None], limit: int) -> list[int] | None:
        """Slots with everybody left in place and arrivals as near as order allows; ``None`` if that cannot be."""
        placed = [0] * len(members)
        # A table of positions begins at 0; the axis of rotations has no beginning.
        lowest = max(self.lowest, 0) if self.config.move == "rebuild" else self.lowest
        for i in range(len(members) - 1, -1, -1):
            member = members[i]
            slot = self.subject if member is None else self.slots.get(member)
            if slot is None:
                slot = limit - 1
            if slot >= limit or slot < lowest:
                return None
            placed[i] = limit = slot
        return placed

    def _book(self, members: Sequence[int | None], slots: Sequence[int], running: Sequence[int]) -> None:
        before = self.slots
        self.slots = {chunk: before[chunk] for chunk in running}
        self.subject = None
        for member, slot in zip(members, slots, strict=True):
            if member is None:
                self.subject = slot
            else:
                self.slots[member] = slot

    @property
    def reach(self) -> int:
        """How many chunk slots the farthest kept chunk or the subject anchor lies before the chunk in progress."""
        slots = [*self.slots.values(), *([] if self.subject is None else [self.subject])]
        return self.next_slot - min(slots, default=self.next_slot)

    def check_integrity(self) -> None:
        """Slots are unique, ordered by media time, before the current chunk and within the trained distance."""
        ordered = [self.slots[chunk] for chunk in sorted(self.slots)]
        if self.subject is not None:
            ordered.insert(0, self.subject)
        for left, right in itertools.pairwise(ordered):
            if left >= right:
                raise IntegrityError(f"position slots {ordered} are not in media order")
        if ordered and not (self.lowest <= ordered[0] and ordered[-1] < self.next_slot):
            raise IntegrityError(f"position slots {ordered} leave the trained range [{self.lowest}, {self.next_slot})")
        if self.config.move == "rebuild" and not (self.next_slot < self.config.slots and min(ordered, default=0) >= 0):
            raise IntegrityError(f"slots {ordered} and {self.next_slot} leave the table of {self.config.slots}")

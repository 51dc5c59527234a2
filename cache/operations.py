"""What changed the books of a session, call by call, as plain data: books elsewhere that do the same stay the same."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from cache.drift import ChannelStatistics
from cache.plan import Cut, Directive, PromptChange, ReturnTo
from cache.spec import AttentionType
from cache.tiers import Held, Holdings

Plain = dict[str, Any]
Do = Literal["commit", "direct", "subject", "drop_subject", "give_up", "postpone", "welcome"]
Mass = Mapping[AttentionType, Mapping[int, float]]
DIRECTIVES = {kind.__name__: kind for kind in (Cut, ReturnTo, PromptChange)}
LONGEST = 256


@dataclass(frozen=True)
class Operation:
    """One call of a cache manager that changed its books.

    Args:
        arguments: of the call, as plain data that ``wire`` can pack.
        held: what the restore store answered meanwhile, by chunk: names of attention types, and whether latents.
    """

    do: Do
    arguments: Plain
    held: Mapping[int, tuple[list[str], bool]] = field(default_factory=dict)


class Recorder:
    """Notes the operations of one manager until they are taken; stands between it and its restore store.

    At most ``LONGEST`` operations wait: of more than that nothing is kept, and whoever takes them is told that some are
    missing.
    """

    def __init__(self, holdings: Holdings) -> None:
        self.holdings = holdings
        self.noted = 0
        self._waiting: list[Operation] = []
        self._asked: dict[int, tuple[list[str], bool]] = {}

    def holds(self, session: str, chunk: int) -> Held:
        """The store's answer, which becomes part of the operation in progress; within that it is the same again."""
        if chunk not in self._asked:
            held = self.holdings.holds(session, chunk)
            self._asked[chunk] = ([t.value for t in sorted(held.types)], held.latents)
        return parse_held(self._asked[chunk])

    def note(self, do: Do, arguments: Plain) -> None:
        """An operation has been done."""
        self.noted += 1
        self._waiting.append(Operation(do, arguments, self._asked))
        self._asked = {}
        if len(self._waiting) > LONGEST:
            self._waiting.clear()

    def take(self) -> tuple[int, list[Operation]]:
        """The operations since the last ``take``, and how many were noted before the first of them."""
        taken, self._waiting = self._waiting, []
        return self.noted - len(taken), taken


def parse_held(plain: tuple[list[str], bool]) -> Held:
    """An answer of the store, as operations have it."""
    types, latents = plain
    return Held(frozenset(map(AttentionType, types)), latents)


def plain_commit(chunk: int, seen: Mapping[str, ChannelStatistics], mass: Mass | None) -> Plain:
    """Arguments of a commit and of the judgement before it."""
    return {
        "chunk": chunk,
        "seen": {m: [_plain_array(s.mean), _plain_array(s.std)] for m, s in seen.items()},
        "mass": None if mass is None else {t.value: dict(shares) for t, shares in mass.items()},
    }


def parse_commit(
    plain: Plain,
) -> tuple[int, dict[str, ChannelStatistics], dict[AttentionType, dict[int, float]] | None]:
    """What ``plain_commit`` was given."""
    seen = {m: ChannelStatistics(_array(mean), _array(std)) for m, (mean, std) in plain["seen"].items()}
    mass = plain["mass"]
    return plain["chunk"], seen, None if mass is None else {AttentionType(t): dict(s) for t, s in mass.items()}


def plain_directive(directive: Directive) -> Plain:
    """A directive as plain data."""
    return {"kind": type(directive).__name__, **asdict(directive)}


def parse_directive(plain: Plain) -> Directive:
    """What ``plain_directive`` was given."""
    fields = dict(plain)
    directive: Directive = DIRECTIVES[fields.pop("kind")](**fields)
    return directive


def _plain_array(values: Any) -> list[Any]:
    array = np.asarray(values)
    return [array.dtype.str, array.tobytes()]


def _array(plain: list[Any]) -> Any:
    kind, data = plain
    return np.frombuffer(data, dtype=kind).copy()

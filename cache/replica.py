"""Books that follow other books: the same operations in the same order, with the same answers of the restore store."""

from hashlib import blake2b

from cache.manager import CacheManager
from cache.operations import Operation, parse_commit, parse_directive, parse_held
from cache.spec import TYPES, AttentionType
from cache.tiers import NOTHING, Held


class Answers:
    """What the restore store answered when the operation was first done."""

    def __init__(self) -> None:
        self.operation: Operation | None = None

    def holds(self, session: str, chunk: int) -> Held:
        """The answer of then."""
        if self.operation is None or chunk not in self.operation.held:
            return NOTHING
        return parse_held(self.operation.held[chunk])


def apply(manager: CacheManager, answers: Answers, operation: Operation) -> None:
    """Do ``operation`` on ``manager``, whose holdings are ``answers``. Raises what the call raises."""
    answers.operation = operation
    arguments = operation.arguments
    if operation.do == "commit":
        chunk, seen, mass = parse_commit(arguments)
        manager.begin()
        if seen:
            manager.judge(seen)
        manager.commit(chunk, mass)
    elif operation.do == "direct":
        manager.direct(parse_directive(arguments))
    elif operation.do == "subject":
        tokens = {AttentionType(t): count for t, count in arguments["tokens"].items()}
        manager.set_subject(arguments["chunk"], tokens, arguments["score"])
    elif operation.do == "drop_subject":
        manager.drop_subject(arguments["reason"])
    elif operation.do == "postpone":
        manager.postpone(arguments["chunk"], [AttentionType(t) for t in arguments["types"]], arguments["reason"])
    elif operation.do == "welcome":
        manager.welcome(arguments["chunks"])
    else:
        manager.give_up(arguments["chunk"], arguments["reason"])


def digest(manager: CacheManager) -> bytes:
    """Eight bytes that tell books apart: what is kept where, in which role and slot, and the scenes.

    Without statistics and scores, which another processor may round otherwise; where that changes a decision, it shows.
    """
    positions, scenes = manager.positions, manager.scenes
    plain = [
        manager.next_chunk,
        [
            (
                t.value,
                sorted((chunk, e.role.value, e.place, e.slot) for chunk, e in manager.ledgers[t].entries.items()),
                (subject := manager.ledgers[t].subject) and (subject.chunk, subject.tokens, subject.slot),
            )
            for t in TYPES
        ],
        (positions.next_slot, positions.subject, positions.epoch, sorted(positions.slots.items())),
        [(s.name, s.prompt, s.entered_at, s.visits) for s in scenes.scenes.values()],
        scenes.current_name,
        int(manager.drift.rung),
        sorted(manager.books.stored),
        sorted((t.value, chunk) for t, chunk in manager.books.lost),
        sorted((t.value, chunk) for t, chunk in manager.books.waiting),
    ]
    return blake2b(repr(plain).encode(), digest_size=8).digest()

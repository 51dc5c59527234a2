"""The cache manager of one session: four ledgers, one position map, the scenes, drift control and the decision log.

It decides from metadata alone; whoever holds the tensors carries its plans out. A chunk is a transaction: ``begin``
stages a place in every ledger, then either ``commit`` books the chunk and answers with a plan, or ``abort`` leaves the
books as they were. ``commit`` is idempotent per chunk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cache.books import Books, CacheConfig, CacheStatistics
from cache.decisions import DecisionLog
from cache.drift import ChannelStatistics, DriftControl, DriftVerdict, Reference, Rung
from cache.keep_set import Role
from cache.ledger import Ledger, Subject
from cache.operations import Recorder, plain_commit, plain_directive
from cache.plan import Cut, Directive, Eviction, Plan, PromptChange, ReturnTo
from cache.planner import encoding, replan
from cache.policies.base import Policy
from cache.positions import PositionMap
from cache.scenes import SceneBook
from cache.spec import TYPES, AttentionSpec, AttentionType
from cache.tiers import Holdings
from errors import StreamError, TransactionError


@dataclass
class _Open:
    """The transaction in progress, with what an abort must put back."""

    drift: DriftControl
    references: dict[str, Reference]
    seen: Mapping[str, ChannelStatistics] = field(default_factory=dict)


class CacheManager:
    """Books and plans of one session. Pure Python: no tensors, no clock, no environment."""

    def __init__(
        self,
        session: str,
        specs: Mapping[AttentionType, AttentionSpec],
        policy: Policy,
        config: CacheConfig,
        holdings: Holdings,
    ) -> None:
        """``holdings`` tells which evicted chunks of ``session`` the restore store can give back.

        Raises:
            BudgetError: the policy's budgets cannot hold the keep-set within bytes or the trained range.
        """
        policy.budgets.check(specs, config.positions.slots)
        self.books = Books(session, specs, policy.budgets, config)
        self.policy = policy
        self.recorder = Recorder(holdings)
        self.drift = DriftControl(config.drift)
        self._open: _Open | None = None
        self._last: Plan | None = None

    # -- what the books say

    @property
    def session(self) -> str:
        """Name of the session in the restore store."""
        return self.books.session

    @property
    def next_chunk(self) -> int:
        """Index of the chunk in progress or to come."""
        return self.books.next_chunk

    @property
    def ledgers(self) -> dict[AttentionType, Ledger]:
        """The four ledgers."""
        return self.books.ledgers

    @property
    def positions(self) -> PositionMap:
        """The position slots of all kept chunks."""
        return self.books.positions

    @property
    def scenes(self) -> SceneBook:
        """The scenes that the stream remembers."""
        return self.books.scenes

    @property
    def log(self) -> DecisionLog:
        """What was decided, and why."""
        return self.books.log

    def kept(self) -> list[int]:
        """Chunks held by any attention type, in media order."""
        return self.books.kept()

    def subject_chunks(self) -> set[int]:
        """Chunks that the subject anchor was harvested from."""
        return self.books.subject_chunks()

    def statistics(self) -> CacheStatistics:
        """A frozen summary of what is held."""
        return self.books.statistics(self.drift.rung)

    def check_integrity(self) -> None:
        """Raise ``IntegrityError`` if an invariant of the books does not hold."""
        self.books.check_integrity(self.in_progress)

    def record(self, recorder: Recorder) -> None:
        """Have operations noted by ``recorder`` from now on, which goes on from other books of this session."""
        recorder.holdings = self.recorder.holdings
        self.recorder = recorder

    # -- the life of a chunk

    def open_scene(self, name: str, prompt: str) -> None:
        """Name the scene that the stream begins with."""
        if self.scenes.scenes:
            raise TransactionError("the stream has a scene already; use a Cut")
        self.scenes.cut(name, prompt, 0)
        self.log.add(0, "scene", f"opened {name!r}")

    def direct(self, directive: Directive) -> Plan:
        """Take a directive between two chunks; the plan must be carried out before the next ``begin``.

        Raises:
            UnknownScene, SceneExists, StreamError: the directive makes no sense here; nothing was changed.
            TransactionError: a chunk is in progress.
        """
        self._require_closed("direct")
        plan = self._change_prompt(directive) if isinstance(directive, PromptChange) else self._enter(directive)
        self.recorder.note("direct", plain_directive(directive))
        return plan

    def _enter(self, directive: Cut | ReturnTo) -> Plan:
        at = self.next_chunk
        if isinstance(directive, Cut):
            for forgotten in self.scenes.cut(directive.scene, directive.prompt, at):
                self.log.add(at, "forget scene", f"{forgotten.name!r}: too many scenes")
            self.log.add(at, "cut", f"to new scene {directive.scene!r}")
            subject_evictions = [] if directive.keep_subject else self._drop_subject()
        else:
            scene = self.scenes.return_to(directive.scene, at)
            self.log.add(at, "return", f"to scene {scene.name!r}, visit {scene.visits}")
            subject_evictions = []
        self.drift.restart()
        plan = self._replan()
        return replace(plan, evictions=(*subject_evictions, *plan.evictions))

    def begin(self) -> None:
        """Stage a place for the next chunk in every ledger; the chunk stands at ``positions.next_slot``."""
        self._require_closed("begin")
        if not self.scenes.scenes:
            raise TransactionError("no scene is open; call open_scene first")
        references = {m: replace(r) for m, r in self.scenes.current.reference.items()}
        self._open = _Open(replace(self.drift), references)
        for ledger in self.ledgers.values():
            ledger.stage()

    def judge(self, seen: Mapping[str, ChannelStatistics]) -> DriftVerdict:
        """Decide how the copy of the chunk in progress is corrected before it is committed."""
        self._require_open("judge").seen = seen
        verdict = self.drift.judge(self.scenes.current.reference, seen)
        if verdict.changed:
            self.log.add(self.next_chunk, "repair", verdict.changed)
        self.books.drift_scores[self.next_chunk] = verdict.score
        return verdict

    def commit(self, chunk: int, mass: Mapping[AttentionType, Mapping[int, float]] | None = None) -> Plan:
        """Book the staged chunk, decide the keep-set, and answer with what must be done before the next chunk.

        Args:
            chunk: index of the chunk; repeating the newest one returns its plan again and changes nothing.
            mass: per attention type, each visible chunk's share of the attention of this chunk's queries.
        """
        if self._last is not None and chunk == self.next_chunk - 1 and self._open is None:
            return self._last
        opened = self._require_open("commit")
        if chunk != self.next_chunk:
            raise TransactionError(f"commit of chunk {chunk}; chunk {self.next_chunk} is in progress")
        for ledger in self.ledgers.values():
            ledger.book(chunk, self.positions.next_slot)
        self.positions.advance(chunk)
        self.books.drift_scores.setdefault(chunk, 0.0)
        self.scenes.book(chunk)
        leaving = chunk - self.policy.budgets.narrowest(Role.RECENT)
        if self.books.drift_scores.get(leaving, float("inf")) <= self.books.config.drift.reference_threshold:
            self.scenes.consider_anchor(leaving)
        self.books.stored.add(chunk)
        self.books.next_chunk += 1
        self._open = None
        if mass is not None:
            self.books.weigh(mass)
        self._last = self._replan()
        self.recorder.note("commit", plain_commit(chunk, opened.seen, mass))
        return self._last

    def abort(self) -> dict[AttentionType, int]:
        """Give up the chunk in progress; the books are as before ``begin``. Returns the places to release."""
        opened = self._require_open("abort")
        self.drift = opened.drift
        self.scenes.current.reference = opened.references
        self.books.drift_scores.pop(self.next_chunk, None)
        self._open = None
        self.log.add(self.next_chunk, "abort", "given up before its commit", self.next_chunk)
        return {t: ledger.unstage() for t, ledger in self.ledgers.items()}

    # -- subject anchor

    def set_subject(self, chunk: int, tokens: Mapping[AttentionType, int], score: float) -> Plan | None:
        """Book a new subject anchor made of chosen tokens of ``chunk``; ``None`` if the present one is better.

        Args:
            chunk: a chunk that every type in ``tokens`` holds.
            tokens: number of chosen tokens by attention type.
            score: how well the tokens show the subject; must beat the present anchor's, unless a refresh is due.

        Returns:
            A plan to carry out after the chosen keys (encoded for the slot booked in the ledger) are in place 0.
        """
        self._require_closed("set_subject")
        for t in tokens:
            if not self.policy.budgets[t].subject_anchor:
                raise StreamError(f"{t}: subject_anchor budget is 0; grant 1 to keep a subject anchor")
            if chunk not in self.ledgers[t].entries:
                raise StreamError(f"{t}: chunk {chunk} is not in the cache; harvest from one of {self.kept()}")
        present = [self.ledgers[t].subject for t in tokens]
        best = max((s.score for s in present if s is not None), default=float("-inf"))
        if score <= best and not self.wants_subject:
            self.log.add(self.next_chunk, "subject refused", f"score {score:.3f} is not above {best:.3f}", chunk)
            return None
        for t, count in tokens.items():
            slot = self.ledgers[t].entries[chunk].slot
            self.ledgers[t].subject = Subject(chunk, count, score, slot)
        self.log.add(self.next_chunk, "subject", f"score {score:.3f}, {dict(tokens)} tokens", chunk)
        plan = self._replan()
        plain = {t.value: count for t, count in tokens.items()}
        self.recorder.note("subject", {"chunk": chunk, "tokens": plain, "score": score})
        return plan

    @property
    def wants_subject(self) -> bool:
        """Whether the repair ladder asks for a fresh subject anchor."""
        return self.drift.rung >= Rung.REFRESH_SUBJECT

    def give_up(self, chunk: int, reason: str) -> list[Eviction]:
        """Strike off a chunk that could not be brought back; the stream goes on without it."""
        evictions = self._strike(chunk, TYPES)
        self.books.waiting -= {(t, chunk) for t in TYPES}
        self.books.lost |= {(t, chunk) for t in TYPES}
        self.log.add(self.next_chunk, "give up", reason, chunk)
        self.recorder.note("give_up", {"chunk": chunk, "reason": reason})
        return evictions

    def postpone(self, chunk: int, types: Sequence[AttentionType], reason: str) -> list[Eviction]:
        """Strike off a chunk that is not back in time; ``types``: those that were to come back.

        It is not asked for again before it is welcome, and the stream goes on without it. Where audio was held already,
        it stays.
        """
        evictions = self._strike(chunk, types)
        self.books.waiting |= {(t, chunk) for t in types}
        self.log.add(self.next_chunk, "postpone", reason, chunk)
        self.recorder.note("postpone", {"chunk": chunk, "types": [t.value for t in types], "reason": reason})
        return evictions

    @property
    def waiting(self) -> list[int]:
        """Chunks that were postponed, in media order."""
        return sorted({chunk for _, chunk in self.books.waiting})

    def welcome(self, chunks: Sequence[int]) -> Plan:
        """Postponed chunks may come back; the plan must be carried out before the next ``begin``."""
        self._require_closed("welcome")
        self.books.waiting = {(t, c) for t, c in self.books.waiting if c not in chunks}
        plan = self._replan()
        self.recorder.note("welcome", {"chunks": list(chunks)})
        return plan

    def drop_subject(self, reason: str) -> list[Eviction]:
        """Strike off a subject anchor that could not be brought back."""
        evictions = self._drop_subject()
        self.log.add(self.next_chunk, "give up", reason)
        self.recorder.note("drop_subject", {"reason": reason})
        return evictions

    @property
    def begins_scene(self) -> bool:
        """Whether the next chunk is the first that its scene ever had."""
        scene = self.books.scenes.current
        return scene.visits == 1 and scene.entered_at == self.books.next_chunk

    @property
    def in_progress(self) -> bool:
        """Whether a chunk is between ``begin`` and ``commit`` or ``abort``."""
        return self._open is not None

    # -- inside

    def _strike(self, chunk: int, types: Sequence[AttentionType]) -> list[Eviction]:
        """Off the ledgers of ``types``, and off everything else if no ledger is left that has it."""
        evictions = self.books.evict(types, chunk, offload=False)
        if chunk not in self.kept():
            self.positions.slots.pop(chunk, None)
            self.books.drift_scores.pop(chunk, None)
            self.books.mass.pop(chunk, None)
        return evictions

    def _replan(self) -> Plan:
        return replan(self.books, self.policy, self.recorder, self.drift.rung)

    def _require_closed(self, call: str) -> None:
        if self._open is not None:
            raise TransactionError(f"{call} while chunk {self.next_chunk} is in progress; commit or abort first")

    def _require_open(self, call: str) -> _Open:
        if self._open is None:
            raise TransactionError(f"{call} without a chunk in progress; begin first")
        return self._open

    def _change_prompt(self, directive: PromptChange) -> Plan:
        scene = self.scenes.current
        scene.prompt = directive.prompt
        scene.reference = {}
        self.drift.restart()
        recent = self._running(scene.entered_at) if directive.mode == "recache" else ()
        self.log.add(self.next_chunk, "prompt", f"{directive.mode}: {len(recent)} chunks encoded again")
        return Plan(self.next_chunk, encode=tuple(encoding(self.books, c) for c in recent))

    def _running(self, since: int) -> list[int]:
        """Recent chunks since ``since``, as far back as the farthest reaching ledger."""
        entries = self.ledgers[AttentionType.AUDIO_SELF].entries
        return sorted(c for c, e in entries.items() if e.role is Role.RECENT and c >= since)

    def _drop_subject(self) -> list[Eviction]:
        evictions = []
        for t, ledger in self.ledgers.items():
            if ledger.subject is not None:
                subject = ledger.subject
                evictions.append(Eviction(t, subject.chunk, 0, subject.slot, False, Role.SUBJECT_ANCHOR))
                ledger.subject = None
        self.positions.subject = None
        return evictions

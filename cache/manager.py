"""The cache manager of one session: four ledgers, one position map, the scenes, drift control and the decision log.

It decides from metadata alone; whoever holds the tensors carries its plans out. A chunk is a transaction: ``begin``
stages a place in every ledger, then either ``commit`` books the chunk and answers with a plan, or ``abort`` leaves the
books as they were. ``commit`` is idempotent per chunk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cache.decisions import DecisionLog
from cache.drift import ChannelStatistics, DriftConfig, DriftControl, DriftVerdict, Reference, Rung
from cache.keep_set import Role, select
from cache.ledger import Ledger, Subject
from cache.plan import Cut, Directive, Encoding, Eviction, Plan, PromptChange, Restoration
from cache.policies.base import Policy, View
from cache.positions import Move, PositionConfig, PositionMap
from cache.scenes import Scene, SceneBook, SceneConfig
from cache.spec import TYPES, AttentionSpec, AttentionType, Modality
from cache.tiers import Holdings
from errors import IntegrityError, StreamError, TransactionError

MEMORY_ROLES = (Role.SCENE_SINK, Role.SCENE_ANCHOR, Role.RESTORED)
# Audio first: a chunk comes back to a video-keyed ledger only if the audio-keyed ones have it.
AUDIO_FIRST = tuple(sorted(TYPES, key=lambda t: t.keyed_by is Modality.VIDEO))


@dataclass(frozen=True)
class CacheConfig:
    """Everything that a cache manager decides by."""

    positions: PositionConfig = field(default_factory=PositionConfig)
    scenes: SceneConfig = field(default_factory=SceneConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    mass_decay: float = 0.95
    log_capacity: int = 4096


@dataclass(frozen=True)
class TypeStatistics:
    """What one ledger holds now."""

    chunks: int
    bytes_held: int
    bytes_by_role: Mapping[Role, int]


@dataclass(frozen=True)
class CacheStatistics:
    """What one session's cache holds now, by attention type, and where it stands on the time axis."""

    next_chunk: int
    epoch: int
    farthest_distance: int
    rung: Rung
    types: Mapping[AttentionType, TypeStatistics]

    @property
    def bytes_held(self) -> int:
        """Bytes of all four ledgers."""
        return sum(t.bytes_held for t in self.types.values())


@dataclass
class _Open:
    """The transaction in progress, with what an abort must put back."""

    drift: DriftControl
    references: dict[str, Reference]


@dataclass
class _Mass:
    """Decayed attention mass of a chunk and the decayed number of commits that could see it."""

    total: float = 0.0
    exposure: float = 0.0


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
        self.session = session
        self.policy = policy
        self.config = config
        self.holdings = holdings
        self.ledgers = {t: Ledger(specs[t], policy.budgets[t]) for t in TYPES}
        self.positions = PositionMap(config.positions)
        self.scenes = SceneBook(config.scenes)
        self.drift = DriftControl(config.drift)
        self.log = DecisionLog(config.log_capacity)
        self.next_chunk = 0
        self.drift_scores: dict[int, float] = {}
        self.stored: set[int] = set()
        self._mass: dict[int, _Mass] = {}
        self._lost: set[tuple[AttentionType, int]] = set()
        self._open: _Open | None = None
        self._last: Plan | None = None

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
        at = self.next_chunk
        if isinstance(directive, PromptChange):
            return self._change_prompt(directive)
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
        self._require_open("judge")
        verdict = self.drift.judge(self.scenes.current.reference, seen)
        if verdict.changed:
            self.log.add(self.next_chunk, "repair", verdict.changed)
        self.drift_scores[self.next_chunk] = verdict.score
        return verdict

    def commit(self, chunk: int, mass: Mapping[AttentionType, Mapping[int, float]] | None = None) -> Plan:
        """Book the staged chunk, decide the keep-set, and answer with what must be done before the next chunk.

        Args:
            chunk: index of the chunk; repeating the newest one returns its plan again and changes nothing.
            mass: per attention type, each visible chunk's share of the attention of this chunk's queries.
        """
        if self._last is not None and chunk == self.next_chunk - 1 and self._open is None:
            return self._last
        self._require_open("commit")
        if chunk != self.next_chunk:
            raise TransactionError(f"commit of chunk {chunk}; chunk {self.next_chunk} is in progress")
        for ledger in self.ledgers.values():
            ledger.book(chunk, self.positions.next_slot)
        self.positions.advance(chunk)
        self.drift_scores.setdefault(chunk, 0.0)
        self.scenes.book(chunk)
        leaving = chunk - min(self.policy.budgets[t].recent for t in TYPES)
        if self.drift_scores.get(leaving, float("inf")) <= self.config.drift.reference_threshold:
            self.scenes.consider_anchor(leaving)
        self.stored.add(chunk)
        self.next_chunk += 1
        self._open = None
        if mass is not None:
            self._weigh(mass)
        self._last = self._replan()
        return self._last

    def abort(self) -> dict[AttentionType, int]:
        """Give up the chunk in progress; the books are as before ``begin``. Returns the places to release."""
        opened = self._require_open("abort")
        self.drift = opened.drift
        self.scenes.current.reference = opened.references
        self.drift_scores.pop(self.next_chunk, None)
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
        return self._replan()

    @property
    def wants_subject(self) -> bool:
        """Whether the repair ladder asks for a fresh subject anchor."""
        return self.drift.rung >= Rung.REFRESH_SUBJECT

    # -- what is held

    def kept(self) -> list[int]:
        """Chunks held by any attention type, in media order."""
        return sorted(set().union(*(ledger.entries.keys() for ledger in self.ledgers.values())))

    def subject_chunks(self) -> set[int]:
        """Chunks that the subject anchor was harvested from."""
        return {ledger.subject.chunk for ledger in self.ledgers.values() if ledger.subject is not None}

    def give_up(self, chunk: int, reason: str) -> list[Eviction]:
        """Strike off a chunk that could not be brought back; the stream goes on without it."""
        evictions = self._evict_from(TYPES, chunk, offload=False)
        self.positions.slots.pop(chunk, None)
        self.drift_scores.pop(chunk, None)
        self._mass.pop(chunk, None)
        self.log.add(self.next_chunk, "give up", reason, chunk)
        return evictions

    def statistics(self) -> CacheStatistics:
        """A frozen summary of what is held."""
        slots = [*self.positions.slots.values()] + ([] if self.positions.subject is None else [self.positions.subject])
        types = {}
        for t, ledger in self.ledgers.items():
            by_role = {role: ledger.spec.maximum_bytes(n) for role, n in ledger.by_role().items()}
            types[t] = TypeStatistics(len(ledger.entries), ledger.bytes_held(), by_role)
        farthest = self.positions.next_slot - min(slots, default=self.positions.next_slot)
        return CacheStatistics(self.next_chunk, self.positions.epoch, farthest, self.drift.rung, types)

    @property
    def in_progress(self) -> bool:
        """Whether a chunk is between ``begin`` and ``commit`` or ``abort``."""
        return self._open is not None

    def scores(self) -> dict[str, Any]:
        """Drift and attention scores of the held chunks, and what the store holds or lost, as plain data."""
        return {
            "drift": self.drift_scores,
            "mass": {c: [m.total, m.exposure] for c, m in self._mass.items()},
            "stored": sorted(self.stored),
            "lost": sorted([t.value, c] for t, c in self._lost),
        }

    def load_scores(self, plain: Mapping[str, Any]) -> None:
        """Take over what ``scores`` gave."""
        self.drift_scores = dict(plain["drift"])
        self._mass = {c: _Mass(*m) for c, m in plain["mass"].items()}
        self.stored = set(plain["stored"])
        self._lost = {(AttentionType(t), c) for t, c in plain["lost"]}

    def check_integrity(self) -> None:
        """Raise ``IntegrityError`` if an invariant of the books does not hold."""
        self.positions.check_integrity()
        kept = self.kept()
        if kept != sorted(self.positions.slots):
            raise IntegrityError(f"positions know {sorted(self.positions.slots)}, ledgers {kept}")
        audio = [set(self.ledgers[t].entries) for t in TYPES if t.keyed_by is Modality.AUDIO]
        for t, ledger in self.ledgers.items():
            ledger.check_integrity()
            for chunk, entry in ledger.entries.items():
                if entry.slot != self.positions.slots[chunk]:
                    raise IntegrityError(f"{t}: chunk {chunk} encoded for {entry.slot}, read at {self.positions.slots}")
            if ledger.subject is not None and ledger.subject.slot != self.positions.subject:
                raise IntegrityError(f"{t}: subject anchor encoded for {ledger.subject.slot}")
            if t.keyed_by is Modality.VIDEO and any(set(ledger.entries) - a for a in audio):
                raise IntegrityError(f"{t}: keeps {sorted(ledger.entries)}, which audio has forgotten")
            if (ledger.staged is not None) != (self._open is not None):
                raise IntegrityError(f"{t}: staged place {ledger.staged} without a transaction")
        missing = set(self.drift_scores) - set(kept) - ({self.next_chunk} if self._open else set())
        if missing or set(self._mass) - set(kept):
            raise IntegrityError(f"scores of forgotten chunks: {missing or set(self._mass) - set(kept)}")

    # -- inside

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
        recent = self._running(scene) if directive.mode == "recache" else ()
        self.log.add(self.next_chunk, "prompt", f"{directive.mode}: {len(recent)} chunks encoded again")
        return Plan(self.next_chunk, encode=tuple(self._encoding(c) for c in recent))

    def _encoding(self, chunk: int) -> Encoding:
        return Encoding(chunk, tuple(t for t in TYPES if chunk in self.ledgers[t].entries))

    def _running(self, scene: Scene) -> list[int]:
        entries = self.ledgers[AttentionType.AUDIO_SELF].entries
        return sorted(c for c, e in entries.items() if e.role is Role.RECENT and c >= scene.entered_at)

    def _drop_subject(self) -> list[Eviction]:
        evictions = []
        for t, ledger in self.ledgers.items():
            if ledger.subject is not None:
                subject = ledger.subject
                evictions.append(Eviction(t, subject.chunk, 0, subject.slot, False, Role.SUBJECT_ANCHOR))
                ledger.subject = None
        self.positions.subject = None
        return evictions

    def _weigh(self, mass: Mapping[AttentionType, Mapping[int, float]]) -> None:
        decay = self.config.mass_decay
        lifts: dict[int, list[float]] = {}
        for shares in mass.values():
            for chunk, share in shares.items():
                lifts.setdefault(chunk, []).append(share * len(shares))
        for chunk, values in lifts.items():
            entry = self._mass.setdefault(chunk, _Mass())
            entry.total = decay * entry.total + sum(values) / len(values)
            entry.exposure = decay * entry.exposure + 1.0

    def _view(self, held: list[int]) -> View:
        return View(
            newest=self.next_chunk - 1,
            held=held,
            scene=self.scenes.current,
            recent_across_cut=self.scenes.config.recent_across_cut,
            drift=self.drift_scores,
            mass={c: m.total / m.exposure for c, m in self._mass.items()},
            rung=self.drift.rung,
            drifted_above=self.config.drift.raise_threshold,
        )

    def _replan(self) -> Plan:
        """Rank once, then bring all four ledgers, the positions and the store in line, in one transaction."""
        view = self._view(self.kept())
        ranking = self.policy.rank(view)
        remembered = self.policy.remembered(self.scenes)
        wanted = {t: select(ranking, ledger.budget) for t, ledger in self.ledgers.items()}
        evictions: list[Eviction] = []
        for t in TYPES:
            entries = self.ledgers[t].entries
            for chunk in [c for c in entries if c not in wanted[t]]:
                self.log.add(view.newest, "evict", self.policy.explain(chunk, view), chunk, t)
                evictions += self._evict_from((t,), chunk, offload=chunk in remembered)
            for chunk, entry in entries.items():
                entry.role = wanted[t][chunk]
        arrivals, rebuild = self._admit(wanted, remembered)
        kept = self.kept()
        running_from = min(ranking[Role.RECENT], default=self.next_chunk)
        has_subject = any(ledger.subject is not None for ledger in self.ledgers.values())
        ended = self.positions.place(kept, running_from, has_subject)
        if ended:
            self.log.add(view.newest, "epoch", f"{self.positions.epoch} ended; memory moved to {self.positions.slots}")
        whole = ended and self.config.positions.move == "rebuild"
        encoded = kept if whole else sorted(rebuild)
        moves = self._settle({*arrivals, *((t, c) for c, types in rebuild.items() for t in types)})
        return Plan(
            chunk=view.newest,
            evictions=tuple(evictions),
            restorations=tuple(
                Restoration(t, c, self.ledgers[t].entries[c].place, self.positions.slots[c], wanted[t][c])
                for t, c in arrivals
            ),
            moves={} if whole else moves,
            encode_subject=whole and has_subject,
            encode=tuple(self._encoding(c) if whole else Encoding(c, tuple(rebuild[c])) for c in encoded),
            forget=self._forget(kept, remembered) if evictions or not view.newest % 16 else (),
            epoch_ended=ended,
        )

    def _admit(
        self, wanted: Mapping[AttentionType, Mapping[int, Role]], remembered: set[int]
    ) -> tuple[list[tuple[AttentionType, int]], dict[int, list[AttentionType]]]:
        """Open places for wanted chunks that the store can give back.

        Returns the arrivals with keys and values, and the chunks to encode from their latents with the types to write.
        """
        found: dict[int, list[AttentionType]] = {}
        latents_only: set[int] = set()
        for t in AUDIO_FIRST:
            entries = self.ledgers[t].entries
            missing = [c for c, r in wanted[t].items() if r in MEMORY_ROLES and c not in entries and c in remembered]
            for chunk in sorted(missing):
                if (t, chunk) in self._lost:
                    continue
                held = self.holdings.holds(self.session, chunk)
                whole = t in held.types and self.config.positions.move == "relocate"
                heard = t.keyed_by is Modality.AUDIO or all(
                    chunk in self.ledgers[a].entries for a in TYPES if a.keyed_by is Modality.AUDIO
                )
                if not heard or not (whole or held.latents):
                    self._lost.add((t, chunk))
                    self.log.add(self.next_chunk, "not restored", "the store has lost it", chunk, t)
                    continue
                self.ledgers[t].admit(chunk, wanted[t][chunk], self.positions.slots.get(chunk, 0))
                found.setdefault(chunk, []).append(t)
                if not whole:
                    latents_only.add(chunk)
                how = "keys and values" if whole else "encoded from latents"
                self.log.add(self.next_chunk, "restore", f"{wanted[t][chunk]}, {how}", chunk, t)
        arrivals = [(t, c) for c, types in found.items() if c not in latents_only for t in types]
        return arrivals, {c: types for c, types in found.items() if c in latents_only}

    def _settle(self, arriving: set[tuple[AttentionType, int]]) -> dict[AttentionType, tuple[Move, ...]]:
        """Book every entry at its position; returns what must be rotated (arrivals are encoded as they come in)."""
        slots = self.positions.slots
        moves: dict[AttentionType, tuple[Move, ...]] = {}
        for t, ledger in self.ledgers.items():
            found: list[Move] = []
            subject = ledger.subject
            if subject is not None and self.positions.subject is not None and subject.slot != self.positions.subject:
                found.append(Move(None, subject.slot, self.positions.subject))
                subject.slot = self.positions.subject
            for chunk, entry in ledger.entries.items():
                if entry.slot != slots[chunk]:
                    if (t, chunk) not in arriving:
                        found.append(Move(chunk, entry.slot, slots[chunk]))
                    entry.slot = slots[chunk]
            if found:
                moves[t] = tuple(found)
        return moves

    def _evict_from(self, types: Sequence[AttentionType], chunk: int, offload: bool) -> list[Eviction]:
        evictions = []
        for t in types:
            if chunk in self.ledgers[t].entries:
                entry = self.ledgers[t].evict(chunk)
                evictions.append(Eviction(t, chunk, entry.place, entry.slot, offload, entry.role))
        return evictions

    def _forget(self, kept: list[int], remembered: set[int]) -> tuple[int, ...]:
        """Drop scores of evicted chunks, and name the records that nobody can ask for again."""
        self.drift_scores = {c: score for c, score in self.drift_scores.items() if c in kept}
        self._mass = {c: mass for c, mass in self._mass.items() if c in kept}
        self._lost = {(t, c) for t, c in self._lost if c in remembered}
        gone = self.stored - remembered - self.subject_chunks() - set(kept)
        self.stored -= gone
        return tuple(sorted(gone))

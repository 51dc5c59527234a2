"""The engine: one backbone, one pool, many streams; each step makes the next chunk of every stream it is given."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

import torch

from cache.chooser import Chooser
from cache.host_tier import HostTier
from cache.manager import CacheManager
from cache.plan import Directive, Plan, PromptChange
from cache.policies.base import Policy
from cache.pool import Pool
from cache.spec import TYPES, AttentionType, Modality
from cache.staging import Staging
from cache.state import dump, load
from cache.tiers import Holdings, RestoreTier
from cache.way_back import WayBack
from errors import BudgetError, LongtakeError, StreamClosed, StreamError, StreamFailed
from kernels.ops import ops
from models.backbone import Backbone
from models.prompt import Prompt, hashed_prompt
from models.sampler import Schedule
from streams.arrivals import Fetcher, Wait, first_of
from streams.departures import Departures
from streams.durability import WriteThrough, everything, shelves
from streams.engine_config import EngineConfig
from streams.executor import Executor
from streams.making import Chunk, Made, Maker
from streams.paging import Paging
from streams.returns import Returns
from streams.session import Session
from streams.slack import Slack


class Engine:
    """Batches streams of different length, scene and keep-set into one forward pass."""

    def __init__(
        self,
        backbone: Backbone,
        policy: Policy,
        config: EngineConfig | None = None,
        encode_prompt: Callable[[str], Prompt] | None = None,
        tier: RestoreTier | None = None,
        clock: Callable[[], float] = time.perf_counter,
        wait: Wait = first_of,
    ) -> None:
        """``encode_prompt`` turns text into embeddings; without one, texts are hashed (random weights only).

        ``clock`` and ``wait`` are what deadlines are kept by.

        Raises:
            BudgetError: the keep-set does not fit its bytes or the model's trained range of positions.
        """
        self.config = config or EngineConfig()
        self.backbone, self.policy = backbone, policy
        self.specs = {t: spec.held_as(self.config.format(t)) for t, spec in backbone.specs().items()}
        trained = min(backbone.config.pos_embed_max_pos, backbone.config.audio_pos_embed_max_pos)
        slots = backbone.geometry.position_slots(trained)
        if self.config.cache.positions.slots > slots:
            raise BudgetError(
                f"positions.slots is {self.config.cache.positions.slots} but {trained} s of trained range hold {slots} "
                f"chunks of {float(backbone.geometry.seconds):.3f} s; expected at most {slots}"
            )
        policy.budgets.check(self.specs, self.config.cache.positions.slots)
        self.places = {t: policy.budgets[t].places for t in TYPES}
        pages = {t: n * self.config.sessions for t, n in self.places.items()}
        self.pool = Pool(self.specs, pages, backbone.dtype, backbone.device)
        float8 = any(spec.pages == "fp8" for spec in self.specs.values())
        self.ops = ops(self.config.impl, backbone.device, float8, self.config.coded_queries)
        self.paging = Paging(self.pool, self.ops)
        self.store = HostTier(self.config.host_bytes) if tier is None else tier
        restore = self.config.restore
        self.departures = Departures(self.store, restore.leaving_bytes)
        self.tier: RestoreTier = self.store if self.pool.device.type == "cpu" else self.departures
        self.clock, self.way_back = clock, WayBack(restore.way_back)
        self.bytes_of: dict[AttentionType | None, int] = {t: self.specs[t].bytes_per_chunk for t in TYPES}
        self.bytes_of[None] = self._latents_bytes()
        self.staging = Staging(
            self.tier, self.bytes_of, restore.staging_bytes, restore.patience_s, self.way_back, clock
        )
        self.slack = Slack(restore, float(backbone.geometry.seconds))
        self.fetcher = Fetcher(self.paging, self.staging, self.way_back, self.slack, clock, wait)
        self.through = WriteThrough(self.config.durability, self.paging, self.staging)
        sigma = self.config.schedule.context_sigma
        self.executor = Executor(
            backbone, self.paging, self.staging, sigma, self.through, self.fetcher, self.way_back, clock
        )
        self.maker = Maker(
            backbone, policy, self.pool, self.ops, sigma, self.departures.settle, self.way_back.passed, clock
        )
        loads = self.config.cache.positions.move == "relocate"
        self.returns = Returns(restore, policy, self.staging, self.fetcher, self.executor, loads)
        self.understands = encode_prompt is not None
        self._encode_prompt = encode_prompt or self._hash_prompt
        self.sessions: dict[str, Session] = {}

    # -- streams come and go

    def open(self, prompt: str | Prompt, seed: int = 0, scene: str = "opening", first_slot: int = 0) -> Session:
        """Begin a stream; raises ``PoolExhausted`` if the pool is full, and then nothing was changed.

        ``first_slot`` moves the whole time axis, which changes nothing but rounding.
        """
        embedded = self.prompt(prompt)
        name = self.new_name()
        manager = CacheManager(name, self.specs, self.policy, self.config.cache, self._holdings())
        manager.positions.next_slot = first_slot
        manager.open_scene(scene, embedded.key)
        return self.adopt(Session(name, seed, manager, self.pool.open(self.places), {embedded.key: embedded}))

    def adopt(self, session: Session) -> Session:
        """Take over a session whose lease is in this engine's pool."""
        self.sessions[session.id] = session
        return session

    def fork(self, session: Session, seed: int | None = None) -> Session:
        """A second stream with the same past; pages are shared until one of the two writes. Same seed, same future."""
        self.require(session)
        plain = dump(session.manager)
        name = self.new_name()
        lease = self.pool.fork(session.lease)
        manager = load(plain, name, self.specs, self.policy, self.config.cache, self._holdings())
        for there, here in zip(shelves(session.id), shelves(name), strict=True):
            self.staging.fork(there, here)
        child = Session(name, session.seed if seed is None else seed, manager, lease, dict(session.prompts))
        child.retained, child.prompt_of = dict(session.retained), dict(session.prompt_of)
        child.subject_tokens, child.origins = dict(session.subject_tokens), dict(session.origins)
        return self.adopt(child)

    def close(self, session: Session) -> None:
        """End a stream: its pages, records and latents are released."""
        names = shelves(session.id) if session.ahead is None else everything(session.id)
        self.let_go(session)
        for name in names:
            self.staging.close(name)

    def let_go(self, session: Session) -> None:
        """Release a stream's pages; its records stay in the restore store, for another engine."""
        if session.failure is None:
            self.require(session)
        self.pool.close(session.lease)
        self.staging.let_go(session.id)
        del self.sessions[session.id]

    def new_manager(self, plain: dict[str, object], name: str = "") -> CacheManager:
        """A manager under a fresh name, perhaps ``name``, that goes on from dumped state."""
        return load(plain, name or self.new_name(), self.specs, self.policy, self.config.cache, self._holdings())

    def _holdings(self) -> Holdings:
        """Whom a manager asks: where nobody waits, or keys cannot be moved, there is no way back to choose."""
        if not self.slack.hurried or self.config.cache.positions.move == "rebuild":
            return self.staging
        return Chooser(self.staging, self.bytes_of, self.way_back)

    def _latents_bytes(self) -> int:
        geometry = self.backbone.geometry
        return sum(4 * geometry.tokens(m) * self.backbone.channels(m) for m in Modality)

    # -- directives

    def prompt(self, prompt: str | Prompt) -> Prompt:
        """Embeddings for this model; raises ``CheckpointError`` if they were made for another."""
        embedded = self._encode_prompt(prompt) if isinstance(prompt, str) else prompt
        self.backbone.check_prompt(embedded)
        return embedded

    def direct(self, session: Session, directive: Directive, prompt: Prompt | None = None) -> None:
        """Carry out a directive before the next chunk; ``prompt`` are the embeddings that it names, if it names any."""
        self.require(session)
        if prompt is not None:
            session.prompts[prompt.key] = prompt
        plan = session.manager.direct(directive)
        if isinstance(directive, PromptChange):
            for encoding in plan.encode:
                chunk = encoding.chunk
                session.retained[chunk] = replace(session.retained[chunk], prompt=directive.prompt)
                session.prompt_of[chunk] = directive.prompt
                # What the store has of it was encoded under the old prompt.
                self.staging.forget(session.id, chunk)
        self._carry_out(session, plan)
        session.forget_prompts()

    def announce(self, session: Session, scene: str) -> bool:
        """A return to ``scene`` comes soon: what it will bring back is prefetched, as far as there is room.

        Returns whether nothing is left to be waited for; so it is for a scene that there is none of.
        """
        self.require(session)
        return self.returns.announce(session, scene)

    def harvest(self, session: Session, chunk: int, masks: Mapping[Modality, torch.Tensor], score: float) -> bool:
        """Make the subject anchor of the tokens that ``masks`` [tokens] (bool, by modality) choose from a kept chunk.

        Returns whether it was taken: only a better score replaces the present anchor.
        """
        self.require(session)
        if not masks or set(masks) - set(Modality):
            raise StreamError(f"masks are for {sorted(masks)}; expected video, audio or both")
        chosen: dict[AttentionType, torch.Tensor] = {}
        for modality, mask in ((Modality(m), mask) for m, mask in masks.items()):
            expected = self.backbone.geometry.tokens(modality)
            if mask.shape != (expected,) or not bool(mask.any()):
                raise StreamError(
                    f"{modality} mask has shape {tuple(mask.shape)} and {int(mask.sum())} chosen tokens; "
                    f"expected ({expected},) with one or more chosen"
                )
            granted = [t for t in TYPES if t.keyed_by is modality and self.policy.budgets[t].subject_anchor]
            if not granted:
                raise StreamError(f"{modality}: subject_anchor budget is 0; grant 1 to keep a subject anchor")
            chosen.update(dict.fromkeys(granted, mask.nonzero()[:, 0]))
        sources = {t: session.manager.ledgers[t].entries.get(chunk) for t in chosen}
        plan = session.manager.set_subject(chunk, {t: len(tokens) for t, tokens in chosen.items()}, score)
        if plan is None:
            return False
        for t, tokens in chosen.items():
            source = sources[t]
            assert source is not None
            self.executor.write_subject(session, t, session.page(t, source.place), tokens)
        session.subject_tokens.update(chosen)
        self._carry_out(session, plan)
        for t in chosen:
            self.through.subject(session, t)
        return True

    # -- chunks

    def step(self, sessions: Sequence[Session]) -> list[Chunk]:
        """The next chunk of every session, in one batch. On an error all are as before and can be stepped again."""
        for session in sessions:
            self.require(session)
        if len({session.id for session in sessions}) != len(sessions):
            raise StreamError("a stream stands twice in one step; each makes one chunk at a time")
        for session in sessions:
            late = self.returns.tend(session)
            if late is not None:
                self._carry_out(session, late)
        begun: list[Session] = []
        made: dict[str, Made] = {}
        began = self.clock()
        try:
            for session in sessions:
                session.manager.begin()
                begun.append(session)
                for t in TYPES:
                    self.pool.claim(session.lease, t, session.staged(t))
            for group, schedule in self._groups(sessions):
                made.update(zip((s.id for s in group), self.maker.make(group, schedule), strict=True))
        except BaseException:  # Ctrl-C too: whatever broke the chunk off, its staged pages and drift go back
            for session in begun:
                self._abort(session)
            raise
        self.slack.stepped(self.clock() - began)
        for session in sessions:
            chunk, latents, shares = made[session.id]
            session.retained[chunk.index], session.prompt_of[chunk.index] = latents, latents.prompt
            # The chunk is published and committed; if its plan fails, that stream says so at its next call.
            with suppress(StreamFailed):
                self._carry_out(session, session.manager.commit(chunk.index, shares))
                self.through.committed(session, chunk.index, made[session.id][1], chunk.video, chunk.audio)
        return [made[session.id][0] for session in sessions]

    def _carry_out(self, session: Session, plan: Plan) -> None:
        try:
            self.executor.carry_out(session, plan)
        except (LongtakeError, RuntimeError, OSError, MemoryError) as error:
            session.failure = error
            self.require(session)

    def _groups(self, sessions: Sequence[Session]) -> list[tuple[list[Session], Schedule]]:
        """Sessions that share a schedule, and so a batch."""
        config = self.config
        if config.first_schedule is None:
            return [(list(sessions), config.schedule)] if sessions else []
        first = [s for s in sessions if s.manager.begins_scene]
        later = [s for s in sessions if not s.manager.begins_scene]
        return [
            (group, schedule) for group, schedule in ((first, config.first_schedule), (later, config.schedule)) if group
        ]

    def _abort(self, session: Session) -> None:
        for t, place in session.manager.abort().items():
            if place in session.lease.tables[t]:
                self.pool.release(session.lease, t, place)

    def require(self, session: Session) -> None:
        """Raise ``StreamClosed`` unless ``session`` is open in this engine."""
        if self.sessions.get(session.id) is not session:
            raise StreamClosed(f"{session.id} is closed; open a stream or resume one from its snapshot")
        if session.failure is not None:
            raise StreamFailed(
                f"the plan after chunk {session.manager.next_chunk - 1} of {session.id} could not be carried out: "
                f"{session.failure!r}; close the stream and resume it from its last snapshot"
            ) from session.failure

    def new_name(self) -> str:
        """A name for a stream in the restore store."""
        # Unique beyond this engine: several may share a restore store.
        name = f"stream-{uuid4().hex[:12]}"
        self.staging.introduce(name, "", self.backbone.fingerprint)
        return name

    def _hash_prompt(self, text: str) -> Prompt:
        return hashed_prompt(
            text, self.backbone.text_channels(Modality.VIDEO), self.backbone.text_channels(Modality.AUDIO)
        )

    def check_integrity(self) -> None:
        """Raise ``IntegrityError`` if any stream's books, pages or records contradict each other."""
        self.pool.check_integrity()
        self.staging.check_integrity()
        self.way_back.check_integrity()
        for session in self.sessions.values():
            session.manager.check_integrity()
            session.check_pages()

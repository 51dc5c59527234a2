"""Carries out the plans of the cache manager on the pool and the restore store, and encodes chunks from latents."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from cache.chooser import Chooser
from cache.keep_set import Role
from cache.plan import Encoding, Eviction, Plan, Restoration
from cache.pool import Pool
from cache.positions import Move
from cache.spec import TYPES, AttentionType
from cache.tiers import KeyValues, Latents, RestoreTier
from cache.way_back import WayBack
from kernels.attention import BlockTable
from kernels.copies import Lap, upload
from models.backbone import Backbone
from models.processors import Rows
from models.rope import KEY_KIND
from streams.arrivals import Fetcher
from streams.durability import WriteThrough
from streams.paging import Paging
from streams.session import Origin, Session

LAPS = 256  # of a few plans


@dataclass
class Executor:
    """Writes pages of the pool; between two chunks of a session only."""

    backbone: Backbone
    paging: Paging
    tier: RestoreTier
    context_sigma: float
    through: WriteThrough
    fetcher: Fetcher
    way_back: WayBack
    clock: Callable[[], float]
    _laps: deque[tuple[Lap, Callable[[float], None]]] = field(default_factory=lambda: deque(maxlen=LAPS))

    @property
    def pool(self) -> Pool:
        """Where the pages are."""
        return self.paging.pool

    def carry_out(self, session: Session, plan: Plan) -> None:
        """Fetch, evict, restore, move, encode, forget, in this order.

        What comes back is fetched before anything is offloaded, or a full store might drop it for what goes; a page is
        reused only after its copy has landed. What goes without a copy goes first, so that there is room to fetch into.
        """
        begun = self.clock()
        session.settle()
        predicted_s = self._explain(session)
        offloads = [eviction for eviction in plan.evictions if self._offloads(session, eviction)]
        for eviction in plan.evictions:
            if eviction not in offloads:
                self._evict(session, eviction)
        arrivals = self.fetcher.bring(session, plan)
        for eviction in offloads:
            self._evict(session, eviction)
        for chunk, reason in arrivals.lost.items():
            self.give_up(session, chunk, reason)
        for chunk, (types, reason) in arrivals.late.items():
            self._postpone(session, chunk, types, reason)
        self._retire_latents(session, plan)
        for restoration in plan.restorations:
            payload = arrivals.key_values.get((restoration.type, restoration.chunk))
            if payload is not None and restoration.chunk in session.manager.ledgers[restoration.type].entries:
                self._restore(session, restoration, payload)
        for t, moves in plan.moves.items():
            for move in moves:
                self._move(session, t, move)
        if plan.encode_subject:
            self.encode_subject(session)
        for encoding in arrivals.encode:
            self.encode_planned(session, encoding)
        if plan.restorations or plan.encode:
            self.fetcher.spent(predicted_s, self.clock() - begun)
        self.through.forget(session, plan.forget)
        for chunk in plan.forget:
            session.retained.pop(chunk, None)
            session.prompt_of.pop(chunk, None)

    # -- between pool and store

    def _offloads(self, session: Session, eviction: Eviction) -> bool:
        """Whether the store is to have what leaves, and has not."""
        return eviction.offload and eviction.type not in self.tier.holds(session.id, eviction.chunk).types

    def _evict(self, session: Session, eviction: Eviction) -> None:
        t, subject = eviction.type, eviction.role is Role.SUBJECT_ANCHOR
        chunk = None if subject else eviction.chunk
        if self._offloads(session, eviction):
            payload = self.through.payload(session, t, chunk, eviction.place, eviction.slot, eviction.role)
            self.tier.offload(session.id, eviction.chunk, t, payload)
        session.renew(t, chunk)
        self.pool.release(session.lease, t, eviction.place)
        if subject:
            session.subject_tokens.pop(t, None)

    def _retire_latents(self, session: Session, plan: Plan) -> None:
        """Latents of chunks that are no longer kept go to the store, where they are the source of truth."""
        kept, subjects = session.manager.kept(), session.manager.subject_chunks()
        for chunk in [c for c in session.retained if c not in kept and c not in plan.forget]:
            if not self.tier.holds(session.id, chunk).latents:
                self.tier.keep_latents(session.id, chunk, session.retained[chunk])
            if chunk not in subjects:
                del session.retained[chunk]

    def _explain(self, session: Session) -> float:
        """Enter in the log which ways back were chosen for a plan, and why; returns how long the plan is to take."""
        holdings, manager = session.manager.recorder.holdings, session.manager
        choices = holdings.take() if isinstance(holdings, Chooser) else {}
        for chunk, choice in choices.items():
            manager.log.add(manager.next_chunk, "way back", str(choice), chunk)
        return max((choice.predicted_s for choice in choices.values()), default=0.0)

    def _restore(self, session: Session, restoration: Restoration, payload: KeyValues) -> None:
        lap = Lap(self.pool.device, self.clock)
        held = restoration.place in session.lease.tables[restoration.type]
        use = session.page if held else partial(self.pool.claim, session.lease)
        page = use(restoration.type, restoration.place)
        packed = self.paging.put(restoration.type, page, payload)
        if payload.slot != restoration.slot:  # else the page has them as they were first written
            keys = self.paging.put_keys(restoration.type, page, packed)
            session.origins[restoration.type, restoration.chunk] = Origin(keys, payload.slot)
            self.rotate(restoration.type, page, payload.slot, restoration.slot)
        self._lapped(lap, partial(self.way_back.unpacked, payload.nbytes))

    def give_up(self, session: Session, chunk: int, reason: str) -> None:
        self._strike(session, chunk, session.manager.give_up(chunk, reason))

    def _postpone(self, session: Session, chunk: int, types: tuple[AttentionType, ...], reason: str) -> None:
        self._strike(session, chunk, session.manager.postpone(chunk, types, reason))

    def _strike(self, session: Session, chunk: int, evictions: list[Eviction]) -> None:
        """Release what there is of a chunk that was struck off; a place that was to be filled may have no page yet."""
        if chunk not in session.manager.subject_chunks() and chunk not in session.manager.kept():
            session.retained.pop(chunk, None)
        for eviction in evictions:
            session.renew(eviction.type, chunk)
            if eviction.place in session.lease.tables[eviction.type]:
                self.pool.release(session.lease, eviction.type, eviction.place)

    def _lapped(self, lap: Lap, tell: Callable[[float], None]) -> None:
        """What began with ``lap`` has been queued: ``tell`` how long it took, now or once the device has done it.

        At most ``LAPS`` are waited for; the oldest are not told of then.
        """
        lap.end()
        self._laps.append((lap, tell))
        while self._laps and (seconds := self._laps[0][0].seconds) is not None:
            self._laps.popleft()[1](seconds)

    # -- positions

    def _move(self, session: Session, type: AttentionType, move: Move) -> None:
        """Rotate from the keys as they were first written: rounding adds up, and small rotations are rounded away."""
        ledger = session.manager.ledgers[type]
        if move.chunk is not None and move.chunk not in ledger.entries:
            return  # given up a moment ago
        place = 0 if move.chunk is None else ledger.entries[move.chunk].place
        page = self.pool.exclusive(session.lease, type, place)
        origin = session.origins.get((type, move.chunk))
        if origin is None:  # this is how they were written
            origin = session.origins[type, move.chunk] = Origin(self.paging.pack_keys(type, page), move.from_slot)
        else:
            self.paging.unpack_keys(type, page, origin.near)
        self.rotate(type, page, origin.slot, move.to_slot)

    def rotate(self, type: AttentionType, page: int, from_slot: int, to_slot: int) -> None:
        if from_slot != to_slot:
            rope = self.backbone.ropes[KEY_KIND[type]]
            self.paging.rotate(type, page, rope.delta(from_slot, to_slot), rope.layout)

    # -- encoding from latents

    def encode(
        self,
        session: Session,
        chunk: int,
        latents: Latents,
        slot: int,
        places: dict[AttentionType, int],
    ) -> None:
        """The clean pass over ``latents`` at ``slot``: writes ``places``, sees what stands before ``slot``.

        Encoding in media order, a chunk never sees one whose keys are still to be encoded.
        """
        rows = Rows(
            pool=self.pool,
            ops=self.paging.ops,
            angles=self.backbone.angles([slot], [chunk == 0]),
            reads={t: [self._reads(session, t, slot, place)] for t, place in places.items()},
            writes={t: [session.page(t, place)] for t, place in places.items()},
            prompts=[session.prompts.get(latents.prompt, session.prompt)],
        )
        found = (upload(x, self.pool.device) for x in (latents.video, latents.audio))
        video, audio = (x[None].to(self.backbone.dtype) for x in found)
        self.backbone.forward(rows, video, audio, self.context_sigma)

    def _reads(self, session: Session, type: AttentionType, slot: int, own: int) -> BlockTable:
        ledger = session.manager.ledgers[type]
        before = [e.place for e in ledger.entries.values() if e.slot < slot]
        see_subject = ledger.subject is not None and ledger.subject.slot < slot
        return session.block_table(type, [*sorted(before), own], see_subject)

    def encode_planned(self, session: Session, encoding: Encoding) -> None:
        """Encode one chunk into the places of ``encoding.types``; other types get a page that is thrown away."""
        chunk, manager = encoding.chunk, session.manager
        if chunk not in manager.positions.slots:
            return  # given up when its latents could not be fetched
        latents = session.retained[chunk]
        places, scratch = {}, []
        for t in TYPES:
            if t in encoding.types:
                place = manager.ledgers[t].entries[chunk].place
                held = place in session.lease.tables[t]
            else:
                place, held = manager.ledgers[t].free[0], False
                scratch.append((t, place))
            use = self.pool.exclusive if held else self.pool.claim
            use(session.lease, t, place)
            places[t] = place
            if (t, place) not in scratch:
                session.renew(t, chunk)
        lap = Lap(self.pool.device, self.clock)
        self.encode(session, chunk, latents, manager.positions.slots[chunk], places)
        self._lapped(lap, self.way_back.encoded)
        for t, place in scratch:
            self.pool.release(session.lease, t, place)
        self.through.encoded(session, chunk, encoding.types)

    def encode_subject(self, session: Session) -> None:
        """Encode the anchor's source chunk at the reserved slot, seeing nothing, and keep the chosen tokens."""
        manager = session.manager
        subjects = {t: ledger.subject for t, ledger in manager.ledgers.items() if ledger.subject is not None}
        places = {t: manager.ledgers[t].free[0] for t in TYPES}
        for t, place in places.items():
            self.pool.claim(session.lease, t, place)
        for chunk in manager.subject_chunks():
            slot = next(s.slot for s in subjects.values() if s.chunk == chunk)
            self.encode(session, chunk, session.retained[chunk], slot, places)
            for t in (t for t, s in subjects.items() if s.chunk == chunk):
                self.write_subject(session, t, session.page(t, places[t]), session.subject_tokens[t])
                self.through.subject(session, t)
        for t, place in places.items():
            self.pool.release(session.lease, t, place)

    def write_subject(self, session: Session, type: AttentionType, source: int, tokens: torch.Tensor) -> None:
        """Copy chosen tokens of page ``source`` into place 0, right-aligned."""
        session.renew(type, None)
        held = 0 in session.lease.tables[type]
        page = self.pool.exclusive(session.lease, type, 0) if held else self.pool.claim(session.lease, type, 0)
        self.paging.choose(type, source, page, tokens)

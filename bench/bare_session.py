"""One session's cache manager and pages without a model: what benchmarks of the cache drive."""

from collections.abc import Mapping

import torch

from cache.books import CacheConfig
from cache.drift import ChannelStatistics
from cache.host_tier import HostTier
from cache.manager import CacheManager
from cache.plan import Directive, Plan
from cache.policies import Policy
from cache.pool import Pool
from cache.spec import TYPES, AttentionSpec, AttentionType
from cache.tiers import KeyValues
from kernels.attention import BlockTable
from kernels.pack import pack, unpack

SESSION = "bench"


def tiny_specs(dtype: torch.dtype) -> dict[AttentionType, AttentionSpec]:
    """Specs of four types of which only the books are of interest."""
    return {t: AttentionSpec(t, layers=1, tokens_per_chunk=1, width=2, element_bytes=dtype.itemsize) for t in TYPES}


class BareSession:
    """A session that is always inside a transaction: a page of every type is claimed for the chunk in progress."""

    def __init__(
        self,
        specs: Mapping[AttentionType, AttentionSpec],
        policy: Policy,
        config: CacheConfig,
        dtype: torch.dtype,
        host_bytes: int = 1 << 30,
    ) -> None:
        places = {t: policy.budgets[t].places for t in TYPES}
        self.policy = policy
        self.tier = HostTier(host_bytes)
        self.manager = CacheManager(SESSION, specs, policy, config, self.tier)
        self.manager.open_scene("opening", "a prompt")
        self.pool = Pool(specs, places, dtype)
        self.lease = self.pool.open(places)
        self.moves = dict.fromkeys(TYPES, 0)
        self.begin()

    def begin(self) -> None:
        """Stage and claim the next chunk's pages; build the tables that its passes read by."""
        self.manager.begin()
        self.tables: dict[AttentionType, BlockTable] = {}
        self.pages: dict[AttentionType, int] = {}
        for t, ledger in self.manager.ledgers.items():
            assert ledger.staged is not None
            self.pages[t] = self.pool.claim(self.lease, t, ledger.staged)
            self.tables[t] = BlockTable(self.pool.pages(self.lease, t, ledger.places()))

    def commit(self, seen: Mapping[str, ChannelStatistics]) -> Plan:
        """Judge and book the chunk in progress, carry its plan out, begin the next."""
        manager = self.manager
        manager.judge(seen)
        plan = manager.commit(manager.next_chunk, self._mass() if self.policy.wants_mass else None)
        self._carry_out(plan)
        self.begin()
        return plan

    def direct(self, directive: Directive) -> Plan:
        """Give the chunk in progress up, carry a directive out, begin anew."""
        for t, place in self.manager.abort().items():
            self.pool.release(self.lease, t, place)
        plan = self.manager.direct(directive)
        self._carry_out(plan)
        self.begin()
        return plan

    def order(self, type: AttentionType) -> list[int]:
        """The chunks that a read of ``type`` delivers, the one in progress included, in its order."""
        ledger = self.manager.ledgers[type]
        chunk_at = {entry.place: chunk for chunk, entry in ledger.entries.items()}
        return [chunk_at.get(place, self.manager.next_chunk) for place in ledger.places()]

    def _carry_out(self, plan: Plan) -> None:
        """As ``streams.executor`` does, but for rotation, which is counted and not carried out."""
        pool, lease = self.pool, self.lease
        for e in plan.evictions:
            if e.offload and e.type not in self.tier.holds(SESSION, e.chunk).types:
                packed = pack(pool.storage[e.type], lease.tables[e.type][e.place])
                self.tier.offload(SESSION, e.chunk, e.type, KeyValues(packed, e.slot, e.role))
            pool.release(lease, e.type, e.place)
        for r in plan.restorations:
            page = pool.claim(lease, r.type, r.place)
            unpack(pool.storage[r.type], page, self.tier.fetch(SESSION, r.chunk, r.type).tensor)
        for t, moves in plan.moves.items():
            self.moves[t] += len(moves)
        for chunk in plan.forget:
            self.tier.forget(SESSION, chunk)

    def _mass(self) -> dict[AttentionType, dict[int, float]]:
        """An even share of the attention for every visible chunk."""
        visible = {t: self.order(t) for t in TYPES}
        return {t: dict.fromkeys(chunks, 1 / len(chunks)) for t, chunks in visible.items()}

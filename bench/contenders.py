"""What ``bench.traffic`` compares: geometries, the contents of chunks, the life of a chunk, and Longtake's own side."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from bench.bare_session import BareSession, tiny_specs
from cache.books import CacheConfig
from cache.drift import ChannelStatistics
from cache.keep_set import Budgets, Role, RoleBudget
from cache.plan import Cut, ReturnTo
from cache.policies import SceneMemory, SinkRecent
from cache.spec import AttentionSpec, AttentionType
from kernels.attention import read

Pair = tuple[torch.Tensor, torch.Tensor]
MEASURED = AttentionType.VIDEO_SELF
STAMP_BASE = 256  # integers up to here are exact in bfloat16


@dataclass(frozen=True)
class Case:
    """One geometry: tokens of a chunk, their width, latent channels, and the keep-set.

    ``scenes``: the keep-set is filled by a cut and a return, else it is a sink and the newest chunks.
    """

    name: str
    tokens: int
    width: int
    channels: int
    budget: RoleBudget
    scenes: bool

    @property
    def window_chunks(self) -> int:
        """Chunks that one read delivers, the one in progress included."""
        return self.budget.chunks + 1


WAN = Case("Wan-1.3B", 3 * 1560, 12 * 128, 16, RoleBudget(0, 1, 0, 0, 5), scenes=False)
LTX = Case("LTX-2 video_self", 2 * 384, 32 * 128, 128, RoleBudget(0, 1, 2, 3, 8), scenes=True)


class Source:
    """Keys and values of every chunk: random, made once, and stamped with the chunk's index."""

    def __init__(self, case: Case, dtype: torch.dtype, spare: int = 4) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (2, case.tokens, case.width)
        self._made = [torch.randn(shape, generator=generator).to(dtype) for _ in range(spare)]

    def of(self, chunk: int) -> Pair:
        """Key and value [tokens, width] of ``chunk``, good until the next call."""
        made = self._made[chunk % len(self._made)]
        made[:, 0, :2] = _stamp(chunk, made.dtype)
        return made[0], made[1]

    def matches(self, chunk: int, key: torch.Tensor, value: torch.Tensor) -> bool:
        """Whether ``key`` and ``value`` are exactly those of ``chunk``."""
        return all(torch.equal(mine, theirs) for mine, theirs in zip(self.of(chunk), (key, value), strict=True))


def _stamp(chunk: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(divmod(chunk, STAMP_BASE), dtype=dtype)


class Contender(Protocol):
    """One way to hold a layer's cache. Norm and rotation are left out, since all need them equally.

    A chunk's life: ``stage`` and ``read`` in each denoising pass, ``commit`` and ``read`` in the clean pass, ``evict``.
    """

    name: str

    def stage(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Take the chunk in progress for one denoising pass."""
        ...

    def commit(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Take the chunk in progress for good."""
        ...

    def read(self) -> Pair:
        """Keys and values [tokens of all chunks, width] of the keep-set and the chunk in progress."""
        ...

    def evict(self) -> None:
        """After the commit: let go of what leaves the window and make room for the next chunk."""
        ...

    def order(self, current: int) -> list[int]:
        """The chunks that ``read`` delivers while ``current`` is in progress, in its order."""
        ...

    def storages(self) -> list[torch.Tensor]:
        """The tensors that are the cache; a read that shares none of them is a copy."""
        ...


class Longtake:
    """The pool, the four ledgers behind the cache manager, and the read of ``kernels.attention``."""

    name = "Longtake"

    def __init__(self, case: Case, dtype: torch.dtype, source: Source) -> None:
        """Run until every role's budget is full, so that each commit evicts one chunk."""
        budgets = Budgets.uniform(case.budget)
        measured = AttentionSpec(MEASURED, 1, case.tokens, case.width, dtype.itemsize)
        specs = {**tiny_specs(dtype), MEASURED: measured}
        policy = SceneMemory(budgets) if case.scenes else SinkRecent(budgets)
        self.session = BareSession(
            specs, policy, CacheConfig(), dtype, 2 * case.window_chunks * measured.bytes_per_chunk
        )
        self.session.pool.storage[MEASURED].zero_()  # pages touched once, as those of a pool in service are
        self.keys, self.values = self.session.pool.storage[MEASURED][0].unbind(0)
        self._seen = statistics(case.channels, 0.0)
        self._run(24, source)  # two anchors, both older than the chunks that a return brings back
        if case.scenes:
            self.session.direct(Cut("elsewhere", "another prompt"))
            self._run(6, source)
            self.session.direct(ReturnTo("opening"))
        # Half a deviation beside the reference: from here on no chunk becomes an anchor, so that memory stays as it is.
        self._seen = statistics(case.channels, 0.5)
        self._run(12, source)
        if len(self.session.order(MEASURED)) != case.window_chunks:
            raise RuntimeError(f"{case.name}: holds {self.session.order(MEASURED)}; expected {case.budget} to be full")

    def stage(self, key: torch.Tensor, value: torch.Tensor) -> None:
        page = self.session.pages[MEASURED]
        self.keys[page].copy_(key)
        self.values[page].copy_(value)

    def commit(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self.stage(key, value)

    def read(self) -> Pair:
        table = self.session.tables[MEASURED]
        return read(self.keys, table), read(self.values, table)

    def evict(self) -> None:
        self.session.commit(self._seen)

    def order(self, current: int) -> list[int]:
        return self.session.order(MEASURED)

    def storages(self) -> list[torch.Tensor]:
        return [self.session.pool.storage[MEASURED]]

    def kept(self, recent: bool) -> list[int]:
        """Kept chunks in media order: the recent ones, or all others."""
        entries = self.session.manager.ledgers[MEASURED].entries
        return sorted(chunk for chunk, entry in entries.items() if (entry.role is Role.RECENT) == recent)

    def _run(self, count: int, source: Source) -> None:
        for _ in range(count):
            self.commit(*source.of(self.session.manager.next_chunk))
            self.evict()


def statistics(channels: int, shift: float) -> dict[str, ChannelStatistics]:
    """Statistics of a published chunk that lies ``shift`` standard deviations beside the others."""
    seen = ChannelStatistics(np.full(channels, shift), np.ones(channels))
    return {"video": seen, "audio": seen}

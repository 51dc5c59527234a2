"""How often Longtake's reads are views, what one costs that is not, and what the end of an epoch costs."""

from dataclasses import dataclass

import torch

from bench.bare_session import BareSession, tiny_specs
from bench.common import Laps
from bench.contenders import MEASURED, Case, Longtake, statistics
from cache.books import CacheConfig
from cache.keep_set import Budgets, RoleBudget
from cache.plan import Cut, ReturnTo
from cache.policies import ALL
from cache.scenes import SceneConfig
from cache.spec import TYPES
from kernels.attention import BlockTable, read
from kernels.relocate import relocate
from kernels.rotary import RotaryLayout


@dataclass(frozen=True)
class ViewShare:
    """Of ``chunks`` chunks, the share whose reads are views for all four attention types."""

    policy: str
    keep_set: str
    scenes: str
    chunks: int
    share: float


KEEP_SETS = {
    "15 places (default)": (RoleBudget(), SceneConfig()),
    "31 places": (RoleBudget(1, 2, 4, 5, 18), SceneConfig(sink_chunks=2, anchors=4, last_chunks=5)),
}


def view_shares(chunks: int, directive_every: int) -> list[ViewShare]:
    """Every policy in one scene, and with a cut or a return every ``directive_every`` chunks; books alone."""
    found = []
    for keep_set, (budget, scenes) in KEEP_SETS.items():
        for policy in ALL:
            for name, every in (("one scene", 0), (f"cut or return every {directive_every}", directive_every)):
                made = policy.of(Budgets.uniform(budget))
                session = BareSession(tiny_specs(torch.bfloat16), made, CacheConfig(scenes=scenes), torch.bfloat16)
                share = _views(session, chunks, every) / chunks
                found.append(ViewShare(policy.__name__, keep_set, name, chunks, share))
    return found


def _views(session: BareSession, chunks: int, every: int) -> int:
    seen = statistics(4, 0.0)
    views = 0
    for chunk in range(chunks):
        if every and chunk and not chunk % every:
            away = session.manager.scenes.current_name != "opening"
            session.direct(ReturnTo("opening") if away else Cut(f"scene-{chunk}", "another prompt"))
        views += all(session.tables[t].consecutive for t in TYPES)
        session.commit(seen)
    return views


def gathered_read_ms(longtake: Longtake, rounds: int) -> float:
    """One read whose pages are not neighbours: the same window out of order."""
    pages = longtake.session.tables[MEASURED].pages
    table = BlockTable((*pages[1:], pages[0]))
    laps = Laps()
    for _ in range(rounds):
        with laps.lap("read"):
            gathered = read(longtake.keys, table), read(longtake.values, table)
        del gathered
    return laps.median("read")


@dataclass(frozen=True)
class Relocation:
    """What moving memory to new positions adds: per moved chunk, and spread over all chunks."""

    moves_per_chunk: float
    ms_per_move: float

    @property
    def ms_per_chunk(self) -> float:
        """Amortised over the chunks of many epochs."""
        return self.moves_per_chunk * self.ms_per_move


def relocation(case: Case, longtake: Longtake, dtype: torch.dtype, chunks: int, rounds: int) -> Relocation:
    """Rotate one chunk's keys as ``kernels.relocate`` does; count moves by running the books on for ``chunks``."""
    before = longtake.session.moves[MEASURED]
    for _ in range(chunks):
        longtake.evict()
    keys = torch.randn(case.tokens, case.width).to(dtype)
    angles = torch.rand(case.width // 2)
    laps = Laps()
    for _ in range(rounds):
        with laps.lap("move"):
            relocate(keys, angles.cos(), angles.sin(), RotaryLayout("split", case.width // 128))
    return Relocation((longtake.session.moves[MEASURED] - before) / chunks, laps.median("move"))

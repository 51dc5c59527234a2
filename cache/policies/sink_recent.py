"""StreamingLLM (arXiv 2309.17453) on chunks: attention sinks at the beginning of the stream, and the newest chunks."""

from dataclasses import dataclass
from typing import ClassVar, Self

from cache.keep_set import Budgets, Ranking, Role
from cache.policies.base import View, all_recent, empty_ranking, last_chunks, resplit
from cache.scenes import SceneBook


@dataclass(frozen=True)
class SinkRecent:
    """Keep the first ``sinks`` chunks of the stream for ever, and the newest; scenes make no difference."""

    budgets: Budgets
    sinks: int = 1
    wants_mass: ClassVar[bool] = False

    @classmethod
    def of(cls, budgets: Budgets) -> Self:
        return cls(resplit(budgets, lambda budget: all_recent(budget, scene_sink=1)), sinks=1)

    def rank(self, view: View) -> Ranking:
        ranking = empty_ranking()
        ranking[Role.SCENE_SINK] = list(range(min(self.sinks, view.newest + 1)))
        ranking[Role.RECENT] = last_chunks(view.newest, self.budgets.widest(Role.RECENT))
        return ranking

    def remembered(self, scenes: SceneBook) -> set[int]:
        return set()

    def explain(self, chunk: int, view: View) -> str:
        return f"left the window: {view.newest - chunk} chunks old, not among the first {self.sinks}"

"""The baseline of the field: the last chunks and nothing else."""

from dataclasses import dataclass
from typing import ClassVar, Self

from cache.keep_set import Budgets, Ranking, Role
from cache.policies.base import View, all_recent, empty_ranking, last_chunks, resplit
from cache.scenes import SceneBook


@dataclass(frozen=True)
class SlidingWindow:
    """Keep the newest chunks; scenes make no difference and nothing ever comes back."""

    budgets: Budgets
    wants_mass: ClassVar[bool] = False

    @classmethod
    def of(cls, budgets: Budgets) -> Self:
        return cls(resplit(budgets, all_recent))

    def rank(self, view: View) -> Ranking:
        ranking = empty_ranking()
        ranking[Role.RECENT] = last_chunks(view.newest, self.budgets.widest(Role.RECENT))
        return ranking

    def remembered(self, scenes: SceneBook) -> set[int]:
        return set()

    def explain(self, chunk: int, view: View) -> str:
        return f"left the window: {view.newest - chunk} chunks old"

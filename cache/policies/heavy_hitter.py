"""H2O (arXiv 2306.14048) on chunks: the newest chunks, and those that attention has weighed most.

A chunk's mass is its share of the softmax, which the per-chunk log-sum-exp gives exactly without an attention matrix;
it is divided by the share of its tokens, decayed, and averaged over the commits at which the chunk was visible.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

from cache.keep_set import Budgets, Ranking, Role
from cache.policies.base import View, all_recent, empty_ranking, last_chunks, resplit
from cache.scenes import SceneBook


@dataclass(frozen=True)
class HeavyHitter:
    """Keep the newest chunks and, as anchors, the older ones with the largest attention mass."""

    budgets: Budgets
    wants_mass: ClassVar[bool] = True

    @classmethod
    def of(cls, budgets: Budgets) -> Self:
        return cls(resplit(budgets, lambda b: all_recent(b, scene_anchor=b.chunks - (b.chunks + 1) // 2)))

    def rank(self, view: View) -> Ranking:
        ranking = empty_ranking()
        ranking[Role.RECENT] = last_chunks(view.newest, self.budgets.widest(Role.RECENT))
        # A type with a shorter window may still choose what others hold as recent; what all types hold comes first, or
        # chunks that only audio has left would take the ranks that video can use.
        older = [c for c in view.held if c <= view.newest - self.budgets.narrowest(Role.RECENT)]
        ranking[Role.SCENE_ANCHOR] = sorted(older, key=lambda c: (-view.held[c], -view.mass.get(c, 0.0), c))
        return ranking

    def remembered(self, scenes: SceneBook) -> set[int]:
        return set()

    def explain(self, chunk: int, view: View) -> str:
        return f"attention mass {view.mass.get(chunk, 0.0):.3f} is not among the heaviest"

"""The default policy: the keep-set of MaineCoon (arXiv 2606.17800, section 4.2), scene by scene."""

from dataclasses import dataclass
from typing import ClassVar, Self

from cache.drift import Rung
from cache.keep_set import Budgets, Ranking, Role
from cache.policies.base import View, last_chunks
from cache.scenes import SceneBook


@dataclass(frozen=True)
class SceneMemory:
    """SubjectAnchor ∪ SceneSink ∪ SceneAnchors ∪ Recent ∪ Restored of the scene on air."""

    budgets: Budgets
    wants_mass: ClassVar[bool] = False

    @classmethod
    def of(cls, budgets: Budgets) -> Self:
        return cls(budgets)

    def rank(self, view: View) -> Ranking:
        anchors = view.scene.anchors
        # The oldest is truest to the scene, the newest knows it best; a type with one anchor keeps the oldest.
        order = [*anchors[:1], *anchors[:0:-1]]
        return {
            Role.SCENE_SINK: view.scene.sink,
            Role.SCENE_ANCHOR: order,
            Role.RESTORED: view.scene.returning[::-1],
            Role.RECENT: self._recent(view),
        }

    def _recent(self, view: View) -> list[int]:
        floor = view.scene.entered_at - view.recent_across_cut
        recent = [c for c in last_chunks(view.newest, self.budgets.widest(Role.RECENT)) if c >= floor]
        if view.rung >= Rung.REESTABLISH_SCENE:
            return recent[:1]
        if view.rung >= Rung.DROP_DRIFTED_RECENT:
            return recent[:1] + [c for c in recent[1:] if view.drift.get(c, 0.0) < view.drifted_above]
        return recent

    def remembered(self, scenes: SceneBook) -> set[int]:
        return scenes.remembered()

    def explain(self, chunk: int, view: View) -> str:
        if view.rung >= Rung.DROP_DRIFTED_RECENT and view.drift.get(chunk, 0.0) >= view.drifted_above:
            return f"drift {view.drift[chunk]:.3f} on rung {view.rung.name.lower()}"
        if chunk < view.scene.entered_at:
            return f"not of scene {view.scene.name!r}, entered at chunk {view.scene.entered_at}"
        return f"{view.newest - chunk} chunks old; no sink, anchor or restored chunk of scene {view.scene.name!r}"

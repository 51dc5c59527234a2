"""The interface of a cache policy: rank chunks by role, purely, once per commit for all layers and types."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

from cache.drift import Rung
from cache.keep_set import CHUNK_ROLES, Budgets, Ranking, Role, RoleBudget
from cache.scenes import Scene, SceneBook
from cache.spec import TYPES


@dataclass(frozen=True, slots=True)
class View:
    """What a policy may look at. Nothing in it may be mutated.

    Args:
        newest: index of the newest committed chunk, -1 before the first.
        held: chunks held by any attention type, and by how many.
        scene: the scene on air.
        recent_across_cut: recent chunks of the scene before that may stay visible.
        drift: drift score of the held chunks.
        mass: attention mass of the held chunks, decayed, per token and exposure (policies with ``wants_mass`` only).
        rung: the repair rung in force.
        drifted_above: drift score from which a recent chunk counts as drifted.
    """

    newest: int
    held: Mapping[int, int]
    scene: Scene
    recent_across_cut: int
    drift: Mapping[int, float]
    mass: Mapping[int, float]
    rung: Rung
    drifted_above: float


class Policy(Protocol):
    """Ranks chunks by role, best first; every attention type keeps the first ``budgets[type].of(role)`` of each.

    A chunk may stand in several rankings; it is booked under the first role that takes it. A ranking may name chunks
    that are no longer held: they come back from the restore store if they can. ``rank`` must be pure, and the ranking
    of ``Role.RECENT`` must not reach further back than the widest recent budget.
    """

    wants_mass: ClassVar[bool]

    @property
    def budgets(self) -> Budgets:
        """Hard budgets in chunks and bytes, per attention type and role."""
        ...

    @classmethod
    def of(cls, budgets: Budgets) -> Self:
        """This policy with its own split of the same number of memory slots per type."""
        ...

    def rank(self, view: View) -> Ranking:
        """Chunks by role, most valuable first."""
        ...

    def remembered(self, scenes: SceneBook) -> set[int]:
        """Evicted chunks that may be asked for again, and so belong in the restore store."""
        ...

    def explain(self, chunk: int, view: View) -> str:
        """Why ``chunk`` is not kept, in a few words."""
        ...


def resplit(budgets: Budgets, split: Callable[[RoleBudget], RoleBudget]) -> Budgets:
    """``budgets`` with the chunks of every type divided anew; raises if a split changes their number."""
    changed = {t.value: split(budgets[t]) for t in TYPES}
    for t in TYPES:
        if changed[t.value].chunks != budgets[t].chunks:
            raise ValueError(f"{t}: {changed[t.value].chunks} chunks after the split, {budgets[t].chunks} before")
    return Budgets(**changed)


def all_recent(budget: RoleBudget, scene_sink: int = 0, scene_anchor: int = 0) -> RoleBudget:
    """``budget`` with everything but the given sinks and anchors spent on recent chunks."""
    recent = budget.chunks - scene_sink - scene_anchor
    return replace(budget, scene_sink=scene_sink, scene_anchor=scene_anchor, restored=0, recent=recent)


def empty_ranking() -> dict[Role, list[int]]:
    """A ranking that keeps nothing, to be filled role by role."""
    return {role: [] for role in CHUNK_ROLES}


def last_chunks(newest: int, count: int) -> list[int]:
    """The ``count`` newest chunk indices, newest first, as far as they exist."""
    return list(range(newest, max(-1, newest - count), -1))

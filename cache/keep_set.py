"""The keep-set: five roles, and hard budgets in chunks and bytes per role and attention type.

keep-set = SubjectAnchor ∪ SceneSink ∪ SceneAnchors ∪ Restored ∪ Recent (MaineCoon, arXiv 2606.17800, section 4.2).
A policy ranks the chunks of each role, best first. Every attention type keeps the first ``budget[role]`` of each
ranking, so that no budget can be exceeded and a poorer type always keeps a subset of what a richer type keeps.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum

from cache.spec import TYPES, AttentionSpec, AttentionType, Modality
from errors import BudgetError


class Role(StrEnum):
    """Why a chunk is remembered; in order of precedence, a chunk is booked under the first that applies."""

    SUBJECT_ANCHOR = "subject_anchor"
    SCENE_SINK = "scene_sink"
    SCENE_ANCHOR = "scene_anchor"
    RESTORED = "restored"
    RECENT = "recent"


CHUNK_ROLES: tuple[Role, ...] = (Role.SCENE_SINK, Role.SCENE_ANCHOR, Role.RESTORED, Role.RECENT)


@dataclass(frozen=True)
class RoleBudget:
    """Memory slots of one attention type by role, and an optional ceiling in bytes. Defaults are our own design."""

    subject_anchor: int = 1
    scene_sink: int = 1
    scene_anchor: int = 2
    restored: int = 3
    recent: int = 8
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if value is not None and value < 0:
                raise BudgetError(f"{spec.name} is {value}; expected 0 or more")
        if self.subject_anchor > 1:
            raise BudgetError(f"subject_anchor is {self.subject_anchor}; expected 0 or 1 reference block")
        if self.recent < 1:
            raise BudgetError("recent is 0; expected at least 1, or a chunk could not see the one before it")

    def of(self, role: Role) -> int:
        """Memory slots granted to ``role``."""
        value: int = getattr(self, role.value)
        return value

    @property
    def chunks(self) -> int:
        """Most chunks held at once, without the subject anchor and without the slot of the chunk in progress."""
        return self.scene_sink + self.scene_anchor + self.restored + self.recent

    @property
    def places(self) -> int:
        """Memory slots a session needs: the subject anchor, every chunk, and the chunk in progress."""
        return self.subject_anchor + self.chunks + 1


@dataclass(frozen=True)
class Budgets(Mapping[AttentionType, RoleBudget]):
    """One ``RoleBudget`` per attention type.

    Audio-keyed types may hold more than video-keyed ones (a byte of audio memory is nearly free), never less: a chunk
    that is seen but no longer heard would break the synchrony of the two ledgers.
    """

    video_self: RoleBudget = field(default_factory=RoleBudget)
    audio_self: RoleBudget = field(default_factory=RoleBudget)
    audio_to_video: RoleBudget = field(default_factory=RoleBudget)
    video_to_audio: RoleBudget = field(default_factory=RoleBudget)

    def __post_init__(self) -> None:
        for role in CHUNK_ROLES:
            video = max(self[t].of(role) for t in TYPES if t.keyed_by is Modality.VIDEO)
            for poorer in (t for t in TYPES if t.keyed_by is Modality.AUDIO):
                if self[poorer].of(role) < video:
                    raise BudgetError(
                        f"{poorer}.{role} is {self[poorer].of(role)} chunks but a video-keyed type keeps {video}; "
                        f"expected at least {video}: audio memory must reach as far as video memory"
                    )

    def __getitem__(self, key: AttentionType) -> RoleBudget:
        budget: RoleBudget = getattr(self, key.value)
        return budget

    def __iter__(self) -> Iterator[AttentionType]:
        return iter(TYPES)

    def __len__(self) -> int:
        return len(TYPES)

    @classmethod
    def uniform(cls, budget: RoleBudget) -> "Budgets":
        """The same budget for all four types."""
        return cls(budget, budget, budget, budget)

    def widest(self, role: Role) -> int:
        """The largest number of memory slots that any type grants to ``role``."""
        return max(self[t].of(role) for t in TYPES)

    def narrowest(self, role: Role) -> int:
        """The smallest number of memory slots that any type grants to ``role``."""
        return min(self[t].of(role) for t in TYPES)

    def check(self, specs: Mapping[AttentionType, AttentionSpec], position_slots: int) -> None:
        """Raise ``BudgetError`` if the keep-set cannot fit its bytes or the trained range of positions."""
        needed = sum(self.widest(role) for role in Role) + 1
        if needed > position_slots:
            raise BudgetError(
                f"the keep-set and the current chunk need {needed} position slots but the model was trained on "
                f"{position_slots}; lower recent, restored, scene_anchor or scene_sink by {needed - position_slots}"
            )
        for attention_type in TYPES:
            budget, spec = self[attention_type], specs[attention_type]
            minimum = spec.maximum_bytes(budget.subject_anchor + budget.scene_sink + 1)
            total = spec.maximum_bytes(budget.places)
            if budget.max_bytes is None:
                continue
            if budget.max_bytes < minimum:
                raise BudgetError(
                    f"{attention_type}: max_bytes is {budget.max_bytes:,} but sink, subject anchor and one chunk "
                    f"need {minimum:,}; raise max_bytes or make the chunk smaller"
                )
            if budget.max_bytes < total:
                raise BudgetError(
                    f"{attention_type}: {budget.places} memory slots need {total:,} bytes but max_bytes is "
                    f"{budget.max_bytes:,}; lower a role by "
                    f"{-(-(total - budget.max_bytes) // spec.bytes_per_chunk)} chunks or raise max_bytes"
                )


Ranking = Mapping[Role, list[int]]


def select(ranking: Ranking, budget: RoleBudget) -> dict[int, Role]:
    """The chunks that one attention type keeps: the first ``budget`` of each role, booked under the first role."""
    kept: dict[int, Role] = {}
    for role in CHUNK_ROLES:
        for chunk in ranking[role][: budget.of(role)]:
            kept.setdefault(chunk, role)
    return kept

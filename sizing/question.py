"""What a plan is asked: a model, a machine, what is remembered and kept, and what people do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cache.keep_set import Budgets
from cache.scenes import SceneConfig
from cache.spec import AttentionSpec, AttentionType, Modality
from cache.tiered_config import TiersConfig
from errors import ConfigError
from sizing.figures import Figure, computed
from sizing.machines import Machine
from sizing.pages import Format, SessionBytes
from sizing.transformer import Transformer

LATENT_BYTES = 4  # clean latents are float32 wherever they are kept
TEXT_ENCODER = "text encoder"


@dataclass(frozen=True)
class Model:
    """A transformer and the geometry of its chunks.

    Args:
        name: as it is asked for.
        dtype, element_bytes: of pages, and of weights but for ``weight_bytes``; ``rate``: whose matrix rate counts,
            by default that of ``dtype``.
        tokens: of a chunk, by modality.
        others: what else lies on the device, by name: decoders, vocoder, text encoder.
    """

    name: str
    transformer: Transformer
    dtype: str
    element_bytes: int
    tokens: Mapping[Modality, int]
    chunk_seconds: float
    others: Mapping[str, Figure] = field(default_factory=dict)
    rate: str = ""
    weight_bytes: int | None = None

    @property
    def weights(self) -> Figure:
        """Bytes of the transformer's weights."""
        each = self.element_bytes if self.weight_bytes is None else self.weight_bytes
        return computed(self.transformer.parameters() * each, "parameters of its configuration")

    def specs(self) -> dict[AttentionType, AttentionSpec]:
        """Sizes of a chunk in the cache."""
        return self.transformer.specs(self.tokens, self.element_bytes)

    @property
    def latents_bytes(self) -> int:
        """Clean latents of one chunk."""
        video, audio = self.transformer.in_channels, self.transformer.audio_in_channels
        return LATENT_BYTES * (self.tokens[Modality.VIDEO] * video + self.tokens[Modality.AUDIO] * audio)


@dataclass(frozen=True)
class Keeping:
    """What the settings say of memory.

    Args:
        remembers: whether the policy asks for what was evicted, when a scene returns.
        moves: whether keys are rotated to new places, for which the store keeps them as they were first written.
        passes, first_passes: denoising passes of a chunk, and of the first of a scene.
        batch: most sessions in one step.
        text_bytes: bound of the keys and values of prompts.
        slots, slot_bytes: through which chunks go to the store; prefetch_bytes: for what is to come back;
            leaving_bytes: bound of what is on its way out of the device, there and in pinned memory of the host.
        position_slots: on the time axis, which bound all keep-sets.
    """

    budgets: Budgets = field(default_factory=Budgets)
    scenes: SceneConfig = field(default_factory=SceneConfig)
    remembers: bool = True
    moves: bool = True
    passes: int = 4
    first_passes: int = 4
    batch: int = 16
    durability: Literal["none", "latents", "kv"] = "latents"
    tiers: TiersConfig = field(default_factory=TiersConfig)
    pages: Format = "exact"
    restore_share: float = 0.5
    text_bytes: int = 4 << 30
    slots: int = 8
    slot_bytes: int = 8 << 20
    prefetch_bytes: int = 256 << 20
    leaving_bytes: int = 2 << 30
    position_slots: int = 31


@dataclass(frozen=True)
class Demand:
    """What people do, and what is left over. All of it is assumed until it is measured.

    Args:
        cuts_hour, returns_hour: of one take, per hour of it.
        take_hours: how long a take is.
        away: streams that are put away, for every one that runs.
        lost_hour: streams of an hour, per place, whose records nobody erases before their time to live.
        text_tokens: of a prompt.
        spare: share of a chunk's own time, and of every bandwidth and memory on the host, that is to be left over.
        generators: that share a restore store, which is a node.
    """

    cuts_hour: float = 12.0
    returns_hour: float = 6.0
    take_hours: float = 1.0
    away: float = 0.5
    lost_hour: float = 0.01
    text_tokens: int = 256
    spare: float = 0.1
    generators: int = 1

    def __post_init__(self) -> None:
        for name in ("cuts_hour", "returns_hour", "take_hours", "away", "lost_hour"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0.0 <= self.spare < 1.0:
            raise ConfigError(f"spare is {self.spare}; expected a share from 0 to below 1")
        for name in ("text_tokens", "generators"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True)
class Steps:
    """Measured seconds of a step by the sessions in it, and what was attended to and passed meanwhile.

    ``operations``: of one chunk in such a step, by which the times are scaled to other keep-sets and schedules.
    """

    seconds: Mapping[int, float]
    operations: float
    note: str


@dataclass(frozen=True)
class Question:
    """All that a plan depends on. ``steps`` and ``media_s``, if measured, stand in for what would be computed."""

    model: Model
    machine: Machine
    keeping: Keeping
    demand: Demand = field(default_factory=Demand)
    steps: Steps | None = None
    media_s: Figure | None = None

    def session(self) -> SessionBytes:
        """Bytes of one session in the pool."""
        return SessionBytes.of(self.model.specs(), self.keeping.budgets, self.keeping.pages)

    def read(self) -> dict[AttentionType, int]:
        """Tokens that each attention type attends to at the most."""
        return {t: s.tokens_per_chunk * self.keeping.budgets[t].places for t, s in self.model.specs().items()}

    def operations(self) -> int:
        """Of one pass over one chunk, with the keep-set full."""
        return sum(self.model.transformer.pass_operations(self.model.tokens, self.read(), self.demand.text_tokens))

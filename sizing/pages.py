"""How many bytes a chunk takes in a page, and a session in the pool, by attention type, role and page format."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cache.keep_set import Budgets, Role
from cache.spec import TYPES, AttentionSpec, AttentionType

Format = Literal["exact", "fp8", "int8"]
FORMATS: tuple[Format, ...] = ("exact", "fp8", "int8")
IN_PROGRESS = "in progress"
SCALE_BYTES = 4  # scales and zero points of codes are float32, see kernels/quantised.py


def page_bytes(spec: AttentionSpec, format: Format) -> int:
    """Bytes of one memory slot.

    ``exact``: in the type of the model, as the pool holds them. ``fp8``, ``int8``: codes of one byte; keys have a
    scale and a zero point per channel, values a scale per token.
    """
    if format == "exact":
        return spec.bytes_per_chunk
    codes = 2 * spec.tokens_per_chunk * spec.width
    return spec.layers * (codes + SCALE_BYTES * (2 * spec.width + spec.tokens_per_chunk))


@dataclass(frozen=True)
class SessionBytes:
    """What one session may hold in the pool: bytes by type and role, the chunk in progress among them."""

    by_role: Mapping[AttentionType, Mapping[str, int]]
    pages: Mapping[AttentionType, int]

    @classmethod
    def of(cls, specs: Mapping[AttentionType, AttentionSpec], budgets: Budgets, format: Format) -> "SessionBytes":
        """Of the budgets when they are full; what a lease of the pool promises."""
        by_role: dict[AttentionType, dict[str, int]] = {}
        for t in TYPES:
            each = page_bytes(specs[t], format)
            by_role[t] = {role.value: each * budgets[t].of(role) for role in Role} | {IN_PROGRESS: each}
        return cls(by_role, {t: budgets[t].places for t in TYPES})

    def of_type(self, type: AttentionType) -> int:
        """Bytes of one attention type."""
        return sum(self.by_role[type].values())

    @property
    def total(self) -> int:
        """Bytes of all."""
        return sum(self.of_type(t) for t in TYPES)

    @property
    def kept(self) -> int:
        """Bytes between two chunks: without the chunk in progress."""
        return self.total - sum(roles[IN_PROGRESS] for roles in self.by_role.values())

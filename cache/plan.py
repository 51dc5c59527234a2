"""What the cache manager answers: directives in, plans out. Plans are plain data; engines and actors carry them out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cache.keep_set import Role
from cache.positions import Move
from cache.spec import AttentionType

PromptMode = Literal["keep", "recache"]


@dataclass(frozen=True)
class Cut:
    """Enter a new scene with the next chunk. The subject anchor stays unless ``keep_subject`` is false."""

    scene: str
    prompt: str
    keep_subject: bool = True


@dataclass(frozen=True)
class ReturnTo:
    """Enter a known scene again with the next chunk: its sink, anchors and last chunks come back."""

    scene: str


@dataclass(frozen=True)
class PromptChange:
    """Change the prompt without a cut; ``recache`` encodes the recent latents again under the new prompt."""

    prompt: str
    mode: PromptMode = "keep"


Directive = Cut | ReturnTo | PromptChange


@dataclass(frozen=True)
class Eviction:
    """Release ``place``; if ``offload``, its keys and values (encoded for ``slot``) go to the restore store first."""

    type: AttentionType
    chunk: int
    place: int
    slot: int
    offload: bool
    role: Role


@dataclass(frozen=True)
class Restoration:
    """Fetch ``chunk`` into ``place`` and bring its keys to ``slot``."""

    type: AttentionType
    chunk: int
    place: int
    slot: int
    role: Role


@dataclass(frozen=True)
class Encoding:
    """Compute the keys and values of ``chunk`` from its clean latents and write those of ``types``."""

    chunk: int
    types: tuple[AttentionType, ...]


@dataclass(frozen=True)
class Plan:
    """One transaction over all layers and types, carried out in this order: evict, restore, move, encode, forget.

    Args:
        chunk: the chunk whose commit, or before which a directive, made this plan.
        moves: by attention type, keys to bring to another position slot.
        encode_subject: whether the subject anchor is to be encoded again, before all others.
        encode: what is to be computed from clean latents, in media order: chunks that the store has as latents only,
            recent chunks under a new prompt, or the whole keep-set when an epoch ends by rebuild.
        forget: chunks whose records and retained latents nobody can ask for again.
        epoch_ended: whether the memory got new position slots.
    """

    chunk: int
    evictions: tuple[Eviction, ...] = ()
    restorations: tuple[Restoration, ...] = ()
    moves: Mapping[AttentionType, tuple[Move, ...]] = field(default_factory=dict)
    encode_subject: bool = False
    encode: tuple[Encoding, ...] = ()
    forget: tuple[int, ...] = ()
    epoch_ended: bool = False

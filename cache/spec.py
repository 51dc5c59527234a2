"""One frozen spec per attention type: how many tokens and bytes a chunk takes, and how many chunks are allowed."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from errors import BudgetError

# How the pool holds keys and values: as the model computes them, or as codes of eight bits (``kernels.quantised``).
PageFormat = Literal["exact", "fp8", "int8"]
FORMATS: tuple[PageFormat, ...] = ("exact", "fp8", "int8")
END_BYTES = 4  # of a scale or a zero point, float32


class Modality(StrEnum):
    """The two media of a chunk."""

    VIDEO = "video"
    AUDIO = "audio"


class AttentionType(StrEnum):
    """The four cached attention types of the LTX-2 family; ``a_to_b`` has keys of ``a`` and queries of ``b``."""

    VIDEO_SELF = "video_self"
    AUDIO_SELF = "audio_self"
    AUDIO_TO_VIDEO = "audio_to_video"
    VIDEO_TO_AUDIO = "video_to_audio"

    @property
    def keyed_by(self) -> Modality:
        """The modality whose tokens are the keys, which is what decides the size of a chunk in the cache."""
        video_keyed = (AttentionType.VIDEO_SELF, AttentionType.VIDEO_TO_AUDIO)
        return Modality.VIDEO if self in video_keyed else Modality.AUDIO

    @property
    def queried_by(self) -> Modality:
        """The modality whose tokens are the queries."""
        video_queried = (AttentionType.VIDEO_SELF, AttentionType.AUDIO_TO_VIDEO)
        return Modality.VIDEO if self in video_queried else Modality.AUDIO


TYPES: tuple[AttentionType, ...] = tuple(AttentionType)


@dataclass(frozen=True)
class AttentionSpec:
    """Sizes of one attention type: a chunk is ``layers`` × 2 (keys, values) × ``tokens_per_chunk`` × ``width``.

    Pages of codes hold, beside these, a scale and a zero per layer and channel for keys, and a scale per layer and
    token for values; ``element_bytes`` is then that of a code.
    """

    type: AttentionType
    layers: int
    tokens_per_chunk: int
    width: int
    element_bytes: int
    pages: PageFormat = "exact"

    def __post_init__(self) -> None:
        for name in ("layers", "tokens_per_chunk", "width", "element_bytes"):
            value = getattr(self, name)
            if value < 1:
                raise BudgetError(f"{self.type}: {name} is {value}; expected at least 1")
        if self.pages not in FORMATS:
            raise BudgetError(f"{self.type}: pages are {self.pages!r}; expected one of {', '.join(FORMATS)}")
        if self.pages != "exact" and self.element_bytes != 1:
            raise BudgetError(f"{self.type}: codes of {self.element_bytes} bytes; expected 1, which {self.pages} has")

    @property
    def key_bytes(self) -> int:
        """Keys of one chunk in one layer, with their scales and zeros if they are codes."""
        ends = 0 if self.pages == "exact" else 2 * self.width * END_BYTES
        return self.tokens_per_chunk * self.width * self.element_bytes + ends

    @property
    def value_bytes(self) -> int:
        """Values of one chunk in one layer, with their scales if they are codes."""
        ends = 0 if self.pages == "exact" else self.tokens_per_chunk * END_BYTES
        return self.tokens_per_chunk * self.width * self.element_bytes + ends

    @property
    def bytes_per_chunk(self) -> int:
        """Keys and values of one chunk in all layers: the size of a memory slot, to the byte."""
        return self.layers * (self.key_bytes + self.value_bytes)

    def held_as(self, pages: PageFormat) -> "AttentionSpec":
        """The spec of the same chunk in pages of ``pages``; raises ``BudgetError`` for a format that is none."""
        return self if pages == "exact" else replace(self, pages=pages, element_bytes=1)

    def maximum_bytes(self, chunks: int) -> int:
        """What ``chunks`` memory slots of this type hold at the most."""
        return self.bytes_per_chunk * chunks

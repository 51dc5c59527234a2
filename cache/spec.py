"""One frozen spec per attention type: how many tokens and bytes a chunk takes, and how many chunks are allowed."""

from dataclasses import dataclass
from enum import StrEnum

from errors import BudgetError


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
    """Sizes of one attention type: a chunk is ``layers`` × 2 (keys, values) × ``tokens_per_chunk`` × ``width``."""

    type: AttentionType
    layers: int
    tokens_per_chunk: int
    width: int
    element_bytes: int

    def __post_init__(self) -> None:
        for name in ("layers", "tokens_per_chunk", "width", "element_bytes"):
            value = getattr(self, name)
            if value < 1:
                raise BudgetError(f"{self.type}: {name} is {value}; expected at least 1")

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return self.layers * 2 * self.width * self.element_bytes

    @property
    def bytes_per_chunk(self) -> int:
        """Keys and values of one chunk in all layers: the size of a memory slot."""
        return self.bytes_per_token * self.tokens_per_chunk

    def maximum_bytes(self, chunks: int) -> int:
        """What ``chunks`` memory slots of this type hold at the most."""
        return self.bytes_per_chunk * chunks

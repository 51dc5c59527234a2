"""Where evicted chunks go, and come back from when their scene returns.

``RestoreTier`` is the interface; ``cache.host_tier`` keeps records in the memory of this process, ``cache.tiered`` also
on disk. Records are immutable, so forks of a take share them by reference; what is equal byte by byte is held and
counted once, whoever brought it.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from cache.codec import BufferCodec, Exact, raw
from cache.codecs import named
from cache.keep_set import Role
from cache.lent import Bytes
from cache.spec import FORMATS, AttentionType, PageFormat
from errors import RecordCorrupt, RecordLost

HERE = "host"  # the tier that is memory of this process: a fetch from it is answered at once
T = TypeVar("T")


@dataclass(frozen=True)
class Held:
    """What the store has of one chunk: keys and values of which attention types, and whether its clean latents."""

    types: frozenset[AttentionType] = frozenset()
    latents: bool = False


NOTHING = Held()


class Holdings(Protocol):
    """The part of a restore store that a cache manager may ask."""

    def holds(self, session: str, chunk: int) -> Held:
        """What could be fetched now."""
        ...


@dataclass(frozen=True)
class Latents:
    """The committed copy of one chunk: video [video tokens, channels] and audio [audio tokens, channels], clean.

    ``prompt`` is the key of the prompt that the chunk is encoded under, ``scene`` the name of the one that it shows.
    """

    video: torch.Tensor
    audio: torch.Tensor
    prompt: str
    scene: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of both modalities."""
        return self.video.nbytes + self.audio.nbytes


@dataclass(frozen=True)
class KeyValues:
    """Keys and values of one chunk of one attention type [layers, 2, tokens, width]; keys encoded for ``slot``.

    ``written``: operations on the books when it was written; books with fewer do not know of it. ``pages``: format of
    the pages that it was in; codes are [layers, bytes of a layer], uint8, with their scales and zeros.
    """

    tensor: torch.Tensor
    slot: int
    role: Role
    written: int = 0
    pages: PageFormat = "exact"

    def __post_init__(self) -> None:
        if self.pages not in FORMATS:
            raise RecordCorrupt(f"keys and values are of pages {self.pages!r}; expected one of {', '.join(FORMATS)}")

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return self.tensor.nbytes

    def unpacked(self) -> "KeyValues":
        """As they were before a codec packed them, if one did."""
        return self


@dataclass(frozen=True)
class PackedKeyValues(KeyValues):
    """Keys and values as a codec packed them: ``tensor`` is its bytes [bytes held], uint8.

    What is packed is handed on as it is and not packed again: the error budget of a codec is of one packing.
    """

    codec: str = "exact"
    dtype: torch.dtype = torch.float32
    shape: tuple[int, ...] = ()

    def unpacked(self) -> KeyValues:
        tensor = named(self.codec).decode(raw(self.tensor).data, self.dtype, self.shape)
        return KeyValues(tensor, self.slot, self.role, self.written)

    @classmethod
    def of(cls, payload: KeyValues, codec: BufferCodec) -> KeyValues:
        """``payload`` packed by ``codec``; as it is, if it is packed already or ``codec`` does nothing.

        Codes of pages are as small as a lossy codec would make them, and none must touch them a second time.
        """
        if isinstance(payload, PackedKeyValues) or isinstance(codec, Exact) or payload.pages != "exact":
            return payload
        tensor = payload.tensor
        packed = torch.frombuffer(bytearray(codec.encode(tensor)), dtype=torch.uint8)
        return cls(
            packed, payload.slot, payload.role, payload.written,
            codec=codec.name, dtype=tensor.dtype, shape=tuple(tensor.shape),
        )  # fmt: skip


@dataclass(frozen=True)
class Room:
    """Host memory of one page, for keys and values to be put into while they come.

    It is written until the fetch that it was given to is over; what is in it is undefined, and must not be read,
    unless that gave ``LandedKeyValues``.

    Args:
        pieces: contiguous; one behind the other they are a packed page of ``dtype`` and ``shape``.
        pages: its format.
    """

    pieces: tuple[Bytes, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    pages: PageFormat

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return sum(map(len, self.pieces))


@dataclass(frozen=True)
class LandedKeyValues(KeyValues):
    """Keys and values that are in the ``Room`` that was given for them, whole and verified; ``tensor`` is empty.

    ``landed_bytes``: of the page.
    """

    landed_bytes: int = 0

    @property
    def nbytes(self) -> int:
        return self.landed_bytes


class Arriving(Future[KeyValues]):
    """Keys and values on their way into a ``Room``, put there by whoever waits for them."""

    def follow(self) -> bool:
        """Put what has come since into the room; whether there was anything. Not from two threads at once."""
        raise NotImplementedError

    def let_go(self) -> None:
        """The room is not touched any more; what has not landed by now comes as any other record does."""
        raise NotImplementedError


@dataclass
class Record:
    """All that a store has of one chunk."""

    latents: Latents | None = None
    key_values: dict[AttentionType, KeyValues] = field(default_factory=dict)


class RestoreTier(Holdings, Protocol):
    """A restore store: takes evicted chunks, gives them back, forgets them. Bounded; says what it dropped."""

    def offload(self, session: str, chunk: int, type: AttentionType, payload: KeyValues) -> None:
        """Keep keys and values; the payload must not be written afterwards."""
        ...

    def keep_latents(self, session: str, chunk: int, latents: Latents) -> None:
        """Keep clean latents; they must not be written afterwards."""
        ...

    def fetch(self, session: str, chunk: int, type: AttentionType, into: Room | None = None) -> KeyValues:
        """Keys and values, to be copied by the caller unless they have landed in ``into``. Raises ``RecordLost``.

        A store in this process leaves the one copy that it takes to the caller.
        """
        ...

    def latents(self, session: str, chunk: int) -> Latents:
        """Clean latents. Raises ``RecordLost``."""
        ...

    def begin_fetch(
        self, session: str, chunk: int, type: AttentionType, into: Room | None = None
    ) -> "Future[KeyValues]":
        """As ``fetch``, without waiting; the future may raise ``RecordLost``, and may never be done.

        If it is ``Arriving``, it must be followed for as long as it is waited for, and let go of then.
        """
        ...

    def begin_latents(self, session: str, chunk: int) -> "Future[Latents]":
        """As ``latents``, without waiting; the future may raise ``RecordLost``, and may never be done."""
        ...

    def where(self, session: str, chunk: int) -> str:
        """Name of the tier that ``chunk`` would come from: what measurements of bandwidth are kept by."""
        ...

    def records(self, session: str) -> dict[int, Record]:
        """Everything about ``session``, by chunk in media order. Raises ``RecordLost`` if the store does not answer."""
        ...

    def forget(self, session: str, chunk: int) -> None:
        """Drop everything about ``chunk``; unknown chunks are no error."""
        ...

    def fork(self, parent: str, child: str) -> None:
        """Give ``child`` every record of ``parent``, by reference."""
        ...

    def introduce(self, session: str, owner: str, model: str) -> None:
        """``session`` is ``owner``'s, for quotas, and its memory is of ``model``: another's records are not its own."""
        ...

    def adopt(self, parent: str, child: str) -> None:
        """As ``fork``, where ``parent`` was another engine's. Raises ``RecordLost`` if the store does not answer."""
        ...

    def close(self, session: str) -> None:
        """Drop everything about ``session``."""
        ...

    def landed(self) -> "Future[bool]":
        """Done when all that was given until now has been taken; whether nothing of it was lost on the way."""
        ...


def answered(call: Callable[..., T], *arguments: Any) -> "Future[T]":
    """The answer of a tier that answers at once, as a future that is done."""
    done: Future[T] = Future()
    try:
        done.set_result(call(*arguments))
    except RecordLost as error:
        done.set_exception(error)
    return done

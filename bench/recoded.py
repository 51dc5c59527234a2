"""A restore store whose memory comes back through a codec, or in the ways that codecs are compared with."""

from dataclasses import dataclass, field, replace

import torch

from cache.codec import Codec, Exact
from cache.host_tier import HostTier
from cache.spec import AttentionType
from cache.tiers import Held, KeyValues, Room


@dataclass(frozen=True)
class LastBit:
    """Memory whose every element is one step of its type larger or smaller, at random: the least that can differ."""

    name: str = "last bit"

    def encode(self, tensor: torch.Tensor) -> bytes:
        """The bytes of the neighbours."""
        steps = torch.randint(0, 2, tensor.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        integers = torch.int16 if tensor.element_size() == 2 else torch.int32
        return Exact().encode((tensor.contiguous().view(integers) + steps.to(integers)).view(tensor.dtype))

    def decode(self, data: bytes | memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """As they are."""
        return Exact().decode(data, dtype, shape)


@dataclass(frozen=True)
class Rebuilt:
    """No keys and values at all: they are encoded again from the latents."""


@dataclass
class Recoded(HostTier):
    """A ``HostTier`` that holds records as they are and lets what is fetched go through ``way``."""

    way: Codec | Rebuilt = field(default_factory=Exact)
    nominal_bytes: int = 0
    packed_bytes: int = 0

    def take_ratio(self) -> float | None:
        """Nominal by packed bytes of what was fetched since this was last asked; ``None`` if nothing was."""
        ratio = self.nominal_bytes / self.packed_bytes if self.packed_bytes else None
        self.nominal_bytes = self.packed_bytes = 0
        return ratio

    def holds(self, session: str, chunk: int) -> Held:
        """Without keys and values where they are to be rebuilt."""
        found = super().holds(session, chunk)
        return replace(found, types=frozenset()) if isinstance(self.way, Rebuilt) else found

    def fetch(self, session: str, chunk: int, type: AttentionType, into: Room | None = None) -> KeyValues:
        """Through the codec."""
        assert not isinstance(self.way, Rebuilt)
        payload = super().fetch(session, chunk, type)
        data = self.way.encode(payload.tensor)
        self.nominal_bytes, self.packed_bytes = self.nominal_bytes + payload.nbytes, self.packed_bytes + len(data)
        tensor = payload.tensor
        return replace(payload, tensor=self.way.decode(data, tensor.dtype, tuple(tensor.shape)))

"""Keys and values of text cross-attention: static, shared by all streams with an equal prompt."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from cache.spec import Modality
from errors import ConfigError

TextKey = tuple[str, float | None]
LayerKeyValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class TextEntry:
    """Keys and values [tokens, width] of one prompt, per modality and layer."""

    layers: dict[Modality, list[LayerKeyValues]]

    @property
    def nbytes(self) -> int:
        """Bytes of all layers of both modalities."""
        return sum(k.nbytes + v.nbytes for layers in self.layers.values() for k, v in layers)


@dataclass
class TextCache:
    """At most ``budget_bytes`` of prompts, by (prompt hash, sigma or ``None``); the least recently used goes first.

    A prompt that went is computed again when a stream asks for it. The newest entry stays even if it is over the
    budget alone, since the pass that asked for it needs it.
    """

    budget_bytes: int
    hits: int = 0
    misses: int = 0
    bytes_held: int = 0
    _entries: OrderedDict[TextKey, TextEntry] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        if self.budget_bytes < 0:
            raise ConfigError(f"text cache budget_bytes is {self.budget_bytes}; expected 0 or more")

    def get(self, key: TextKey, make: Callable[[], TextEntry]) -> TextEntry:
        """The entry of ``key``, made on a miss."""
        if key in self._entries:
            self.hits += 1
            self._entries.move_to_end(key)
            return self._entries[key]
        self.misses += 1
        entry = make()
        self._entries[key] = entry
        self.bytes_held += entry.nbytes
        while self.bytes_held > self.budget_bytes and len(self._entries) > 1:
            _, dropped = self._entries.popitem(last=False)
            self.bytes_held -= dropped.nbytes
        return entry

    def __len__(self) -> int:
        return len(self._entries)

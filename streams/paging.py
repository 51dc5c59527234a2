"""Whole pages out of the pool, into it and moved, whatever format they have.

A packed page is [layers, 2, tokens, width] where pages are exact. Where they are codes it is [layers, bytes a layer],
uint8, keys first (``kernels.pack.to_bytes``), as many bytes as the page holds. Codes are handed on as they are: nothing
is quantised again but by a move, and every move starts from the codes as they were written.
"""

from dataclasses import dataclass
from itertools import product

import torch

from cache.pool import CODES, Pool
from cache.spec import AttentionSpec, AttentionType, PageFormat
from cache.tiers import KeyValues, LandedKeyValues, Room
from kernels.copies import Landing, upload
from kernels.ops import Ops
from kernels.pack import keys_from_bytes, to_bytes, values_from_bytes
from kernels.quantised import QuantisedKeys, QuantisedValues, quantise_keys, quantise_values
from kernels.rotary import RotaryLayout
from models.pages import layer_pages


@dataclass(frozen=True)
class Paging:
    """Copies and moves pages of one pool; between two chunks of their session only."""

    pool: Pool
    ops: Ops

    def format(self, type: AttentionType) -> PageFormat:
        """How the pages of a type are held."""
        return self.pool.specs[type].pages

    def pack(self, type: AttentionType, page: int) -> torch.Tensor:
        """A packed copy of a page, where the pool is."""
        if type not in self.pool.ends:
            return self.ops.pack(self.pool.storage[type], page)
        keys, values = self._codes(type, page)
        return torch.cat((to_bytes(keys), to_bytes(values)), 1)

    def unpack(self, type: AttentionType, page: int, packed: torch.Tensor) -> None:
        """Write a packed page, from wherever it is; raises ``ValueError`` unless it is one of this type."""
        packed = upload(packed, self.pool.device)
        if type not in self.pool.ends:
            self.ops.unpack(self.pool.storage[type], page, packed)
            return
        spec = self._require_fit(type, packed)
        self.unpack_keys(type, page, packed[:, : spec.key_bytes])
        values = values_from_bytes(packed[:, spec.key_bytes :], *_form(spec))
        self.pool.storage[type][:, 1, page] = values.codes
        self.pool.ends[type].value_scale[:, page] = values.scale

    def room(self, type: AttentionType, page: int) -> Room | None:
        """The memory of a page, as a store may fill it; ``None`` where that is not host memory."""
        if self.pool.device.type != "cpu":
            return None
        spec, storage = self.pool.specs[type], self.pool.storage[type]
        codes = storage[:, :, page].view(torch.uint8).flatten(2).numpy()
        layers, form = range(spec.layers), spec.pages
        if type not in self.pool.ends:
            pieces = tuple(codes[layer, part] for layer, part in product(layers, range(2)))
            return Room(pieces, storage.dtype, (spec.layers, 2, spec.tokens_per_chunk, spec.width), form)
        scale, zero, of_values = (t[:, page].view(torch.uint8).numpy() for t in self.pool.ends[type].tensors)
        pieces = tuple(x for i in layers for x in (scale[i], zero[i], codes[i, 0], of_values[i], codes[i, 1]))
        return Room(pieces, torch.uint8, (spec.layers, spec.key_bytes + spec.value_bytes), form)

    def put(self, type: AttentionType, page: int, payload: KeyValues) -> torch.Tensor | None:
        """Write what came back, and return it packed; nothing of either if it has landed there."""
        if isinstance(payload, LandedKeyValues):
            return None
        packed = self.fitted(type, payload)
        self.unpack(type, page, packed)
        return packed

    def put_keys(self, type: AttentionType, page: int, packed: torch.Tensor | None) -> Landing:
        """A copy of the keys of what ``put`` has written, as ``pack_keys``."""
        if packed is None:
            return self.pack_keys(type, page)
        return Landing([self.keys_of(type, packed).clone()], beside=True)

    def pack_keys(self, type: AttentionType, page: int) -> Landing:
        """A copy of a page's keys on its way to host memory, as they are part of a packed page."""
        exact = type not in self.pool.ends
        keys = self.pool.storage[type][:, 0, page].clone() if exact else to_bytes(self._codes(type, page)[0])
        return Landing([keys], beside=True)

    def unpack_keys(self, type: AttentionType, page: int, packed: torch.Tensor) -> None:
        """Write the keys of a page."""
        if type not in self.pool.ends:
            self.pool.storage[type][:, 0, page].copy_(upload(packed, self.pool.device))
            return
        keys = keys_from_bytes(upload(packed, self.pool.device), *_form(self.pool.specs[type]))
        ends = self.pool.ends[type]
        self.pool.storage[type][:, 0, page] = keys.codes
        ends.key_scale[:, page], ends.key_zero[:, page] = keys.scale, keys.zero

    def keys_of(self, type: AttentionType, packed: torch.Tensor) -> torch.Tensor:
        """The part of a packed page that is its keys, as a view."""
        return packed[:, 0] if type not in self.pool.ends else packed[:, : self.pool.specs[type].key_bytes]

    def rotate(
        self, type: AttentionType, page: int, delta: tuple[torch.Tensor, torch.Tensor], layout: RotaryLayout
    ) -> None:
        """Turn a page's keys where they lie, by one angle per pair; codes get new scales, and round once more."""
        if type not in self.pool.ends:
            self.ops.relocate(self.pool.storage[type][:, 0, page], *delta, layout)
            return
        spec = self.pool.specs[type]
        # float32 for one layer: whole pages would take as much again as the largest of them.
        turned = torch.empty(spec.tokens_per_chunk, spec.width, device=self.pool.device)
        for layer in range(spec.layers):
            pages, _ = layer_pages(self.pool, type, layer)
            assert isinstance(pages, QuantisedKeys)
            keys = QuantisedKeys(pages.codes[page], pages.scale[page], pages.zero[page])
            self.ops.restore(keys, turned, *delta, layout)
            self.ops.store_keys(turned, pages, page)

    def choose(self, type: AttentionType, source: int, page: int, tokens: torch.Tensor) -> None:
        """Copy ``tokens`` of page ``source`` to the end of ``page``.

        Codes keep the scales of their source. What is not read is undefined, or, among codes, the first token again:
        a scale is over a whole page, and what nobody reads must not widen it.
        """
        tokens, storage = upload(tokens, self.pool.device), self.pool.storage[type]
        if type not in self.pool.ends:
            storage[:, :, page, -len(tokens) :] = storage[:, :, source].index_select(2, tokens)
            return
        ends, unread = self.pool.ends[type], self.pool.specs[type].tokens_per_chunk - len(tokens)
        tokens = torch.cat((tokens[:1].expand(unread), tokens))
        codes = storage.view(torch.uint8)
        codes[:, :, page] = codes[:, :, source].index_select(2, tokens)
        ends.key_scale[:, page], ends.key_zero[:, page] = ends.key_scale[:, source], ends.key_zero[:, source]
        ends.value_scale[:, page] = ends.value_scale[:, source].index_select(1, tokens)

    def fitted(self, type: AttentionType, payload: KeyValues) -> torch.Tensor:
        """What a payload holds, packed in this pool's format; another engine may have written it in another.

        Raises:
            ValueError: it is no page of this type.
        """
        spec = self.pool.specs[type]
        if payload.pages == spec.pages:
            return payload.tensor
        exact = payload.tensor
        if payload.pages != "exact":
            there = spec.held_as(payload.pages)
            form = (there.tokens_per_chunk, there.width, CODES[payload.pages])
            keys = keys_from_bytes(exact[:, : there.key_bytes], *form).read(self.pool.dtype)
            values = values_from_bytes(exact[:, there.key_bytes :], *form).read(self.pool.dtype)
            exact = torch.stack((keys, values), 1)
        if spec.pages == "exact":
            return exact
        codes = CODES[spec.pages]
        both = quantise_keys(exact[:, 0], codes), quantise_values(exact[:, 1], codes)
        return torch.cat([to_bytes(part) for part in both], 1)

    def _codes(self, type: AttentionType, page: int) -> tuple[QuantisedKeys, QuantisedValues]:
        """Copies of one page's codes in all layers."""
        codes, ends = self.ops.pack(self.pool.storage[type], page), self.pool.ends[type]
        scale, zero, of_values = (tensor[:, page] for tensor in ends.tensors)
        return QuantisedKeys(codes[:, 0], scale, zero), QuantisedValues(codes[:, 1], of_values)

    def _require_fit(self, type: AttentionType, packed: torch.Tensor) -> AttentionSpec:
        spec = self.pool.specs[type]
        expected = (spec.layers, spec.key_bytes + spec.value_bytes)
        if packed.shape != expected or packed.dtype != torch.uint8:
            raise ValueError(f"packed page is {tuple(packed.shape)} {packed.dtype}; expected {expected} torch.uint8")
        return spec


def _form(spec: AttentionSpec) -> tuple[int, int, torch.dtype]:
    return spec.tokens_per_chunk, spec.width, CODES[spec.pages]

"""Small records for tests of the restore store's tiers, and what they are compared by."""

import itertools
from collections.abc import Callable
from pathlib import Path

import torch

from cache.codecs import named
from cache.keep_set import Role
from cache.storage.disk import DiskTier
from cache.storage.disk_config import DiskConfig
from cache.storage.files import Files
from cache.storage.packing import Payload
from cache.storage.quotas import Quota
from cache.storage.seals import Aes, Seal, Unsealed
from cache.tiers import KeyValues, Latents

KEY = bytes(range(32))
SEALS: list[Seal] = [Unsealed(), Aes(KEY)]


def key_values(seed: int, role: Role = Role.RECENT, tokens: int = 4) -> KeyValues:
    """Keys and values that no other seed gives."""
    drawn = torch.randn(1, 2, tokens, 8, generator=torch.Generator().manual_seed(seed))
    return KeyValues(drawn, seed % 31, role, seed)


def latents(seed: int) -> Latents:
    """Latents that no other seed gives."""
    drawn = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))
    return Latents(drawn[:3], drawn[3:], f"prompt {seed}", f"scene {seed}")


def same(a: Payload, b: Payload) -> bool:
    """Whether two payloads are equal in every bit and every word."""
    if isinstance(a, Latents) and isinstance(b, Latents):
        words = (a.prompt, a.scene) == (b.prompt, b.scene)
        return words and torch.equal(a.video, b.video) and torch.equal(a.audio, b.audio)
    if not (isinstance(a, KeyValues) and isinstance(b, KeyValues)):
        return False
    a, b = a.unpacked(), b.unpacked()
    return (a.slot, a.role, a.written) == (b.slot, b.role, b.written) and torch.equal(a.tensor, b.tensor)


def ticking() -> Callable[[], float]:
    """A clock that goes one second at a time."""
    seconds = itertools.count(1_000)
    return lambda: float(next(seconds))


def disk_tier(
    root: Path,
    budget: int = 1 << 24,
    seal: Seal | None = None,
    codec: str = "exact",
    quota: Quota | None = None,
    files: Files | None = None,
) -> DiskTier:
    """A tier in ``root`` that leaves it to the system when files reach the medium."""
    config = DiskConfig(budget, named(codec), quota or Quota(), files or Files("never"), seal or Unsealed())
    return DiskTier(root, config, ticking())

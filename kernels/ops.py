"""The one place where an implementation of the tensor operations is chosen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from errors import ConfigError
from kernels import adastat, attention, commit, pack, relocate, rotary

Implementation = Literal["torch"]


@dataclass(frozen=True)
class Ops:
    """The tensor operations of the cache; each field is documented at the plain-torch function of its name."""

    impl: Implementation
    attend: Callable[..., torch.Tensor]
    page_mass: Callable[..., list[torch.Tensor]]
    write: Callable[..., None]
    rotate: Callable[..., torch.Tensor]
    relocate: Callable[..., None]
    channel_statistics: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    adastat: Callable[..., torch.Tensor]
    pack: Callable[[torch.Tensor, int], torch.Tensor]
    unpack: Callable[[torch.Tensor, int, torch.Tensor], None]


TORCH = Ops(
    impl="torch",
    attend=attention.attend,
    page_mass=attention.page_mass,
    write=commit.write,
    rotate=rotary.rotate,
    relocate=relocate.relocate,
    channel_statistics=adastat.channel_statistics,
    adastat=adastat.adastat,
    pack=pack.pack,
    unpack=pack.unpack,
)


def ops(impl: str) -> Ops:
    """The operations named ``impl``; raises ``ConfigError`` for an unknown name."""
    if impl != "torch":
        raise ConfigError(f"impl is {impl!r}; expected 'torch'")
    return TORCH

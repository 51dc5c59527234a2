"""The one place where an implementation of the tensor operations is chosen."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from errors import ConfigError
from kernels import adastat, attention, commit, pack, relocate, rotary
from kernels.adastat import Corrected
from kernels.pack import Codes
from kernels.quantised import KeyPages

Implementation = Literal["torch", "triton"]


@dataclass(frozen=True)
class Ops:
    """The tensor operations of the cache; each field is documented at the plain-torch function of its name."""

    impl: Implementation
    attend: Callable[..., torch.Tensor]
    attend_and_mass: Callable[..., tuple[torch.Tensor, list[torch.Tensor]]]
    write: Callable[..., None]
    rotate: Callable[..., torch.Tensor]
    relocate: Callable[..., None]
    restore: Callable[..., None]
    channel_statistics: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    correct: Callable[..., Corrected]
    pack: Callable[[torch.Tensor, int], torch.Tensor]
    unpack: Callable[[torch.Tensor, int, torch.Tensor], None]
    pack_all: Callable[..., list[torch.Tensor]]
    pack_checked: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
    unpack_checked: Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]
    store_keys: Callable[[torch.Tensor, KeyPages, int], None]
    pack_codes: Callable[[torch.Tensor, int, torch.dtype], Codes]
    unpack_codes: Callable[[torch.Tensor, int, Codes], None]


TORCH = Ops(
    impl="torch",
    attend=attention.attend,
    attend_and_mass=attention.attend_and_mass,
    write=commit.write,
    rotate=rotary.rotate,
    relocate=relocate.relocate,
    restore=relocate.restore,
    channel_statistics=adastat.channel_statistics,
    correct=adastat.correct,
    pack=pack.pack,
    unpack=pack.unpack,
    pack_all=pack.pack_all,
    pack_checked=pack.pack_checked,
    unpack_checked=pack.unpack_checked,
    store_keys=commit.store_keys,
    pack_codes=pack.pack_codes,
    unpack_codes=pack.unpack_codes,
)


def ops(impl: str, device: torch.device | None = None, float8: bool = False, coded_queries: bool = False) -> Ops:
    """The operations named ``impl``, for tensors on ``device``; ``float8``: pages of such codes are among them.

    ``coded_queries``: where they are multiplied with pages of codes, queries become codes too, if it pays.

    Raises:
        ConfigError: there is none of that name, or it cannot run here.
    """
    chosen = TORCH if impl == "torch" else _triton(impl, device, float8)
    if not coded_queries:
        return chosen
    return replace(
        chosen,
        attend=partial(chosen.attend, coded=True),
        attend_and_mass=partial(chosen.attend_and_mass, coded=True),
    )


def _triton(impl: str, device: torch.device | None, float8: bool) -> Ops:
    if impl != "triton":
        raise ConfigError(f"impl is {impl!r}; expected 'torch' or 'triton'")
    try:
        from kernels.ops_triton import TRITON, require_device, require_float8
    except ModuleNotFoundError as error:
        raise ConfigError(f"impl is 'triton' but {error.name} is not installed; pip install longtake[gpu]") from error
    if device is not None:
        require_device(device)
        if float8 and device.type == "cuda":
            require_float8(torch.cuda.get_device_capability(device))
    return TRITON

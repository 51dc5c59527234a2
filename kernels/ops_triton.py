"""The tensor operations as Triton kernels; imported only where they were chosen."""

import torch
import triton

from errors import ConfigError
from kernels import adastat_triton, attention_triton, commit_triton, pack_triton, rotary_triton
from kernels.ops import Ops

TRITON = Ops(
    impl="triton",
    attend=attention_triton.attend,
    attend_and_mass=attention_triton.attend_and_mass,
    write=commit_triton.write,
    rotate=rotary_triton.rotate,
    relocate=rotary_triton.relocate,
    restore=rotary_triton.restore,
    channel_statistics=adastat_triton.channel_statistics,
    correct=adastat_triton.correct,
    pack=pack_triton.pack,
    unpack=pack_triton.unpack,
    pack_all=pack_triton.pack_all,
    pack_checked=pack_triton.pack_checked,
    unpack_checked=pack_triton.unpack_checked,
    store_keys=commit_triton.store_keys,
    pack_codes=pack_triton.pack_codes,
    unpack_codes=pack_triton.unpack_codes,
)


def require_device(device: torch.device) -> None:
    """Raise ``ConfigError`` unless Triton's kernels can run on tensors of ``device``."""
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ConfigError(f"impl is 'triton' but the model is on {device}; expected a GPU, or impl 'torch'")


def require_float8(capability: tuple[int, int]) -> None:
    """Raise ``ConfigError`` if a GPU of this compute capability has no numbers of eight bits for Triton to convert."""
    if capability < (8, 9):
        raise ConfigError(
            f"pages are 'fp8' but the GPU has compute capability {'.'.join(map(str, capability))}; expected 8.9 or "
            "more, or pages 'int8'"
        )

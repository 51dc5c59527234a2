"""The interface of decoders: latents of a stretch of a stream to frames or samples.

Weights are shared by all streams. What belongs to a stream is kept by ``models.decoders``.
"""

from typing import Protocol

import torch

from errors import ConfigError


class Codec(Protocol):
    """Decodes latents [channels, steps, ...] to outputs [count, ...]: frames, or samples.

    A step gives ``ratio`` outputs; the first of a stream may give fewer. Latents from the middle of a stream are
    decoded as if it began there, and are right only after ``past`` and before the last ``ahead`` steps.
    """

    @property
    def past(self) -> int:
        """Steps of context that are decoded once more before new ones."""
        ...

    @property
    def ahead(self) -> int:
        """Steps that are held back until those after them are known."""
        ...

    @property
    def fade(self) -> int:
        """Outputs over which one decoding gives way to the next, at most ``ratio``; 0 where nothing is held back."""
        ...

    @property
    def ratio(self) -> int:
        """Outputs per step."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one step: (channels, height, width) or (channels, bins)."""
        ...

    @property
    def output(self) -> torch.Tensor:
        """No outputs, in their shape and type."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Outputs [steps · ratio − what the first step lacks, ...], those of the last step at the end."""
        ...


class Sound(Codec, Protocol):
    """A codec of samples [count, channels] in [−1, 1]."""

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        ...

    @property
    def channels(self) -> int:
        """1 for mono, 2 for stereo."""
        ...


def check_held(codec: Codec) -> None:
    """Raise ``ConfigError`` if more is faded than is held back."""
    limit = codec.ratio if codec.ahead else 0
    if codec.ahead < 0 or not 0 <= codec.fade <= limit:
        raise ConfigError(
            f"fade is {codec.fade} with ahead {codec.ahead}; expected 0 to {limit}, what is held back at least"
        )

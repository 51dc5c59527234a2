"""AdaStat: per-channel statistics of a chunk, and their blend towards a reference; plain-torch reference.

MaineCoon, arXiv 2606.17800, section 4.2: x̂ = x + s·(σ*·(x−μ)/σ + μ* − x).
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Corrected:
    """Committed copies of a batch, the statistics they were made from, and how far those were from the references.

    Args:
        x: [rows, tokens, channels], in the type of what was corrected.
        mean, std: [rows, channels], float64, of what was corrected.
        shift: [rows], float64: root mean square over channels of the shift of means in units of σ* and of the log
            ratio of spreads. The books score drift by it (``cache.drift.Reference.shift``).
    """

    x: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    shift: torch.Tensor


def channel_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and population standard deviation over the tokens of ``x`` [..., tokens, channels], float64."""
    std, mean = torch.std_mean(x.double(), dim=-2, correction=0)
    return mean, std


def adastat(
    x: torch.Tensor, reference_mean: torch.Tensor, reference_std: torch.Tensor, strength: float
) -> torch.Tensor:
    """A corrected copy of ``x`` [tokens, channels] whose statistics are (1−s)·own + s·reference, per channel.

    A constant channel has no spread to scale: its mean is blended and it stays constant.
    """
    mean, std = channel_statistics(x)
    scale = torch.where(std > 0, reference_std / std.where(std > 0, 1.0), 0.0)
    centred = x.double() - mean
    blended = mean + strength * (reference_mean - mean) + centred * (1 - strength + strength * scale)
    return blended.to(x.dtype)


def correct(
    x: torch.Tensor, reference_mean: torch.Tensor, reference_std: torch.Tensor, strength: torch.Tensor
) -> Corrected:
    """Correct every row of ``x`` [rows, tokens, channels] towards its own reference [rows, channels], float64.

    ``strength`` [rows], float64, of which no number is read on the host; a row of strength 0 is copied bit for bit.
    """
    mean, std = channel_statistics(x)
    floor = reference_floor(reference_std).unsqueeze(-1)
    spread = torch.maximum(reference_std, floor)
    ratio = torch.log(torch.maximum(std, floor) / spread)
    shift = (((mean - reference_mean) / spread) ** 2 + ratio**2).mean(-1).sqrt()
    to_mean, to_std, by = reference_mean.unsqueeze(1), reference_std.unsqueeze(1), strength[:, None, None]
    own_mean, own_std = mean.unsqueeze(1), std.unsqueeze(1)
    scale = torch.where(own_std > 0, to_std / own_std.where(own_std > 0, 1.0), 0.0)
    blended = own_mean + by * (to_mean - own_mean) + (x.double() - own_mean) * (1 - by + by * scale)
    return Corrected(torch.where(by == 0, x, blended.to(x.dtype)), mean, std, shift)


def reference_floor(reference_std: torch.Tensor) -> torch.Tensor:
    """The least spread [rows] that a channel is taken to have, of references [rows, channels]."""
    return (1e-3 * reference_std.mean(-1)).clamp(min=1e-6)

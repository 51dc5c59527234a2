"""AdaStat: per-channel statistics of a chunk, and their blend towards a reference; plain-torch reference.

MaineCoon, arXiv 2606.17800, section 4.2: x̂ = x + s·(σ*·(x−μ)/σ + μ* − x).
"""

import torch


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
) -> torch.Tensor:
    """``adastat`` of every row of ``x`` [rows, tokens, channels] towards its own reference [rows, channels], float64.

    ``strength`` [rows], float64, of which no number is read on the host; a row of strength 0 is copied bit for bit.
    """
    mean, std = (x.unsqueeze(1) for x in channel_statistics(x))
    to_mean, to_std, strength = reference_mean.unsqueeze(1), reference_std.unsqueeze(1), strength[:, None, None]
    scale = torch.where(std > 0, to_std / std.where(std > 0, 1.0), 0.0)
    blended = mean + strength * (to_mean - mean) + (x.double() - mean) * (1 - strength + strength * scale)
    return torch.where(strength == 0, x, blended.to(x.dtype))

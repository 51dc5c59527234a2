"""What a lossy codec did to each channel: the measure that error budgets are in.

The error of a channel is the root mean square of its difference over the chunk's tokens, in units of the root mean
square of the channel itself. By channel, because an average over a layer hides a quiet channel that is lost beside a
loud one. In units of what the channel is, because attention reads it as it is; in units of its spread, bfloat16 itself
would have an error of a fifth in the channels of sound that hardly move within a chunk.
"""

import torch

BLOCK = 16  # tokens at a time, which stay in the core's own cache


def channel_errors(exact: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Error of each channel [..., width], float64, of tensors [..., tokens, width] in any floating type.

    0 where a channel came back as it was, infinite where one that was all zeros did not.
    """
    errors, powers = (torch.zeros(*exact.shape[:-2], exact.shape[-1], dtype=torch.float64) for _ in range(2))
    for a, b in zip(exact.split(BLOCK, -2), decoded.split(BLOCK, -2), strict=True):
        # float64: squares of what float32 can hold neither overflow nor vanish.
        was = a.double()
        errors += (b.double() - was).square_().sum(-2)
        powers += was.square_().sum(-2)
    return torch.where(errors == 0, errors, errors.div(powers).sqrt_())


def worst_channel(exact: torch.Tensor, decoded: torch.Tensor) -> float:
    """The largest error of a channel; not a number if one came back as none."""
    errors = channel_errors(exact, decoded)
    return float(errors.max()) if errors.numel() else 0.0

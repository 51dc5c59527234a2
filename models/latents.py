"""Latents as grids and as tokens, in the order of the LTX-2 family."""

import torch


def pack_video(latents: torch.Tensor, patch: int = 1, patch_t: int = 1) -> torch.Tensor:
    """[channels, frames, height, width] to tokens [frames·height·width / patches, channels·patches]."""
    channels, frames, height, width = latents.shape
    grid = latents.reshape(channels, frames // patch_t, patch_t, height // patch, patch, width // patch, patch)
    return grid.permute(1, 3, 5, 0, 2, 4, 6).reshape(-1, channels * patch_t * patch * patch)


def unpack_video(tokens: torch.Tensor, height: int, width: int, patch: int = 1, patch_t: int = 1) -> torch.Tensor:
    """Undo ``pack_video``; ``height`` and ``width`` are those of the grid of latents."""
    rows, columns = height // patch, width // patch
    grid = tokens.reshape(-1, rows, columns, tokens.shape[-1] // (patch_t * patch * patch), patch_t, patch, patch)
    return grid.permute(3, 0, 4, 1, 5, 2, 6).reshape(grid.shape[3], -1, height, width)


def pack_audio(latents: torch.Tensor, patch_t: int = 1) -> torch.Tensor:
    """[channels, steps] or [channels, steps, bins] to tokens [steps / patch_t, channels·patch_t·bins]."""
    grid = latents.reshape(latents.shape[0], latents.shape[1] // patch_t, -1)
    return grid.transpose(0, 1).flatten(1)


def unpack_audio(tokens: torch.Tensor, channels: int, patch_t: int = 1) -> torch.Tensor:
    """Undo ``pack_audio``: [channels, steps, bins]; a codec without bins has one."""
    grid = tokens.reshape(len(tokens), channels, patch_t, -1)
    return grid.permute(1, 0, 2, 3).reshape(channels, len(tokens) * patch_t, -1)

"""The training loop that all parts share: schedule, averaged weights, progress bar, checkpoints, exact resume."""

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Loss = Callable[[int], tuple[torch.Tensor, dict[str, float]]]


@dataclass(frozen=True)
class FitConfig:
    """How one part is trained.

    Args:
        steps: optimiser steps; warm-up and decay are shares of them (linear up, hold, linear down).
        learning_rate: of AdamW; ``matrix_rate`` of Muon for inner matrices, 0 to use AdamW for all.
        average: decay of the averaged weights, which are what is kept.
        checkpoint_seconds: wall time between checkpoints.
    """

    steps: int
    learning_rate: float = 2e-3
    matrix_rate: float = 0.0
    weight_decay: float = 0.01
    warmup: float = 0.03
    decay: float = 0.4
    clip: float = 1.0
    average: float = 0.995
    checkpoint_seconds: float = 120.0


def rate_at(config: FitConfig, step: int) -> float:
    """Share of the peak learning rate at ``step``."""
    up = (step + 1) / max(1.0, config.warmup * config.steps)
    down = (config.steps - step) / max(1.0, config.decay * config.steps)
    return min(1.0, up, down)


OUTER = ("conv_in", "conv_out", "proj_in", "proj_out", "table", "time_embed", "av_cross_attn", "caption_projection")


class Optimisers:
    """Muon for the inner matrices and convolution kernels (as matrices), AdamW for everything else.

    On the frame autoencoder Muon reached in 160 steps what AdamW had not reached in 660.
    """

    def __init__(self, model: torch.nn.Module, config: FitConfig) -> None:
        self.kernels: list[tuple[torch.nn.Parameter, torch.nn.Parameter]] = []
        rest = []
        for name, parameter in model.named_parameters():
            inner = parameter.ndim >= 2 and not any(word in name for word in OUTER)
            if config.matrix_rate and inner and parameter.requires_grad:
                # Muon takes matrices only: one that shares the storage of the kernel.
                matrix = torch.nn.Parameter(parameter.data.contiguous().view(len(parameter), -1))
                parameter.data = matrix.data.view(parameter.shape)
                self.kernels.append((parameter, matrix))
            elif parameter.requires_grad:
                rest.append(parameter)
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay)
        ]
        if self.kernels:
            matrices = [matrix for _, matrix in self.kernels]
            self.all.append(torch.optim.Muon(matrices, lr=config.matrix_rate, weight_decay=0.01))
        self.peaks = [group["lr"] for optimiser in self.all for group in optimiser.param_groups]

    def step(self, share: float) -> None:
        """One step at ``share`` of the peak learning rates."""
        for parameter, matrix in self.kernels:
            matrix.grad = None if parameter.grad is None else parameter.grad.reshape(matrix.shape)
        groups = (group for optimiser in self.all for group in optimiser.param_groups)
        for group, peak in zip(groups, self.peaks, strict=True):
            group["lr"] = share * peak
        for optimiser in self.all:
            optimiser.step()


def fit(name: str, model: torch.nn.Module, loss: Loss, config: FitConfig, folder: Path, device: str = "cpu") -> None:
    """Train ``model`` in place; it ends with the averaged weights. Goes on from ``folder`` if a checkpoint is there.

    ``loss`` gives the loss and figures of a step; all its randomness must come from the number of the step, so that a
    resumed run is the run that was not interrupted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{name}.checkpoint.pt"
    made = Optimisers(model, config)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    start, spent = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimiser, state in zip(made.all, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        average, start, spent = saved["average"], saved["step"], saved["seconds"]
    begun = saved_at = time.monotonic()

    def save(step: int) -> None:
        part = checkpoint.with_suffix(".part")
        states = [optimiser.state_dict() for optimiser in made.all]
        seconds = spent + time.monotonic() - begun
        torch.save(
            {"model": model.state_dict(), "optimisers": states, "average": average, "step": step, "seconds": seconds},
            part,
        )
        part.replace(checkpoint)

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(), refresh_per_second=1) as bar:
        task = bar.add_task(name, total=config.steps, completed=start, figures="")
        for step in range(start, config.steps):
            with torch.autocast(device, torch.bfloat16) if device in ("cpu", "cuda") else nullcontext():
                value, figures = loss(step)
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            if torch.isfinite(norm):
                made.step(rate_at(config, step))
            model.zero_grad(set_to_none=True)
            decay = min(config.average, (step + 1) / (step + 10))
            _follow(average, model, 1 - decay)
            if step % 20 == 0 or step == config.steps - 1:
                figures = {"loss": float(value.detach()), "norm": float(norm), **figures}
                bar.update(task, completed=step + 1, figures=" ".join(f"{k} {v:.4g}" for k, v in figures.items()))
                _note(folder / f"{name}.log.jsonl", step, spent + time.monotonic() - begun, figures)
            if time.monotonic() - saved_at > config.checkpoint_seconds:
                save(step + 1)
                saved_at = time.monotonic()
    save(config.steps)
    model.load_state_dict(average)


def _follow(average: dict[str, torch.Tensor], model: torch.nn.Module, share: float) -> None:
    """Move the averaged weights by ``share`` of the way to the present ones."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            average[key].lerp_(tensor.detach(), share)


def _note(journal: Path, step: int, seconds: float, figures: dict[str, float]) -> None:
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "seconds": round(seconds, 1), **figures}) + "\n")

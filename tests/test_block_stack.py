"""The benchmark of a block stack measures every part, on a pretended GPU too; no more layers are taken than fit."""

import argparse

import pytest
import torch

from bench.block_stack import PHASES, build, chunks, measure, movements, passes, scenes
from bench.random_model import QUICK, fitting, transformer_of
from cache.keep_set import Budgets, RoleBudget
from cache.policies import SceneMemory
from tests.pretend_gpu import pretend_gpu


def given(**changed: object) -> argparse.Namespace:
    plain = {
        "quick": True, "device": "cpu", "model": "ltx-2.3", "layers": 1, "frames": 2, "sessions": 1, "impl": "torch",
        "pages": "exact", "coded_queries": False, "repeats": 1,
    }  # fmt: skip
    return argparse.Namespace(**{**plain, **changed})


def test_every_part_is_measured_with_a_full_keep_set() -> None:
    stack = measure(given(), lambda parts: lambda: None)
    assert set(PHASES) <= set(stack.laps.ms)
    assert all(ms > 0 for name in PHASES for ms in stack.laps.ms[name])
    assert stack.size.reads == 6  # sink, anchor, three recent and itself


def test_it_runs_where_there_is_a_gpu() -> None:
    with pretend_gpu():
        stack = build(given(device="cuda:0"))
        chunks(stack, 3)
        passes(stack)
        movements(stack)
        scenes(stack, 0, 1)
    assert set(PHASES) <= set(stack.laps.ms)


def test_as_many_layers_as_fit_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the size of LTX-2.3 a layer has 0.77 GB of weights, and 0.31 GB of pages for each session."""
    whole, policy = given(quick=False, layers=None, device="cuda"), SceneMemory(Budgets.uniform(RoleBudget()))
    found = []
    for free in (1, 20, 40, 10_000):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free * 10**9, 0))
        found.append(fitting(transformer_of(whole), whole, policy))
    assert found[0] == 1
    assert found[0] < found[1] < found[2] < found[3] == 48
    assert fitting({**transformer_of(whole), **QUICK}, given(layers=3), policy) == 3

"""A whole engine on Triton's kernels makes what one on plain torch makes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from cache.keep_set import Budgets, RoleBudget
from cache.plan import Cut, ReturnTo
from cache.policies import HeavyHitter, SceneMemory
from cache.policies.base import Policy
from cache.spec import Modality, PageFormat
from errors import ConfigError
from kernels import coded_queries, ops_triton
from kernels.ops import ops
from models.sampler import Schedule
from streams.engine import Engine
from streams.session import Session
from tests.builders import engine, poison, tiny_backbone
from tests.kernel_cases import DEVICE

CODES_TOLERANCE = 2e-3
KEEP = RoleBudget(subject_anchor=1, scene_sink=1, scene_anchor=1, restored=1, recent=1)


def made(
    impl: str,
    policy: Policy,
    play: Callable[[Engine, Session], None],
    pages: PageFormat = "exact",
    coded_queries: bool = False,
) -> tuple[torch.Tensor, list[float]]:
    """All latents and drift scores of two streams side by side, the first of which is directed by ``play``."""
    schedule = Schedule((1.0,))
    running = engine(
        tiny_backbone(), policy, sessions=2, schedule=schedule, impl=impl, pages=pages, coded_queries=coded_queries
    )
    assert running.ops.impl == impl
    poison(running)
    streams = [running.open("a red ball", seed=1), running.open("a blue cone", seed=2)]
    chunks = []
    for step in range(5):
        if step == 3:
            play(running, streams[0])
        chunks += running.step(streams)
    running.check_integrity()
    return torch.stack([torch.cat((c.video.flatten(), c.audio.flatten())) for c in chunks]), [c.drift for c in chunks]


def cut_and_return(running: Engine, session: Session) -> None:
    """Takes a subject anchor, evicts, and brings back by restoring and moving."""
    mask = torch.zeros(running.backbone.geometry.tokens(Modality.AUDIO), dtype=torch.bool)
    mask[[1, 3]] = True
    assert running.harvest(session, 2, {Modality.AUDIO: mask}, 0.9)
    prompt = running.prompt("a green box")
    running.direct(session, Cut("kitchen", prompt.key), prompt)
    for _ in range(2):
        running.step([session])
    running.direct(session, ReturnTo("opening"))


def test_two_streams_in_pages_of_codes_are_the_same_on_either() -> None:
    """A key on the border between two codes may become either, so they agree to a code here and there."""
    policy = SceneMemory(Budgets.uniform(KEEP))
    torch_made, triton_made = (made(impl, policy, cut_and_return, "int8") for impl in ("torch", "triton"))
    torch.testing.assert_close(triton_made[0], torch_made[0], atol=CODES_TOLERANCE, rtol=0)


def test_two_streams_whose_queries_are_codes_too_are_the_same_on_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not those whose queries are exact."""
    monkeypatch.setattr(coded_queries, "FEW_QUERIES", 0)
    monkeypatch.setattr(coded_queries, "SHORT_PAGE", 0)
    policy = SceneMemory(Budgets.uniform(KEEP))
    torch_made, triton_made = (made(impl, policy, cut_and_return, "fp8", True)[0] for impl in ("torch", "triton"))
    torch.testing.assert_close(triton_made, torch_made, atol=5 * CODES_TOLERANCE, rtol=0)
    exact = made("torch", policy, cut_and_return, "fp8")[0]
    assert (torch_made - exact).abs().max() > 10 * (triton_made - torch_made).abs().max()


def test_mass_is_told_of_codes_and_of_the_chunk_itself_alike() -> None:
    policy = HeavyHitter.of(Budgets.uniform(KEEP))
    torch_made, triton_made = (made(impl, policy, lambda *_: None, "fp8") for impl in ("torch", "triton"))
    torch.testing.assert_close(triton_made[0], torch_made[0], atol=CODES_TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("policy", "play"),
    [
        (SceneMemory(Budgets.uniform(KEEP)), cut_and_return),
        (HeavyHitter.of(Budgets.uniform(KEEP)), lambda running, session: None),
    ],
    ids=["scenes", "mass"],
)
def test_two_streams_through_cut_eviction_and_return_are_the_same_on_either(
    policy: Policy, play: Callable[[Engine, Session], None]
) -> None:
    torch_made, triton_made = (made(impl, policy, play) for impl in ("torch", "triton"))
    torch.testing.assert_close(triton_made[0], torch_made[0], atol=2e-4, rtol=0)
    assert triton_made[1] == pytest.approx(torch_made[1], abs=1e-3)


def test_triton_is_chosen_by_name_and_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops("triton", torch.device(DEVICE)) is ops_triton.TRITON
    monkeypatch.setattr(ops_triton.triton.knobs.runtime, "interpret", False)
    with pytest.raises(ConfigError, match="the model is on cpu; expected a GPU"):
        ops("triton", torch.device("cpu"))
    running = engine(tiny_backbone(), impl="torch")
    with pytest.raises(ConfigError, match="expected a GPU"):
        Engine(running.backbone, running.policy, replace(running.config, impl="triton"))


def test_codes_that_a_gpu_cannot_convert_are_refused() -> None:
    ops_triton.require_float8((8, 9))
    with pytest.raises(ConfigError, match=r"the GPU has compute capability 8\.6; expected 8\.9 or more"):
        ops_triton.require_float8((8, 6))


def test_tensors_where_no_kernel_can_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_triton.triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="tensors are on cpu"):
        ops("triton").pack(torch.zeros(1, 2, 1, 3, 4), 0)

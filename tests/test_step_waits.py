"""A step waits for the device once, to read how far it has drifted, and once more where the policy wants to know the
attention.

There is no GPU here: it is pretended, see ``tests.pretend_gpu``. What the check cannot see is what a library does on a
real one below its operations.
"""

from collections.abc import Callable

import pytest
import torch

from cache.books import CacheConfig
from cache.drift import DriftConfig
from cache.keep_set import Budgets
from cache.plan import Cut, ReturnTo
from cache.policies import HeavyHitter, SceneMemory
from cache.policies.base import Policy
from cache.positions import PositionConfig
from cache.scenes import SceneConfig
from cache.spec import Modality, PageFormat
from kernels import coded_queries
from kernels.launch import Launch
from models.backbone import Backbone, random_transformer
from models.processors import CachedAttention
from models.sampler import Schedule
from models.shapes import ChunkGeometry
from streams.durability import Durability
from streams.engine import Engine
from streams.making import Chunk
from streams.session import Session
from tests.builders import SMALL_KEEP_SET, TINY, engine
from tests.pretend_gpu import OnGpu, PretendGpu, move, pretend_gpu, unwrapped

ACTS = 24
WARM_UP, STEPS = 11, 6  # the keep-set is full by then, and an anchor makes room for a newer one within those
SCENES, MASS = SceneMemory(Budgets.uniform(SMALL_KEEP_SET)), HeavyHitter.of(Budgets.uniform(SMALL_KEEP_SET))


def running(
    policy: Policy = SCENES,
    pages: PageFormat = "exact",
    there: bool = True,
    impl: str = "torch",
    durability: Durability = "none",
    slots: int = 31,
    coded_queries: bool = False,
) -> Engine:
    """An engine of the smallest model; ``there``: on the GPU, which there must be."""
    transformer = random_transformer(seed=1, **TINY)
    geometry = ChunkGeometry.of_model(transformer.config, frames=1, height=32, width=32, fps=25)
    model = Backbone(move(transformer) if there else transformer, geometry)
    scenes, positions = SceneConfig(anchor_every=3), PositionConfig(slots)
    cache = CacheConfig(drift=DriftConfig(warmup_chunks=2), scenes=scenes, positions=positions)
    return engine(
        model, policy, cache=cache, sessions=2, schedule=Schedule((1.0, 0.6)), pages=pages, impl=impl,
        durability=durability, coded_queries=coded_queries,
    )  # fmt: skip


def warm(made: Engine, steps: int = WARM_UP) -> list[Session]:
    """Two streams whose keep-sets are full, one with a subject anchor; every correction has begun."""
    sessions = [made.open("a red ball", seed=1), made.open("a blue cone", seed=2)]
    for step in range(steps):
        made.step(sessions)
        if step == 3 and made.policy is SCENES:
            harvest(made, sessions[0])
    return sessions


def harvest(made: Engine, session: Session) -> None:
    mask = torch.zeros(made.backbone.geometry.tokens(Modality.AUDIO), dtype=torch.bool)
    mask[[1, 3]] = True
    assert made.harvest(session, 2, {Modality.AUDIO: mask}, 0.9)


def watched(gpu: PretendGpu, made: Engine, sessions: list[Session], steps: int = STEPS) -> None:
    gpu.forget()
    for _ in range(steps):
        made.step(sessions)


@pytest.fixture
def every_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of them become codes as well, where queries do."""
    monkeypatch.setattr(coded_queries, "FEW_QUERIES", 0)
    monkeypatch.setattr(coded_queries, "SHORT_PAGE", 0)


@pytest.mark.usefixtures("every_query")
@pytest.mark.parametrize(
    ("policy", "reads", "pages", "coded"),
    [(SCENES, 1, "exact", False), (SCENES, 1, "int8", True), (MASS, 2, "exact", False), (MASS, 2, "fp8", False)],
)
def test_a_step_waits_for_the_device_only_to_read_what_the_books_want(
    policy: Policy, reads: int, pages: PageFormat, coded: bool
) -> None:
    with pretend_gpu() as gpu:
        made = running(policy, pages, coded_queries=coded)
        sessions = warm(made)
        watched(gpu, made, sessions)
        assert gpu.waits == []
        assert len(gpu.landings) == STEPS * reads


@pytest.mark.usefixtures("every_query")
@pytest.mark.parametrize("pages", ["exact", "int8"])
def test_a_step_on_the_kernels_waits_as_seldom(pages: PageFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the launchers do on the host; the kernels themselves run in Triton's interpreter."""
    monkeypatch.setattr(Launch, "run", unwrapped(Launch.run))
    with pretend_gpu() as gpu:
        monkeypatch.setattr("kernels.ops_triton.require_device", lambda device: None)
        monkeypatch.setattr("kernels.attention_triton._processors", lambda device: 4)
        made = running(impl="triton", pages=pages, coded_queries=pages == "int8")
        sessions = [made.open("a red ball", seed=1)]
        for _ in range(2):
            made.step(sessions)
        watched(gpu, made, sessions, 1)
        assert gpu.waits == []
        assert len(gpu.landings) == 1


def latents(chunks: list[Chunk]) -> list[torch.Tensor]:
    return [x.held if isinstance(x, OnGpu) else x for c in chunks for x in (c.video, c.audio)]


def played(made: Engine) -> list[torch.Tensor]:
    """Two streams through a subject anchor, a cut with evictions to the store, returns, and epochs that move keys."""
    sessions = [made.open("a red ball", seed=1), made.open("a blue cone", seed=2)]
    prompt = made.prompt("a green box")
    chunks = []
    for step in range(ACTS):
        if step == 9:
            made.direct(sessions[0], Cut("kitchen", prompt.key), prompt)
        if step in (13, 19):
            made.direct(sessions[0], ReturnTo("opening" if step == 13 else "kitchen"))
        chunks += made.step(sessions)
        if step == 4:
            harvest(made, sessions[0])
    made.check_integrity()
    done = {line.action for line in sessions[0].manager.log}
    assert done >= {"epoch", "evict", "restore", "subject"}
    return latents(chunks)


@pytest.mark.parametrize(
    ("durability", "pages"), [("none", "exact"), ("latents", "int8"), ("kv", "exact"), ("kv", "int8")]
)
def test_what_leaves_and_comes_back_is_not_waited_for_and_the_chunks_are_those_of_the_host(
    durability: Durability, pages: PageFormat
) -> None:
    """So nothing that was copied without waiting is read before it is there, or written before it has gone."""
    expected = played(running(pages=pages, there=False, durability=durability, slots=11))
    with pretend_gpu() as gpu:
        made = running(pages=pages, durability=durability, slots=11)
        gpu.forget()
        got = played(made)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    assert gpu.waits == []
    assert len(gpu.landings) == ACTS


def test_keys_that_have_landed_leave_no_copy_on_the_device() -> None:
    with pretend_gpu() as gpu:
        made = running(slots=11)
        session = made.open("a red ball", seed=1)
        steps = 0
        while not session.origins:
            steps += 1
            made.step([session])
        assert any(isinstance(origin.near, OnGpu) for origin in session.origins.values())
        first = list(session.origins.values())
        for _ in range(2):
            made.step([session])
        assert not any(isinstance(x, OnGpu) for origin in first for x in origin.landing._sources)
        assert len(gpu.landings) == steps + 2


def reads_a_number(x: torch.Tensor) -> None:
    x.abs().max().item()


def reads_a_list(x: torch.Tensor) -> None:
    x[0, 0].tolist()


def chooses_by_a_mask(x: torch.Tensor) -> None:
    x[x > 0].sum()


def decides(x: torch.Tensor) -> None:
    if (x > 1e9).any():
        raise AssertionError


def brings_a_number(x: torch.Tensor) -> None:
    x + torch.tensor([1.0], device=x.device)


def takes_to_the_host(x: torch.Tensor) -> None:
    x.cpu()


def takes_to_the_host_and_reads(x: torch.Tensor) -> None:
    x.sum().to("cpu").numpy()


@pytest.mark.parametrize(
    "adds",
    [
        reads_a_number,
        reads_a_list,
        chooses_by_a_mask,
        decides,
        brings_a_number,
        takes_to_the_host,
        takes_to_the_host_and_reads,
    ],
)
def test_whoever_adds_a_wait_to_the_path_is_found_out(
    adds: Callable[[torch.Tensor], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    attended = CachedAttention.__call__

    def waiting(self: CachedAttention, attn: object, hidden: torch.Tensor, *rest: object, **named: object) -> object:
        adds(hidden)
        return attended(self, attn, hidden, *rest, **named)

    with pretend_gpu() as gpu:
        made = running()
        sessions = warm(made, 2)
        monkeypatch.setattr(CachedAttention, "__call__", waiting)
        watched(gpu, made, sessions, 1)
        assert {wait.where for wait in gpu.waits} == {f"tests/test_step_waits.py:{adds.__name__}"}


def test_what_is_read_before_it_has_landed_is_nonsense() -> None:
    with pretend_gpu():
        x = torch.ones(3, device="cuda:0")
        host = torch.empty(3, pin_memory=True)
        host.copy_(x, non_blocking=True)
        event = torch.cuda.current_stream().record_event()
        x.zero_()
        assert host.isnan().all()
        event.synchronize()
        assert torch.equal(host, torch.ones(3))


def test_tensors_of_two_devices_do_not_mix() -> None:
    with pretend_gpu(), pytest.raises(RuntimeError, match="expected one device"):
        torch.ones(3, device="cuda:0") + torch.ones(3)

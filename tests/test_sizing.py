"""The capacity planner's arithmetic against what it is about: the library's model, torch's count, pool and store."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.capacity import disk, rates
from cache.keep_set import Budgets, Role, RoleBudget
from cache.plan import Cut
from cache.spec import TYPES, Modality
from errors import BudgetError, ConfigError
from kernels.quantised import empty_keys, empty_values
from models.backbone import Backbone, load_transformer
from models.shapes import ChunkGeometry
from settings import Settings, load, question_of
from sizing import KNOWN, MACHINES, Demand, Plan, Question, machine_named, parse_measured, plan, what_ifs
from sizing.chunk_time import COMMIT
from sizing.figures import Source, assumed, computed, derived, measured, sheet
from sizing.measured import RATES
from sizing.pages import IN_PROGRESS, page_bytes
from sizing.plan import MOST, store_bytes, uses_of
from sizing.stores import store_needs
from sizing.transformer import Transformer
from streams.engine import Engine
from streams.session import Session
from tests.builders import FAMILIES, backbone, engine

RESULTS = Path(__file__).parent.parent / "bench" / "results"


@cache
def asked(model: str = "ltx-2", gpu: str = "h200", **over: Any) -> Question:
    return question_of(load(environ={}, model=model, over=over), machine_named(gpu))


# -- against the library and torch


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_library(family: str) -> None:
    transformer = backbone(family).transformer
    known = sum(p.numel() for p in transformer.parameters())
    assert Transformer.of(dict(transformer.config), family).parameters() == known


@pytest.mark.parametrize("name", KNOWN)
def test_known_models_weigh_what_the_library_makes_of_their_configuration(name: str) -> None:
    with torch.device("meta"):
        transformer = LTX2VideoTransformer3DModel(**KNOWN[name].config)
    found = Transformer.of(KNOWN[name].config, name)
    assert found.parameters() == sum(p.numel() for p in transformer.parameters())
    assert 18e9 < found.parameters() < 20e9


def filled(made: Engine, chunks: int) -> Session:
    session = made.open("a red ball", seed=1)
    for _ in range(chunks):
        made.step([session])
    return session


def counted(made: Engine, session: Session) -> int:
    """What torch counts in the next chunk; on a CPU it knows attention only where it is made of products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        made.step([session])
    return int(counter.get_total_flops())


def planned(made: Engine, session: Session, text: int) -> int:
    geometry, passes = made.backbone.geometry, len(made.config.schedule.sigmas) + COMMIT
    ledgers = session.manager.ledgers
    read = {t: (len(ledgers[t].entries) + 1) * made.specs[t].tokens_per_chunk for t in TYPES}
    transformer = Transformer.of(dict(made.backbone.config), "test")
    tokens = {m: geometry.tokens(m) for m in Modality}
    return passes * sum(transformer.pass_operations(tokens, read, text))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunks", [1, 12])
def test_operations_are_those_that_torch_counts(family: str, chunks: int) -> None:
    made = engine(backbone(family), sessions=1)
    session = filled(made, chunks)
    expected = planned(made, session, text=8)  # tokens of a hashed prompt
    assert counted(made, session) == pytest.approx(expected, rel=0.01)


def shipped_engine() -> tuple[Engine, Settings]:
    settings = load(environ={})
    transformer, g = load_transformer(settings.model.path), settings.geometry
    geometry = ChunkGeometry.of_model(transformer.config, g.frames, g.height, g.width, g.fps)
    config = replace(settings.engine, sessions=2, first_schedule=None)
    made = Engine(Backbone(transformer, geometry), engine().policy.of(settings.budgets), config)
    return made, settings


def test_the_shipped_model_takes_the_bytes_and_operations_of_its_plan() -> None:
    made, settings = shipped_engine()
    question = question_of(settings, machine_named("cpu"))
    assert question.model.specs() == made.specs
    session = filled(made, 10)
    assert made.pool.statistics().leased_bytes == {t: question.session().of_type(t) for t in TYPES}
    assert made.pool.statistics().capacity_bytes == {t: 2 * question.session().of_type(t) for t in TYPES}
    held = sum(p.nbytes for p in made.backbone.transformer.parameters())
    assert question.model.weights.value == held
    latents = session.retained[session.manager.kept()[-1]]
    assert question.model.latents_bytes == latents.video.nbytes + latents.audio.nbytes
    expected = planned(made, session, text=8)
    assert counted(made, session) == pytest.approx(expected, rel=0.01)
    most = planned(made, session, text=256)
    passes = question.keeping.passes + COMMIT
    assert passes * question.operations() >= most  # its anchors and what may be restored were not all there


def test_bytes_by_role_are_those_of_the_ledgers() -> None:
    budgets = Budgets.uniform(RoleBudget(subject_anchor=0, scene_sink=1, scene_anchor=2, restored=0, recent=4))
    made = engine(policy=engine().policy.of(budgets), sessions=1)
    session = filled(made, 20)
    transformer = Transformer.of(dict(made.backbone.config), "test")
    tokens = {m: made.backbone.geometry.tokens(m) for m in Modality}
    question = asked("random")
    question = replace(
        question,
        model=replace(question.model, transformer=transformer, tokens=tokens, element_bytes=4),
        keeping=replace(question.keeping, budgets=budgets),
    )
    for t, ledger in session.manager.ledgers.items():
        held = {role.value: 0 for role in Role} | {IN_PROGRESS: ledger.spec.bytes_per_chunk}
        for entry in ledger.entries.values():
            held[entry.role.value] += ledger.spec.bytes_per_chunk
        assert held == question.session().by_role[t]


@pytest.mark.parametrize(("pages", "dtype"), [("fp8", torch.float8_e4m3fn), ("int8", torch.int8)])
def test_pages_in_codes_take_the_bytes_of_the_kernels(pages: Any, dtype: torch.dtype) -> None:
    for spec in backbone().specs().values():
        keys = empty_keys(spec.layers, spec.tokens_per_chunk, spec.width, dtype, "cpu")
        values = empty_values(spec.layers, spec.tokens_per_chunk, spec.width, dtype, "cpu")
        tensors = (keys.codes, keys.scale, keys.zero, values.codes, values.scale)
        assert page_bytes(spec, pages) == sum(x.nbytes for x in tensors)


def test_the_store_holds_of_scenes_that_were_left_what_was_planned() -> None:
    made = engine(sessions=1)  # sinks of one chunk, two anchors, three last chunks
    session = filled(made, 16)
    cuts = 3
    for cut in range(cuts):
        made.direct(session, Cut(f"scene {cut}", session.prompt.key), session.prompt)
        for _ in range(16):
            made.step([session])
    question = asked("random")
    transformer = Transformer.of(dict(made.backbone.config), "test")
    question = replace(
        question,
        model=replace(
            question.model,
            transformer=transformer,
            tokens={m: made.backbone.geometry.tokens(m) for m in Modality},
            element_bytes=4,
        ),
        keeping=replace(
            question.keeping, scenes=made.config.cache.scenes, budgets=made.policy.budgets, durability="none"
        ),
        demand=replace(question.demand, cuts_hour=float(cuts), returns_hour=0.0, take_hours=1.0),
    )
    held = made.staging.tier.statistics().bytes_held  # type: ignore[attr-defined]
    assert held == store_needs(question).records.value


# -- the plan


def test_every_limit_holds_for_the_plan_and_the_first_is_broken_by_one_more() -> None:
    for model, gpu in (("ltx-2", "h200"), ("ltx-2", "b200"), ("toy", "cpu"), ("toy", "h100")):
        found = plan(asked(model, gpu))
        assert found.sessions >= 1
        assert all(limit.used.value <= limit.available.value for limit in found.limits)
        assert found.binding.sessions == found.sessions


SIZES = st.integers(0, 6)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    video = RoleBudget(draw(st.integers(0, 1)), draw(SIZES), draw(SIZES), draw(SIZES), draw(st.integers(1, 8)))
    more = draw(st.integers(0, 4))
    audio = replace(video, recent=video.recent + more)
    question = asked("ltx-2", draw(st.sampled_from([m for m in MACHINES if m != "cpu"])))
    keeping = replace(question.keeping, budgets=Budgets(video, audio, audio, video), passes=draw(st.integers(1, 8)))
    return replace(question, keeping=keeping, demand=Demand(spare=draw(st.floats(0, 0.5))))


@examples(max_examples=60, deadline=None)
@given(questions(), st.floats(1.0, 3.0))
def test_more_of_a_machine_never_fits_less_and_one_more_session_never_fits(question: Question, more: float) -> None:
    found = plan(question)
    machine = question.machine
    for name in ("memory_bytes", "memory_bytes_s", "host_bytes", "link_bytes_s"):
        figure = getattr(machine, name)
        larger = replace(machine, **{name: replace(figure, value=figure.value * more)})
        assert plan(replace(question, machine=larger)).sessions >= found.sessions
    if found.sessions < MOST:
        _, use, available = uses_of(question)[found.binding.name]
        assert use(found.sessions + 1).value > available.value


@examples(max_examples=40, deadline=None)
@given(questions())
def test_a_smaller_keep_set_never_fits_fewer(question: Question) -> None:
    least = Budgets.uniform(RoleBudget(0, 0, 0, 0, 1))
    smaller = replace(question, keeping=replace(question.keeping, budgets=least))
    assert plan(smaller).sessions >= plan(question).sessions


def test_nothing_is_more_certain_than_what_it_rests_on() -> None:
    kinds = [computed(1), measured(1), sheet(1), assumed(1)]
    for i, worse in enumerate(kinds):
        assert all(derived(2, (better, worse)).source is worse.source for better in kinds[: i + 1])
    found = plan(asked())
    assert found.session.total == found.device[-2][1].value
    assert found.device[-2][1].source is Source.COMPUTED
    assert found.step_s.source is Source.ASSUMED  # a data sheet and an assumed share of it


def test_what_would_move_the_limit_is_the_plan_with_that_changed() -> None:
    question = asked("ltx-2", "h100")
    found = {w.change: w for w in what_ifs(question)}
    assert plan(question).sessions == 0  # with its text encoder on the device
    elsewhere = found["text encoder elsewhere"]
    assert elsewhere.plan.sessions == 1
    assert not elsewhere.built
    assert found["on h200"].plan.sessions == plan(asked("ltx-2", "h200")).sessions
    assert found["on h200"].built
    pages = found["pages in int8"]
    assert pages.plan.session.total < 0.51 * plan(question).session.total
    halved = next(w for change, w in found.items() if change.startswith("half the recent chunks of video types"))
    assert halved.how == "budgets.video_self.recent: 4 budgets.video_to_audio.recent: 4"
    roles = halved.plan.session.by_role[TYPES[0]]
    assert roles["recent"] * 2 == question.session().by_role[TYPES[0]]["recent"]


def test_a_disk_takes_what_host_memory_need_not_hold() -> None:
    question = asked("ltx-2", "b200")
    disk = replace(question, keeping=replace(question.keeping, tiers=replace(question.keeping.tiers, disk="/nvme")))
    assert plan(question).binding.name == "host memory"
    assert plan(disk).sessions > plan(question).sessions
    assert {"disk", "disk write"} <= {limit.name for limit in plan(disk).limits}
    assert store_bytes(plan(disk))[0] / plan(disk).sessions < store_bytes(plan(question))[0] / plan(question).sessions


def test_keep_sets_that_no_engine_would_take_are_not_planned_for() -> None:
    with pytest.raises(BudgetError, match="need 42 position slots but the model was trained on 31"):
        asked("ltx-2", "h200", budgets=frozen(recent=34))


def frozen(**roles: int) -> "Frozen":
    return Frozen({t.value: dict(roles) for t in TYPES})


class Frozen(dict[str, Any]):
    """A mapping that a cached function may be asked with."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


def test_unknown_machines_and_models_are_answered_with_those_that_are_known() -> None:
    with pytest.raises(
        ConfigError, match=r"gpu is 'h900', which is not known; expected one of h100, h200, b200, .*cpu"
    ):
        machine_named("h900")
    assert machine_named("RTX 4090") is MACHINES["rtx4090"]
    with pytest.raises(ConfigError, match=r"model is 'nobody/nothing'.* expected toy, random, ltx-2, ltx-2.3, or"):
        asked("nobody/nothing")


# -- measurements


def capacity(**figures: Any) -> dict[str, Any]:
    configuration = {"gpu": "cpu", "model": "toy", "chunk_operations": 4e9}
    return {"name": "capacity", "configuration": configuration, "figures": figures}


def with_measured(plain: Any, model: str = "toy", gpu: str = "cpu") -> Plan:
    question = asked(model, gpu)
    return plan(parse_measured(plain, "my.json").applied(question, question))


def test_what_the_benchmark_measures_is_what_a_plan_reads(tmp_path: Path) -> None:
    figures = rates(torch.device("cpu"), quick=True) | disk(tmp_path, quick=True)
    assert set(figures) <= {*RATES, "matrix_ops_s"}
    assert not list(tmp_path.iterdir())
    plain = capacity(**figures, step_s={"1": 0.1, "4": 0.25})
    found = with_measured(plain)
    machine = found.question.machine
    assert machine.bandwidth == measured(figures["memory_bytes_s"], "my.json")
    assert machine.rate("float32").source is Source.MEASURED
    assert found.question.steps is not None
    # 0.05 s and 0.05 s each, times 1.08 for the operations: ten sessions would be 0.60 s of the 0.576 s.
    assert found.sessions == 9
    assert found.step_s.source is Source.ASSUMED  # scaled: the plan's keep-set has other operations than were timed


def test_times_that_were_measured_with_the_planned_keep_set_are_shown_as_measured() -> None:
    plain = capacity(step_s={"1": 0.1, "4": 0.25})
    question = asked("toy", "cpu")
    plain["configuration"]["chunk_operations"] = (question.keeping.passes + COMMIT) * question.operations()
    found = with_measured(plain)
    assert found.step_s.source is Source.MEASURED
    assert found.step_s.value == pytest.approx(0.05 + found.sessions * 0.05)
    assert found.binding.used.source is Source.MEASURED


def test_the_plan_of_the_measured_service_lies_where_it_was_seen_to_miss_its_deadlines() -> None:
    plain = json.loads((RESULTS / "serve.json").read_text())
    missed = {int(n): row["misses"] for n, row in plain["figures"]["played"].items()}
    found = with_measured(plain)
    assert found.step_s.source is Source.MEASURED
    at_ease = max(n for n, share in missed.items() if share < 0.05)
    too_many = min(n for n, share in missed.items() if share > 0.5)
    assert at_ease <= found.sessions < too_many


def test_what_other_benchmarks_left_says_what_the_store_reaches() -> None:
    disk_file, way = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("restore", "transfer"))
    on_gpu = with_measured(disk_file, model="ltx-2", gpu="h200").question.machine
    assert on_gpu.disk_read_bytes_s == measured(1e9 * disk_file["figures"]["256 MiB"]["get cold (disk)"], "my.json")
    assert on_gpu.disk_write_bytes_s.source is Source.MEASURED
    found = with_measured(way)
    assert found.question.machine.link.value == 1e9 * way["figures"]["shared, ray 256 MiB"]["put"]
    assert found.returns.host_s.source is Source.MEASURED
    with pytest.raises(ConfigError, match="measured on 'cpu'; expected a file of 'h200'"):
        with_measured(way, model="ltx-2", gpu="h200")


@pytest.mark.parametrize(
    ("plain", "gpu", "message"),
    [
        (capacity(link_bytes_s=1e9), "h100", r"my.json was measured on 'cpu'; expected a file of 'h100'"),
        (capacity(speed=1), "cpu", r"my.json has speed; expected memory_bytes"),
        (capacity(link_bytes_s=0), "cpu", r"link_bytes_s of my.json is 0; expected more than 0"),
        (capacity(link_bytes_s="fast"), "cpu", r"my.json is no measurement"),
        (
            {"name": "traffic", "figures": {}, "configuration": {}},
            "cpu",
            r"benchmark 'traffic'; expected capacity, serve",
        ),
        ([1, 2], "cpu", r"my.json is no measurement"),
        ({"name": "serve", "figures": {}, "configuration": {}}, "cpu", r"my.json is no measurement"),
    ],
)
def test_measurements_of_something_else_are_refused(plain: Any, gpu: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_measured(plain, gpu=gpu)


def test_chunk_times_of_another_model_are_not_taken_for_this_ones() -> None:
    with pytest.raises(ConfigError, match="times chunks of 'toy', not of 'random'"):
        with_measured(capacity(step_s={"1": 0.1}), model="random")
    found = with_measured(capacity(step_s={"1": 0.1}, memory_bytes_s=1e10), model="random")
    assert found.question.steps is None
    assert found.question.machine.bandwidth.source is Source.MEASURED


def lines_of(found: Plan) -> Mapping[str, float]:
    return {name: figure.value for name, figure in found.device}


def test_prompts_are_counted_up_to_the_bound_of_their_cache() -> None:
    question = asked("ltx-2.3", "h200")
    assert lines_of(plan(question))["prompts"] == question.keeping.text_bytes  # by noise level, for thirteen scenes
    once = replace(question, demand=replace(question.demand, cuts_hour=0.0))
    text = question.model.transformer.text_bytes(question.demand.text_tokens, 2)
    found = plan(once)
    assert lines_of(found)["prompts"] == found.sessions * (question.keeping.passes + 1) * text

"""What would move the limit: the same plan with one thing changed, computed, each with what would have to be done."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from cache.keep_set import Budgets, Role, RoleBudget
from cache.spec import TYPES, AttentionType, Modality
from errors import BudgetError
from sizing.machines import CPU, MACHINES
from sizing.pages import FORMATS
from sizing.plan import Plan, plan
from sizing.question import TEXT_ENCODER, Question

NOT_BUILT = "not built: "
VIDEO = tuple(t for t in TYPES if t.keyed_by is Modality.VIDEO)


@dataclass(frozen=True)
class WhatIf:
    """A change, how it is made (a setting, or that it is not built), and what the plan comes to with it."""

    change: str
    how: str
    plan: Plan

    @property
    def built(self) -> bool:
        """Whether a setting or another machine is all that it takes."""
        return not self.how.startswith(NOT_BUILT)


def what_ifs(question: Question) -> list[WhatIf]:
    """Every change that can be made to ``question``, in the order: keep-set, pages, model, stores, machine."""
    changes = (
        *_wider(question),
        *_budgets(question),
        *_pages(question),
        *_model(question),
        *_stores(question),
        *_machines(question),
    )
    return [WhatIf(change, how, plan(changed)) for change, how, changed in changes]


def _wider(question: Question) -> Iterator[tuple[str, str, Question]]:
    """As many recent chunks as the position slots allow without a session less."""
    budgets, sessions = question.keeping.budgets, plan(question).sessions
    before = budgets.widest(Role.RECENT)
    most = question.keeping.position_slots - sum(budgets.widest(role) for role in Role) - 1 + before
    for recent in range(most, before, -1):
        changed = _keeping(question, budgets=_of({t: replace(b, recent=recent) for t, b in budgets.items()}))
        if plan(changed).sessions >= max(1, sessions):
            yield f"all types with {recent} recent chunks, as many as fit", f"budgets.*.recent: {recent}", changed
            return


def _budgets(question: Question) -> Iterator[tuple[str, str, Question]]:
    budgets = question.keeping.budgets
    for types, name in ((VIDEO, "video types"), *(((t,), t.value) for t in TYPES)):
        halved = {t: replace(b, recent=max(1, b.recent // 2)) if t in types else b for t, b in budgets.items()}
        try:
            changed = _of(halved)
        except BudgetError:
            continue  # audio memory has to reach as far as video memory
        if changed != budgets:
            count = halved[types[0]].recent
            how = " ".join(f"budgets.{t}.recent: {count}" for t in types)
            yield (
                f"half the recent chunks of {name} ({budgets[types[0]].recent} → {count})",
                how,
                _keeping(question, budgets=changed),
            )


def _pages(question: Question) -> Iterator[tuple[str, str, Question]]:
    for pages in FORMATS:
        if pages != question.keeping.pages:
            how = f"engine.pages: {pages}"
            name = question.model.dtype if pages == "exact" else pages
            yield f"pages in {name}", how, _keeping(question, pages=pages)


def _model(question: Question) -> Iterator[tuple[str, str, Question]]:
    keeping, model = question.keeping, question.model
    if keeping.passes > 1:
        yield (
            f"one pass less ({keeping.passes} → {keeping.passes - 1})",
            "engine.schedule.sigmas, if the checkpoint can do it",
            _keeping(question, passes=keeping.passes - 1),
        )
    if model.element_bytes == 2 and "fp8" in question.machine.matrix_ops_s:
        changed = replace(question, model=replace(model, weight_bytes=1, rate="fp8"))
        yield "weights and matrices in fp8", f"{NOT_BUILT}model.dtype has no fp8", changed
    if TEXT_ENCODER in model.others:
        others = {name: size for name, size in model.others.items() if name != TEXT_ENCODER}
        yield (
            "text encoder elsewhere",
            f"{NOT_BUILT}a generator has its own",
            replace(question, model=replace(model, others=others)),
        )


def _stores(question: Question) -> Iterator[tuple[str, str, Question]]:
    keeping, demand = question.keeping, question.demand
    if not keeping.tiers.disk:
        changed = _keeping(question, tiers=replace(keeping.tiers, disk="disk"))
        yield "records on disk too", "service.restore: {disk: FOLDER, disk_bytes: N}", changed
    for codec in ("planes", "int8"):
        if codec != keeping.tiers.host_codec and not (codec == "int8" and keeping.durability == "kv"):
            yield (
                f"records packed by {codec}",
                f"service.restore: {{host_codec: {codec}, disk_codec: {codec}}}",
                _keeping(question, tiers=replace(keeping.tiers, host_codec=codec, disk_codec=codec)),
            )
    for durability in ("none", "latents", "kv"):
        if durability != keeping.durability and not (durability == "kv" and not keeping.tiers.lossless):
            yield (
                f"durability {durability}",
                f"service.durability: {durability}",
                _keeping(question, durability=durability),
            )
    if demand.away:
        changed = replace(question, demand=replace(demand, away=demand.away / 2))
        yield "half as many streams put away", "service.pace.away_s", changed
    for generators in (demand.generators * 2, demand.generators // 2):
        if generators:
            changed = shared(question, generators)
            yield (
                f"a store for {generators} generators, with the host of {demand.generators}",
                "nodes with that many",
                changed,
            )


def shared(question: Question, generators: int) -> Question:
    """The same host memory, link and disks for another number of generators."""
    share, machine = question.demand.generators / generators, question.machine
    names = ("host_bytes", "disk_bytes", "disk_read_bytes_s", "disk_write_bytes_s")
    parts = {name: replace(getattr(machine, name), value=getattr(machine, name).value * share) for name in names}
    return replace(question, machine=replace(machine, **parts), demand=replace(question.demand, generators=generators))


def _machines(question: Question) -> Iterator[tuple[str, str, Question]]:
    for name, machine in MACHINES.items():
        if name not in (question.machine.name, CPU) and question.machine.name != CPU:
            # What was measured on one machine says nothing of another.
            yield f"on {name}", "another machine", replace(question, machine=machine, steps=None, media_s=None)


def _keeping(question: Question, **changes: object) -> Question:
    return replace(question, keeping=replace(question.keeping, **changes))  # type: ignore[arg-type]


def _of(budgets: Mapping[AttentionType, RoleBudget]) -> Budgets:
    return Budgets(**{t.value: budget for t, budget in budgets.items()})

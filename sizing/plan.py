"""The plan: how many sessions fit, by which limit, what it costs, and how long what comes back takes."""

from collections.abc import Callable
from dataclasses import dataclass

from cache.spec import Modality
from sizing.chunk_time import ChunkTime
from sizing.figures import Figure, assumed, computed, derived
from sizing.pages import SessionBytes
from sizing.question import Question
from sizing.stores import HOUR, StoreNeeds, disk_bytes, store_needs

MOST = 4096  # sessions that a generator is planned for at most
WIDTHS = 24  # of a token, that lie on the device at once in a pass: assumed, 4 of them in the feed-forward
Use = Callable[[int], Figure]


@dataclass(frozen=True)
class Limit:
    """One thing that may run out.

    Args:
        unit: ``bytes``, ``s`` or ``bytes/s``.
        sessions: that it allows; ``MOST`` where it is no limit.
        used: by the sessions of the plan; ``available``: without what is to be left over.
    """

    name: str
    unit: str
    sessions: int
    used: Figure
    available: Figure


@dataclass(frozen=True)
class Return:
    """What the return of a scene takes at most, and what may be spent between two chunks.

    ``host_s``, ``disk_s``: to load all of it; ``rebuild_s``: to encode it from its latents; ``chunks``: over how many
    chunks it comes in by the quickest way if no chunk may wait longer; 0 if nothing comes back.
    """

    nbytes: Figure
    host_s: Figure
    disk_s: Figure
    rebuild_s: Figure
    allowance_s: Figure
    chunks: int


@dataclass(frozen=True)
class Plan:
    """What a question comes to. ``sessions`` is of one generator; it is what is to be admitted."""

    question: Question
    session: SessionBytes
    device: tuple[tuple[str, Figure], ...]
    host: tuple[tuple[str, Figure], ...]
    limits: tuple[Limit, ...]
    sessions: int
    first_chunk_s: Figure
    pass_s: Figure
    step_s: Figure
    slack_s: Figure
    returns: Return
    needs: StoreNeeds
    cost_hour: Figure | None

    @property
    def binding(self) -> Limit:
        """The limit that is reached first."""
        return min(self.limits, key=lambda limit: limit.sessions)


def plan(question: Question) -> Plan:
    """Compute what ``question`` comes to. Nothing is read and nothing is measured here."""
    needs, time = store_needs(question), ChunkTime(question)
    uses = uses_of(question)
    allowed = {name: _most(use, available) for name, (_, use, available) in uses.items()}
    sessions = min(allowed.values())
    limits = tuple(
        Limit(name, unit, allowed[name], use(max(1, sessions)), available)
        for name, (unit, use, available) in uses.items()
    )
    step = time.step_s(max(1, sessions))
    slack = derived(max(0.0, question.model.chunk_seconds - step.value), (step,))
    price = question.machine.price_hour
    return Plan(
        question,
        question.session(),
        tuple(_device(question, needs, max(1, sessions))),
        tuple(_host(question, needs, max(1, sessions))),
        limits,
        sessions,
        time.step_s(1, question.keeping.first_passes),
        time.pass_s(1),
        step,
        slack,
        _returns(question, needs, time, slack),
        needs,
        derived(price.value / sessions, (price, *(limit.used for limit in limits))) if sessions else None,
    )


def _most(use: Use, available: Figure) -> int:
    """The most sessions whose use is within what there is; more sessions never use less."""
    low, high = 0, MOST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if use(middle).value <= available.value else (low, middle - 1)
    return low


def uses_of(question: Question) -> dict[str, tuple[str, Use, Figure]]:
    """What may run out, by name: its unit, what so many sessions use of it, and what there is to be used."""
    needs, time = store_needs(question), ChunkTime(question)
    machine, left = question.machine, 1 - question.demand.spare

    def scaled(figure: Figure) -> Figure:
        return derived(figure.value * left, (figure,), figure.note)

    found: dict[str, tuple[str, Use, Figure]] = {
        "device memory": ("bytes", lambda n: _total(_device(question, needs, n)), machine.memory_bytes),
        "chunk time": ("s", time.step_s, computed(question.model.chunk_seconds * left)),
        "host memory": ("bytes", lambda n: _total(_host(question, needs, n)), scaled(machine.host_bytes)),
        "host link": ("bytes/s", lambda n: _times(n, needs.offload_s), scaled(machine.link)),
    }
    if question.keeping.tiers.disk:
        found["disk"] = ("bytes", lambda n: disk_bytes(question, needs, n), scaled(machine.disk_bytes))
        found["disk write"] = ("bytes/s", lambda n: _times(n, needs.offload_s), scaled(machine.disk_write_bytes_s))
    return found


def _device(question: Question, needs: StoreNeeds, sessions: int) -> list[tuple[str, Figure]]:
    """What lies on the device of one generator, by name."""
    model, keeping = question.model, question.keeping
    text = model.transformer.text_bytes(question.demand.text_tokens, model.element_bytes)
    levels = keeping.passes + 1 if model.transformer.text_by_level else 1
    scenes = 1 + min(keeping.scenes.max_scenes - 1.0, question.demand.cuts_hour * question.demand.take_hours)
    prompts = min(float(keeping.text_bytes), sessions * scenes * levels * text)
    kept = max(budget.places for budget in keeping.budgets.values())
    rows = min(sessions, keeping.batch)
    video = model.tokens[Modality.VIDEO] * model.transformer.width(Modality.VIDEO)
    audio = model.tokens[Modality.AUDIO] * model.transformer.width(Modality.AUDIO)
    return [
        ("weights", model.weights),
        *model.others.items(),
        ("driver and libraries", question.machine.context_bytes),
        ("prompts", assumed(prompts, "prompts of all scenes, at most the cache's bound")),
        ("passes", assumed(rows * WIDTHS * (video + audio) * model.element_bytes, f"{WIDTHS} widths of a token")),
        ("leaving for the store", _leaving(question, needs, sessions)),
        ("pool", computed(sessions * question.session().total)),
        ("latents kept", computed(sessions * kept * model.latents_bytes)),
    ]


def _leaving(question: Question, needs: StoreNeeds, sessions: int) -> Figure:
    """What is on its way from device to host at most: scenes that are left, up to the bound."""
    most = sessions * needs.scene_bytes.value
    return derived(min(float(question.keeping.leaving_bytes), most), (needs.scene_bytes,))


def _host(question: Question, needs: StoreNeeds, sessions: int) -> list[tuple[str, Figure]]:
    """What lies in host memory for one generator, by name: of the generator, and of its share of a restore store."""
    keeping, demand = question.keeping, question.demand
    slots, prefetch = recommended_slot_bytes(question), recommended_prefetch_bytes(question, needs)
    return [
        ("slots to the store", computed(keeping.slots * slots)),
        ("prefetched", computed(prefetch)),
        ("leaving the device", _leaving(question, needs, sessions)),
        ("keys as first written", _times(sessions, needs.moved)),
        ("records", _times(sessions, needs.hot)),
        ("put away", derived(sessions * demand.away * needs.away.value, (needs.away, assumed(1.0)))),
    ]


def recommended_slot_bytes(question: Question) -> int:
    """Bytes of a slot to the store that takes a chunk of the largest attention type, with its head, in whole MiB."""
    largest = max(spec.bytes_per_chunk for spec in question.model.specs().values())
    return max(question.keeping.slot_bytes, _mebibytes(largest + (64 << 10)))


def recommended_prefetch_bytes(question: Question, needs: StoreNeeds) -> int:
    """Bytes of the area for what was prefetched that takes one return, in whole MiB."""
    latents = needs.return_chunks * question.model.latents_bytes
    return max(question.keeping.prefetch_bytes, _mebibytes(int(needs.return_bytes.value) + latents))


def _mebibytes(nbytes: int) -> int:
    return -(-nbytes // (1 << 20)) << 20


def _returns(question: Question, needs: StoreNeeds, time: ChunkTime, slack: Figure) -> Return:
    machine, one = question.machine, time.pass_s(1)
    nbytes = needs.return_bytes
    host = derived(nbytes.value / machine.link.value, (machine.link,))
    disk = derived(nbytes.value / machine.disk_read_bytes_s.value + host.value, (machine.disk_read_bytes_s, host))
    rebuild = derived(needs.return_chunks * one.value, (one,))
    allowance = derived(question.keeping.restore_share * slack.value, (slack,))
    load = disk if question.keeping.tiers.disk else host
    soonest = min(load.value, rebuild.value)
    chunks = -(-soonest // allowance.value) if allowance.value else 0.0
    return Return(nbytes, host, disk, rebuild, allowance, int(chunks))


def _times(count: float, figure: Figure) -> Figure:
    return derived(count * figure.value, (figure,), figure.note)


def _total(parts: list[tuple[str, Figure]]) -> Figure:
    return derived(sum(figure.value for _, figure in parts), [figure for _, figure in parts])


def store_bytes(found: Plan) -> tuple[int, int]:
    """Host memory that the restore store of one node is to be given: for records, and for what is put away."""
    sessions = found.sessions * found.question.demand.generators
    records = sessions * found.needs.hot.value
    away = sessions * found.question.demand.away * found.needs.away.value
    return _mebibytes(max(int(records), 64 << 20)), _mebibytes(max(int(away), 64 << 20))


def take_hour_bytes(found: Plan) -> Figure:
    """What an hour of one take adds to the restore store, while its scenes are fewer than are remembered."""
    needs = found.needs
    cuts = min(found.question.demand.cuts_hour, found.question.keeping.scenes.max_scenes - 1)
    return derived(cuts * needs.scene_bytes.value, (needs.records,))


def written_hour_bytes(found: Plan) -> Figure:
    """What an hour of one take sends to the restore store."""
    return derived(HOUR * found.needs.offload_s.value, (found.needs.offload_s,))

"""What a session needs outside of the pool: host memory, disk, and bytes a second on the way there and back."""

from dataclasses import dataclass

from cache.spec import TYPES
from sizing.figures import Figure, Source, assumed, computed, derived
from sizing.question import Question

HOUR = 3600.0
PUBLISHED = 12  # newest chunks whose published latents are kept where something must survive (streams/durability.py)
GROUP = 64  # elements that share a scale in the store's codecs
PLANES = 1 / 1.5  # of bfloat16, measured on the toy model (docs/decisions/0010)
SCALES = 1.5  # ends of a group: two for keys, one for values


def packed(codec: str, element_bytes: int) -> Figure:
    """Bytes that a codec of the restore store leaves of one byte."""
    kind, budget = codec.partition("@")[::2]
    bits = 8 * element_bytes
    if kind == "exact":
        return computed(1.0)
    if kind == "planes":
        return assumed(PLANES, "planes: 1.5 times smaller, measured on the toy model")
    ratio = ({"int4": 4, "int8": 8, "fp8": 8}[kind] + SCALES * bits / GROUP) / bits
    return assumed(ratio, "some matrices climb to more exact codes") if budget else computed(ratio)


@dataclass(frozen=True)
class StoreNeeds:
    """Bytes and bytes a second of one session, beside its pages.

    Args:
        return_bytes: keys and values that come back at most when a scene returns, as they are on the device.
        return_chunks: how many chunks that is.
        scene_bytes: that leave at most when a scene is left.
        records: what the restore store holds of a running session; ``hot``: of it in host memory, which is all without
            a disk, and with one the scene that was left last; ``moved``: keys as they were first written.
        away: of a stream that is put away.
        disk: of its records on disk.
        offload_s: bytes a second to the store, on average.
    """

    return_bytes: Figure
    return_chunks: int
    scene_bytes: Figure
    records: Figure
    hot: Figure
    moved: Figure
    away: Figure
    disk: Figure
    offload_s: Figure


def store_needs(question: Question) -> StoreNeeds:
    """Of one session of this question; bounds, as if every budget were full and every codec at its stated size."""
    keeping, demand, model = question.keeping, question.demand, question.model
    specs = {t: spec.held_as(keeping.pages) for t, spec in model.specs().items()}
    chunk = sum(specs[t].bytes_per_chunk for t in TYPES)
    native = sum(specs[t].maximum_bytes(keeping.budgets[t].places - 1) for t in TYPES)
    scenes = keeping.scenes
    remembered = scenes.sink_chunks + scenes.anchors + scenes.last_chunks if keeping.remembers else 0
    b = keeping.budgets
    back = sum(
        specs[t].bytes_per_chunk * (b[t].scene_sink + b[t].scene_anchor + min(b[t].restored, scenes.last_chunks))
        for t in TYPES
    ) if keeping.remembers else 0  # fmt: skip
    most = max(b[t].scene_sink + b[t].scene_anchor + min(b[t].restored, scenes.last_chunks) for t in TYPES)
    known = _scenes(question)
    host, disk = (
        computed(1.0) if keeping.pages != "exact" else packed(codec, model.element_bytes)  # codes are not packed again
        for codec in (keeping.tiers.host_codec, keeping.tiers.disk_codec)
    )
    keys_values = known * (remembered + (scenes.last_chunks if demand.returns_hour else 0)) * chunk * bool(remembered)
    keys_values += native if keeping.durability == "kv" else 0
    kept = max(b[t].places for t in TYPES)
    latents = model.latents_bytes * (known * remembered + (kept + PUBLISHED if keeping.durability != "none" else 0))
    records = _within(keys_values * host.value + latents, keeping.tiers.session_bytes)
    on_disk = _within(keys_values * disk.value + latents, keeping.tiers.session_bytes)
    last = _within(remembered * chunk * host.value + latents, int(records))
    hot = last if keeping.tiers.disk else records
    moved = native // 2 if keeping.moves else 0
    leaving = (demand.cuts_hour + demand.returns_hour) / HOUR * remembered * chunk
    steady = {"none": 0, "latents": 2 * model.latents_bytes, "kv": chunk + 2 * model.latents_bytes}[keeping.durability]
    people = assumed(1.0, "cuts and returns per hour")
    return StoreNeeds(
        computed(back),
        most if keeping.remembers else 0,
        computed(remembered * chunk),
        derived(records, (host, people)),
        derived(hot, (host, people)),
        computed(moved, "keys as they were first written, at most"),
        derived(native + moved + records + kept * model.latents_bytes, (host, people)),
        derived(on_disk, (disk, people)),
        derived(leaving + steady / model.chunk_seconds, (people,)),
    )


def _scenes(question: Question) -> float:
    """Scenes that a take remembers beside the one on air, when it ends."""
    made = question.demand.cuts_hour * question.demand.take_hours
    return min(question.keeping.scenes.max_scenes - 1.0, made)


def _within(nbytes: float, quota: int | None) -> float:
    return nbytes if quota is None else min(nbytes, float(quota))


def disk_bytes(question: Question, needs: StoreNeeds, sessions: int) -> Figure:
    """Of so many running sessions, and of those that were lost and wait for their time to live to end."""
    ttl, demand = question.keeping.tiers.ttl_s, question.demand
    lost = demand.lost_hour * (demand.take_hours if ttl is None else ttl / HOUR)
    return Figure(sessions * (1 + lost) * needs.disk.value, Source.ASSUMED, "cuts, takes and losses are assumed")

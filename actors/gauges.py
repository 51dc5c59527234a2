"""What an engine holds, as gauges of ``actors.metrics``."""

from collections.abc import Sequence

import torch

from actors.staging import FAILURES, REASONS, Staging
from cache.drift import Rung
from cache.keep_set import Role
from cache.spec import TYPES
from streams.engine import Engine
from streams.stream import Stream

Gauge = tuple[str, dict[str, str], float]


def gauges(engine: Engine, streams: Sequence[Stream]) -> list[Gauge]:
    """Name, tags and value of each."""
    pool, tier = engine.pool.statistics(), engine.store
    found: list[Gauge] = [
        ("pool_bytes", {"what": "held"}, sum(pool.held_bytes.values())),
        ("pool_bytes", {"what": "capacity"}, sum(pool.capacity_bytes.values())),
        ("store_refused", {}, getattr(tier, "refused", 0)),
        ("store_unmirrored", {}, getattr(tier, "unmirrored", 0)),
        ("store_failures", {}, getattr(tier, "failures", 0)),
        *gpu(engine.pool.device),
    ]
    slots = getattr(tier, "staging", None)
    if isinstance(slots, Staging):
        found += transfers(slots)
    staging, restored = engine.staging.statistics(), engine.fetcher.restored
    outcomes = ("hits", "late", "misses", "refused", "dropped")
    found += [("prefetched", {"outcome": outcome}, getattr(staging, outcome)) for outcome in outcomes]
    found += [
        ("staging_bytes", {"what": "held"}, staging.bytes_held),
        ("staging_bytes", {"what": "budget"}, staging.budget_bytes),
        ("restore_seconds", {"what": "predicted"}, restored.predicted_s),
        ("restore_seconds", {"what": "taken"}, restored.taken_s),
        *(
            ("restores", {"tier": tier, "verdict": verdict}, count)
            for (tier, verdict), count in restored.verdicts.items()
        ),
    ]
    managers = [stream.session.manager for stream in streams]
    for rung in Rung:
        found.append(("repair_rung", {"rung": rung.name.lower()}, sum(m.drift.rung is rung for m in managers)))
    held = [manager.statistics().types for manager in managers]
    for t in TYPES:
        for role in Role:
            value = sum(types[t].bytes_by_role[role] for types in held)
            found.append(("cache_bytes", {"type": t.value, "role": role.value}, value))
    return found


def gpu(device: torch.device) -> list[Gauge]:
    """Bytes of a GPU by torch, and by all who use it; nothing where there is none."""
    if device.type != "cuda":
        return []
    free, capacity = torch.cuda.mem_get_info(device)
    found = {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "used": capacity - free,
        "capacity": capacity,
    }
    return [("gpu_bytes", {"what": what}, float(n)) for what, n in found.items()]


def transfers(staging: Staging) -> list[Gauge]:
    """What went to the restore store and back, and what became of its slots."""
    slots = staging.book.statistics()
    failures = {**dict.fromkeys(FAILURES.values(), 0), **staging.failures}
    inline = {**dict.fromkeys(REASONS, 0), **staging.inline}
    return [
        *(("transfer_bytes", {"direction": d, "path": p}, float(n)) for (d, p), n in staging.moved.copy().items()),
        *(("transfer_inline", {"reason": reason}, float(n)) for reason, n in inline.items()),
        *(("transfer_failures", {"what": what}, float(n)) for what, n in failures.items()),
        *(("transfer_slots", {"use": u}, float(getattr(slots, u))) for u in ("free", "leased", "held", "grave")),
        ("transfer_graveyard_bytes", {}, float(staging.graveyard_bytes)),
    ]

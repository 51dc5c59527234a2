"""What an engine holds, as gauges of ``actors.metrics``."""

from collections.abc import Sequence

from cache.drift import Rung
from cache.keep_set import Role
from cache.spec import TYPES
from streams.engine import Engine
from streams.stream import Stream

Gauge = tuple[str, dict[str, str], float]


def gauges(engine: Engine, streams: Sequence[Stream]) -> list[Gauge]:
    """Name, tags and value of each."""
    pool, tier = engine.pool.statistics(), engine.tier
    found: list[Gauge] = [
        ("pool_bytes", {"what": "held"}, sum(pool.held_bytes.values())),
        ("pool_bytes", {"what": "capacity"}, sum(pool.capacity_bytes.values())),
        ("store_refused", {}, getattr(tier, "refused", 0)),
        ("store_unmirrored", {}, getattr(tier, "unmirrored", 0)),
        ("store_failures", {}, getattr(tier, "failures", 0)),
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

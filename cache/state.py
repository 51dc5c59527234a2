"""The state of a cache manager as plain data, and back: for snapshots, forks and the journal."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from cache.books import CacheConfig
from cache.drift import DriftControl, Reference, Rung
from cache.keep_set import Role
from cache.ledger import Entry, Ledger, Subject
from cache.manager import CacheManager
from cache.policies.base import Policy
from cache.positions import PositionMap
from cache.scenes import Scene
from cache.spec import TYPES, AttentionSpec, AttentionType
from cache.tiers import Holdings
from errors import TransactionError

Plain = dict[str, Any]


def dump(manager: CacheManager) -> Plain:
    """Everything the manager would need to go on elsewhere; only between chunks."""
    if manager.in_progress:
        raise TransactionError(f"chunk {manager.next_chunk} is in progress; commit or abort before dumping")
    positions = manager.positions
    return {
        "next_chunk": manager.next_chunk,
        "noted": manager.recorder.noted,
        "ledgers": {t.value: _dump_ledger(manager.ledgers[t]) for t in TYPES},
        "positions": [positions.next_slot, positions.subject, positions.epoch, dict(positions.slots)],
        "scenes": [_dump_scene(scene) for scene in manager.scenes.scenes.values()],
        "scene": manager.scenes.current_name,
        "drift": [int(manager.drift.rung), manager.drift.above, manager.drift.below, manager.drift.hold],
        "scores": manager.books.scores(),
        "log": [[d.at, d.action, d.chunk, d.type and d.type.value, d.reason] for d in manager.log],
        "log_dropped": manager.log.dropped,
    }


def load(
    plain: Plain,
    session: str,
    specs: Mapping[AttentionType, AttentionSpec],
    policy: Policy,
    config: CacheConfig,
    holdings: Holdings,
) -> CacheManager:
    """A manager that goes on where the dumped one stood, under the same policy and configuration."""
    manager = CacheManager(session, specs, policy, config, holdings)
    books = manager.books
    books.next_chunk = plain["next_chunk"]
    manager.recorder.noted = plain["noted"]
    for t in TYPES:
        _load_ledger(manager.ledgers[t], plain["ledgers"][t.value])
    next_slot, subject, epoch, slots = plain["positions"]
    books.positions = PositionMap(config.positions, next_slot, dict(slots), subject, epoch)
    manager.scenes.scenes = {s["name"]: _load_scene(s) for s in plain["scenes"]}
    manager.scenes.current_name = plain["scene"]
    rung, above, below, hold = plain["drift"]
    manager.drift = DriftControl(config.drift, Rung(rung), above, below, hold)
    books.load_scores(plain["scores"])
    for at, action, chunk, kind, reason in plain["log"]:
        manager.log.add(at, action, reason, chunk, kind and AttentionType(kind))
    manager.log.dropped = plain["log_dropped"]
    manager.check_integrity()
    return manager


def _dump_ledger(ledger: Ledger) -> Plain:
    subject = ledger.subject
    return {
        "entries": [[chunk, e.role.value, e.place, e.slot] for chunk, e in ledger.entries.items()],
        "subject": subject and [subject.chunk, subject.tokens, subject.score, subject.slot],
    }


def _load_ledger(ledger: Ledger, plain: Plain) -> None:
    ledger.entries = {chunk: Entry(Role(role), place, slot) for chunk, role, place, slot in plain["entries"]}
    ledger.subject = Subject(*plain["subject"]) if plain["subject"] else None
    used = {entry.place for entry in ledger.entries.values()}
    ledger.free = [place for place in ledger.free if place not in used]


def _dump_scene(scene: Scene) -> Plain:
    plain = asdict(scene)
    plain["reference"] = {m: [r.mean.tobytes(), r.std.tobytes(), r.chunks, r.usual] for m, r in scene.reference.items()}
    return plain


def _load_scene(plain: Plain) -> Scene:
    reference = {
        m: Reference(np.frombuffer(mean).copy(), np.frombuffer(std).copy(), chunks, usual)
        for m, (mean, std, chunks, usual) in plain["reference"].items()
    }
    return Scene(**{**plain, "reference": reference})

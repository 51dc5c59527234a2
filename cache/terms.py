"""What books are kept by, and the same as plain data that a journal can keep: every field by name, under a version.

A journal outlives the release that wrote it. So the plain form is spelled out here and not taken from the classes: who
adds a field to a configuration must say here what older journals mean, and raise ``VERSION``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cache.books import CacheConfig
from cache.drift import DriftConfig
from cache.keep_set import Budgets, RoleBudget
from cache.policies import HeavyHitter, Policy, SceneMemory, SinkRecent, SlidingWindow
from cache.positions import PositionConfig
from cache.scenes import SceneConfig
from cache.spec import TYPES, AttentionSpec, AttentionType
from errors import ConfigError, SnapshotMismatch

VERSION = 1
Plain = dict[str, Any]
ROLES = ("subject_anchor", "scene_sink", "scene_anchor", "restored", "recent", "max_bytes")
POSITIONS = ("slots", "memory", "move")
SCENES = ("max_scenes", "sink_chunks", "anchor_every", "anchors", "last_chunks", "recent_across_cut")
DRIFT = ("warmup_chunks", "ema_rate", "reference_threshold", "raise_threshold", "lower_threshold", "patience")
BY_MODALITY = ("strength", "strong")
POLICIES: Mapping[str, type[Policy]] = {
    "scene_memory": SceneMemory,
    "sliding_window": SlidingWindow,
    "sink_recent": SinkRecent,
    "heavy_hitter": HeavyHitter,
}


@dataclass(frozen=True)
class Terms:
    """What books are kept by: the same for all sessions of a generator."""

    specs: dict[AttentionType, AttentionSpec]
    policy: Policy
    config: CacheConfig


def plain_terms(terms: Terms) -> Plain:
    """Terms as plain data. Raises ``ConfigError`` for a policy that is none of the shipped ones."""
    sizes = [[t.value, *_sizes(spec)] for t, spec in terms.specs.items()]
    config = terms.config
    return {
        "version": VERSION,
        "specs": sizes,
        "policy": _plain_policy(terms.policy),
        "positions": _fields(config.positions, POSITIONS),
        "scenes": _fields(config.scenes, SCENES),
        "drift": _fields(config.drift, DRIFT) | {name: dict(getattr(config.drift, name)) for name in BY_MODALITY},
        "mass_decay": config.mass_decay,
        "log_capacity": config.log_capacity,
    }


def parse_terms(plain: Plain) -> Terms:
    """What ``plain_terms`` was given. Raises ``SnapshotMismatch`` if it is of another version."""
    if plain["version"] != VERSION:
        raise SnapshotMismatch(f"terms of books have version {plain['version']}; this release reads {VERSION}")
    specs = {AttentionType(t): AttentionSpec(AttentionType(t), *sizes) for t, *sizes in plain["specs"]}
    config = CacheConfig(
        PositionConfig(**plain["positions"]),
        SceneConfig(**plain["scenes"]),
        DriftConfig(**plain["drift"]),
        plain["mass_decay"],
        plain["log_capacity"],
    )
    return Terms(specs, _parse_policy(plain["policy"]), config)


def _sizes(spec: AttentionSpec) -> list[int | str]:
    """What ``AttentionSpec`` takes behind its type; the format is said only where it is not the default one."""
    sizes: list[int | str] = [spec.layers, spec.tokens_per_chunk, spec.width, spec.element_bytes]
    return sizes if spec.pages == "exact" else [*sizes, spec.pages]


def _plain_policy(policy: Policy) -> Plain:
    kind = next((name for name, kind in POLICIES.items() if type(policy) is kind), None)
    if kind is None:
        raise ConfigError(f"policy {type(policy).__name__} has no plain form; expected one of {', '.join(POLICIES)}")
    budgets = {t.value: _fields(policy.budgets[t], ROLES) for t in TYPES}
    return {"kind": kind, "budgets": budgets, "sinks": policy.sinks if isinstance(policy, SinkRecent) else 0}


def _parse_policy(plain: Plain) -> Policy:
    if plain["kind"] not in POLICIES:
        raise SnapshotMismatch(f"books are kept by {plain['kind']!r}; this release has {', '.join(POLICIES)}")
    budgets = Budgets(**{t: RoleBudget(**roles) for t, roles in plain["budgets"].items()})
    if plain["kind"] == "sink_recent":
        return SinkRecent(budgets, plain["sinks"])
    made: Callable[[Budgets], Policy] = POLICIES[plain["kind"]]
    return made(budgets)


def _fields(config: object, names: tuple[str, ...]) -> Plain:
    return {name: getattr(config, name) for name in names}

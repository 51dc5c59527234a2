"""The settings: one frozen tree made of the parts' own configurations. A default lives in the part that it is of."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, with_config

import models
from actors.handover import GRACE_S
from actors.journals import JournalSettings
from actors.limits import Limits
from actors.pace import Pace
from actors.staging import StagingConfig
from actors.telemetry import Telemetry
from actors.transport.choose import Transport
from cache.keep_set import Budgets
from cache.policies import ALL, Policy
from cache.tiered_config import TiersConfig
from errors import ConfigError, GeometryError
from media.encoding import Encoding
from scaling.rules import Balance, Fleet, Rules
from sizing import known_model
from streams.durability import Durability
from streams.engine_config import EngineConfig

RANDOM, TOY, TRAINED_FOR = "random", "toy", "longtake.json"
POLICIES: dict[str, type[Policy]] = {re.sub(r"(?<!^)(?=[A-Z])", "_", p.__name__).lower(): p for p in ALL}
RAYS_OWN = {"CPU", "GPU", "memory", "object_store_memory"}
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class ModelSettings:
    """Which weights, and where they run.

    Args:
        source: ``toy`` (the model that ships), ``random`` (weights drawn from ``seed``), ``ltx-2`` or ``ltx-2.3`` (of
            the hub), a hub id, a model folder or a ``.safetensors`` file.
        config: for a single file, the folder or hub id with the transformer's ``config.json``.
        dtype: by default that of the random weights (float32) or of the loader.
    """

    source: str = TOY
    config: str | None = None
    seed: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: str = "cpu"

    @property
    def path(self) -> str:
        """Where the weights are: ``source``, the folder of the model that ships, or the hub id of one that is known."""
        if self.source == TOY:
            return str(Path(models.__file__).parent / TOY)
        known = known_model(self.source)
        return self.source if known is None else known.hub


@dataclass(frozen=True)
class GeometrySettings:
    """A chunk as a person sees it: latent frames, *pixels*, frames per second of the decoded video."""

    frames: int = 2
    height: int = 64
    width: int = 96
    fps: float = 25.0

    def __post_init__(self) -> None:
        if self.fps < 1:
            raise GeometryError(f"geometry.fps is {self.fps}; expected at least 1 frame per second")


@dataclass(frozen=True)
class SegmenterSettings:
    """Who looks after the subject of a scene.

    Args:
        kind: ``toy`` (shipped with the toy model), ``sam3`` or ``clipseg`` (open vocabulary), or ``none``.
        source: hub id or folder of its weights; for ``toy`` by default ``segmenter/`` in the model's folder.
        every, threshold, coverage: see ``SubjectKeeper``.
    """

    kind: Literal["none", "toy", "sam3", "clipseg"] = "none"
    source: str = ""
    every: int = 8
    threshold: float = 0.5
    coverage: float = 0.3

    def __post_init__(self) -> None:
        if self.kind in ("sam3", "clipseg") and not self.source:
            raise ConfigError(f"segmenter.source is empty; expected the hub id or folder of a {self.kind} checkpoint")


@dataclass(frozen=True)
class ServiceSettings:
    """How the model is served.

    Args:
        gateways, generators: replicas of each.
        gateway_cpus: of one gateway, as Ray counts them.
        gateway_resources, generator_resources, segmenter_resources: custom resources of Ray that one of them takes, by
            name; so each goes to the nodes that have these. By default none.
        books_resources: the same for a shard of the ledger service and for the session directory, which go anywhere
            otherwise, and keep Ray's autoscaler from taking an idle node away that they are on.
        generators_max: generators that there are at most, as sessions and slack want; by default always ``generators``.
        fleet: when generators are added and taken away, see ``Fleet``; ``balance``: when sessions move between them.
        cpus, gpus: of one generator, as Ray counts them; a fraction of a GPU is allowed.
        ledgers: shards of the ledger service; ``journal``: what their books survive in.
        segmenters: replicas of the segmenter, where ``segmenter.kind`` wants one; ``segmenter_gpus`` of each.
        sight_s: a finding that takes longer is given up; the anchor waits for the next one.
        store: one restore store per ``node`` that has generators, or one in the ``cluster``, where ``store_resources``
            are (custom resources of Ray).
        mirror: with ``latents`` the restore store of a second node has the clean latents of what this one keeps, and
            the streams that are put away, so that sessions survive the loss of a node. Takes generators on two nodes.
        host_bytes: host memory of a restore store for evicted chunks; ``engine.host_bytes`` is for takes without a
            service.
        vault_bytes: host memory of a restore store for streams that are put away.
        transport: how chunks go to the restore store and back: through ``shared`` memory, where it is on the same
            machine, else within calls; by ``nixl`` (UCX), from wherever it is; or ``inline``, within calls.
        staging: the slots of a generator through which they go.
        restore: what is below a restore store's host memory, see ``TiersConfig``.
        store_key: where the key is that a restore store's disk is encrypted with: ``env:NAME`` or ``file:PATH``, 64
            hexadecimal digits; empty for no encryption.
        stuck_s: a step that takes longer is taken for stuck, and its generator replaced.
        grace_s: how long a generator that is told to stop, by an upgrade or because there are to be fewer, waits for
            places elsewhere for its sessions. Those that found none are put away then, and go on when asked for.
        surge_percent: generators that an upgrade may start beyond ``generators`` before it stops as many old ones, so
            that there are places at once; takes CPUs and GPUs that are free. With 0 old ones are stopped first.
        durability: what survives a generator's loss: ``none``; ``latents``, from which its sessions' memory is computed
            anew; or ``kv``, keys and values too, and they go on bit for bit. (``engine.durability`` is for takes
            without a service.)
        restore_share: ``engine.restore.share``, where viewers wait; that of the engine is for takes without a service.
    """

    gateways: int = 1
    generators: int = 1
    gateway_cpus: float = 0.0
    gateway_resources: dict[str, float] = field(default_factory=dict)
    generator_resources: dict[str, float] = field(default_factory=dict)
    segmenter_resources: dict[str, float] = field(default_factory=dict)
    books_resources: dict[str, float] = field(default_factory=dict)
    generators_max: int | None = None
    fleet: Fleet = field(default_factory=Fleet)
    balance: Balance = field(default_factory=Balance)
    cpus: float = 1.0
    gpus: float = 0.0
    ledgers: int = 1
    journal: JournalSettings = field(default_factory=JournalSettings)
    segmenters: int = 1
    segmenter_gpus: float = 0.0
    sight_s: float = 30.0
    store: Literal["node", "cluster"] = "node"
    store_resources: dict[str, float] = field(default_factory=dict)
    mirror: Literal["none", "latents"] = "none"
    host_bytes: int = 4 << 30
    vault_bytes: int = 4 << 30
    transport: Transport = "shared"
    staging: StagingConfig = field(default_factory=StagingConfig)
    restore: TiersConfig = field(default_factory=TiersConfig)
    store_key: str = ""
    stuck_s: float = 120.0
    grace_s: float = GRACE_S
    surge_percent: int = 0
    durability: Durability = "latents"
    restore_share: float = 0.5
    pace: Pace = field(default_factory=Pace)
    limits: Limits = field(default_factory=Limits)
    encoding: Encoding = field(default_factory=lambda: Encoding(audio="opus", key_seconds=2.0))
    telemetry: Telemetry = field(default_factory=Telemetry)

    def __post_init__(self) -> None:
        for name in ("gateways", "generators", "ledgers", "segmenters"):
            if getattr(self, name) < 1:
                raise ConfigError(f"service.{name} is {getattr(self, name)}; expected at least 1")
        for name in ("gateway", "generator", "segmenter", "books"):
            for resource, amount in getattr(self, f"{name}_resources").items():
                if resource in RAYS_OWN or amount <= 0:
                    raise ConfigError(
                        f"service.{name}_resources has {resource!r}: {amount}; expected a custom resource, above 0"
                    )
        if self.grace_s < 1.0:
            raise ConfigError(f"service.grace_s is {self.grace_s}; expected at least 1 second")
        if not 0 <= self.surge_percent <= 100:
            raise ConfigError(f"service.surge_percent is {self.surge_percent}; expected 0 to 100")
        if self.generators_max is not None and self.generators_max < self.generators:
            raise ConfigError(
                f"service.generators_max is {self.generators_max}; expected at least service.generators, which is "
                f"{self.generators}"
            )
        if not 0.0 <= self.restore_share <= 1.0:
            raise ConfigError(f"service.restore_share is {self.restore_share}; expected a part between 0 and 1")
        if self.durability == "kv" and not self.restore.lossless:
            raise ConfigError(
                "service.durability is 'kv', which is bit for bit; expected codecs of service.restore that lose nothing"
            )
        if self.store_key and self.store_key.partition(":")[0] not in ("env", "file"):
            raise ConfigError("service.store_key is no reference; expected 'env:NAME' or 'file:PATH'")
        if self.mirror != "none" and (self.store != "node" or self.durability == "none"):
            raise ConfigError(
                f"service.mirror is {self.mirror!r} with store {self.store!r} and durability {self.durability!r}; "
                "expected a store per node, and durability latents or kv"
            )

    @property
    def rules(self) -> Rules:
        """Of placement and of the number of generators."""
        return Rules(self.generators, self.generators_max or self.generators, self.balance, self.fleet)


@with_config(STRICT)
@dataclass(frozen=True)
class Settings:
    """All of it. ``threads``: CPU threads of torch, by default torch's own choice."""

    model: ModelSettings = field(default_factory=ModelSettings)
    geometry: GeometrySettings = field(default_factory=GeometrySettings)
    policy: str = "scene_memory"
    budgets: Budgets = field(default_factory=Budgets)
    engine: EngineConfig = field(default_factory=EngineConfig)
    segmenter: SegmenterSettings = field(default_factory=SegmenterSettings)
    service: ServiceSettings = field(default_factory=ServiceSettings)
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(f"policy is {self.policy!r}; expected one of {', '.join(POLICIES)}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; expected at least 1")


@dataclass(frozen=True)
class Cue:
    """A direction before chunk ``at``: ``cut`` to a new scene, ``return`` to a known one, or change the ``prompt``."""

    at: int
    do: Literal["cut", "return", "prompt"]
    scene: str = ""
    prompt: str = ""
    mode: Literal["keep", "recache"] = "keep"

    def __post_init__(self) -> None:
        needs = {"cut": ("scene", "prompt"), "return": ("scene",), "prompt": ("prompt",)}[self.do]
        for name in ("scene", "prompt"):
            if bool(getattr(self, name).strip()) != (name in needs):
                raise ConfigError(f"the {self.do} at {self.at}: {name} is {getattr(self, name)!r}; needed: {needs}")

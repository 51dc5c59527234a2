"""Every setting, in one frozen tree made of the parts' own configurations; the only reader of files and environment.

Precedence, lowest first: the parts' defaults, a YAML file, environment variables. A variable names its key in capitals
with two underscores for each dot: ``LONGTAKE_ENGINE__CACHE__POSITIONS__SLOTS=20`` is ``engine.cache.positions.slots``,
and its value is read as YAML. A mapping is merged key by key, everything else is replaced.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from cache.keep_set import Budgets
from cache.policies import ALL, Policy
from errors import ConfigError, GeometryError
from models.backbone import Backbone, load_transformer, random_transformer
from models.shapes import ChunkGeometry
from streams.engine import Engine, EngineConfig

PREFIX = "LONGTAKE_"
RANDOM = "random"
POLICIES: dict[str, type[Policy]] = {re.sub(r"(?<!^)(?=[A-Z])", "_", p.__name__).lower(): p for p in ALL}
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
T = TypeVar("T")


@dataclass(frozen=True)
class ModelSettings:
    """Which weights, and where they run.

    Args:
        source: ``random`` (weights drawn from ``seed``), a hub id, a model folder or a ``.safetensors`` file.
        config: for a single file, the folder or hub id with the transformer's ``config.json``.
        dtype: by default that of the random weights (float32) or of the loader.
    """

    source: str = RANDOM
    config: str | None = None
    seed: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: str = "cpu"


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


@with_config(_STRICT)
@dataclass(frozen=True)
class Settings:
    """All of it. ``threads``: CPU threads of torch, by default torch's own choice."""

    model: ModelSettings = field(default_factory=ModelSettings)
    geometry: GeometrySettings = field(default_factory=GeometrySettings)
    policy: str = "scene_memory"
    budgets: Budgets = field(default_factory=Budgets)
    engine: EngineConfig = field(default_factory=EngineConfig)
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


_SETTINGS, _SCRIPT = TypeAdapter(Settings), TypeAdapter(list[Cue], config=_STRICT)


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of the YAML file ``path`` and of ``environ``; raises ``ConfigError`` naming key, value, expected."""
    plain: Any = asdict(Settings())
    known = list(_keys(plain))
    if path is not None:
        plain = _overlay(plain, _yaml(path, str(path)))
        if not isinstance(plain, dict):
            raise ConfigError(f"{path} holds a {type(plain).__name__}; expected a mapping")
    variables = sorted(name for name in environ if name.startswith(PREFIX))
    for name in variables:
        value = _yaml(environ[name], name)
        for key in reversed(name.removeprefix(PREFIX).lower().split("__")):
            value = {key: value}
        plain = _overlay(plain, value)
    return _validated(_SETTINGS, plain, "settings" if path is None else str(path), known, variables)


def read_script(path: Path) -> list[Cue]:
    """The cues of a YAML script: a list of mappings with the fields of ``Cue``."""
    return _validated(_SCRIPT, _yaml(path, str(path)), str(path), [f.name for f in fields(Cue)])


def build_engine(settings: Settings) -> Engine:
    """The engine of these settings, weights loaded; sets torch's threads if asked to."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    transformer, chunk = _transformer(settings.model), settings.geometry
    geometry = ChunkGeometry.of_model(transformer.config, chunk.frames, chunk.height, chunk.width, chunk.fps)
    return Engine(Backbone(transformer, geometry), POLICIES[settings.policy].of(settings.budgets), settings.engine)


def _transformer(model: ModelSettings) -> Any:
    try:
        torch.zeros(1, device=model.device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"model.device is {model.device!r}; expected a device of this machine: {error}") from None
    dtype = {} if model.dtype is None else {"dtype": getattr(torch, model.dtype)}
    if model.source == RANDOM:
        return random_transformer(model.seed).to(device=model.device, **dtype)
    return load_transformer(model.source, device=model.device, config=model.config, **dtype)


def _yaml(source: str | Path, origin: str) -> Any:
    try:
        return yaml.safe_load(source if isinstance(source, str) else source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{origin} cannot be read as YAML: {error}") from error


def _overlay(base: Any, over: Any) -> Any:
    """``over`` on ``base``; a section that is named but empty leaves the base as it is."""
    if not isinstance(base, dict) or not isinstance(over, dict | None):
        return over
    return {**base, **{key: _overlay(base.get(key), value) for key, value in (over or {}).items()}}


def _validated(adapter: TypeAdapter[T], plain: Any, origin: str, known: list[str], variables: Sequence[str] = ()) -> T:
    try:
        # By way of JSON, where a list is a tuple but neither a string nor a truth value is a number.
        return adapter.validate_json(json.dumps(plain, default=str))
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise ConfigError("; ".join(_explained(e, origin, known, variables) for e in found)) from None
    except ConfigError as error:
        raise type(error)(f"{origin}: {error}") from None


def _explained(error: Any, origin: str, known: Sequence[str], variables: Sequence[str]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    name = next((v for v in variables if f"{v}__".startswith(f"{PREFIX}{key}.".replace(".", "__").upper())), origin)
    where = f"{key} ({name})" if key else name
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "unexpected_keyword_argument":
        near = _nearest(key, known) or [k for k in known if "." not in k]
        return f"{where} is {error['input']!r} but there is no such key; expected {' or '.join(near)}"
    expected = error["msg"].removeprefix("Input should be ").replace("an object", "a mapping")
    return f"{where} is {error['input']!r}; expected {expected}"


def _nearest(key: str, known: Sequence[str]) -> list[str]:
    """At most three known keys whose last word is like that of ``key``; whole keys decide between equals."""

    def likeness(candidate: str) -> tuple[float, ...]:
        pairs = ((candidate.rpartition(".")[2], key.rpartition(".")[2]), (candidate, key))
        return tuple(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return [k for k in sorted(known, key=likeness, reverse=True) if likeness(k)[0] >= 0.8][:3]


def _keys(plain: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in plain.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")

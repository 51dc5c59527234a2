"""The reading of settings and scripts; the only reader of files and environment.

Precedence, lowest first: the parts' defaults, what the model says it was trained for (``longtake.json`` in its folder),
a YAML file, environment variables, the command line. A variable names its key in capitals
with two underscores for each dot: ``LONGTAKE_ENGINE__CACHE__POSITIONS__SLOTS=20`` is ``engine.cache.positions.slots``,
and its value is read as YAML. A mapping is merged key by key, everything else is replaced.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError, with_config

from cache.storage.seals import KEY_BYTES
from errors import ConfigError, ScriptError
from settings.tree import RANDOM, STRICT, TRAINED_FOR, Cue, ModelSettings, Settings
from sizing import known_model
from streams.director import Script, Shot

PREFIX = "LONGTAKE_"
T = TypeVar("T")
# What PyYAML raises for what is no YAML; the rest for values that are not what their tag says, and for deep nesting.
UNREADABLE = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)

_SETTINGS, _SCRIPT = TypeAdapter(Settings), TypeAdapter(list[Cue], config=STRICT)
_SHOTS = TypeAdapter(with_config(STRICT)(Script))


def load(
    path: Path | Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    model: str | None = None,
    over: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings of the YAML file ``path``, of ``environ`` and of the command line's ``model``.

    ``path`` may also be what such a file holds; ``over``: what else the command line says, as in such a file.

    Raises:
        ConfigError: naming key, value and what was expected.
    """
    defaults: Any = asdict(Settings())
    known = list(_keys(defaults))
    layers: list[Any] = []
    origin = str(path) if isinstance(path, Path) else "settings"
    if path is not None:
        layers.append(_yaml(path, origin) if isinstance(path, Path) else dict(path))
        if not isinstance(layers[0], dict | None):
            raise ConfigError(f"{path} holds a {type(layers[0]).__name__}; expected a mapping")
    variables = sorted(name for name in environ if name.startswith(PREFIX))
    for name in variables:
        value = _yaml(environ[name], name)
        for key in reversed(name.removeprefix(PREFIX).lower().split("__")):
            value = {key: value}
        layers.append(value)
    if model is not None:
        layers.append({"model": {"source": model}})
    if over:
        layers.append(dict(over))
    chosen = reduce(_overlay, layers, defaults)
    plain = reduce(_overlay, layers, _overlay(defaults, _trained_for(chosen)))
    return _validated(_SETTINGS, plain, origin, known, variables)


def plain_file(path: Path) -> Any:
    """What the YAML or JSON file ``path`` holds, whatever it is. Raises ``ConfigError``."""
    return _yaml(path, str(path))


def laid_over(base: Any, over: Any) -> Any:
    """``over`` on ``base``, key by key."""
    return _overlay(base, over)


def plain_settings(path: Path) -> dict[str, Any]:
    """What the YAML file ``path`` holds, after it was found to be right. Raises ``ConfigError``."""
    load(path)
    found: dict[str, Any] = _yaml(path, str(path)) or {}
    return found


def _trained_for(plain: Any) -> Any:
    """What the chosen model says that it was trained for, if it is a folder that says so, or known."""
    model = plain["model"]
    source = model.get("source") if isinstance(model, dict) else None
    if not isinstance(source, str) or source == RANDOM:
        return {}
    known = known_model(source)
    if known is not None:
        return {"geometry": dict(known.geometry)}
    file = Path(ModelSettings(source).path) / TRAINED_FOR
    return _yaml(file, str(file)) if file.is_file() else {}


def read_key(reference: str, environ: Mapping[str, str] = os.environ) -> bytes:
    """The key that ``service.store_key`` refers to; nothing for no reference.

    Raises:
        ConfigError: it is not there, or no key; the message does not show it.
    """
    kind, _, name = reference.partition(":")
    if not reference:
        return b""
    try:
        written = environ[name] if kind == "env" else Path(name).read_text(encoding="ascii")
        key = bytes.fromhex(written.strip())
    except (KeyError, OSError):
        raise ConfigError(f"service.store_key is {reference!r}, where nothing can be read; expected a key") from None
    except ValueError:
        raise ConfigError(f"what service.store_key {reference!r} refers to is no hexadecimal number") from None
    if len(key) != KEY_BYTES:
        raise ConfigError(f"the key at service.store_key {reference!r} has {len(key)} bytes; expected {KEY_BYTES}")
    return key


def read_script(path: Path) -> list[Cue]:
    """The cues of a YAML script: a list of mappings with the fields of ``Cue``."""
    return _validated(_SCRIPT, _yaml(path, str(path)), str(path), [f.name for f in fields(Cue)])


def read_shots(path: Path) -> Script:
    """The script of a YAML file: ``scenes``, a list of mappings with the fields of ``Shot`` (``return-to``, hyphened).

    Raises:
        ScriptError: it is no script, or one that cannot be played.
    """
    try:
        plain = _yaml(path, str(path))
        if not isinstance(plain, dict):
            raise ScriptError(f"{path} holds a {type(plain).__name__}; expected a mapping with a list of scenes")
        scenes = plain.get("scenes")
        if isinstance(scenes, list):
            hyphened = [
                {str(k).replace("-", "_"): v for k, v in s.items()} if isinstance(s, dict) else s for s in scenes
            ]
            plain = {**plain, "scenes": hyphened}
        names = ["scenes", *(f"scenes.{f.name.replace('_', '-')}" for f in fields(Shot))]
        return _validated(_SHOTS, plain, str(path), names)
    except ScriptError:
        raise
    except ConfigError as error:
        raise ScriptError(str(error)) from error


def _yaml(source: str | Path, origin: str) -> Any:
    try:
        return yaml.safe_load(source if isinstance(source, str) else source.read_text(encoding="utf-8"))
    except (OSError, *UNREADABLE) as error:
        raise ConfigError(f"{origin} cannot be read as YAML: {error}") from error


def _overlay(base: Any, over: Any) -> Any:
    """``over`` on ``base``; a section that is named but empty leaves the base as it is."""
    if not isinstance(base, dict) or not isinstance(over, dict | None):
        return over
    return {**base, **{key: _overlay(base.get(key), value) for key, value in (over or {}).items()}}


def _validated(adapter: TypeAdapter[T], plain: Any, origin: str, known: list[str], variables: Sequence[str] = ()) -> T:
    try:
        # By way of JSON, where a list is a tuple but neither a string nor a truth value is a number.
        written = json.dumps(plain, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin} holds what no setting can be: {error}") from None
    try:
        return adapter.validate_json(written)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise ConfigError("; ".join(_explained(e, origin, known, variables) for e in found)) from None
    except ConfigError as error:
        raise type(error)(f"{origin}: {error}") from None


def _explained(error: Any, origin: str, known: Sequence[str], variables: Sequence[str]) -> str:
    """In words, without the passwords of addresses."""
    return re.sub(r"://[^/@\s]*@", "://***@", _in_words(error, origin, known, variables))


def _in_words(error: Any, origin: str, known: Sequence[str], variables: Sequence[str]) -> str:
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

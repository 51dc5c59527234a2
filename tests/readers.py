"""Whatever reads bytes of strangers: what each may raise, and what it reads without complaint."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgpack

from actors.limits import Limits
from actors.order import VERSION, Order, pack_order, parse_order
from actors.requests import CONTROL, Acknowledgement, ChangePrompt, CutTo, GoBack, NewSession, direction, parsed
from errors import BadMessage, ConfigError, LongtakeError, ScriptError, SnapshotError
from settings import load, read_script, read_shots
from streams.director import Script, Shot
from wire import pack_message, seal, unpack_message, unseal

LIMITS, SECONDS = Limits(), Fraction(16, 25)
FILE = Path(tempfile.gettempdir()) / f"longtake-fuzz-{os.getpid()}.yaml"
SCENES: list[dict[str, Any]] = [
    {"duration": "1h30m5.5s", "name": "hall", "prompt": "a red ball", "subject": "ball"},
    {"duration": 12.5, "prompt": "a ring"},
    {"duration": "90s", "return_to": "hall"},
]


@dataclass(frozen=True)
class Target:
    """One reader of foreign bytes: what it may raise, and what it reads without complaint, to begin with."""

    read: Callable[[bytes], object]
    raises: tuple[type[LongtakeError], ...]
    seeds: tuple[bytes, ...]

    def holds(self, data: bytes) -> bool:
        """Whether ``data`` was read; False if it was refused as documented. Raises what else comes of it."""
        try:
            self.read(data)
        except self.raises:
            return False
        return True


def message(data: bytes) -> object:
    """What a viewer sends over a socket, as the gateway reads it."""
    found = unpack_message(data)
    if found.pop("type") == "ack":
        return parsed(Acknowledgement, found)
    found.pop("id", None)
    wanted = parsed(CONTROL, found)
    return direction(wanted, LIMITS) if isinstance(wanted, ChangePrompt | CutTo | GoBack) else wanted


def session(data: bytes) -> object:
    """A new session over HTTP, script included, as far as it is played."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):  # FastAPI's to answer
        raise BadMessage("no JSON") from None
    order = parsed(NewSession, plain).order(LIMITS)
    return played(order.script)


def order(data: bytes) -> object:
    """An order from a file that somebody made, whose checksums are right."""
    return played(parse_order(seal("order", VERSION, loaded(data)))[0].script)


def sealed(data: bytes) -> object:
    """An envelope that somebody damaged."""
    return unseal(data, "order", VERSION)


def script(data: bytes) -> object:
    """The file of a script."""
    FILE.write_bytes(data)
    return played(read_shots(FILE))


def cues(data: bytes) -> object:
    """The file of a list of cues."""
    FILE.write_bytes(data)
    return read_script(FILE)


def settings(data: bytes) -> object:
    """The file of a configuration."""
    FILE.write_bytes(data)
    return load(FILE, environ={})


def played(found: Script | None) -> object:
    """What the director makes of a script before it begins."""
    return None if found is None else [found.name(i) for i, _ in enumerate(found.chunks(SECONDS)[:-1])]


def loaded(data: bytes) -> Any:
    """Some plain object."""
    try:
        return msgpack.unpackb(data, raw=False)
    except (ValueError, msgpack.UnpackException):
        raise SnapshotError("no msgpack") from None


ORDER = pack_order(Order("", Script(tuple(Shot(**scene) for scene in SCENES)), "ball", 7), "me")
CONTROLS: tuple[dict[str, Any], ...] = (
    {"do": "prompt", "prompt": "a ring", "mode": "recache", "subject": "ring"},
    {"do": "cut", "scene": "hall", "prompt": "a ball", "keep_subject": False},
    {"do": "return", "scene": "hall"},
    {"do": "fork", "seed": 3},
    {"do": "stop"},
)
YAML = b"""scenes:
- {duration: 1m, name: hall, prompt: a ball}
- {duration: 2.5, prompt: a ring, subject: ring}
- {duration: 3, return-to: hall}
"""
CUES = b"""
- {at: 3, do: cut, scene: hall, prompt: a ball}
- {at: 9, do: return, scene: x}
"""
SETTINGS = b"""
engine: {sessions: 3}
service:
  pace: {lead: 3}
"""
TARGETS = {
    "message": Target(
        message,
        (BadMessage,),
        (
            pack_message({"type": "ack", "chunk": 3, "credits": 4, "buffered": 1.5}),
            *(pack_message({"type": "control", "id": 1, **control}) for control in CONTROLS),
        ),
    ),
    "session": Target(
        session,
        (BadMessage, ScriptError),
        (json.dumps({"scenes": SCENES, "seed": 3}).encode(), json.dumps({"prompt": "a ball", "size": "8x8"}).encode()),
    ),
    "order": Target(order, (SnapshotError, ScriptError), (msgpack.packb(unseal(ORDER, "order", VERSION)),)),
    "sealed": Target(sealed, (SnapshotError,), (ORDER,)),
    "script": Target(script, (ScriptError,), (YAML,)),
    "cues": Target(cues, (ConfigError,), (CUES,)),
    "settings": Target(settings, (ConfigError,), (SETTINGS,)),
}

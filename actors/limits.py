"""Who may ask, how often, and for how much."""

import hashlib
import hmac
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from errors import ConfigError, NoCapacity, NotAllowed

_KEY = re.compile(r"[A-Za-z0-9._~-]{16,}")


@dataclass(frozen=True)
class Limits:
    """What one caller may ask for. All numbers are our own design.

    Args:
        keys: API keys; without any, everybody may ask and all sessions are everybody's.
        admins: keys of whoever runs the service, for what concerns generators; without any, and without ``keys``,
            everybody may.
        origins: origins of web pages that may call the API from another host; by default none.
        prompt: longest prompt, subject or scene name, in characters.
        scenes: most scenes of a script.
        body_bytes: longest body of a request.
        creations: sessions that one key may create per minute.
        messages: messages that one viewer may send per second.
        take_bytes: largest file of a take that is exported or imported.
    """

    keys: tuple[str, ...] = ()
    admins: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    prompt: int = 2000
    scenes: int = 256
    body_bytes: int = 256 * 1024
    creations: float = 120.0
    messages: float = 50.0
    take_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        if not all(_KEY.fullmatch(key) for key in (*self.keys, *self.admins)):
            raise ConfigError(
                "limits.keys, limits.admins: a key is too short or has others than letters, digits and '-._~' in it "
                "(a browser sends it as the name of a sub-protocol); expected 16 or more of these, at random"
            )

    def owner(self, key: str) -> str:
        """Whose the sessions of ``key`` are. Raises ``NotAllowed``."""
        if not self.keys:
            return ""
        return _known(key, self.keys)

    def admin(self, key: str) -> None:
        """Raise ``NotAllowed`` unless ``key`` may run the service."""
        if self.keys or self.admins:
            _known(key, self.admins)


def _known(key: str, keys: tuple[str, ...]) -> str:
    """The name of a key that is one of ``keys``; compares in constant time. Raises ``NotAllowed``."""
    given = hashlib.sha256(key.encode()).digest()
    known = [hashlib.sha256(k.encode()).digest() for k in keys]
    if not sum(hmac.compare_digest(given, k) for k in known):  # a sum: all are compared
        raise NotAllowed("the key is missing or wrong; expected 'Authorization: Bearer KEY'")
    return given.hex()[:16]


@dataclass
class Bucket:
    """A token bucket: ``rate`` per second, at most ``most`` at once."""

    rate: float
    most: float
    clock: Callable[[], float] = time.monotonic
    _left: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._left, self._at = self.most, self.clock()

    def take(self, what: str) -> None:
        """Take one; raises ``NoCapacity`` if there is none."""
        now = self.clock()
        self._left = min(self.most, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left < 1:
            raise NoCapacity(f"too many {what}; expected at most {self.rate:.3g} per second")
        self._left -= 1


@dataclass
class Buckets:
    """One bucket per name, for the ``kept`` names that were heard of last."""

    rate: float
    most: float
    kept: int = 4096
    _buckets: OrderedDict[str, Bucket] = field(default_factory=OrderedDict)

    def take(self, name: str, what: str) -> None:
        """Take one of ``name``; raises ``NoCapacity`` if there is none."""
        bucket = self._buckets.setdefault(name, Bucket(self.rate, self.most))
        self._buckets.move_to_end(name)
        while len(self._buckets) > self.kept:
            self._buckets.popitem(last=False)
        bucket.take(what)

"""What one stream, and all streams of one owner, may take of a tier."""

from collections.abc import Callable
from dataclasses import dataclass, field

from errors import ConfigError


@dataclass(frozen=True)
class Quota:
    """Bytes at most, or no bound but the tier's own; what is shared counts for everybody who holds it.

    Args:
        session_bytes: of one stream, its shelves included.
        owner_bytes: of all streams of one owner (API key) together; streams of nobody have none.
    """

    session_bytes: int | None = None
    owner_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("session_bytes", "owner_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"quota {name} is {value}; expected 0 or more, or none")


@dataclass
class Owners:
    """Whose the streams are, and by which model they were made; both tiers of a store ask the same one."""

    _known: dict[str, tuple[str, str]] = field(default_factory=dict)

    def introduce(self, session: str, owner: str, model: str) -> None:
        """``session`` is ``owner``'s, and its memory is of ``model`` (a fingerprint)."""
        self._known[account(session)] = (owner, model)

    def inherit(self, parent: str, child: str) -> None:
        """``child`` is of the same owner and model as ``parent``."""
        if account(parent) in self._known:
            self._known[account(child)] = self._known[account(parent)]

    def forget(self, session: str) -> None:
        """``session`` has gone."""
        self._known.pop(session, None)

    def bounds(self, quota: Quota, session: str) -> list[tuple[int, Callable[[str], bool]]]:
        """The bounds that ``session`` counts for, each with which sessions it bounds together."""
        found: list[tuple[int, Callable[[str], bool]]] = []
        stream, owner = account(session), self.owner(session)
        if quota.session_bytes is not None:
            found.append((quota.session_bytes, lambda name: account(name) == stream))
        if quota.owner_bytes is not None and owner:
            found.append((quota.owner_bytes, lambda name: self.owner(name) == owner))
        return found

    def owner(self, session: str) -> str:
        """Its owner, or nothing."""
        return self._known.get(account(session), ("", ""))[0]

    def model(self, session: str) -> str:
        """Fingerprint of its model, or nothing."""
        return self._known.get(account(session), ("", ""))[1]


def account(session: str) -> str:
    """The stream that a name in the store is of: ``a`` for ``a#subject``."""
    return session.partition("#")[0]

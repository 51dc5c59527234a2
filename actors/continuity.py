"""What another generator needs of a session, beside its books, its order and its records: a continuity report."""

from dataclasses import asdict, dataclass

from errors import SnapshotCorrupt
from streams.durability import Footing
from wire import seal, unseal

VERSION = 2


@dataclass(frozen=True)
class Continuity:
    """Up to date at a commit.

    Args:
        footing: what the stream stands on.
        shot: how far the director is in its script.
        subject: what the segmenter is to look for.
        held: whether a person has paused it.
    """

    footing: Footing
    shot: int
    subject: str
    held: bool = False

    def pack(self) -> bytes:
        """As bytes, under a checksum."""
        return seal("continuity", VERSION, {**asdict(self), "footing": asdict(self.footing)})

    @classmethod
    def parse(cls, data: bytes) -> "Continuity":
        """What ``pack`` made. Raises ``SnapshotError``."""
        plain = unseal(data, "continuity", VERSION)
        try:
            return cls(Footing.parse(plain["footing"]), int(plain["shot"]), str(plain["subject"]), bool(plain["held"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SnapshotCorrupt(f"the continuity report does not hold what a session needs: {error!r}") from error

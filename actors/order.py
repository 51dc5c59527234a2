"""What a session is to be, as its caller asked for it."""

from dataclasses import asdict, dataclass
from typing import Any

from errors import SnapshotCorrupt
from streams.director import Script, Shot
from wire import seal, unseal

VERSION = 1


@dataclass(frozen=True)
class Order:
    """What a session is to be: a prompt without end, or a script.

    Args:
        prompt: what to show and hear in the first scene, if there is no script.
        subject: description of what the segmenter is to keep an eye on.
        seed: the same order with the same seed gives the same take.
        model, size: what the generator must have, if the caller minds; ``size`` as ``128x128``, width first.
    """

    prompt: str = ""
    script: Script | None = None
    subject: str = ""
    seed: int = 0
    model: str = ""
    size: str = ""


def pack_order(order: Order, owner: str) -> bytes:
    """What a session was to be, and whose it is."""
    return seal("order", VERSION, {**asdict(order), "owner": owner})


def parse_order(data: bytes) -> tuple[Order, str]:
    """What ``pack_order`` was given. Raises ``SnapshotError``."""
    plain: dict[str, Any] = unseal(data, "order", VERSION)
    try:
        owner, script = str(plain.pop("owner")), plain.pop("script")
        shots = None if script is None else Script(tuple(Shot(**shot) for shot in script["scenes"]))
        return Order(**plain, script=shots), owner
    except (KeyError, TypeError) as error:
        raise SnapshotCorrupt(f"the order does not say what a session is to be: {error!r}") from error

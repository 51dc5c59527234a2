"""What a session is to be, as its caller asked for it."""

import json
from dataclasses import asdict, dataclass

from pydantic import ConfigDict, TypeAdapter, with_config

from errors import SnapshotCorrupt
from streams.director import Script
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


_ORDER = TypeAdapter(with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))(Order))


def pack_order(order: Order, owner: str) -> bytes:
    """What a session was to be, and whose it is."""
    return seal("order", VERSION, {**asdict(order), "owner": owner})


def parse_order(data: bytes) -> tuple[Order, str]:
    """What ``pack_order`` was given. Raises ``SnapshotError``."""
    plain = unseal(data, "order", VERSION)
    owner = plain.pop("owner", None) if isinstance(plain, dict) else None
    if not isinstance(owner, str):
        raise SnapshotCorrupt("the order does not say whose it is; expected a map with an owner")
    try:  # by way of JSON, where a list is a tuple but neither a string nor a truth value is a number
        return _ORDER.validate_json(json.dumps(plain)), owner
    except (TypeError, ValueError, RecursionError) as error:
        raise SnapshotCorrupt(f"the order does not say what a session is to be: {error}") from error

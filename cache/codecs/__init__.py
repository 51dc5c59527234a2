"""Codecs by name: ``exact``, ``planes``, ``fp8``, ``int8``, ``int4``, and with an error budget ``int8@0.05``.

A name with a budget climbs from its rung to more exact ones, down to the bytes as they are: int4, int8, planes, exact.
"""

from cache.codec import BufferCodec, Exact
from cache.codecs.ladder import READERS, CodecStatistics, Ladder, packing
from cache.codecs.measure import channel_errors
from cache.codecs.numbers import Float8, Integers
from cache.codecs.planes import Planes
from cache.codecs.quantised import Quantised
from cache.codecs.rungs import Rung
from errors import ConfigError

NAMES = ("exact", "planes", "fp8", "int8", "int4")

__all__ = ["NAMES", "READERS", "CodecStatistics", "Ladder", "channel_errors", "named", "packing"]


def named(name: str, level: int = 1, group: int = 64) -> BufferCodec:
    """The codec of this name, which is also what a record's label says.

    Args:
        level: of zstd, for ``planes``.
        group: elements that share a scale, for lossy codecs.

    Raises:
        ConfigError: there is no such codec, or its budget, level or group is none.
    """
    kind, at, written = name.partition("@")
    lossy = {"fp8": Quantised(Float8()), **{f"int{b}": Quantised(Integers(b)) for b in (8, 4)}}
    if kind not in NAMES or (at and kind not in lossy):
        raise ConfigError(
            f"codec is {name!r}; expected one of {', '.join(NAMES)}, or a lossy one with the largest error of a "
            "channel, such as 'int8@0.05'"
        )
    if kind == "exact":
        return Exact()
    lossless = (Planes(level),)
    ways: dict[str, tuple[Rung, ...]] = {
        "planes": lossless,
        "fp8": (lossy["fp8"], *((lossy["int8"],) if at else ()), *lossless),
        "int8": (lossy["int8"], *lossless),
        "int4": (lossy["int4"], *((lossy["int8"],) if at else ()), *lossless),
    }
    return Ladder(name, ways[kind], _budget(name, written) if at else None, group)


def _budget(name: str, written: str) -> float:
    try:
        return float(written)
    except ValueError:
        raise ConfigError(f"codec is {name!r}; expected a number behind the @, such as 'int8@0.05'") from None

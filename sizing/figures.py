"""A number and where it is from: nothing in a plan is more certain than the least certain figure that went into it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from errors import ConfigError


class Source(StrEnum):
    """Where a figure is from, most certain first."""

    COMPUTED = "computed"  # from the sizes of the model and the settings alone
    MEASURED = "measured"
    SHEET = "data sheet"
    ASSUMED = "assumed"


CERTAINTY = tuple(Source)


@dataclass(frozen=True)
class Figure:
    """A number, where it is from, and in words what it rests on."""

    value: float
    source: Source
    note: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.value < float("inf"):
            raise ConfigError(f"{self.note or 'a figure'} is {self.value}; expected 0 or more")


def derived(value: float, of: Iterable[Figure], note: str = "") -> Figure:
    """A number that was computed from others; as certain as the least certain of them."""
    found = max((figure.source for figure in of), key=CERTAINTY.index, default=Source.COMPUTED)
    return Figure(value, found, note)


def computed(value: float, note: str = "") -> Figure:
    """A number that follows from sizes alone."""
    return Figure(value, Source.COMPUTED, note)


def measured(value: float, note: str = "") -> Figure:
    """A number that somebody measured."""
    return Figure(value, Source.MEASURED, note)


def sheet(value: float, note: str = "") -> Figure:
    """A number of a data sheet."""
    return Figure(value, Source.SHEET, note)


def assumed(value: float, note: str = "") -> Figure:
    """A number that is ours, to be replaced."""
    return Figure(value, Source.ASSUMED, note)

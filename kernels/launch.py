"""One launch of a Triton kernel as data: what a launcher checked and chose, to be run, or compiled without a GPU."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
import triton

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid, its arguments by name, and how it is compiled.

    Args:
        arguments: tensors, numbers and ``None``; tensors of the ``meta`` device can be compiled for but not run on.
        warps, stages: warps of a program, and loads in flight in its loops.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    warps: int = 4
    stages: int = 2

    def of(self, **tensors: torch.Tensor | None) -> "Launch":
        """The same with ``tensors``, which are of the form that everything else was made for."""
        return Launch(self.kernel, self.grid, {**self.arguments, **tensors}, self.warps, self.stages)

    def run(self) -> None:
        """Queue it on the current stream; the host waits for nothing.

        Raises:
            ValueError: the tensors are where no Triton kernel can run.
        """
        places = [x.device for x in self.arguments.values() if isinstance(x, torch.Tensor)]
        place = places[0]
        if places.count(place) < len(places):
            raise ValueError(f"tensors are on {sorted(set(map(str, places)))}; expected one device")
        if place.type != "cuda" and not (place.type == "cpu" and triton.knobs.runtime.interpret):
            raise ValueError(
                f"tensors are on {place}; Triton's kernels run on a GPU, and on a CPU only in Triton's interpreter"
            )
        if 0 not in self.grid:
            self.kernel[self.grid](**self.arguments, num_warps=self.warps, num_stages=self.stages)


class _Given:
    """Arguments, equal to others of the same form."""

    __slots__ = ("arguments", "form")

    def __init__(self, arguments: Sequence[Any]) -> None:
        self.arguments: Sequence[Any] = arguments
        self.form = tuple([_form(x) if isinstance(x, torch.Tensor) else x for x in arguments])

    def __hash__(self) -> int:
        return hash(self.form)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Given) and self.form == other.form


def _form(x: torch.Tensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.dtype, x.device


def by_form(make: Callable[P, T]) -> Callable[P, T]:
    """Keeps what ``make`` returns for the next arguments that are equal, or tensors of equal shape, strides and type.

    For what depends on nothing else, and holds none of the tensors: a chunk asks for the same in each layer of each of
    its passes. The last 1,024 are kept. What raises is asked again.
    """

    @lru_cache(maxsize=1024)
    def kept(given: _Given) -> T:
        made: T = make(*given.arguments)  # type: ignore[call-arg]
        given.arguments = ()
        return made

    @wraps(make)
    def made(*arguments: P.args, **named: P.kwargs) -> T:
        if named:
            raise TypeError(f"{', '.join(named)} given by name; expected all by position")
        return kept(_Given(arguments))

    return made


def require(holds: bool, what: str) -> None:
    """Raise ``ValueError`` saying ``what`` was wrong and expected."""
    if not holds:
        raise ValueError(what)


def require_rows(name: str, x: torch.Tensor, dims: int) -> None:
    """Raise ``ValueError`` unless ``x`` has ``dims`` dimensions and its last one lies dense in memory."""
    require(x.dim() == dims, f"{name} has shape {tuple(x.shape)}; expected {dims} dimensions")
    require(
        x.stride(-1) == 1 or x.shape[-1] <= 1,
        f"{name} has strides {x.stride()}; expected neighbours in its last dimension to be neighbours in memory",
    )


def require_pages(pages: Sequence[int], held: int) -> None:
    """Raise ``ValueError`` unless every page number is one of ``held`` pages: a kernel would read beyond them."""
    wrong = [page for page in pages if not 0 <= page < held]
    require(not wrong, f"pages {wrong} of a pool of {held} pages; expected 0 to {held - 1}")


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below ``n``: the sizes that Triton's tiles can have."""
    return 1 << max(0, n - 1).bit_length()

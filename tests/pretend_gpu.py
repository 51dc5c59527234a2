"""A GPU that is none: tensors that say they are on one and compute on the CPU, and a watch for what waits for it.

Numbers are real, so that a whole engine runs on it and can be compared. It is as strict as a GPU is: tensors of two
devices do not mix. A copy to the host that does not wait holds nonsense until its event was waited for.
"""

import functools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.copies import _beside, floats_on_device, on_device

REPOSITORY = Path(__file__).resolve().parent.parent
GPU = torch.device("cuda:0")
# Operations whose result the host has to know, or whose shape it has to.
READING = {
    "_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "nonzero_numpy", "masked_select", "argwhere",
    "unique_dim", "_unique", "_unique2", "unique_consecutive", "bincount", "histc", "allclose",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
MOVING = {"to", "_to_copy", "copy_", "cpu", "cuda"}


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU; ``held`` is on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnGpu":
        with torch.inference_mode():
            made: OnGpu = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
                device="meta",
            )  # fmt: skip
        made.held = held
        return made

    def tolist(self) -> Any:
        """Its numbers, by way of the host."""
        return self.cpu().tolist()

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it is said to be; below Python it is nowhere, as this torch may know no GPU at all."""
        return GPU

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the pretended GPU was used outside of it")

    def record_stream(self, stream: object) -> None:
        """Nothing is used anew before its copies have been made."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnGpu({self.held})"


@dataclass(frozen=True)
class Wait:
    """What the host waited for, and the line of ours that had it wait."""

    what: str
    where: str


@dataclass
class Event:
    """What was queued before it."""

    gpu: "PretendGpu"
    copies: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    number: int = 0

    def record(self) -> None:
        """Put it behind all that was queued."""
        self.gpu.events += 1
        self.number, self.copies = self.gpu.events, list(self.gpu.copies)

    def query(self) -> bool:
        """Whether the GPU has come so far; it comes no further than to what the host has waited for."""
        if self.number <= self.gpu.reached:
            self._land()
        return self.number <= self.gpu.reached

    def synchronize(self) -> None:
        """Wait for it: what was copied is there now."""
        self.gpu.landings.append(Wait("event", _where()))
        self.gpu.reached = max(self.gpu.reached, self.number)
        self._land()

    def elapsed_time(self, later: "Event") -> float:
        """Milliseconds between the two."""
        assert 0 < self.number < later.number <= self.gpu.reached
        return float(later.number - self.number)

    def _land(self) -> None:
        for target, source in self.copies:
            if any(c[0] is target for c in self.gpu.copies):
                target.copy_(source)
        landed = [target for target, _ in self.copies]
        self.gpu.copies = [c for c in self.gpu.copies if not any(c[0] is target for target in landed)]


@dataclass
class Stream:
    """There may be several; the GPU does everything in the order in which it was queued."""

    gpu: "PretendGpu"

    def record_event(self) -> Event:
        """An event behind all that was queued."""
        made = Event(self.gpu)
        made.record()
        return made

    def wait_stream(self, other: "Stream") -> None:
        """It does anyway."""


@dataclass(eq=False)
class PretendGpu(TorchDispatchMode):
    """While it is entered there is a GPU. ``waits``: on it, but for events, which are ``landings``."""

    waits: list[Wait] = field(default_factory=list)
    landings: list[Wait] = field(default_factory=list)
    copies: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    pinned: dict[int, torch.Tensor] = field(default_factory=dict)
    events: int = 0
    reached: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def forget(self) -> None:
        """Begin to watch anew."""
        self.waits.clear()
        self.landings.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        flat = list(_each((*args, *kwargs.values())))
        tensors = [x for x in flat if isinstance(x, torch.Tensor)]
        ours = [x for x in tensors if isinstance(x, OnGpu)]
        if name in ("pin_memory", "_pin_memory"):
            return self._pin(args[0].clone())
        if name == "is_pinned":
            return self._is_pinned(args[0])
        wanted = next((x for x in flat if isinstance(x, torch.device)), None)
        pin = kwargs.pop("pin_memory", None)
        if name in MOVING and (ours or (wanted is not None and wanted.type == "cuda")):
            return self._move(func, name, args, kwargs, wanted)
        if ours:
            self._check(name, args, tensors)
        gpu = bool(ours) if wanted is None else wanted.type == "cuda"
        made = func(*_mapped(_plain, args), **{key: _mapped(_plain, value) for key, value in kwargs.items()})
        if pin:
            self._pin(made)
        return self._result(func, args, made) if gpu else made

    def _check(self, name: str, args: Any, tensors: list[torch.Tensor]) -> None:
        foreign = [x for x in tensors if not isinstance(x, OnGpu)]
        if name in READING:
            self._note(name)
        elif name in INDEXING:
            indices = [x for x in args[1] if isinstance(x, torch.Tensor)]
            if any(not isinstance(x, OnGpu) for x in indices):
                self._note(f"{name} with an index of the host")
            if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
                self._note(f"{name} with a mask")
        elif name == "repeat_interleave" and isinstance(args[-1], torch.Tensor):
            self._note(name)
        elif any(x.dim() for x in foreign):
            raise RuntimeError(f"{name}: tensors of the host and of the GPU; expected one device")

    def _move(self, func: Any, name: str, args: Any, kwargs: Any, wanted: torch.device | None) -> Any:
        """A copy between the two, or on the GPU."""
        waits = not _flag(func, args, kwargs, "non_blocking")
        source = args[1] if name == "copy_" else args[0]
        target = args[0] if name == "copy_" else None
        there = isinstance(source, OnGpu)
        to_gpu = isinstance(target, OnGpu) if target is not None else wanted.type == "cuda" if wanted else there
        if there and not to_gpu and target is not None and not waits and self._is_pinned(target):
            self.copies.append((target, source.held.to(target.dtype).expand(target.shape).clone()))
            _spoil(target)
            return target
        if there != to_gpu and (waits or (not there and not self._is_pinned(source))):
            self._note(f"{name} to the {'GPU' if to_gpu else 'host'}")
        made = func(*_mapped(_plain, args), **{key: _mapped(_plain, value) for key, value in kwargs.items()})
        if target is not None:
            return target
        if there == to_gpu and made is _plain(source):
            return source
        if there and not to_gpu and made is source.held:
            made = made.clone()
        if not there and made is source:
            made = made.clone()
        return OnGpu(made) if to_gpu else made

    def _result(self, func: Any, args: Any, made: Any) -> Any:
        first = func._schema.arguments[0] if func._schema.arguments else None
        if first is not None and first.alias_info is not None and first.alias_info.is_write and args:
            return args[0]
        return _mapped(lambda x: OnGpu(x) if isinstance(x, torch.Tensor) else x, made)

    def _pin(self, x: torch.Tensor) -> torch.Tensor:
        self.pinned[x.untyped_storage().data_ptr()] = x  # held, or its address might be somebody else's soon
        return x

    def _is_pinned(self, x: torch.Tensor) -> bool:
        return not isinstance(x, OnGpu) and x.untyped_storage().data_ptr() in self.pinned

    def _note(self, what: str) -> None:
        self.waits.append(Wait(what, _where()))

    def _synchronize(self, device: object = None) -> None:
        self._note("synchronize")


@contextmanager
def pretend_gpu() -> Iterator[PretendGpu]:
    """There is a GPU, as long as this lasts."""
    gpu = PretendGpu()

    class Beside(Stream):
        def __init__(self, device: object = None) -> None:
            super().__init__(gpu)

    class Timed(Event):
        def __init__(self, enable_timing: bool = False) -> None:
            super().__init__(gpu)

    replaced = {
        "_lazy_init": lambda: None,
        "current_stream": lambda device=None: Stream(gpu),
        "synchronize": gpu._synchronize,
        "stream": lambda stream: nullcontext(),
        "Stream": Beside,
        "Event": Timed,
    }
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # so that ``torch.tensor`` copies where it is seen
    _forget_tables()
    try:
        with patch.multiple(torch.cuda, **replaced), torch.inference_mode(), gpu:
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
        _forget_tables()


def _forget_tables() -> None:
    """Tables that are kept by the name of their device must not be taken for those of another."""
    on_device.cache_clear()
    _beside.cache_clear()
    floats_on_device.cache_clear()


def move(module: torch.nn.Module) -> torch.nn.Module:
    """``module`` with all that it holds on the GPU, which there must be."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, x in held.items():
                if x is not None:
                    held[name] = OnGpu(x.detach())  # type: ignore[assignment]
    return module


def _each(values: Any) -> Iterator[Any]:
    """What operations are called with: anything, in lists and tuples."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _each(value)
        else:
            yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same lists and tuples of what ``change`` makes; torch's own ``tree_map`` takes longer than the operations."""
    if isinstance(value, list):
        return [_mapped(change, x) for x in value]
    return tuple(_mapped(change, x) for x in value) if isinstance(value, tuple) else change(value)


def _plain(x: Any) -> Any:
    if isinstance(x, OnGpu):
        return x.held
    return torch.device("cpu") if isinstance(x, torch.device) else x


def _flag(func: Any, args: Any, kwargs: Any, name: str) -> bool:
    if name in kwargs:
        return bool(kwargs[name])
    names = [a.name for a in func._schema.arguments]
    at = names.index(name) if name in names else len(args)
    return bool(args[at]) if at < len(args) else False


def _spoil(x: torch.Tensor) -> None:
    x.fill_(float("nan") if x.is_floating_point() else -77)


def _where() -> str:
    ours = [
        f for f in traceback.extract_stack()
        if f.filename.startswith(str(REPOSITORY))
        and "site-packages" not in f.filename  # of a virtual environment in the repository
        and Path(f.filename).name != "pretend_gpu.py"
    ]  # fmt: skip
    return f"{Path(ours[-1].filename).relative_to(REPOSITORY)}:{ours[-1].name}" if ours else "?"


def unwrapped(run: Callable[..., Any]) -> Callable[..., Any]:
    """A launch of a kernel, on what its tensors hold."""

    @functools.wraps(run)
    def launch(self: Any) -> Any:
        return run(replace(self, arguments={name: _plain(a) for name, a in self.arguments.items()}))

    return launch

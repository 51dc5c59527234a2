"""Triton's interpreter, without what it does again at every operation for nothing: half of its time.

It looks through all of Triton's language at every call of a function of a kernel, to put its own operations in the
place of those that are there already; it makes a table of types for every type it looks up; it computes whether
integers overflow and drops the answer, unless it debugs; it says the shape of every tensor anew; and it looks at each
dimension of two tensors of one shape whether either is to be broadcast.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any


def quicken() -> None:
    """For this process, in which nothing compiles kernels. Again, or without an interpreter, it does nothing."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    from triton.runtime import interpreter as ours

    found: Any = ours
    there = all(hasattr(found, name) for name in ("_patch_lang", "_get_np_dtype", "interpreter_builder"))
    if not there or getattr(found, "quickened", False):  # another release of Triton may have nothing to quicken
        return
    found.quickened = True
    patched: dict[int, Any] = {}  # by the module's globals: what is visible from there
    patch = found._patch_lang
    for_good = SimpleNamespace(restore=lambda: None)

    def patch_once(fn: Any) -> Any:
        if id(fn.__globals__) not in patched:
            patched[id(fn.__globals__)] = (fn.__globals__, patch(fn))
        return for_good

    found._patch_lang = patch_once
    found._get_np_dtype = _by_name(found._get_np_dtype)
    _quicken_shapes()
    options = found.interpreter_builder.options
    found.interpreter_builder.options = replace(options, sanitize_overflow=options.debug)


def _by_name(look_up: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What is looked up by a type, once for each name of a scalar; pointers have no hash, and are all alike."""
    known: dict[str, Any] = {}

    def looked_up(kind: Any) -> Any:
        scalar = kind.scalar
        name = "pointer" if scalar.is_ptr() else scalar.name
        if name not in known:
            known[name] = look_up(kind)
        return known[name]

    return looked_up


def _quicken_shapes() -> None:
    """Types of one element and shape share what is said of it, and so do tensors of one shape."""
    from triton.language import core as ours
    from triton.language.semantic import TritonSemantic as Semantic

    core: Any = ours
    of_types: dict[tuple[Any, ...], dict[str, Any]] = {}
    of_tensors: dict[tuple[int, ...], tuple[Any, Any]] = {}
    make_type, make_tensor, broadcast = core.block_type.__init__, core.tensor.__init__, Semantic.broadcast_impl_value

    def type_init(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *[s.value if type(s) is core.constexpr else s for s in shape])
        if key not in of_types:
            make_type(self, element_ty, shape)
            of_types[key] = {name: value for name, value in self.__dict__.items() if name != "element_ty"}
        self.__dict__.update(of_types[key], element_ty=element_ty)

    def tensor_init(self: Any, handle: Any, type: Any) -> None:
        key = tuple(type.shape.values) if type.is_block() else ()
        if key not in of_tensors:
            make_tensor(self, handle, type)
            of_tensors[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = of_tensors[key]

    def broadcast_once(self: Any, lhs: Any, rhs: Any) -> Any:
        one, other = lhs.type, rhs.type
        if one.is_block() and other.is_block() and one.shape.values == other.shape.values:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    core.block_type.__init__, core.tensor.__init__ = type_init, tensor_init
    Semantic.broadcast_impl_value = broadcast_once  # type: ignore[method-assign]

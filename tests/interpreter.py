"""Triton's interpreter, without what it does again at every operation for nothing: half of its time.

It looks through all of Triton's language at every call of a function of a kernel, to put its own operations in the
place of those that are there already; it makes a table of types for every type it looks up; and it computes whether
integers overflow and drops the answer, unless it debugs.
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

"""Single components (``vae/``, ``vocoder/``, …) of a checkpoint in diffusers' layout, from a folder or the hub."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from errors import CheckpointError

# What diffusers, transformers and safetensors raise for files that are absent, damaged or of another shape.
LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError, SafetensorError)


def check_source(source: str) -> None:
    """Raise ``CheckpointError`` if ``source`` looks like a folder and is none; anything else may be a hub id."""
    path = Path(source)
    if not path.is_dir() and (path.is_absolute() or source.startswith(".")):
        raise CheckpointError(f"no folder {source!r}; expected a folder in diffusers' layout or a hub id")


def by_name(*classes: Any) -> dict[str, Any]:
    """Classes by what a component's ``config.json`` calls them."""
    return {found.__name__: found for found in classes}


def load_component(source: str, name: str, classes: Mapping[str, Any], dtype: torch.dtype, device: str) -> Any:
    """The component ``name`` of ``source``, which must be one of ``classes`` (by ``_class_name``), ready to infer.

    Raises:
        CheckpointError: not there, damaged, incomplete, or of another class.
    """
    from diffusers import AutoencoderKL

    expected = f"{name}/ with a config.json of class {' or '.join(classes)} and its safetensors"
    check_source(source)
    try:
        # Any of the library's models reads the configuration of any other.
        found = AutoencoderKL.load_config(source, subfolder=name).get("_class_name")
    except LOAD_ERRORS as error:
        raise CheckpointError(f"{source!r} has no readable {name}/config.json: {error}; expected {expected}") from error
    if found not in classes:
        raise CheckpointError(
            f"{name}/ of {source!r} is of class {found!r}; expected {expected}. Take {name}/ from the checkpoint that "
            "the transformer was trained with"
        )
    try:
        with warnings.catch_warnings():
            # AutoencoderOobleck uses a weight norm that torch has deprecated.
            warnings.filterwarnings("ignore", ".*weight_norm.*", FutureWarning)
            model, loading = classes[found].from_pretrained(
                source, subfolder=name, dtype=dtype, output_loading_info=True
            )
    except LOAD_ERRORS as error:
        raise CheckpointError(f"cannot load {name}/ of {source!r}: {error}; expected {expected}") from error
    # The library only logs what is missing, and leaves it without numbers or with random ones.
    missing = sorted(loading["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{name}/ of {source!r} lacks {len(missing)} weights ({', '.join(missing[:3])}, …); expected {expected}"
        )
    return model.eval().requires_grad_(False).to(device)

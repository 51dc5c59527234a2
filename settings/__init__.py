"""Every setting in one frozen tree, the only reader of files and environment, and what builds what they describe."""

from settings.build import Studio, build_engine, build_segmenter, build_studio, build_worker
from settings.planning import overridden, question_of, read_measured, recommended, written
from settings.reading import load, plain_settings, read_key, read_script, read_shots
from settings.tree import POLICIES, RANDOM, Cue, ModelSettings, ServiceSettings, Settings

__all__ = [
    "POLICIES",
    "RANDOM",
    "Cue",
    "ModelSettings",
    "ServiceSettings",
    "Settings",
    "Studio",
    "build_engine",
    "build_segmenter",
    "build_studio",
    "build_worker",
    "load",
    "overridden",
    "plain_settings",
    "question_of",
    "read_key",
    "read_measured",
    "read_script",
    "read_shots",
    "recommended",
    "written",
]

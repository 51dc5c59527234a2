"""Cache policies: one small dataclass each, one method that ranks. ``ALL`` is crossed with every test."""

from cache.policies.base import Policy, View
from cache.policies.heavy_hitter import HeavyHitter
from cache.policies.scene_memory import SceneMemory
from cache.policies.sink_recent import SinkRecent
from cache.policies.sliding_window import SlidingWindow

ALL: tuple[type[Policy], ...] = (SceneMemory, SlidingWindow, SinkRecent, HeavyHitter)

__all__ = ["ALL", "HeavyHitter", "Policy", "SceneMemory", "SinkRecent", "SlidingWindow", "View"]

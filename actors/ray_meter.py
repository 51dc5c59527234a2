"""Metrics by Ray: its agent on each node exports them to Prometheus."""

from typing import Any

from ray.util import metrics

from actors.metrics import METRICS, PREFIX


class RayMeter:
    """``Meter`` over ``ray.util.metrics``: Ray's agent of the node exports it as ``ray_longtake_<name>``.

    ``replica``: who tells, as another tag of all, where there are several.
    """

    def __init__(self, replica: str = "") -> None:
        self._made: dict[str, Any] = {}
        for name, metric in METRICS.items():
            shared: dict[str, Any] = {"description": metric.help, "tag_keys": (*metric.tags, "replica")}
            if metric.kind == "counter":
                self._made[name] = metrics.Counter(PREFIX + name, **shared)
            elif metric.kind == "gauge":
                self._made[name] = metrics.Gauge(PREFIX + name, **shared)
            else:
                self._made[name] = metrics.Histogram(PREFIX + name, boundaries=list(metric.buckets), **shared)
            self._made[name].set_default_tags({"replica": replica})

    def add(self, name: str, value: float = 1.0, **tags: str) -> None:
        """See ``Meter``."""
        if value:
            self._made[name].inc(value, tags)

    def set(self, name: str, value: float, **tags: str) -> None:
        """See ``Meter``."""
        self._made[name].set(value, tags)

    def observe(self, name: str, value: float, **tags: str) -> None:
        """See ``Meter``."""
        self._made[name].observe(value, tags)

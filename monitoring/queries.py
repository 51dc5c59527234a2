"""PromQL over declared metrics. A metric, a tag or a way of reading it that is not declared is refused here."""

from dataclasses import dataclass
from typing import Literal

from actors.metrics import METRICS, PREFIX, Metric
from errors import ConfigError

EXPORTER = "ray_"  # what Ray's agent puts before every name
CLUSTER = "ray_io_cluster"  # a label of the RayCluster, which KubeRay's pods have and a PodMonitor takes over
ADDED = (CLUSTER, "replica", "le")  # labels besides the declared: by the monitor, by ``RayMeter``, by Prometheus
Suffix = Literal["", "_total", "_bucket", "_count"]
SUFFIXES: dict[str, tuple[Suffix, ...]] = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_count"),  # no ``_sum``: Ray's agent makes it up from the middles of the buckets
}


def exported(metric: Metric) -> list[str]:
    """Names under which Prometheus has a metric."""
    return [f"{EXPORTER}{PREFIX}{metric.name}{suffix}" for suffix in SUFFIXES[metric.kind]]


@dataclass(frozen=True)
class Scope:
    """Where queries look, and over how long they take rates.

    Args:
        within: a matcher that each series must meet, or nothing.
        window: of rates, as PromQL writes it.
    """

    within: str
    window: str

    def now(self, name: str, **where: str) -> str:
        """A gauge as it is. A value with ``|`` in it is a choice of values."""
        return self._series(name, "", where)

    def rate(self, name: str, **where: str) -> str:
        """Per second: a counter, or a gauge that is a running total."""
        return f"rate({self._running(name, where)}[{self.window}])"

    def observed(self, name: str, **where: str) -> str:
        """Observations of a histogram per second."""
        return f"rate({self._series(name, '_count', where)}[{self.window}])"

    def quantile(self, q: float, name: str, *by: str, **where: str) -> str:
        """A quantile of a histogram, by tags."""
        rate = f"rate({self._series(name, '_bucket', where)}[{self.window}])"
        return f"histogram_quantile({q:g}, {self.total(rate, 'le', *by)})"

    def quantile_over(self, q: float, name: str, over: str, *by: str) -> str:
        """A quantile of a histogram that is rarely told: of all that was observed in a time, the first included."""
        bucket = self._series(name, "_bucket", {})
        return f"histogram_quantile({q:g}, {self.total(_grown(bucket, over), 'le', *by)})"

    def grown(self, name: str, over: str, **where: str) -> str:
        """By how much a running total grew; also one that did not exist before, for Ray exports no counter at zero."""
        return _grown(self._running(name, where), over)

    @staticmethod
    def total(expression: str, *by: str) -> str:
        """The sum, by tags."""
        return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"

    def _running(self, name: str, where: dict[str, str]) -> str:
        return self._series(name, "_total" if metric_named(name).kind == "counter" else "", where)

    def _series(self, name: str, suffix: Suffix, where: dict[str, str]) -> str:
        metric = metric_named(name)
        if suffix not in SUFFIXES[metric.kind]:
            raise ConfigError(f"{name}{suffix}: {name} is a {metric.kind}; expected {SUFFIXES[metric.kind]} after it")
        if not set(where) <= set(metric.tags):
            raise ConfigError(f"{name} has tags {metric.tags}; got {tuple(where)}")
        matchers = [self.within] if self.within else []
        matchers += [f'{tag}{"=~" if "|" in value else "="}"{value}"' for tag, value in where.items()]
        inside = f"{{{','.join(matchers)}}}" if matchers else ""
        return f"{EXPORTER}{PREFIX}{name}{suffix}{inside}"


def _grown(series: str, over: str) -> str:
    return f"(({series} unless {series} offset {over}) or increase({series}[{over}]))"


def metric_named(name: str) -> Metric:
    """A declared metric. Raises ``ConfigError``."""
    if name not in METRICS:
        raise ConfigError(f"{name} is no metric; expected one of actors.metrics: {', '.join(METRICS)}")
    return METRICS[name]


def or_none(rare: str, base: str) -> str:
    """``rare``, or zero where only ``base`` is there: what never happened is no gap in a plot."""
    return f"({rare} or 0 * {base})"


def share(part: str, whole: str) -> str:
    """A part of a whole that may have none of it."""
    return f"{or_none(part, whole)} / {whole}"

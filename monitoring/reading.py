"""How dashboards read: the cluster that was chosen, over the window that Grafana finds right, in three quantiles."""

from monitoring.panels import Query
from monitoring.queries import CLUSTER, Scope

HERE = Scope(f'{CLUSTER}=~"$cluster"', "$__rate_interval")
EVER = "10m"  # over which rare events are counted
QUANTILES = (0.5, 0.95, 0.99)


def filled(expression: str, window: str, cluster: str = ".*") -> str:
    """An expression of a panel with what Grafana fills in."""
    return expression.replace("$__rate_interval", window).replace("$cluster", cluster)


def quantiles(name: str, **where: str) -> tuple[Query, ...]:
    """A histogram by its quantiles."""
    return tuple(Query(HERE.quantile(q, name, **where), f"p{100 * q:g}") for q in QUANTILES)

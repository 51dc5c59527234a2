"""The alerts as Prometheus takes them: a plain file of rules, and the same as a PrometheusRule."""

from typing import Any

from monitoring.alerts import GROUPS, Alert

RUNBOOK = "docs/runbook.md"


def rules(runbook: str = RUNBOOK) -> dict[str, Any]:
    """A file of rules; ``runbook``: where ``docs/runbook.md`` can be read."""
    groups = [
        {"name": f"longtake-{name}", "interval": "30s", "rules": [_rule(alert, runbook) for alert in alerts]}
        for name, alerts in GROUPS.items()
    ]
    return {"groups": groups}


def prometheus_rule(runbook: str = RUNBOOK) -> dict[str, Any]:
    """The same for the Prometheus operator; kube-prometheus-stack takes rules with the name of its release."""
    labels = {"app.kubernetes.io/part-of": "longtake", "release": "kube-prometheus-stack"}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "longtake", "labels": labels},
        "spec": rules(runbook),
    }


def _rule(alert: Alert, runbook: str) -> dict[str, Any]:
    dashboard, panel = alert.panel
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.held,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.says,
            "description": "Now {{ $value | humanize }}; it fires when that is " + alert.when + ".",
            "dashboard": f"longtake-{dashboard}: {panel}",
            "runbook_url": f"{runbook}#{alert.name.lower()}",
        },
    }

"""All files that are made, by name: what ``k8s/monitoring`` holds."""

import json
from typing import Any

import yaml

from monitoring import dashboards, rules
from monitoring.grafana import dashboard

MADE = "# Made by `python -m monitoring`; change monitoring/ and run it again.\n"


def files(runbook: str = rules.RUNBOOK) -> dict[str, str]:
    """Contents by path."""
    shown = {f"dashboards/longtake-{one.name}.json": one for one in dashboards.ALL}
    return {
        **{path: json.dumps(dashboard(one), indent=1) + "\n" for path, one in shown.items()},
        "rules.yaml": MADE + _yaml(rules.rules(runbook)),
        "prometheus-rule.yaml": MADE + _yaml(rules.prometheus_rule(runbook)),
        "kustomization.yaml": MADE + _yaml(component(list(shown))),
    }


def component(paths: list[str]) -> dict[str, Any]:
    """A component for overlays: a ConfigMap per dashboard, labelled for Grafana's sidecar, and the rules."""
    return {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "resources": ["prometheus-rule.yaml"],
        "configMapGenerator": [
            {
                "name": f"{path.rpartition('/')[2].removesuffix('.json')}-dashboard",
                "files": [path],
                "options": {
                    "labels": {"grafana_dashboard": "1"},
                    "annotations": {"grafana_folder": "Longtake"},
                    "disableNameSuffixHash": True,
                },
            }
            for path in paths
        ],
    }


def _yaml(what: dict[str, Any]) -> str:
    return yaml.safe_dump(what, sort_keys=False, width=200)

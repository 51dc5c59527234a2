"""Dashboards as Grafana's JSON. The data source and the Ray cluster are variables, so that they fit any Grafana."""

from typing import Any

from monitoring.panels import Dashboard, Panel
from monitoring.queries import CLUSTER
from monitoring.reading import HERE

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS, WIDTH, HEIGHT = 3, 8, 8  # of a grid that is 24 wide
SCHEMA = 39  # of Grafana 10 and 11; later ones migrate it when they load it


def dashboard(shown: Dashboard) -> dict[str, Any]:
    """What Grafana loads from a file."""
    return {
        "uid": f"longtake-{shown.name}",
        "title": shown.title,
        "tags": ["longtake"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "dashboards", "title": "Longtake", "tags": ["longtake"], "asDropdown": True}],
        "templating": {"list": [_datasource(), _cluster()]},
        "panels": [_panel(i, panel) for i, panel in enumerate(shown.panels)],
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}


def _cluster() -> dict[str, Any]:
    names = f"label_values({HERE.now('sessions').partition('{')[0]}, {CLUSTER})"
    return {
        "name": "cluster",
        "label": "Ray cluster",
        "type": "query",
        "datasource": SOURCE,
        "definition": names,
        "query": {"query": names, "refId": "cluster"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",  # meets series without the label too
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS)
    needs = f" Needs {panel.needs}." if panel.needs else ""
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 8,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
    }
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.says + needs,
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": column * WIDTH, "y": row * HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": SOURCE,
                "editorMode": "code",
                "expr": query.expression,
                "legendFormat": query.legend,
                "range": True,
            }
            for i, query in enumerate(panel.queries)
        ],
    }

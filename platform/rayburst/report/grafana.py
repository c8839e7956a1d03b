"""A Grafana dashboard over the fleet's metrics, as JSON to import. Pure.

    rayburst dashboard > rayburst.json          # Grafana: Dashboards, New, Import

Colours by market are those of the reports. Every query is held by a test to metrics and labels
that exist.
"""

from __future__ import annotations

from typing import Any

from rayburst.report.style import DARK, MARKETS

_UID = "rayburst-fleet"
_ROW_HEIGHT = 8


def dashboard() -> dict[str, Any]:
    """The whole dashboard; its data source is chosen when it is imported."""
    panels = [
        _panel("Dollars an hour", "rayburst_usd_per_hour", "{{market}}", unit="currencyUSD"),
        _panel("Living nodes", "sum by (market) (rayburst_nodes)", "{{market}}"),
        _panel("Nodes by state", "sum by (state) (rayburst_nodes)", "{{state}}"),
        _panel("Waiting requests", "rayburst_pending_requests", "pending"),
        _panel(
            "Interruptions an hour",
            "sum by (pool) (increase(rayburst_interruptions_total[1h]))",
            "{{pool}}",
        ),
        _panel("Spent", "sum by (market) (rayburst_spent_usd_total)", "{{market}}",
               unit="currencyUSD"),
        _panel("Spent by purpose", "rayburst_purpose_usd", "{{purpose}}", unit="currencyUSD"),
        _panel("Dearest jobs", "topk(8, rayburst_job_usd)", "{{job}}", unit="currencyUSD"),
        _panel(
            "Share of dollars that were useful",
            'rayburst_purpose_usd{purpose="useful"} / ignoring(purpose) group_left() '
            "sum(rayburst_purpose_usd)",
            "useful",
            unit="percentunit",
        ),
        _panel(
            "Node-hours of unknown price",
            "sum by (market) (rayburst_unpriced_seconds_total) / 3600",
            "{{market}}",
        ),
        _panel(
            "Paid node-seconds a second",
            "sum by (market) (rate(rayburst_node_seconds_total[5m]))",
            "{{market}}",
        ),
    ]  # fmt: skip
    for place, panel in enumerate(panels):
        panel["id"] = place + 1
        panel["gridPos"] = {
            "h": _ROW_HEIGHT,
            "w": 8,
            "x": 8 * (place % 3),
            "y": _ROW_HEIGHT * (place // 3),
        }
    return {
        "__inputs": [
            {
                "name": "DS_PROMETHEUS",
                "label": "Prometheus",
                "type": "datasource",
                "pluginId": "prometheus",
            }
        ],
        "uid": _UID,
        "title": "rayburst fleet",
        "tags": ["rayburst"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "panels": panels,
    }


def _panel(title: str, query: str, legend: str, *, unit: str = "short") -> dict[str, Any]:
    return {
        "title": title,
        "type": "timeseries",
        "datasource": {"type": "prometheus", "uid": "${DS_PROMETHEUS}"},
        "targets": [{"refId": "A", "expr": query, "legendFormat": legend}],
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0},
            "overrides": [_coloured(market) for market in MARKETS],
        },
    }


def _coloured(market: str) -> dict[str, Any]:
    return {
        "matcher": {"id": "byName", "options": market},
        "properties": [
            {"id": "color", "value": {"mode": "fixed", "fixedColor": DARK[market]}},
        ],
    }

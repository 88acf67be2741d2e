"""Writes `penstock.json`, the Grafana dashboard over Penstock's metrics: `python monitoring/grafana/dashboard.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("penstock.json")
_ONE = '{tenant=~"$tenant", pipeline=~"$pipeline"}'
_SINCE = f"time() - penstock_last_success_timestamp_seconds{_ONE}"
PANELS = (
    ("Age of the newest published day", "Time since the newest published day ended (UTC).", "s", "stat",
     f"time() - penstock_newest_published_day_end_timestamp_seconds{_ONE}", "{{pipeline}}"),
    ("What the monitor says", "Verdict of the newest decision, in words.", "none", "stat",
     f"penstock_monitor_verdict{_ONE} == 1", "{{pipeline}}: {{verdict}}"),
    ("Live version", "Number of the model version that is live.", "none", "stat",
     f"penstock_live_version{_ONE}", "{{pipeline}}"),
    ("Open alerts", "Incidents that are open, by severity.", "none", "stat",
     f"sum by (severity) (penstock_open_alerts{_ONE})", "{{severity}}"),
    ("Since each step succeeded", "Age of the last success by step.", "s", "timeseries", _SINCE,
     "{{pipeline}} {{step}}"),
    ("Objectives missed", "1 while predictions are stale, or a run is unpublished for over two hours; by recording rule.",
     "none", "timeseries", f"pipeline:penstock_bad:ratio1h{_ONE}", "{{pipeline}} {{objective}}, share of 1 h"),
    ("Channels in drift alarm", "Of the newest judged day.", "none", "timeseries",
     f"penstock_drift_alarms{_ONE}", "{{pipeline}}"),
    ("Realised less expected AUC", "Of the newest labelled day; negative is worse than the scores promise.", "none",
     "timeseries", f"penstock_performance_gap{_ONE}", "{{pipeline}}"),
    ("Dead letters", "Share of the newest scored run's rows that cannot be scored.", "percentunit", "timeseries",
     f"penstock_last_run_dead_letter_ratio{_ONE}", "{{pipeline}}"),
    ("Rows published", "Of the newest publication.", "short", "timeseries",
     f"penstock_last_publication_rows{_ONE}", "{{pipeline}}"),
    ("Duration of a run", "Wall time of the newest scored run.", "s", "timeseries",
     f"penstock_last_run_duration_seconds{_ONE}", "{{pipeline}}"),
    ("CPU time of a run", "Of the newest scored run, all workers.", "s", "timeseries",
     f"penstock_last_run_cpu_seconds{_ONE}", "{{pipeline}}"),
    ("GPU time of a run", "Of the newest scored run, all workers.", "s", "timeseries",
     f"penstock_last_run_gpu_seconds{_ONE}", "{{pipeline}}"),
    ("Exposure of a challenger", "Share of entities that get a challenger's predictions.", "percentunit",
     "timeseries", f"penstock_canary_exposure_ratio{_ONE}", "{{pipeline}}"),
    ("Gates that refused", "1 while the newest verdict of a gate is a refusal.", "none", "timeseries",
     f"penstock_gate_refused{_ONE}", "{{pipeline}} {{gate}}"),
    ("Alerts that wait", "Deliveries that are not done: a channel is down, grouped or at its limit.", "none",
     "timeseries", f"penstock_waiting_alert_deliveries{_ONE}", "{{pipeline}}"),
)  # fmt: skip
"""(title, description, unit, type, query, legend)."""


def dashboard(
    panels_of: tuple[tuple[str, str, str, str, str, str], ...] = PANELS,
    *,
    uid: str = "penstock",
    title: str = "Penstock",
    named_by: str = "penstock_pipeline_loads",
) -> dict[str, Any]:
    """A dashboard's JSON model; tenants and pipelines to choose from are those of the metric `named_by`."""
    panels, x, y, below = [], 0, 0, 0
    for number, (name, description, unit, kind, query, legend) in enumerate(panels_of, 1):
        width, height = (6, 5) if kind == "stat" else (12, 8)
        if x + width > 24:
            x, y = 0, y + below
        below = height
        panel: dict[str, Any] = {
            "id": number,
            "title": name,
            "description": description,
            "type": kind,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "gridPos": {"x": x, "y": y, "w": width, "h": height},
            "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
            "targets": [{"refId": "A", "expr": query, "legendFormat": legend}],
        }
        if kind == "stat":
            panel["options"] = {"textMode": "name" if "verdict" in legend else "value_and_name"}
        panels.append(panel)
        x += width
    return {
        "uid": uid,
        "title": title,
        "tags": ["penstock"],
        "timezone": "utc",
        "schemaVersion": 39,
        "refresh": "1m",
        "time": {"from": "now-7d", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                _variable("tenant", f"label_values({named_by}, tenant)"),
                _variable("pipeline", f'label_values({named_by}{{tenant=~"$tenant"}}, pipeline)'),
            ]
        },
        "panels": panels,
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps(dashboard(), indent=2) + "\n")

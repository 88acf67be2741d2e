"""The JSON model of Grafana's dashboards, as far as the two of Penstock use it.

Written out is what Grafana would else assume: a panel without thresholds is red from 80 on, whatever it shows, and an axis without a highest
value goes to 100 while all is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Model = dict[str, Any]
GOOD, NEUTRAL, LOOK, BAD, UNKNOWN = "green", "blue", "orange", "red", "#8e8e8e"
"""Colours by what they ask of whoever is on call. What is not known is grey: nothing that is missing looks well."""
COLUMNS = 24
ONE = '{tenant=~"$tenant", pipeline=~"$pipeline"}'
"""Which series of a metric: those of the tenants and pipelines that are chosen."""
OWNER = "tenant, pipeline"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Asked:
    """A query, the name of its series, and their colour where it says something; default: by limit or palette."""

    query: str
    legend: str
    color: str | None = None


def row(title: str) -> Model:
    """A heading across the dashboard."""
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": _size(COLUMNS, 1)}


def stat(
    title: str,
    description: str,
    asked: Sequence[Asked],
    *,
    width: int,
    height: int = 5,
    unit: str = "none",
    decimals: int | None = None,
    base: str = GOOD,
    limits: Sequence[tuple[float, str]] = (),
    words: bool = False,
    when_none: str = "No data",
) -> Model:
    """What is so now, on coloured ground.

    Args:
        base: Colour from 0 on; below it, and where there is no value, the ground is grey.
        limits: Values from which on it has another colour.
        words: Show the names of the series and not their values.
        when_none: Text where Prometheus has no series.
    """
    steps: list[Model] = [{"color": UNKNOWN, "value": None}]
    steps += [{"color": color, "value": at} for at, color in ((0, base), *limits)]
    model = _panel("stat", title, description, asked, width, height, unit, decimals, steps)
    for target in model["targets"]:
        target |= {"instant": True, "range": False}
    model["fieldConfig"]["defaults"] |= {"noValue": when_none, "color": {"mode": "thresholds"}}
    model["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "name" if words else "value_and_name",
        "colorMode": "background_solid",
        "graphMode": "none",
        "justifyMode": "center",
        "orientation": "auto",
    }
    return model


def lines(
    title: str,
    description: str,
    asked: Sequence[Asked],
    *,
    width: int = 12,
    height: int = 8,
    unit: str = "none",
    decimals: int | None = None,
    lowest: float | None = 0,
    highest: float | None = None,
    at_least: tuple[float, float] | None = None,
    limit: float | None = None,
    stays: bool = True,
    when_none: str = "No data",
) -> Model:
    """What changed when.

    Args:
        lowest: Where the axis begins; None: at the smallest value.
        highest: Where it ends; None: at the largest value.
        at_least: What the axis shows at least, so that noise about zero looks like noise.
        limit: Value at which an alert rule speaks, as a dashed line.
        stays: A value holds until the next one, as those of the newest run do, and the legend says the last.
    """
    steps: list[Model] = [{"color": "transparent", "value": None}]
    if limit is not None:
        steps.append({"color": BAD, "value": limit})
    model = _panel("timeseries", title, description, asked, width, height, unit, decimals, steps)
    custom: Model = {
        "lineInterpolation": "stepAfter" if stays else "linear",
        "lineWidth": 2,
        "showPoints": "auto",
        "thresholdsStyle": {"mode": "off" if limit is None else "dashed"},
    }
    if at_least is not None:
        custom |= {"axisSoftMin": at_least[0], "axisSoftMax": at_least[1]}
    defaults = model["fieldConfig"]["defaults"]
    defaults |= {"noValue": when_none, "color": {"mode": "palette-classic"}, "custom": custom}
    defaults |= {} if lowest is None else {"min": lowest}
    defaults |= {} if highest is None else {"max": highest}
    model["options"] = {
        "legend": {
            "displayMode": "list",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["lastNotNull"] if stays else [],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return model


def matrix(
    title: str,
    description: str,
    query: str,
    *,
    rows: str,
    columns: str,
    unit: str,
    width: int = COLUMNS,
    height: int = 6,
) -> Model:
    """The newest values by two labels, as a table."""
    steps: list[Model] = [{"color": "text", "value": None}]
    model = _panel("table", title, description, [Asked(query, "")], width, height, unit, 1, steps)
    model["targets"][0] |= {"instant": True, "range": False, "format": "table"}
    model["transformations"] = [
        {
            "id": "groupingToMatrix",
            "options": {"rowField": rows, "columnField": columns, "valueField": "Value"},
        }
    ]
    model["fieldConfig"]["overrides"] = [
        {
            "matcher": {"id": "byName", "options": f"{rows}\\{columns}"},
            "properties": [{"id": "displayName", "value": rows}],
        }
    ]
    return model


def dashboard(panels: Sequence[Model], *, uid: str, title: str, named_by: str, since: str) -> Model:
    """The JSON model of a dashboard: panels from left to right, and on a new line where one has no room.

    Args:
        named_by: Metric whose tenants and pipelines can be chosen.
        since: Beginning of what is shown first, as `now-7d`.
    """
    placed: list[Model] = []
    x = y = line = 0
    for number, panel in enumerate(panels, 1):
        size = panel["gridPos"]
        if x + size["w"] > COLUMNS:
            x, y, line = 0, y + line, 0
        placed.append({"id": number, **panel, "gridPos": {"x": x, "y": y, **size}})
        x, line = x + size["w"], max(line, size["h"])
    return {
        "uid": uid,
        "title": title,
        "tags": ["penstock"],
        "timezone": "utc",
        "schemaVersion": 41,
        "refresh": "1m",
        "time": {"from": since, "to": "now"},
        "graphTooltip": 1,
        "links": [
            {
                "title": "Penstock",
                "type": "dashboards",
                "tags": ["penstock"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {
            "list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                _variable("tenant", f"label_values({named_by}, tenant)"),
                _variable("pipeline", f'label_values({named_by}{{tenant=~"$tenant"}}, pipeline)'),
            ]
        },
        "panels": placed,
    }


def _panel(
    kind: str,
    title: str,
    description: str,
    asked: Sequence[Asked],
    width: int,
    height: int,
    unit: str,
    decimals: int | None,
    steps: list[Model],
) -> Model:
    refs = [chr(ord("A") + number) for number in range(len(asked))]
    defaults: Model = {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}}
    defaults |= {} if decimals is None else {"decimals": decimals}
    return {
        "title": title,
        "description": description,
        "type": kind,
        "datasource": _SOURCE,
        "gridPos": _size(width, height),
        "fieldConfig": {
            "defaults": defaults,
            "overrides": [
                {
                    "matcher": {"id": "byFrameRefID", "options": ref},
                    "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": one.color}}],
                }
                for ref, one in zip(refs, asked, strict=True)
                if one.color
            ],
        },
        "targets": [
            {"refId": ref, "datasource": _SOURCE, "expr": one.query, "legendFormat": one.legend}
            for ref, one in zip(refs, asked, strict=True)
        ],
    }


def _size(width: int, height: int) -> Model:
    return {"w": width, "h": height}


def _variable(name: str, query: str) -> Model:
    """`All` is everything, also what has no such label: a pipeline whose file does not load has no tenant."""
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": query,
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }

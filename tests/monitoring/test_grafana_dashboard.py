"""The two Grafana dashboards: they ask only for what is written, show what is so now, and mark what an alert rule marks."""

from __future__ import annotations

import json
import math
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.wiring.exposition import LEASE_METRICS, METRICS, VERDICTS

ROOT = Path(__file__).parents[2] / "monitoring"
BOARDS: dict[str, Any] = {
    name: json.loads((ROOT / "grafana" / f"{name}.json").read_text())
    for name in ("penstock", "penstock-serving")
}
BATCH = BOARDS["penstock"]
RULES = {
    rule.get("alert") or rule["record"]: rule["expr"]
    for name in BOARDS
    for group in yaml.safe_load((ROOT / "prometheus" / f"{name}.rules.yml").read_text())["groups"]
    for rule in group["rules"]
}
EXPORTER = "node_textfile_mtime_seconds"
"""What node-exporter itself says of the file it reads."""
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not there: apt-get install prometheus brings it"
)
both = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)


def drawn(board: dict[str, Any], kind: str | None = None) -> list[dict[str, Any]]:
    """Panels that ask Prometheus, all or of one type."""
    return [p for p in board["panels"] if p["type"] != "row" and kind in (None, p["type"])]


def asked(board: dict[str, Any], query: str) -> str:
    """The query as Grafana sends it when all tenants and pipelines are chosen."""
    query = query.replace("$__rate_interval", "2m")
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            query = query.replace(f"${variable['name']}", variable["allValue"])
    return query


def promtool(verb: str, file: Path) -> None:
    done = subprocess.run(["promtool", verb, "rules", str(file)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_file_is_what_the_generator_makes() -> None:
    assert runpy.run_path(str(ROOT / "grafana" / "dashboard.py"))["batch_dashboard"]() == BATCH


def test_every_query_names_metrics_and_labels_that_are_written() -> None:
    for panel in drawn(BATCH):
        for target in panel["targets"]:
            named = set(re.findall(rf"(?:pipeline:)?penstock_\w+(?::\w+)?|{EXPORTER}", target["expr"]))
            assert named and named <= {*METRICS, *LEASE_METRICS, *RULES, EXPORTER}, panel["title"]
            known = {"tenant", "pipeline"}.union(*(METRICS[name][1] for name in named & set(METRICS)))
            known |= {"objective"} if named & set(RULES) else set()
            known |= {"instance"} if named & {*LEASE_METRICS, EXPORTER} else set()
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= known, panel["title"]


def test_every_metric_of_an_alert_rule_and_every_verdict_is_on_the_dashboard() -> None:
    shown = " ".join(target["expr"] for panel in drawn(BATCH) for target in panel["targets"])
    rules = yaml.safe_load((ROOT / "prometheus" / "penstock.rules.yml").read_text())["groups"]
    alarming = {
        name
        for group in rules
        for rule in group["rules"]
        if "alert" in rule
        for name in re.findall(r"(?<!:)\bpenstock_\w+", rule["expr"])
    }
    assert alarming and not {name for name in alarming if name not in shown}
    (said,) = [panel for panel in drawn(BATCH) if panel["title"] == "What the monitor says"]
    words = [
        word
        for target in said["targets"][:4]
        for word in re.findall(r'verdict=~"([^"]+)"', target["expr"])[0].split("|")
    ]
    assert sorted(words) == sorted(VERDICTS)


@both
def test_every_panel_has_a_title_a_description_a_unit_and_a_place_of_its_own(board: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["title"]
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells
    for panel in drawn(board):
        assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@both
def test_what_is_so_now_is_asked_for_now_and_what_is_missing_is_grey(board: dict[str, Any]) -> None:
    """Over a range, a verdict of last week stands beside today's; Grafana's own first threshold is green."""
    assert drawn(board, "stat")
    for panel in drawn(board, "stat"):
        assert all(target["instant"] and not target["range"] for target in panel["targets"]), panel["title"]
        nothing, from_zero, *_ = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert (nothing["value"], nothing["color"]) == (None, "#8e8e8e"), panel["title"]
        assert from_zero["value"] == 0 and from_zero["color"] in ("green", "blue"), panel["title"]


@both
def test_a_share_is_drawn_as_percent_from_zero(board: dict[str, Any]) -> None:
    for panel in drawn(board):
        defaults = panel["fieldConfig"]["defaults"]
        if re.search("[_:]ratio", panel["targets"][0]["expr"]):
            assert defaults["unit"] == "percentunit", panel["title"]
        if defaults["unit"] == "percentunit" and panel["type"] == "timeseries":
            assert defaults["min"] == 0, panel["title"]
            assert "max" in defaults or "axisSoftMax" in defaults["custom"], panel["title"]


@pytest.mark.parametrize(
    ("board", "title", "rule", "per"),
    [
        ("penstock", "Share of the last hour outside an objective", "PenstockFreshnessFastBurn", 1),
        ("penstock", "Age of an unpublished run", "pipeline:penstock_unpublished:bool", 3600),
        ("penstock", "Dead letters", "PenstockDeadLetters", 1),
        ("penstock", "Decided last what runs may have", "PenstockNobodyDecides", 1),
        ("penstock-serving", "Requests that fail", "PenstockServingFails", 1),
        ("penstock-serving", "Requests refused for load", "PenstockServingSheds", 1),
        ("penstock-serving", "Wait for the model, p99", "PenstockServingWaits", 1),
        ("penstock-serving", "Odd inputs", "PenstockServingOddInputs", 1),
        ("penstock-serving", "Scores against the validation days", "PenstockServingScoresMoved", 1),
    ],
)
def test_a_limit_is_drawn_where_the_alert_rule_has_it(board: str, title: str, rule: str, per: int) -> None:
    (panel,) = [panel for panel in drawn(BOARDS[board]) if panel["title"] == title]
    limit = panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"]
    factors = re.findall(r"[<>] (?:bool )?([\d.]+(?: \* [\d.]+)?)", RULES[rule])
    assert limit * per == pytest.approx(math.prod(map(float, factors[0].split(" * "))))


@needs_promtool
def test_promtool_reads_every_query(tmp_path: Path) -> None:
    queries = [asked(BATCH, target["expr"]) for panel in drawn(BATCH) for target in panel["targets"]]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", file)


TEN_MINUTES = 10
"""When Prometheus is asked; its clock began at 0 s."""
BATCH_SERIES = {
    'penstock_newest_published_day_end_timestamp_seconds{tenant="t", pipeline="late"}': "0x20",
    'penstock_newest_published_day_end_timestamp_seconds{tenant="t", pipeline="fresh"}': "500x20",
    'penstock_newest_published_day_end_timestamp_seconds{tenant="t", pipeline="free"}': "0x20",
    'penstock_freshness_objective_seconds{tenant="t", pipeline="late"}': "300x20",
    'penstock_freshness_objective_seconds{tenant="t", pipeline="fresh"}': "300x20",
    'penstock_monitor_verdict{tenant="t", pipeline="late", verdict="healthy"}': "1x5 0x15",
    'penstock_monitor_verdict{tenant="t", pipeline="late", verdict="data fault"}': "0x5 1x15",
    'penstock_monitor_verdict{tenant="t", pipeline="fresh", verdict="healthy"}': "1x20",
    'penstock_monitor_verdict{tenant="t", pipeline="free", verdict="noise"}': "1x20",
    'penstock_gate_refused{tenant="t", pipeline="late", gate="data"}': "0x20",
    'penstock_pipeline_loads{tenant="t", pipeline="late"}': "1x20",
    'penstock_pipeline_loads{pipeline="broken"}': "0x20",
    'penstock_open_alerts{tenant="t", pipeline="late", severity="page"}': "2x20",
    'penstock_open_alerts{tenant="t", pipeline="late", severity="warn"}': "0x20",
    "penstock_last_lease_decision_timestamp_seconds": "60x20",
    "penstock_lease_keeper_needed": "1x20",
    'node_textfile_mtime_seconds{file="/metrics/penstock.prom", instance="a"}': "570x20",
    'node_textfile_mtime_seconds{file="/metrics/other.prom", instance="a"}': "0x20",
}
BATCH_SHOWS: dict[str, list[dict[str, float]]] = {
    "Age of the newest published day": [
        {'{tenant="t", pipeline="late"}': 600},
        {"{}": 100},
        {"{}": 600},
    ],
    "What the monitor says": [
        {'penstock_monitor_verdict{tenant="t", pipeline="late", verdict="data fault"}': 1},
        {},
        {},
        {"{}": 2},
        {},
    ],
    "Gates that refuse": [{}, {"{}": 1}],
    "Open alerts": [{"{}": 2}, {}, {}, {}],
    "Pipelines that do not load": [{'penstock_pipeline_loads{pipeline="broken"}': 0}, {}],
    "Age of these figures": [{'{file="/metrics/penstock.prom", instance="a"}': 30}],
    "Decided last what runs may have": [{"{}": 540}],
}
SERVING_SERIES = {
    'penstock_serving_queue_size_requests{tenant="t", pipeline="idle", instance="a"}': "8x20",
    'penstock_serving_queue_size_requests{tenant="t", pipeline="busy", instance="a"}': "8x20",
    'penstock_serving_queue_size_requests{tenant="t", pipeline="busy", instance="b"}': "8x20",
    'pipeline:penstock_serving_failed:ratio5m{tenant="t", pipeline="idle"}': "NaN " * 21,
    'pipeline:penstock_serving_failed:ratio5m{tenant="t", pipeline="busy"}': "0.5x20",
    'penstock_serving_follow_failures_total{tenant="t", pipeline="busy", cause="log"}': "0+1x20",
}
_IDLE, _BUSY = '{tenant="t", pipeline="idle"}', '{tenant="t", pipeline="busy"}'
SERVING_SHOWS: dict[str, list[dict[str, float]]] = {
    "Replicas": [{_IDLE: 1, _BUSY: 2}],
    "Requests that fail": [{_IDLE: 0, f"pipeline:penstock_serving_failed:ratio5m{_BUSY}": 0.5}],
    "Requests refused for load": [{_IDLE: 0, _BUSY: 0}],
    "Does not follow": [{_IDLE: 0, _BUSY: 10}],
}


@needs_promtool
@pytest.mark.parametrize(
    ("board", "series", "shows"),
    [
        ("penstock", BATCH_SERIES, BATCH_SHOWS),
        ("penstock", {}, {title: [{} for _ in found] for title, found in BATCH_SHOWS.items()}),
        ("penstock-serving", SERVING_SERIES, SERVING_SHOWS),
        ("penstock-serving", {}, {title: [{} for _ in found] for title, found in SERVING_SHOWS.items()}),
    ],
    ids=["batch", "batch without metrics", "serving", "serving without metrics"],
)
def test_the_top_of_a_dashboard_shows_what_is_wrong_now_and_nothing_where_nothing_is_known(
    tmp_path: Path, board: str, series: dict[str, str], shows: dict[str, list[dict[str, float]]]
) -> None:
    panels = {panel["title"]: panel for panel in drawn(BOARDS[board], "stat")}
    expected = [
        {
            "expr": asked(BOARDS[board], target["expr"]),
            "eval_time": f"{TEN_MINUTES}m",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in found.items()],
        }
        for title, answers in shows.items()
        for target, found in zip(panels[title]["targets"], answers, strict=True)
    ]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    case = {"interval": "1m", "input_series": inputs, "promql_expr_test": expected}
    file = tmp_path / "shows.yml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [case]}))
    promtool("test", file)


def test_grafana_is_told_how_often_prometheus_scrapes() -> None:
    """From it Grafana computes `$__rate_interval`; with its own 15 s a rate would see too few samples."""
    (source,) = yaml.safe_load((ROOT / "grafana" / "provisioning" / "datasource.yml").read_text())[
        "datasources"
    ]
    scrape = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape

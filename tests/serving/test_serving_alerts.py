"""Alert rules and the dashboard of model servers ask for what a server writes, and lead to a section that says what to do."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.serving.metrics import ServingMetrics
from tasks.serving.refusals import CAUSES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "monitoring" / "prometheus"
RULES: dict[str, Any] = yaml.safe_load((FOLDER / "penstock-serving.rules.yml").read_text())
BOARD: dict[str, Any] = json.loads((ROOT / "monitoring" / "grafana" / "penstock-serving.json").read_text())
EXPRESSIONS = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not there: apt-get install prometheus brings it"
)


def written() -> dict[str, set[str]]:
    """Sample names that a server writes, with their labels."""
    found: dict[str, set[str]] = {}
    for collector in list(ServingMetrics("t", "p").registry._collector_to_names):
        labels, kind = set(collector._labelnames), collector._type
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(kind, ("",))
        for end in ends:
            found[collector._name + end] = labels | ({"le"} if end == "_bucket" else set())
    return found


def test_every_metric_that_is_asked_for_is_written_or_recorded_by_a_rule() -> None:
    there = written().keys() | {
        rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule
    }
    for text in (*EXPRESSIONS, *QUERIES):
        named = set(re.findall(r"(?:pipeline:)?penstock_\w+(?::\w+)?", text))
        assert named and named <= there, named - there


def test_every_cause_that_a_rule_counts_is_one_that_is_counted() -> None:
    named = {
        cause
        for text in (*EXPRESSIONS, *QUERIES)
        for found in re.findall(r'cause=~"([^"]+)"', text)
        for cause in found.split("|")
    }
    assert named and named <= set(CAUSES)


def test_every_alert_leads_to_a_section_of_the_page() -> None:
    headings = re.findall(r"(?m)^#+ (.+)$", (ROOT / "docs" / "serving.md").read_text())
    anchors = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
    alerts = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) >= 7
    for rule in alerts:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "docs/serving.md" and anchor in anchors, rule["alert"]


def test_the_dashboard_is_what_its_generator_makes() -> None:
    assert runpy.run_path(str(ROOT / "monitoring" / "grafana" / "serving.py"))["serving_dashboard"]() == BOARD


@promtool
@pytest.mark.parametrize(
    ("verb", "file"), [("check", "penstock-serving.rules.yml"), ("test", "penstock-serving.rules.test.yml")]
)
def test_promtool_finds_the_rules_right(verb: str, file: str) -> None:
    done = subprocess.run(
        ["promtool", verb, "rules", file], cwd=FOLDER, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_promtool_reads_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": text.replace("$__rate_interval", "2m").replace("$", "")}
        for number, text in enumerate(QUERIES)
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr

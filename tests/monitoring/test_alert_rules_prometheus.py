"""Alert rules and metrics: every metric named is one that is written, and the rules do what their unit tests say."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from share_files import say

from tasks import wiring
from tasks.core import Finding, Settings, Verdict, load_pipeline
from tasks.metadata import MetadataStore, ModelVersion, NewMetric
from tasks.metadata.deployments import NewEvent
from tasks.wiring.exposition import LEASE_METRICS, METRICS

FOLDER = Path(__file__).parents[2] / "monitoring" / "prometheus"
NOW = datetime(2024, 2, 10, tzinfo=UTC)
DAY = date(2024, 2, 8)
NODE_EXPORTERS = "node_textfile_mtime_seconds"
"""Of a file that it reads; the only metric in the rules that is not Penstock's."""


def rules() -> list[dict[str, Any]]:
    raw = yaml.safe_load((FOLDER / "penstock.rules.yml").read_text())
    return [rule for group in raw["groups"] for rule in group["rules"]]


def test_the_rules_name_only_metrics_that_are_written() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        named = set(re.findall(rf"(?:pipeline:)?penstock_\w+(?::\w+)?|{NODE_EXPORTERS}", rule["expr"]))
        assert named and named <= recorded | set(METRICS) | set(LEASE_METRICS) | {NODE_EXPORTERS}, rule


def test_every_alert_has_a_severity_a_summary_and_a_runbook() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "warn")
            assert rule["annotations"]["summary"]
            page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
            assert page in ("docs/playbook.md", "docs/runbooks.md") and anchor


def test_an_objective_burns_fast_or_slow_over_a_long_and_a_short_window() -> None:
    by_name = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    for objective in ("Freshness", "Publishing"):
        for speed, windows, factor in (("Fast", ("1h", "5m"), "14.4"), ("Slow", ("6h", "30m"), "6 ")):
            expr = by_name[f"Penstock{objective}{speed}Burn"]["expr"]
            assert expr.count(factor) == 2 and all(f"ratio{window}{{" in expr for window in windows)


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not there: apt-get install prometheus brings it"
)
@pytest.mark.parametrize("command", [("check", "penstock.rules.yml"), ("test", "penstock.rules.test.yml")])
def test_promtool_finds_the_rules_right(command: tuple[str, str]) -> None:
    verb, file = command
    done = subprocess.run(
        ["promtool", verb, "rules", file], cwd=FOLDER, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def samples(text: str) -> dict[tuple[str, str], float]:
    """(metric, its labels beside the owner's) -> value."""
    return {
        (
            one.name,
            ",".join(v for k, v in sorted(one.labels.items()) if k not in ("tenant", "pipeline")),
        ): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


@pytest.fixture
def scored(settings: Settings) -> Settings:
    """An installation with one live version, a published run, a refusal and a decision."""
    spec, store = load_pipeline(settings, "toy"), MetadataStore.open(settings, clock=lambda: NOW)
    bundle = "b" * 64
    store.record_model_version(spec, ModelVersion(1, bundle, "1+x", "s", "t", "toy", None, None, "", NOW, {}))
    store.append_events(spec, lambda _: [NewEvent("promote", 1, bundle, "1+x", None, "ada", "first")])
    store.append_events(spec, lambda _: [NewEvent("expose", 2, "c" * 64, "1+x", 1, "ada", "try", 0.05)])
    store.record_run(
        spec,
        "r1",
        status="published",
        model_version=1,
        rows=200,
        dead_letters=3,
        cpu_seconds=4.5,
        gpu_seconds=0.0,
        wall_s=9.0,
    )
    store.record_publication(spec, "r1", table_version=1, rows=197, files=1, days=[DAY])
    store.record_signals(spec, day=DAY, run_id="r1", model_version=1, signals={"expected_auc": 0.75})
    store.record_metrics(
        spec,
        [
            NewMetric("auc", 1, DAY, 0.7, "monitor", "r1"),
            NewMetric("drift_alarms", 1, DAY, 2.0, "monitor", "r1"),
        ],
    )
    store.record_decision(spec, action="hold_scoring", verdict="data fault", reasons=["nulls"], last_day=DAY)
    store.record_verdict(
        spec,
        Verdict("evaluation", "toy", "x", "fail", (Finding("auc", "fail", "low"),), "2024-02-10T00:00:00Z"),
    )
    return settings


def test_the_metrics_say_what_the_store_holds(scored: Settings) -> None:
    (scored.pipelines_dir / "alerts.yaml").write_text("pipelines: {toy: {freshness_hours: 36}}\n")
    found = samples(wiring.batch_metrics(scored, now=NOW))
    expected = {
        ("penstock_last_success_timestamp_seconds", "publication"): NOW.timestamp(),
        ("penstock_newest_published_day_end_timestamp_seconds", ""): datetime(
            2024, 2, 9, tzinfo=UTC
        ).timestamp(),
        ("penstock_freshness_objective_seconds", ""): 36 * 3600,
        ("penstock_last_publication_rows", ""): 197,
        ("penstock_last_run_dead_letter_ratio", ""): 0.015,
        ("penstock_last_run_duration_seconds", ""): 9.0,
        ("penstock_last_run_cpu_seconds", ""): 4.5,
        ("penstock_last_run_gpu_seconds", ""): 0.0,
        ("penstock_unpublished_run_age_seconds", ""): 0.0,
        ("penstock_drift_alarms", ""): 2.0,
        ("penstock_monitor_verdict", "data fault"): 1.0,
        ("penstock_monitor_verdict", "healthy"): 0.0,
        ("penstock_gate_refused", "evaluation"): 1.0,
        ("penstock_live_version", ""): 1.0,
        ("penstock_live_version_info", f"{'b' * 12},1+x,1"): 1.0,
        ("penstock_canary_exposure_ratio", ""): 0.05,
        ("penstock_pipeline_loads", ""): 1.0,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert found[("penstock_performance_gap", "")] == pytest.approx(-0.05)


def test_a_run_that_is_not_published_ages_and_a_new_pipeline_has_no_false_zero(settings: Settings) -> None:
    assert ("penstock_last_run_dead_letter_ratio", "") not in samples(wiring.batch_metrics(settings))
    spec, store = load_pipeline(settings, "toy"), MetadataStore.open(settings, clock=lambda: NOW)
    store.record_run(spec, "r1", status="planned")
    found = samples(wiring.batch_metrics(settings, now=NOW + timedelta(hours=3)))
    assert found[("penstock_unpublished_run_age_seconds", "")] == 3 * 3600


def test_a_broken_pipeline_is_a_metric_and_hides_no_other(scored: Settings) -> None:
    (scored.pipelines_dir / "odd").mkdir()
    (scored.pipelines_dir / "odd" / "pipeline.yaml").write_text("name: odd\n")
    text = wiring.batch_metrics(scored, now=NOW)
    assert 'penstock_pipeline_loads{pipeline="odd",tenant=""} 0.0' in text
    assert 'penstock_pipeline_loads{pipeline="toy",tenant="default"} 1.0' in text
    assert "toy" not in wiring.batch_metrics(scored, may_read=lambda name: name != "toy", now=NOW)


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not there: apt-get install prometheus brings it"
)
def test_promtool_finds_the_metrics_named_as_they_should_be(scored: Settings) -> None:
    say(scored, "{cpus: 4}", default="{}")
    wiring.keep_leases(scored, once=True)
    text = wiring.batch_metrics(scored, now=NOW)
    assert all(f"\n{name} " in text for name in LEASE_METRICS)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr

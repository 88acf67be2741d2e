"""Writes `penstock.json`, the Grafana dashboard over Penstock's batch metrics: `python monitoring/grafana/dashboard.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from board import BAD, GOOD, LOOK, NEUTRAL, ONE, OWNER, Asked, Model, dashboard, lines, matrix, row, stat

OUT = Path(__file__).with_name("penstock.json")
_AGE = f"(time() - penstock_newest_published_day_end_timestamp_seconds{ONE})"
_OBJECTIVE = f"on ({OWNER}) penstock_freshness_objective_seconds"
_QUOTAS = "(time() - penstock_last_lease_decision_timestamp_seconds) and (penstock_lease_keeper_needed == 1)"


def _verdicts(*words: str) -> str:
    return f'penstock_monitor_verdict{{tenant=~"$tenant", pipeline=~"$pipeline", verdict=~"{"|".join(words)}"}} == 1'


def _none_of(metric: str, value: int) -> str:
    """One series without labels while there are samples and none has the value; nothing where there are no samples."""
    return f"count({metric}{ONE}) unless on () ({metric}{ONE} == {value})"


def _open(severity: str) -> str:
    return f'sum(penstock_open_alerts{{tenant=~"$tenant", pipeline=~"$pipeline", severity="{severity}"}}) > 0'


_SEVERITIES = (("page", BAD), ("warn", LOOK), ("info", NEUTRAL))
_UNWELL = (
    (("data fault", "performance damage"), BAD),
    (("drift, no damage seen",), LOOK),
    (("cannot judge",), "yellow"),
)
_NOT_WELL = _verdicts(*(word for words, _ in _UNWELL for word in words))
_WELL = _verdicts("healthy", "noise")
PANELS = (
    stat(
        "Age of the newest published day",
        "Since the newest published day ended (UTC). Red and by name: older than freshness_hours of alerts.yaml. Of the others the oldest.",
        (
            Asked(f"{_AGE} > {_OBJECTIVE}", "{{pipeline}}, stale", BAD),
            Asked(f"max({_AGE} <= {_OBJECTIVE})", "oldest within its limit", GOOD),
            Asked(f"max({_AGE} unless {_OBJECTIVE})", "oldest without a limit", NEUTRAL),
        ),
        width=8,
        unit="s",
        decimals=1,
    ),
    stat(
        "What the monitor says",
        "Verdict of the newest decision, by name where it is not healthy or noise. Red pages, orange warns, yellow could not be judged.",
        (
            *(Asked(_verdicts(*words), "{{pipeline}}: {{verdict}}", color) for words, color in _UNWELL),
            Asked(f"count({_WELL}) and on () ({_NOT_WELL})", "others: healthy", GOOD),
            Asked(f"count({_WELL}) unless on () ({_NOT_WELL})", "healthy", GOOD),
        ),
        width=8,
        words=True,
    ),
    stat(
        "Gates that refuse",
        "Gates whose newest verdict is a refusal: of data, of a model, of a challenger in the canary.",
        (
            Asked(f"penstock_gate_refused{ONE} == 1", "{{pipeline}}: {{gate}}", LOOK),
            Asked(_none_of("penstock_gate_refused", 1), "none", GOOD),
        ),
        width=4,
        words=True,
    ),
    stat(
        "Open alerts",
        "By severity. `penstock alerts list NAME` says which; without alerts.yaml there are none.",
        (
            *(Asked(_open(severity), severity, color) for severity, color in _SEVERITIES),
            Asked(f"sum(penstock_open_alerts{ONE}) == 0", "none", GOOD),
        ),
        width=4,
        decimals=0,
    ),
    stat(
        "Pipelines that do not load",
        "Their pipeline.yaml is not right, and nothing of them runs. They have no tenant: seen where all tenants are.",
        (
            Asked(f"penstock_pipeline_loads{ONE} == 0", "{{pipeline}}", LOOK),
            Asked(_none_of("penstock_pipeline_loads", 0), "none", GOOD),
        ),
        width=8,
        height=3,
        words=True,
    ),
    stat(
        "Age of these figures",
        "Since `penstock metrics --to` wrote the file that node-exporter reads. Where it stands still, all other panels do; from 600 s on it pages.",
        (Asked('time() - node_textfile_mtime_seconds{file=~".*penstock.*"}', "{{instance}}"),),
        width=8,
        height=3,
        unit="s",
        decimals=0,
        limits=((300, LOOK), (600, BAD)),
        when_none="no file is read",
    ),
    stat(
        "Decided last what runs may have",
        "Where only `penstock tenancy keep` decides, from 300 s on it pages: nothing starts. No data where no keeper is needed.",
        (Asked(_QUOTAS, "{{instance}}"),),
        width=8,
        height=3,
        unit="s",
        decimals=0,
        limits=((300, BAD),),
    ),
    row("Published in time"),
    lines(
        "Share of the last hour outside an objective",
        "freshness: the newest day was older than freshness_hours. success: a run was unpublished for over two hours. The line is where it pages.",
        (Asked(f"pipeline:penstock_bad:ratio1h{ONE}", "{{pipeline}} {{objective}}"),),
        unit="percentunit",
        highest=1,
        limit=0.144,
    ),
    lines(
        "Age of an unpublished run",
        "Of the newest run, while it is planned or scored and not published; from two hours on it misses its objective.",
        (Asked(f"penstock_unpublished_run_age_seconds{ONE} / 3600", "{{pipeline}}"),),
        unit="suffix:h",
        at_least=(0, 2.5),
        limit=2,
        stays=False,
    ),
    matrix(
        "Since each step last succeeded",
        "The schedule says how old each may be.",
        f"min by (pipeline, step) (time() - penstock_last_success_timestamp_seconds{ONE})",
        rows="pipeline",
        columns="step",
        unit="s",
    ),
    row("Data and model"),
    lines(
        "Channels in drift alarm",
        "Of the newest judged day.",
        (Asked(f"penstock_drift_alarms{ONE}", "{{pipeline}}"),),
        width=8,
        decimals=0,
        at_least=(0, 5),
    ),
    lines(
        "Realised less expected AUC",
        "Of the newest labelled day; below zero the model is worse than its scores promise.",
        (Asked(f"penstock_performance_gap{ONE}", "{{pipeline}}"),),
        width=8,
        decimals=3,
        lowest=None,
        at_least=(-0.05, 0.05),
    ),
    lines(
        "Dead letters",
        "Share of the newest scored run's rows that cannot be scored; from 1 % on it warns.",
        (Asked(f"penstock_last_run_dead_letter_ratio{ONE}", "{{pipeline}}"),),
        width=8,
        unit="percentunit",
        at_least=(0, 0.02),
        limit=0.01,
    ),
    row("Versions and messages"),
    lines(
        "Live version",
        "Number of the version that is live: a step up is a promotion, a step down a rollback.",
        (Asked(f"penstock_live_version{ONE}", "{{pipeline}}"),),
        width=8,
        decimals=0,
        at_least=(0, 5),
    ),
    lines(
        "Exposure of a challenger",
        "Share of the entities that get a challenger's predictions.",
        (Asked(f"penstock_canary_exposure_ratio{ONE}", "{{pipeline}}"),),
        width=8,
        unit="percentunit",
        highest=1,
    ),
    lines(
        "Alerts that wait to be sent",
        "Deliveries that are not done: a channel is down, grouped or at its limit.",
        (Asked(f"penstock_waiting_alert_deliveries{ONE}", "{{pipeline}}"),),
        width=8,
        decimals=0,
        at_least=(0, 5),
    ),
    row("Volume and cost of the newest run"),
    lines(
        "Rows published",
        "Of the newest publication.",
        (Asked(f"penstock_last_publication_rows{ONE}", "{{pipeline}}"),),
        width=8,
        unit="short",
    ),
    lines(
        "Duration",
        "Wall time.",
        (Asked(f"penstock_last_run_duration_seconds{ONE}", "{{pipeline}}"),),
        width=8,
        unit="s",
    ),
    lines(
        "Computing time",
        "Of all workers; GPU only where one was used.",
        (
            Asked(f"penstock_last_run_cpu_seconds{ONE}", "{{pipeline}} CPU"),
            Asked(f"penstock_last_run_gpu_seconds{ONE} > 0", "{{pipeline}} GPU"),
        ),
        width=8,
        unit="s",
    ),
)


def batch_dashboard() -> Model:
    """The dashboard's JSON model: what is wrong now, and below it since when."""
    return dashboard(
        PANELS, uid="penstock", title="Penstock", named_by="penstock_pipeline_loads", since="now-7d"
    )


if __name__ == "__main__":
    OUT.write_text(json.dumps(batch_dashboard(), indent=2) + "\n")

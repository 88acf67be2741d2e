"""Writes `penstock-serving.json`, the Grafana dashboard of model servers: `python monitoring/grafana/serving.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from board import BAD, LOOK, NEUTRAL, ONE, OWNER, Asked, Model, dashboard, lines, row, stat

OUT = Path(__file__).with_name("penstock-serving.json")
_MODEL = f"{OWNER}, model_version"
_QUALITY = 'penstock_serving_model_quality{tenant=~"$tenant", pipeline=~"$pipeline", metric=~"auc|brier"}'
_WHO = "{{pipeline}} v{{model_version}}"


def _rate(name: str, over: str = "$__rate_interval") -> str:
    return f"rate(penstock_serving_{name}{ONE}[{over}])"


def _quantile(share: float, name: str, by: str = _MODEL, over: str = "$__rate_interval") -> str:
    return f"histogram_quantile({share}, sum by ({by}, le) ({_rate(name + '_bucket', over)}))"


def _ratio(recorded: str) -> str:
    """A share of all requests as the alert rules have it, and 0 where none of that kind ever was or nobody asks."""
    return (
        f"(pipeline:{recorded}{ONE} > 0) or 0 * sum by ({OWNER}) (penstock_serving_queue_size_requests{ONE})"
    )


def _grown(counter: str, over: str) -> str:
    """What a counter grew by, and 0 for a server that never counted."""
    grown = f"sum by ({OWNER}) (increase(penstock_serving_{counter}{ONE}[{over}]))"
    return f"{grown} or 0 * sum by ({OWNER}) (penstock_serving_queue_size_requests{ONE})"


def _lost(failed: str, scored: str) -> str:
    """The share of a version's rows that it could not score, where there is one."""
    mine, others = (f"sum by ({_MODEL}) ({_rate(name)})" for name in (failed, scored))
    return f"({mine} > 0) / on ({_MODEL}) ({mine} + on ({_MODEL}) {others})"


PANELS = (
    stat(
        "Replicas",
        "Servers that are scraped.",
        (Asked(f"count by ({OWNER}) (penstock_serving_queue_size_requests{ONE})", "{{pipeline}}"),),
        width=4,
        base=NEUTRAL,
    ),
    stat(
        "Latency, p99",
        "From a request's first byte to its answer, in the last five minutes.",
        (Asked(_quantile(0.99, "request_duration_seconds", OWNER, "5m"), "{{pipeline}}"),),
        width=4,
        unit="s",
        decimals=1,
        base=NEUTRAL,
    ),
    stat(
        "Requests that fail",
        "Share of the last five minutes' requests that fail in the model or the server, or expire; pages from 1 % on.",
        (Asked(_ratio("penstock_serving_failed:ratio5m"), "{{pipeline}}"),),
        width=4,
        unit="percentunit",
        decimals=1,
        limits=((0.01, BAD),),
    ),
    stat(
        "Requests refused for load",
        "Share of the last five minutes' requests that are refused because too much waits; pages from 5 % on.",
        (Asked(_ratio("penstock_serving_shed:ratio5m"), "{{pipeline}}"),),
        width=4,
        unit="percentunit",
        decimals=1,
        limits=((0.05, BAD),),
    ),
    stat(
        "Answers not recorded",
        "Answered rows that the audit store refused for good in the last 15 minutes; one of them pages.",
        (Asked(_grown("unrecordable_rows_total", "15m"), "{{pipeline}}"),),
        width=4,
        unit="short",
        decimals=0,
        limits=((0.001, BAD),),
    ),
    stat(
        "Does not follow",
        "Times in ten minutes that the deployment log or a new version could not be used: what was live goes on answering.",
        (Asked(_grown("follow_failures_total", "10m"), "{{pipeline}}"),),
        width=4,
        unit="short",
        decimals=0,
        limits=((0.001, LOOK),),
    ),
    row("1 to 3: latency, traffic, errors"),
    lines(
        "Latency",
        "From a request's first byte to its answer: p99, and the median; far below p99 it means that few requests wait long.",
        (
            Asked(_quantile(0.99, "request_duration_seconds"), f"{_WHO} p99"),
            Asked(_quantile(0.5, "request_duration_seconds"), f"{_WHO} median"),
        ),
        width=8,
        unit="s",
        stays=False,
    ),
    lines(
        "Predictions",
        "Rows answered a second, by version: traffic moves with a promotion or an exposure.",
        (Asked(f"sum by ({_MODEL}) ({_rate('predictions_total')})", _WHO),),
        width=8,
        unit="suffix:rows/s",
        stays=False,
    ),
    lines(
        "Refused and failed",
        "Requests without a prediction a second, by cause.",
        (Asked(f"sum by ({OWNER}, cause) ({_rate('errors_total')})", "{{pipeline}} {{cause}}"),),
        width=8,
        unit="reqps",
        at_least=(0, 1),
        stays=False,
        when_none="none is counted",
    ),
    row("4 and 5: saturation, batches, device"),
    lines(
        "Queue in use",
        "Share of the places in which requests wait, of the fullest replica.",
        (
            Asked(
                f"max by ({OWNER}) (penstock_serving_queue_depth_requests{ONE} / penstock_serving_queue_size_requests{ONE})",
                "{{pipeline}}",
            ),
        ),
        width=8,
        unit="percentunit",
        highest=1,
        stays=False,
    ),
    lines(
        "Wait for the model, p99",
        "From admission to scoring: rises before anything fails. From 0.25 s on it warns.",
        (Asked(_quantile(0.99, "queue_wait_seconds"), _WHO),),
        width=8,
        unit="s",
        at_least=(0, 0.3),
        limit=0.25,
        stays=False,
    ),
    lines(
        "Scoring thread busy",
        "Share of the time it computes, mean of replicas; near 100 % the model is the limit.",
        (Asked(f"avg by ({_MODEL}) ({_rate('scoring_seconds_total')})", _WHO),),
        width=8,
        unit="percentunit",
        highest=1,
        stays=False,
    ),
    lines(
        "Rows scored at once",
        "Mean of batches: grows with the load.",
        (
            Asked(
                f"sum by ({_MODEL}) ({_rate('batch_rows_sum')}) / sum by ({_MODEL}) ({_rate('batch_rows_count')})",
                _WHO,
            ),
        ),
        width=12,
        unit="short",
        stays=False,
    ),
    lines(
        "Accelerator",
        "How busy the GPU is, as its driver says.",
        (Asked(f"avg by ({OWNER}) (penstock_serving_accelerator_utilization_ratio{ONE})", "{{pipeline}}"),),
        width=12,
        unit="percentunit",
        highest=1,
        stays=False,
        when_none="no GPU is measured",
    ),
    row("6 and 7: what comes in and what goes out"),
    lines(
        "Odd inputs",
        "Share of rows with a null, unseen or out-of-range value, by feature: the five worst at each moment. From 20 % unseen or out of range on it warns.",
        (
            Asked(
                f"topk(5, sum by ({_MODEL}, feature, kind) ({_rate('input_anomalies_total')}) / on ({_MODEL}) group_left "
                f"sum by ({_MODEL}) ({_rate('input_rows_total')}))",
                f"{_WHO} {{{{feature}}}} {{{{kind}}}}",
            ),
        ),
        unit="percentunit",
        at_least=(0, 0.25),
        limit=0.2,
        stays=False,
    ),
    lines(
        "Scores against the validation days",
        "Jensen-Shannon distance of recent scores; 0 is the same distribution. From 0.3 on it warns.",
        (Asked(f"max by ({_MODEL}) (penstock_serving_prediction_drift_distance{ONE})", _WHO),),
        decimals=2,
        at_least=(0, 0.35),
        limit=0.3,
        stays=False,
    ),
    row("8: quality and age"),
    lines(
        "Quality",
        "AUC and Brier score of the newest day with labels, as the monitor measured them.",
        (Asked(f"max by ({_MODEL}, metric) ({_QUALITY})", f"{_WHO} {{{{metric}}}}"),),
        width=8,
        decimals=3,
        when_none="nothing is measured yet",
    ),
    lines(
        "Age of the model",
        "Since the end of its training days.",
        (
            Asked(
                f"(time() - max by ({_MODEL}) (penstock_serving_model_trained_until_timestamp_seconds{ONE})) / 86400",
                _WHO,
            ),
        ),
        width=8,
        unit="suffix:days",
        stays=False,
    ),
    lines(
        "Age of the rows that come",
        "Now minus the newest event time.",
        (Asked(f"min by ({_MODEL}) (penstock_serving_event_time_lag_seconds{ONE})", _WHO),),
        width=8,
        unit="s",
        lowest=None,
        stays=False,
    ),
    row("A challenger beside the champion"),
    lines(
        "Exposed",
        "Share of the entities that a challenger answers.",
        (Asked(f"max by ({OWNER}) (penstock_serving_challenger_share_ratio{ONE})", "{{pipeline}}"),),
        width=8,
        unit="percentunit",
        highest=1,
        stays=False,
    ),
    lines(
        "Rows that a challenger cannot score",
        "Share of its rows: exposed, which the champion answers in its place, or as a shadow. Exposed it warns from 1 % on.",
        (
            Asked(_lost("fallback_rows_total", "predictions_total"), _WHO),
            Asked(_lost("shadow_failed_rows_total", "shadow_difference_count"), f"{_WHO} shadow"),
        ),
        width=8,
        unit="percentunit",
        at_least=(0, 0.02),
        limit=0.01,
        stays=False,
        when_none="each row is scored",
    ),
    lines(
        "A shadow's difference, p99",
        "Between its scores and the answers.",
        (Asked(_quantile(0.99, "shadow_difference"), _WHO),),
        width=8,
        decimals=3,
        stays=False,
        when_none="no shadow scores",
    ),
    row("The record of what was answered"),
    lines(
        "Answered and not recorded yet",
        "Rows that wait for the audit store; above 20,000 requests are refused.",
        (Asked(f"sum by ({OWNER}) (penstock_serving_unrecorded_rows{ONE})", "{{pipeline}}"),),
        unit="short",
        stays=False,
    ),
    lines(
        "Explanations left out",
        "A second, because of the load.",
        (Asked(f"sum by ({OWNER}) ({_rate('explanations_shed_total')})", "{{pipeline}}"),),
        unit="suffix:rows/s",
        at_least=(0, 1),
        stays=False,
    ),
)


def serving_dashboard() -> Model:
    """The dashboard's JSON model: whether it answers, then the eight things that are measured."""
    return dashboard(
        PANELS,
        uid="penstock-serving",
        title="Penstock: model servers",
        named_by="penstock_serving_queue_size_requests",
        since="now-6h",
    )


if __name__ == "__main__":
    OUT.write_text(json.dumps(serving_dashboard(), indent=2) + "\n")

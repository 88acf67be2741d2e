"""Writes `penstock-serving.json`, the Grafana dashboard of model servers: `python monitoring/grafana/serving.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from dashboard import dashboard

OUT = Path(__file__).with_name("penstock-serving.json")
_ONE = '{tenant=~"$tenant", pipeline=~"$pipeline"}'
_OWNER = "tenant, pipeline"
_MODEL = f"{_OWNER}, model_version"


def _rate(name: str) -> str:
    return f"rate(penstock_serving_{name}{_ONE}[5m])"


def _quantile(share: float, name: str, by: str = _MODEL) -> str:
    return f"histogram_quantile({share}, sum by ({by}, le) ({_rate(name + '_bucket')}))"


_WHO = "{{pipeline}} v{{model_version}}"
PANELS = (
    ("Latency, p99", "From a request's first byte to its answer.", "s", "timeseries",
     _quantile(0.99, "request_duration_seconds"), _WHO),
    ("Latency, median", "The same; far below p99 means that few requests wait long.", "s", "timeseries",
     _quantile(0.5, "request_duration_seconds"), _WHO),
    ("Predictions", "Rows answered a second, by version: traffic moves with a promotion or an exposure.", "cps",
     "timeseries", f"sum by ({_MODEL}) ({_rate('predictions_total')})", _WHO),
    ("Refused and failed", "Requests without a prediction a second, by cause.", "reqps", "timeseries",
     f"sum by ({_OWNER}, cause) ({_rate('errors_total')})", "{{pipeline}} {{cause}}"),
    ("Queue in use", "Share of the places in which requests wait.", "percentunit", "timeseries",
     f"max by ({_OWNER}) (penstock_serving_queue_depth_requests{_ONE} / penstock_serving_queue_size_requests{_ONE})",
     "{{pipeline}}"),
    ("Wait for the model, p99", "From admission to scoring: rises before anything fails.", "s", "timeseries",
     _quantile(0.99, "queue_wait_seconds"), _WHO),
    ("Scoring thread busy", "Share of the time it computes, mean of replicas; near 1 the model is the limit.", "percentunit",
     "timeseries", f"avg by ({_MODEL}) ({_rate('scoring_seconds_total')})", _WHO),
    ("Rows scored at once", "Mean of batches: grows with the load.", "short", "timeseries",
     f"sum by ({_MODEL}) ({_rate('batch_rows_sum')}) / sum by ({_MODEL}) ({_rate('batch_rows_count')})", _WHO),
    ("Odd inputs", "Share of rows with a null, unseen or out-of-range value, by feature: the five worst.", "percentunit",
     "timeseries",
     f"topk(5, sum by ({_MODEL}, feature, kind) ({_rate('input_anomalies_total')}) / on ({_MODEL}) group_left "
     f"sum by ({_MODEL}) ({_rate('input_rows_total')}))", "{{feature}} {{kind}}"),
    ("Scores against the validation days", "Jensen-Shannon distance of recent scores; 0 is the same distribution.", "none",
     "timeseries", f"max by ({_MODEL}) (penstock_serving_prediction_drift_distance{_ONE})", _WHO),
    ("Quality", "Newest values that the monitor measured or estimated.", "none", "timeseries",
     f"max by ({_MODEL}, metric) (penstock_serving_model_quality{_ONE})", "v{{model_version}} {{metric}}"),
    ("Age of the model", "Since the end of its training days.", "s", "timeseries",
     f"time() - max by ({_MODEL}) (penstock_serving_model_trained_until_timestamp_seconds{_ONE})", _WHO),
    ("Age of the rows that come", "Now minus the newest event time.", "s", "timeseries",
     f"min by ({_MODEL}) (penstock_serving_event_time_lag_seconds{_ONE})", _WHO),
    ("Answered and not recorded yet", "Rows that wait for the audit store.", "short", "timeseries",
     f"sum by ({_OWNER}) (penstock_serving_unrecorded_rows{_ONE})", "{{pipeline}}"),
    ("Explanations left out", "A second, because of the load.", "cps", "timeseries",
     f"sum by ({_OWNER}) ({_rate('explanations_shed_total')})", "{{pipeline}}"),
    ("Accelerator", "How busy the GPU is, where there is one.", "percentunit", "timeseries",
     f"avg by ({_OWNER}) (penstock_serving_accelerator_utilization_ratio{_ONE})", "{{pipeline}}"),
)  # fmt: skip
"""(title, description, unit, type, query, legend)."""


def serving_dashboard() -> dict[str, object]:
    """The dashboard's JSON model."""
    return dashboard(
        PANELS,
        uid="penstock-serving",
        title="Penstock: model servers",
        named_by="penstock_serving_queue_size_requests",
    )


if __name__ == "__main__":
    OUT.write_text(json.dumps(serving_dashboard(), indent=2) + "\n")

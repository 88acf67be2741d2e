"""Metrics of batch runs and decisions in Prometheus' text format, from the metadata store alone.

Every query of a pipeline is a range of an index that begins with tenant and pipeline, and no prediction is read. Labels are tenant and
pipeline, and beside them only words of which there is a fixed number, and the live version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from tasks.core import PipelineSpec, Settings, load_pipeline, pipeline_names, utc_now
from tasks.core.errors import PenstockError
from tasks.core.shares import cluster_file
from tasks.wiring.settling import keeper_is_needed

if TYPE_CHECKING:
    from tasks.metadata import MetadataStore

_OWNER = ("tenant", "pipeline")
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "penstock_last_success_timestamp_seconds": ("When a step last succeeded, Unix time.", ("step",)),
    "penstock_newest_published_day_end_timestamp_seconds": (
        "End of the newest published day, Unix time.",
        (),
    ),
    "penstock_freshness_objective_seconds": ("How old that may be, where alerts.yaml says so.", ()),
    "penstock_published_partitions": ("Days that have predictions.", ()),
    "penstock_last_publication_rows": ("Rows of the newest publication.", ()),
    "penstock_last_run_dead_letter_ratio": (
        "Share of the newest scored run's rows that cannot be scored.",
        (),
    ),
    "penstock_last_run_duration_seconds": ("Wall time of the newest scored run.", ()),
    "penstock_last_run_cpu_seconds": ("CPU time of the newest scored run.", ()),
    "penstock_last_run_gpu_seconds": ("GPU time of the newest scored run.", ()),
    "penstock_unpublished_run_age_seconds": ("Age of the newest run while it is not published, else 0.", ()),
    "penstock_drift_alarms": ("Channels in drift alarm on the newest judged day.", ()),
    "penstock_performance_gap": (
        "Realised less expected AUC of the newest labelled day; negative is worse.",
        (),
    ),
    "penstock_monitor_verdict": ("1 for what the monitor's newest decision says.", ("verdict",)),
    "penstock_gate_refused": ("1 while the newest verdict of a gate is a refusal.", ("gate",)),
    "penstock_live_version": ("Number of the live model version.", ()),
    "penstock_live_version_info": ("1, with the live version.", ("version", "bundle", "features")),
    "penstock_canary_exposure_ratio": ("Share of entities that get a challenger's predictions.", ()),
    "penstock_open_alerts": ("Alerts that are open.", ("severity",)),
    "penstock_waiting_alert_deliveries": ("Deliveries of alerts that are not done.", ()),
    "penstock_pipeline_loads": ("1 when the pipeline's file is right.", ()),
}
"""Name -> (help, labels beside the owner's). All are gauges: the store answers for now, and times are moments."""
LEASE_METRICS = {
    "penstock_last_lease_decision_timestamp_seconds": "When it was decided last what runs may have, Unix time.",
    "penstock_lease_keeper_needed": "1 where tenants have logins of their own, so that only `penstock tenancy keep` decides.",
}
"""Name -> help, of what all tenants share; without labels. Only where `tenants/_cluster.yaml` shares a cluster out."""
VERDICTS = (
    "healthy",
    "noise",
    "drift, no damage seen",
    "data fault",
    "performance damage",
    "cannot judge",
)
GATES = ("data", "evaluation", "canary")
Sample = tuple[str, tuple[str, ...], float]


def batch_metrics(
    settings: Settings, *, may_read: Callable[[str], bool] | None = None, now: datetime | None = None
) -> str:
    """The text that a scrape gets.

    Args:
        may_read: Whether a pipeline is shown, by its name; default: all are.

    Raises:
        ServiceUnavailable: The metadata store does not answer.
    """
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    from tasks.metadata import MetadataStore
    from tasks.monitoring.alert_rules import load_rules

    registry = CollectorRegistry()
    gauges = {
        name: Gauge(name, said, (*_OWNER, *labels), registry=registry)
        for name, (said, labels) in METRICS.items()
    }
    metadata, moment, rules = MetadataStore.open(settings), now or utc_now(), load_rules(settings)
    for name in pipeline_names(settings):
        if may_read is not None and not may_read(name):
            continue
        try:
            spec = load_pipeline(settings, name)
        except PenstockError:
            gauges["penstock_pipeline_loads"].labels("", name).set(0)
            continue
        own = rules.pipelines.get(name)
        samples = [*_runs(metadata, spec, moment), *_model(metadata, spec), *_monitor(metadata, spec)]
        if own and own.freshness_hours:
            samples.append(("penstock_freshness_objective_seconds", (), own.freshness_hours * 3600))
        for metric, labels, value in (*samples, ("penstock_pipeline_loads", (), 1.0)):
            gauges[metric].labels(spec.tenant, name, *labels).set(value)
    if cluster_file(settings).exists():
        for metric, value in _leases(settings, metadata):
            Gauge(metric, LEASE_METRICS[metric], registry=registry).set(value)
    return str(generate_latest(registry).decode())


def _leases(settings: Settings, metadata: MetadataStore) -> Iterator[tuple[str, float]]:
    if decided := metadata.last_decision():
        yield "penstock_last_lease_decision_timestamp_seconds", decided[0].timestamp()
    yield "penstock_lease_keeper_needed", float(keeper_is_needed(settings, metadata))


def _runs(metadata: MetadataStore, spec: PipelineSpec, now: datetime) -> Iterator[Sample]:
    days = metadata.published_days(spec)
    yield "penstock_published_partitions", (), float(len(days))
    if days:
        end = datetime.combine(max(days) + timedelta(days=1), time(), UTC)
        yield "penstock_newest_published_day_end_timestamp_seconds", (), end.timestamp()
    for published in metadata.publications(spec, limit=1):
        yield _success("publication", published.published_at_utc)
        yield "penstock_last_publication_rows", (), float(published.rows)
    newest = metadata.runs(spec, limit=10)
    for run in newest[:1]:
        late = run.status in ("planned", "scored")
        age = (now - run.planned_at_utc).total_seconds() if late else 0.0
        yield "penstock_unpublished_run_age_seconds", (), age
    for run in [item for item in newest if item.status != "planned"][:1]:
        yield _success("scoring", run.updated_at_utc)
        if run.rows:
            yield "penstock_last_run_dead_letter_ratio", (), (run.dead_letters or 0) / run.rows
        for name, value in (
            ("duration", run.wall_s),
            ("cpu", run.cpu_seconds),
            ("gpu", run.gpu_seconds),
        ):
            if value is not None:
                yield f"penstock_last_run_{name}_seconds", (), value
    for training in metadata.trainings(spec, limit=1):
        yield _success("training", training.recorded_at_utc)


def _model(metadata: MetadataStore, spec: PipelineSpec) -> Iterator[Sample]:
    live = metadata.live(spec)
    if live:
        yield _success("promotion", live.at_utc)
        yield "penstock_live_version", (), float(live.version)
        said = (str(live.version), live.bundle_digest[:12], live.feature_version)
        yield "penstock_live_version_info", said, 1.0
    exposed = metadata.head(spec).exposed
    yield "penstock_canary_exposure_ratio", (), float(exposed.share or 0) if exposed else 0.0
    for gate in GATES:
        for stored in metadata.verdicts(spec, gate=gate, limit=1):
            yield "penstock_gate_refused", (gate,), float(stored.verdict.outcome == "fail")


def _monitor(metadata: MetadataStore, spec: PipelineSpec) -> Iterator[Sample]:
    for decision in metadata.decisions(spec, limit=1):
        yield _success("monitoring", decision.decided_at_utc)
        for verdict in VERDICTS:
            yield "penstock_monitor_verdict", (verdict,), float(decision.verdict == verdict)
    today = max(metadata.published_days(spec), default=None)
    if today is not None:
        recent: dict[str, Any] = {"source": "monitor", "since": today - timedelta(days=60)}
        alarms = metadata.series(spec, "drift_alarms", **recent)
        if alarms:
            yield "penstock_drift_alarms", (), alarms[-1].value
        realised = metadata.series(spec, "auc", **recent)
        if realised:
            last = realised[-1]
            for kept in metadata.signals(spec, first_day=last.day, last_day=last.day, run_id=last.source_run):
                if (expected := kept.signals.get("expected_auc")) is not None:
                    yield "penstock_performance_gap", (), last.value - expected
    counts = metadata.open_alert_counts(spec.tenant, spec.name)
    for severity in ("page", "warn", "info"):
        yield "penstock_open_alerts", (severity,), float(counts.get(severity, 0))
    waiting = metadata.waiting_deliveries(spec.tenant, spec.name)
    yield "penstock_waiting_alert_deliveries", (), float(waiting)


def _success(step: str, at: datetime) -> Sample:
    return "penstock_last_success_timestamp_seconds", (step,), at.timestamp()

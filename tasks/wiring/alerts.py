"""Alerts: look at every pipeline, keep what is open, send what is due. Called every five minutes by `platform.alerts`.

Nothing raises an alert when it happens: decisions, verdicts and deployment events are records already, and this step reads
them. So no alert is lost by a crash, and a step that is run again alerts nobody twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tasks.core import PipelineSpec, Settings, load_pipeline, open_store, pipeline_names, utc_now
from tasks.core.errors import NotFound, PenstockError
from tasks.core.ids import digest_json
from tasks.wiring.context import open_context

if TYPE_CHECKING:
    from tasks.metadata import MetadataStore
    from tasks.monitoring.alert_rules import AlertRules
    from tasks.monitoring.alerts import Alert, Batch, Delivery, Observation
    from tasks.wiring.alert_channels import Connections, Sender

_LOOKBACK = timedelta(days=7)
_MEMORY = _LOOKBACK + timedelta(days=1)
"""Alerts that were over before this are not looked at any more."""
_DECISIONS, _VERDICTS = 200, 20
_STUCK = timedelta(minutes=15)
_log = logging.getLogger(__name__)


def send_alerts(
    settings: Settings,
    *,
    connections: Connections | None = None,
    senders: Mapping[str, Sender] | None = None,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Open and resolve alerts of all pipelines, and send what is due on every channel.

    A channel that is down keeps its messages for later and stops no other channel.

    Args:
        connections: Where secrets come from; default: `<home>/connections.json`.
        senders: Sender by kind of channel, in the place of those of `tasks.wiring.alert_channels`.

    Raises:
        ConfigError: pipelines/alerts.yaml is not right.
        ServiceUnavailable: The metadata store does not answer.
    """
    from tasks.metadata import MetadataStore
    from tasks.monitoring.alert_rules import load_rules

    rules, moment = load_rules(settings), now or utc_now()
    metadata = MetadataStore.open(settings, clock=lambda: now or utc_now())
    specs, broken = _pipelines(settings)
    opened = resolved = 0
    for spec in specs:
        changed = _look(settings, spec, metadata, rules, moment)
        opened += sum(alert.status != "resolved" for alert in changed)
        resolved += sum(alert.status == "resolved" for alert in changed)
    outcomes: dict[str, dict[str, Any]] = {}
    earlier = metadata.sent_messages(moment - timedelta(hours=1))
    for tenant in sorted({spec.tenant for spec in specs}):
        for batch, message_id in _ready(metadata, rules, tenant, earlier, moment):
            problem = _send(settings, metadata, rules, batch, message_id, connections, senders, moment)
            outcome = outcomes.setdefault(batch.channel, {"messages": 0, "alerts": 0, "problem": None})
            outcome["messages"] += problem is None
            outcome["alerts"] += len(batch.items) if problem is None else 0
            outcome["problem"] = problem or outcome["problem"]
    return {
        "changed": opened,
        "resolved": resolved,
        "channels": outcomes,
        "pipelines_that_do_not_load": broken,
    }


def list_alerts(settings: Settings, pipeline: str, *, days: int = 30) -> dict[str, Any]:
    """The alerts of a pipeline that are open or were seen in the last days, with what was sent of each; newest first."""
    context = open_context(settings, pipeline)
    tenant, since = context.spec.tenant, utc_now() - timedelta(days=days)
    kept = context.metadata.alert_rows(tenant, pipeline=pipeline, since=since)
    oldest = min((row["opened_at_utc"] for row in kept), default=since)
    told: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in context.metadata.delivery_rows(tenant, pipeline=pipeline, since=oldest):
        told.setdefault((row["kind"], row["incident"]), []).append(row)
    fields = ("kind", "incident", "severity", "status", "since", "headline")
    return {
        "pipeline": pipeline,
        "alerts": [
            {
                **{name: row[name] for name in fields},
                "opened_at_utc": row["opened_at_utc"].isoformat(),
                "resolved_at_utc": row["resolved_at_utc"] and row["resolved_at_utc"].isoformat(),
                "deliveries": [
                    {
                        "channel": item["channel"],
                        "phase": item["phase"],
                        "status": item["status"],
                        "sent_at_utc": item["sent_at_utc"] and item["sent_at_utc"].isoformat(),
                        "problem": item["problem"],
                    }
                    for item in told.get((row["kind"], row["incident"]), [])
                ],
            }
            for row in kept
        ],
    }


def test_alert(
    settings: Settings,
    pipeline: str,
    *,
    channel: str,
    connections: Connections | None = None,
    senders: Mapping[str, Sender] | None = None,
) -> dict[str, Any]:
    """Send a message that says it is a test on one channel; nothing is kept.

    Raises:
        NotFound: alerts.yaml has no such channel, or its connection is not there.
        ConfigError: The channel refuses until something is changed.
        ServiceUnavailable: It does not answer.
    """
    from tasks.monitoring.alert_rules import load_rules
    from tasks.monitoring.alerts import OPENED, TOLD, Alert, Batch, Delivery

    spec, rules, now = load_pipeline(settings, pipeline), load_rules(settings), utc_now()
    if channel not in rules.channels:
        raise NotFound(
            "is not a channel",
            which=channel,
            fix=f"use one of: {', '.join(sorted(rules.channels)) or 'none yet; write pipelines/alerts.yaml'}",
        )
    alert = Alert(
        tenant=spec.tenant,
        pipeline=pipeline,
        kind="test",
        incident=f"test {now:%Y-%m-%dT%H:%M:%S.%f}",
        severity="info",
        status=TOLD,
        headline="This is a test of the channel; nothing is wrong.",
        since=f"{now:%Y-%m-%d %H:%M} UTC",
        opened_at_utc=now,
        observed_at_utc=now,
        resolved_at_utc=None,
        record={"next_steps": ["Nothing to do."], "links": _links(settings, pipeline)},
    )
    delivery = Delivery(*alert.key, channel=channel, phase=OPENED, status="pending", due_at_utc=now)
    batch = Batch(channel, ((alert, delivery),))
    _deliver(settings, rules, batch, _message_id(batch), connections, senders)
    return {"channel": channel, "kind": rules.channels[channel].kind, "sent": True}


test_alert.__test__ = False  # type: ignore[attr-defined]  # its name is that of the command; pytest must not collect it


def _pipelines(settings: Settings) -> tuple[list[PipelineSpec], list[str]]:
    specs, broken = [], []
    for name in pipeline_names(settings):
        try:
            specs.append(load_pipeline(settings, name))
        except PenstockError as error:
            broken.append(name)
            _log.warning("no alerts of a pipeline that does not load: %s", error)
    return specs, broken


def _look(
    settings: Settings, spec: PipelineSpec, metadata: MetadataStore, rules: AlertRules, now: datetime
) -> list[Alert]:
    """Take in what is new of one pipeline, and plan what has to be sent of it."""
    from tasks.monitoring.alerts import Alert, Delivery, due, fold

    rows = metadata.alert_rows(spec.tenant, pipeline=spec.name, since=now - _MEMORY)
    known = {alert.key: alert for alert in (Alert(**row) for row in rows)}
    changed = fold(
        spec.tenant, spec.name, known.values(), _observations(settings, spec, metadata, rules, now)
    )
    known |= {alert.key: alert for alert in changed}
    if not known:
        return []
    oldest = min(alert.opened_at_utc for alert in known.values())
    told = metadata.delivery_rows(spec.tenant, pipeline=spec.name, since=min(oldest, now - _MEMORY))
    planned = due(rules, known.values(), (Delivery(**row) for row in told), now)
    if changed or planned:
        metadata.keep_alerts(map(_row, changed), map(_row, planned))
    return changed


def _row(record: Alert | Delivery) -> dict[str, Any]:
    return dict(vars(record))


def _observations(
    settings: Settings, spec: PipelineSpec, metadata: MetadataStore, rules: AlertRules, now: datetime
) -> list[Observation]:
    from tasks.monitoring.alert_sources import of_decision, of_event, of_freshness, of_verdict
    from tasks.monitoring.cases import read_cases, report_key

    since = now - _LOOKBACK
    decisions = {
        found.decision_id: found
        for found in (
            *metadata.decisions(spec, limit=1),  # of whatever age: what it says is open is open
            *metadata.decisions(spec, since=since, limit=_DECISIONS),
        )
    }
    cases: dict[tuple[str, date | None, date | None], str] = {
        (file.case.kind, file.case.first_day, file.case.last_day): file.case_id
        for file in reversed(read_cases(open_store(settings, prefix=spec.prefix)))
    }
    seen: list[Observation | None] = []
    for found in decisions.values():
        first, last = found.first_day, found.last_day
        report = report_key(first, last) if first and last else ""
        case_id = cases.get((found.verdict, found.first_day, found.last_day), "")
        links = _links(settings, spec.name, dag_run=found.dag_run, report=report, case_id=case_id)
        seen += of_decision(found, links, case=case_id)
    for gate in ("data", "evaluation", "canary"):
        for stored in metadata.verdicts(spec, gate=gate, limit=_VERDICTS):
            if stored.recorded_at_utc >= since:
                verdict = stored.verdict
                seen.append(
                    of_verdict(
                        gate=gate,
                        subject=verdict.subject,
                        outcome=verdict.outcome,
                        reasons=[item.detail for item in verdict.findings if item.status == "fail"],
                        at_utc=stored.recorded_at_utc,
                        dag_run=stored.dag_run,
                        links=_links(
                            settings, spec.name, dag_run=stored.dag_run, report=verdict.report_key or ""
                        ),
                    )
                )
    for event in metadata.history(spec, kinds=("rollback", "withdraw"), since=since, limit=_VERDICTS):
        seen.append(
            of_event(
                event_id=event.event_id,
                kind=event.kind,
                version=event.version,
                previous_version=event.previous_version,
                actor=event.actor,
                reason=event.reason,
                at_utc=event.at_utc,
                links=_links(settings, spec.name),
            )
        )
    own = rules.pipelines.get(spec.name)
    hours = own.freshness_hours if own else None
    newest = max(metadata.published_days(spec), default=None) if hours else None
    seen.append(of_freshness(newest, now=now, objective_hours=hours, links=_links(settings, spec.name)))
    return [found for found in seen if found is not None]


def _links(
    settings: Settings,
    pipeline: str,
    *,
    dag_run: str | None = None,
    report: str = "",
    case_id: str = "",
) -> dict[str, str]:
    base = f"{settings.airflow_url}/penstock"
    dag_id, _, run_id = (dag_run or "").partition("/")
    run = f"{settings.airflow_url}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"
    found = {
        "case": f"{base}/cases/{pipeline}/{case_id}" if case_id else "",
        "report": f"{base}/report/{pipeline}/{report}" if report else "",
        "DAG run": run if run_id else "",
        "trend": f"{base}/trend/{pipeline}",
        "deployments": f"{base}/deployments/{pipeline}",
    }
    return {name: url for name, url in found.items() if url}


def _ready(
    metadata: MetadataStore,
    rules: AlertRules,
    tenant: str,
    earlier: Mapping[str, list[datetime]],
    now: datetime,
) -> list[tuple[Batch, str]]:
    """What to send now with its message id: first what a sender that died has left, as it was, then what is due."""
    from tasks.monitoring.alerts import Alert, Batch, Delivery, batches

    deliveries = [Delivery(**row) for row in metadata.delivery_rows(tenant, since=now)]
    wanted = {item.alert_key for item in deliveries if item.status in ("pending", "sending")}
    if not wanted:
        return []
    rows = metadata.alert_rows(tenant, since=now - 4 * _MEMORY, limit=10_000)
    alerts = {alert.key: alert for alert in (Alert(**row) for row in rows) if alert.key in wanted}
    left: dict[tuple[str, str], list[tuple[Alert, Delivery]]] = {}
    for item in deliveries:
        stuck = (
            item.status == "sending" and item.tried_at_utc is not None and now - item.tried_at_utc > _STUCK
        )
        if stuck and item.message_id and item.alert_key in alerts and item.channel in rules.channels:
            left.setdefault((item.channel, item.message_id), []).append((alerts[item.alert_key], item))
    found = [(Batch(channel, tuple(items)), key) for (channel, key), items in left.items()]
    pending = [item for item in deliveries if item.status == "pending" and item.channel in rules.channels]
    return found + [(batch, _message_id(batch)) for batch in batches(rules, alerts, pending, earlier, now)]


def _message_id(batch: Batch) -> str:
    return digest_json([list(delivery.key) for _, delivery in batch.items])[:32]


def _send(
    settings: Settings,
    metadata: MetadataStore,
    rules: AlertRules,
    batch: Batch,
    message_id: str,
    connections: Connections | None,
    senders: Mapping[str, Sender] | None,
    now: datetime,
) -> str | None:
    """Send one message; what went wrong, in words without secrets."""
    rows = [_row(delivery) for _, delivery in batch.items]
    if not metadata.claim_deliveries(rows, message_id):
        return "another process is sending these alerts"
    try:
        _deliver(settings, rules, batch, message_id, connections, senders)
    except PenstockError as error:
        tries = max(delivery.attempts for _, delivery in batch.items)
        retry_at = now + timedelta(minutes=min(60, 2 ** min(tries, 6)))
        metadata.finish_deliveries(rows, problem=str(error), retry_at=retry_at)
        _log.warning("alerts wait until %s UTC: %s", f"{retry_at:%H:%M}", error)
        return str(error)
    metadata.finish_deliveries(rows)
    return None


def _deliver(
    settings: Settings,
    rules: AlertRules,
    batch: Batch,
    message_id: str,
    connections: Connections | None,
    senders: Mapping[str, Sender] | None,
) -> None:
    from tasks.monitoring.alert_text import write_message
    from tasks.wiring.alert_channels import SENDERS, file_connections

    channel = rules.channels[batch.channel]
    connection = (connections or file_connections(settings))(channel.connection)
    sender = {**SENDERS, **(senders or {})}[channel.kind]
    sender(batch.channel, channel, connection, write_message(batch, message_id))

"""Which alerts are open, and which messages are due: pure functions over what was seen and what was sent.

An alert is an incident of one kind in one pipeline. It opens with the first observation that fires, and is resolved by a
later observation of the same kind that does not; some kinds are news that happened once (`once`). Of each alert and
channel there is one message when it opens, a reminder after `remind_hours`, and one when it is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from tasks.core.records import JsonRecord
from tasks.monitoring.alert_rules import AlertRules

OPEN, RESOLVED, TOLD = "open", "resolved", "told"
"""Of an alert; `told` is news, which nothing resolves."""
OPENED, OVER, GONE = "opened", "resolved", "over already"
"""Phases of an alert that a message is about, beside `reminder 1`, `reminder 2`, ..."""
FRESH = timedelta(hours=24)
"""What was over before this age when it was first seen is kept but not sent: a backfill of old days wakes nobody."""


@dataclass(frozen=True)
class Observation(JsonRecord):
    """One look at one kind of trouble."""

    kind: str
    at_utc: datetime
    firing: bool
    incident: str = ""
    """Names the incident if this observation opens one."""
    severity: str = "warn"
    headline: str = ""
    since: str = ""
    """Since when, in words: a day or a moment."""
    reasons: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    case: str = ""
    once: bool = False
    about: str = ""
    """Last day that the observation is about, `YYYY-MM-DD`; an older day never resolves a newer incident."""


@dataclass(frozen=True)
class Alert(JsonRecord):
    """An incident as it is kept. `record` is its newest firing observation."""

    tenant: str
    pipeline: str
    kind: str
    incident: str
    severity: str
    """`page`, `warn` or `info`."""
    status: str
    headline: str
    since: str
    opened_at_utc: datetime
    observed_at_utc: datetime
    resolved_at_utc: datetime | None
    record: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.tenant, self.pipeline, self.kind, self.incident)


@dataclass(frozen=True)
class Delivery(JsonRecord):
    """A phase of an alert on one channel: what has to be, or was, sent."""

    tenant: str
    pipeline: str
    kind: str
    incident: str
    channel: str
    phase: str
    status: str
    """`pending`, `sending`, `sent`, or `dropped`: it was over before it could be sent, and not worth a message."""
    due_at_utc: datetime
    attempts: int = 0
    message_id: str | None = None
    problem: str | None = None
    """Why the last attempt failed."""
    tried_at_utc: datetime | None = None
    sent_at_utc: datetime | None = None

    @property
    def alert_key(self) -> tuple[str, str, str, str]:
        return (self.tenant, self.pipeline, self.kind, self.incident)

    @property
    def key(self) -> tuple[str, ...]:
        return (*self.alert_key, self.channel, self.phase)


@dataclass(frozen=True)
class Batch:
    """What goes to one channel in one message."""

    channel: str
    items: tuple[tuple[Alert, Delivery], ...]


def fold(tenant: str, pipeline: str, known: Iterable[Alert], seen: Iterable[Observation]) -> list[Alert]:
    """The alerts of one pipeline that are new or changed, after `seen` was taken into account.

    An observation not later than the newest that its kind already took in changes nothing, so a repeat adds nothing.
    """
    alerts = {alert.key: alert for alert in known}
    changed: dict[tuple[str, str, str, str], Alert] = {}
    newest: dict[str, datetime] = {}
    for alert in alerts.values():
        newest[alert.kind] = max(newest.get(alert.kind, alert.observed_at_utc), alert.observed_at_utc)
    for found in sorted(seen, key=lambda item: item.at_utc):
        if not found.once and found.kind in newest and found.at_utc <= newest[found.kind]:
            continue
        active = next(
            (item for item in alerts.values() if item.kind == found.kind and item.status == OPEN), None
        )
        if found.once:
            made = _opened(tenant, pipeline, found, TOLD)
            result = None if made.key in alerts else made
        elif found.firing:
            result = _again(active, found) if active else _opened(tenant, pipeline, found, OPEN)
        else:
            result = _resolved(active, found) if active else None
        if result is not None:
            alerts[result.key] = changed[result.key] = result
            newest[found.kind] = max(newest.get(found.kind, found.at_utc), found.at_utc)
    return list(changed.values())


def due(
    rules: AlertRules, alerts: Iterable[Alert], deliveries: Iterable[Delivery], now: datetime
) -> list[Delivery]:
    """The deliveries that are new or changed: what has to be sent from now on, and what need not be sent any more."""
    kept: dict[tuple[str, str, str, str], list[Delivery]] = {}
    for delivery in deliveries:
        kept.setdefault(delivery.alert_key, []).append(delivery)
    found = []
    for alert in alerts:
        mine = kept.get(alert.key, [])
        for channel in rules.channels_of(alert.pipeline, alert.severity):
            found += _due_on(rules, alert, channel, [item for item in mine if item.channel == channel], now)
    return found


def batches(
    rules: AlertRules,
    alerts: Mapping[tuple[str, str, str, str], Alert],
    waiting: Iterable[Delivery],
    sent: Mapping[str, Sequence[datetime]],
    now: datetime,
) -> list[Batch]:
    """What may be sent now: one message a channel with all that waits for it, the most severe first.

    A channel that got a message less than `group_minutes` ago, or `max_per_hour` in the last hour, waits: what comes
    meanwhile goes into its next message. Nothing is left out.

    Args:
        sent: Moments of the messages of the last hour, by channel.
    """
    by_channel: dict[str, list[tuple[Alert, Delivery]]] = {}
    for delivery in waiting:
        if delivery.due_at_utc <= now and (alert := alerts.get(delivery.alert_key)):
            by_channel.setdefault(delivery.channel, []).append((alert, delivery))
    found = []
    for channel, items in sorted(by_channel.items()):
        moments = sent.get(channel, ())
        recent = [at for at in moments if now - at < timedelta(hours=1)]
        grouped = any(now - at < timedelta(minutes=rules.group_minutes) for at in recent)
        if grouped or len(recent) >= rules.max_per_hour:
            continue
        items.sort(key=lambda item: (_RANK[item[0].severity], item[1].phase != OPENED, item[0].key))
        found.append(Batch(channel, tuple(items)))
    return found


_RANK = {"page": 0, "warn": 1, "info": 2}


def _opened(tenant: str, pipeline: str, found: Observation, status: str) -> Alert:
    return Alert(
        tenant=tenant,
        pipeline=pipeline,
        kind=found.kind,
        incident=found.incident,
        severity=found.severity,
        status=status,
        headline=found.headline,
        since=found.since,
        opened_at_utc=found.at_utc,
        observed_at_utc=found.at_utc,
        resolved_at_utc=None,
        record=found.to_json(),
    )


def _again(alert: Alert, found: Observation) -> Alert:
    """The incident goes on: what is known of it is the newest, since when it lasts stays."""
    severity = min(alert.severity, found.severity, key=_RANK.__getitem__)
    about = max(found.about, str(alert.record.get("about") or ""))
    return replace(
        alert,
        severity=severity,
        headline=found.headline,
        observed_at_utc=found.at_utc,
        record={**found.to_json(), "about": about},
    )


def _resolved(alert: Alert, found: Observation) -> Alert | None:
    if found.about and found.about < str(alert.record.get("about") or ""):
        return None  # a look at older days says nothing of this incident
    return replace(alert, status=RESOLVED, observed_at_utc=found.at_utc, resolved_at_utc=found.at_utc)


def _due_on(
    rules: AlertRules, alert: Alert, channel: str, mine: Sequence[Delivery], now: datetime
) -> list[Delivery]:
    told = [item for item in mine if item.status == "sent" and item.phase != OVER]
    waiting = [item for item in mine if item.status == "pending"]
    phases = {item.phase for item in mine}
    if alert.status == RESOLVED:
        dropped = [replace(item, status="dropped") for item in waiting if item.phase not in (OVER, GONE)]
        under_way = any(item.status == "sending" for item in mine)
        if OVER in phases or GONE in phases or under_way:
            return dropped
        if told:
            return [*dropped, _delivery(alert, channel, OVER, now)]
        fresh = alert.resolved_at_utc is not None and now - alert.resolved_at_utc <= FRESH
        if alert.severity == "page" and (mine or fresh):
            return [*dropped, _delivery(alert, channel, GONE, now)]
        return dropped
    if not mine:
        if alert.status == TOLD and now - alert.opened_at_utc > FRESH:
            return []
        return [_delivery(alert, channel, OPENED, now)]
    if alert.status == TOLD or waiting or not told:
        return []
    last = max(item.sent_at_utc for item in told if item.sent_at_utc)
    if any(item.status == "sending" for item in mine) or now - last < timedelta(hours=rules.remind_hours):
        return []
    return [_delivery(alert, channel, f"reminder {len(told)}", now)]


def _delivery(alert: Alert, channel: str, phase: str, now: datetime) -> Delivery:
    return Delivery(*alert.key, channel=channel, phase=phase, status="pending", due_at_utc=now)

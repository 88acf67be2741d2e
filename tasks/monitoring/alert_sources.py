"""From records of the metadata store to observations: what a decision, a verdict or a deployment says about trouble.

Pure. A decision speaks of three kinds at once, in the order of its actions: who holds scoring says nothing of performance, so
damage that was open stays open; who finds nothing to alert about resolves all three; who cannot judge resolves none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Protocol

from tasks.monitoring.alerts import Observation
from tasks.monitoring.decision import ALERT, ASK, BLIND, DAMAGE, DRIFT, FAULT, HOLD
from tasks.monitoring.operations import COST, FRESHNESS, LABELS, STALE_STEPS, end_of, freshness

_KIND_OF_ACTION = {HOLD: FAULT, ASK: DAMAGE, ALERT: DRIFT}
_ORDER = (HOLD, ASK, ALERT)
"""An action leaves open what comes after it, and resolves what comes before it."""
MODEL_ACTIONS = ("roll_back", "rollback", "hold_promotions", "retrain")
"""Actions about the model that the decision policy may know; they count as `ask_person`."""
PLAYBOOK = "docs/playbook.md"
_ANCHORS = {FAULT: "data-fault", DAMAGE: "performance-damage", DRIFT: "drift"}
_OPERATIONS = {LABELS: "labels-late", COST: "scoring-cost"}
"""Kinds of operational findings that open an alert of their own, and their sections of the playbook."""
_GATE_STEPS = {
    "data": (
        "Read the gate's report: which expectation failed, on how many rows.",
        "A broken feed: have the days delivered again. A real change: change the suite on purpose.",
    ),
    "evaluation": (
        "Nothing is live that was not: the champion stays.",
        "Read the evaluation's report, then repair data or model and train again; or waive the finding with a reason.",
    ),
    "canary": (
        "Nothing is live that was not: the champion stays.",
        "Look at the canary on the deployments page before training again.",
    ),
}


class DecisionLike(Protocol):
    """What is read of a `StoredDecision`."""

    @property
    def decision_id(self) -> int: ...
    @property
    def action(self) -> str: ...
    @property
    def verdict(self) -> str: ...
    @property
    def first_day(self) -> Any: ...
    @property
    def last_day(self) -> Any: ...
    @property
    def reasons(self) -> tuple[str, ...]: ...
    @property
    def dag_run(self) -> str | None: ...
    @property
    def record(self) -> dict[str, Any]: ...
    @property
    def decided_at_utc(self) -> datetime: ...


def of_decision(found: DecisionLike, links: Mapping[str, str], *, case: str = "") -> list[Observation]:
    """What a decision of the monitor says of data faults, performance damage, drift, labels and cost of scoring."""
    beside = _operations(found, links)
    action = ASK if found.action in MODEL_ACTIONS else found.action
    if action == ALERT:  # which may be for what stands beside the data alone
        action = str(found.record.get("data_action") or action)
    about = str(found.last_day or "")
    if action not in _ORDER:
        if found.verdict == BLIND:
            return beside
        return beside + [
            Observation(kind, found.decided_at_utc, False, about=about) for kind in _KIND_OF_ACTION.values()
        ]
    kind = _KIND_OF_ACTION[action]
    # what a decision of old days alerts about may be over, with damage or a fault as its name
    over = action == ALERT and found.verdict in (FAULT, DAMAGE)
    resolved = _ORDER if over else _ORDER[: _ORDER.index(action)]
    seen = beside + [
        Observation(_KIND_OF_ACTION[item], found.decided_at_utc, False, about=about) for item in resolved
    ]
    if over:
        return seen
    record, reasons = found.record, found.reasons
    headline = str(record.get("headline") or "")
    if not headline and record.get("mitigation") and reasons:  # what was done begins with what was found
        headline, reasons = reasons[0], reasons[1:]
    firing = Observation(
        kind=kind,
        at_utc=found.decided_at_utc,
        firing=True,
        incident=f"decision {found.decision_id}",
        severity="warn" if action == ALERT else "page",
        headline=headline or f"The monitor says: {found.verdict}.",
        since=_since(found, kind),
        reasons=reasons,
        next_steps=tuple(record.get("next_steps") or ()),
        links={**links, "playbook": f"{PLAYBOOK}#{_ANCHORS[kind]}"},
        case=case,
        about=about,
    )
    return [*seen, firing]


def _operations(found: DecisionLike, links: Mapping[str, str]) -> list[Observation]:
    """Nothing from decisions that did not look at operations: those of earlier releases, and those that act."""
    if "operations" not in found.record:
        return []
    about, seen = str(found.last_day or ""), []
    for kind, anchor in _OPERATIONS.items():
        alerting = [
            item for item in found.record["operations"] if (item["kind"], item["severity"]) == (kind, ALERT)
        ]
        if not alerting:
            seen.append(Observation(kind, found.decided_at_utc, False, about=about))
            continue
        seen.append(
            Observation(
                kind=kind,
                at_utc=found.decided_at_utc,
                firing=True,
                incident=f"decision {found.decision_id}",
                severity="warn",
                headline=str(alerting[0]["statement"]),
                since=str(alerting[0].get("since") or found.last_day or ""),
                reasons=tuple(str(item["statement"]) for item in alerting[1:]),
                next_steps=tuple(alerting[0].get("next_steps") or ()),
                links={**links, "playbook": f"{PLAYBOOK}#{anchor}"},
                about=about,
            )
        )
    return seen


def of_freshness(
    newest_day: date | None, *, now: datetime, objective_hours: float | None, links: Mapping[str, str]
) -> Observation:
    """Whether the newest published day is older than the pipeline's objective; without an objective or a day it is not.

    While it is, the observation is of the hour, so that looking every five minutes changes nothing in between.
    """
    late = freshness(newest_day, now=now, objective_hours=objective_hours)
    if late is None or newest_day is None or objective_hours is None:
        return Observation(FRESHNESS, now, False)
    crossed = end_of(newest_day) + timedelta(hours=objective_hours)
    return Observation(
        kind=FRESHNESS,
        at_utc=max(crossed, now.replace(minute=0, second=0, microsecond=0)),
        firing=True,
        incident=f"day {newest_day}",
        severity="warn",
        headline=late.statement,
        since=f"{crossed:%Y-%m-%d %H:%M} UTC",
        next_steps=STALE_STEPS,
        links={**links, "playbook": f"{PLAYBOOK}#freshness"},
    )


def of_verdict(
    *,
    gate: str,
    subject: str,
    outcome: str,
    reasons: Sequence[str],
    at_utc: datetime,
    dag_run: str | None,
    links: Mapping[str, str],
) -> Observation | None:
    """What a gate's verdict says: a refusal opens an incident of that gate, a pass resolves it."""
    kind = f"{gate} gate refused"
    if outcome not in ("pass", "warn", "fail") or gate not in _GATE_STEPS:
        return None
    if outcome != "fail":
        return Observation(kind, at_utc, False)
    scoring = gate == "data" and ".score/" in (dag_run or "")
    what = {
        "data": f"The data gate refused {'the rows to score' if scoring else 'a snapshot'}.",
        "evaluation": "The evaluation gate refused a new model; the champion stays.",
        "canary": "The canary refused the challenger; the champion stays.",
    }[gate]
    return Observation(
        kind=kind,
        at_utc=at_utc,
        firing=True,
        incident=f"{subject[:16]} {at_utc:%Y-%m-%dT%H:%M:%S}",
        severity="page" if scoring else "warn",
        headline=what,
        since=f"{at_utc:%Y-%m-%d %H:%M} UTC",
        reasons=tuple(reasons),
        next_steps=_GATE_STEPS[gate],
        links={**links, "playbook": f"{PLAYBOOK}#{gate}-gate-refused"},
    )


def of_event(
    *,
    event_id: int,
    kind: str,
    version: int,
    previous_version: int | None,
    actor: str,
    reason: str,
    at_utc: datetime,
    links: Mapping[str, str],
) -> Observation | None:
    """News of the deployment log: a rollback, or a challenger that was withdrawn."""
    if kind == "rollback":
        headline = f"Rolled back from version {previous_version} to version {version}, by {actor}."
        steps = (
            "See on the deployments page how many predictions of the version left are still read.",
            "Score them anew with the DAG's Re-score, or say why they may stay.",
        )
    elif kind == "withdraw":
        headline = f"The exposed challenger, version {version}, was withdrawn, by {actor}."
        steps = ("Everybody gets the champion again.", "Read the canary's steps before exposing it again.")
    else:
        return None
    return Observation(
        kind="rollback" if kind == "rollback" else "canary withdrew",
        at_utc=at_utc,
        firing=True,
        incident=f"event {event_id}",
        severity="warn",
        headline=headline,
        since=f"{at_utc:%Y-%m-%d %H:%M} UTC",
        reasons=(reason,) if reason else (),
        next_steps=steps,
        links={**links, "playbook": f"{PLAYBOOK}#{'rollback' if kind == 'rollback' else 'canary-withdrew'}"},
        once=True,
    )


def _since(found: DecisionLike, kind: str) -> str:
    days = [day for day in found.record.get("days") or () if day.get("verdict") == kind]
    incidents = [str(day.get("incident") or day.get("day")) for day in days]
    return incidents[-1] if incidents else str(found.first_day or "")

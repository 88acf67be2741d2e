"""What was decided about a window, by the monitor and by people, for whoever reads its report."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any

from tasks.wiring.context import Context

if TYPE_CHECKING:
    from tasks.metadata import StoredDecision
    from tasks.monitoring.report_causes import Decided

_READ, _SHOWN = 500, 30


def decided_on(context: Context, first: date, last: date) -> list[Decided]:
    """The newest thirty decisions about days of a window, newest first; every outcome of a mitigation is one."""
    since = datetime.combine(first, time(), UTC)
    found = [
        item
        for item in context.metadata.decisions(context.spec, since=since, limit=_READ)
        if (item.first_day is None or item.first_day <= last)
        and (item.last_day is None or item.last_day >= first)
    ]
    return [decided(item) for item in found[:_SHOWN]]


def decided(item: StoredDecision) -> Decided:
    """A decision as it is shown: what was found, what was done, and what people answered when they were asked."""
    from tasks.monitoring.report_causes import Decided

    mitigation = item.record.get("mitigation")
    outcome = str(mitigation.get("outcome") or "") if isinstance(mitigation, Mapping) else ""
    return Decided(
        at=f"{item.decided_at_utc:%Y-%m-%d %H:%M}",
        days=_span(item.first_day, item.last_day),
        verdict=item.verdict,
        action=item.action,
        actor=item.actor,
        reasons=item.reasons,
        outcome=outcome.replace("_", " "),
        answers=tuple(_answers(item.record)),
    )


def _answers(record: Mapping[str, Any]) -> list[str]:
    """`ada: retrain (the labels moved)` of each answer that a record holds."""
    given = record.get("answers") or ([record["answer"]] if record.get("answer") else [])
    said = []
    for answer in given if isinstance(given, list) else [given]:
        if not isinstance(answer, Mapping):
            said.append(str(answer))
            continue
        who = str(answer.get("actor") or answer.get("by") or "somebody")
        what = str(answer.get("choice") or answer.get("answer") or answer.get("action") or "answered")
        why = answer.get("reason") or answer.get("comment")
        said.append(f"{who}: {what.replace('_', ' ')}" + (f" ({why})" if why else ""))
    return said


def _span(first: date | None, last: date | None) -> str:
    if first is None or last is None:
        return ""
    return f"{first}" if first == last else f"{first} to {last}"

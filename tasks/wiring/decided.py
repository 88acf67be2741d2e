"""What was decided about a window, by the monitor and by people, for whoever reads its report."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING

from tasks.core.day_span import day_span
from tasks.monitoring.cases import read_cases
from tasks.monitoring.decision import FAULT
from tasks.monitoring.mitigation import ACTOR, scoring_holds
from tasks.monitoring.report_causes import Decided
from tasks.wiring.context import Context

if TYPE_CHECKING:
    from tasks.metadata import StoredDecision
    from tasks.monitoring.cases import CaseFile
    from tasks.monitoring.mitigation import ScoringHold

_READ, _SHOWN = 500, 30


def decided_on(context: Context, first: date, last: date) -> list[Decided]:
    """The newest thirty decisions about days of a window, newest first: of the monitor, what it did, and the answers of people."""
    since = datetime.combine(first, time(), UTC)
    found = [
        item
        for item in context.metadata.decisions(context.spec, since=since, limit=_READ)
        if (item.first_day is None or item.first_day <= last)
        and (item.last_day is None or item.last_day >= first)
    ]
    ours = answers_and_releases(context, read_cases(context.store), first, last)
    both = [*ours, *(decided(item) for item in told_once(found))]
    return sorted(both, key=lambda item: item.at, reverse=True)[:_SHOWN]


def answers_and_releases(
    context: Context, files: Sequence[CaseFile], first: date = date.min, last: date = date.max
) -> list[Decided]:
    """What no decision is kept of: a person's answer to one of these cases, and a hold that the monitor released, about days of a window."""
    answers = [
        _answered(file)
        for file in files
        if file.answer is not None and file.case.days[0] <= last and file.case.days[-1] >= first
    ]
    releases = [
        _released(hold)
        for hold in scoring_holds(context.store)
        if hold.released_by == ACTOR and hold.days[0] <= last and hold.days[-1] >= first
    ]
    return [*answers, *releases]


def told_once(items: Sequence[StoredDecision]) -> list[StoredDecision]:
    """Without the monitor's decisions of which the list has what was done about them: that says the same and more.

    Args:
        items: Newest first.
    """
    kept, done = [], set()
    for item in items:
        window = (item.first_day, item.last_day)
        if item.record.get("mitigation"):
            done.add(window)
        elif window in done:
            done.remove(window)
            continue
        kept.append(item)
    return kept


def decided(item: StoredDecision) -> Decided:
    """A decision of the monitor, or what it did about one, as it is shown."""
    return Decided(
        at=f"{item.decided_at_utc:%Y-%m-%d %H:%M}",
        days=decided_days(item),
        verdict=item.verdict,
        action=item.action,
        actor=item.actor,
        reasons=item.reasons,
    )


def _released(hold: ScoringHold) -> Decided:
    assert hold.released_at_utc and hold.released_by
    return Decided(
        at=hold.released_at_utc[:16].replace("T", " "),
        days=day_span(hold.days[0], hold.days[-1]),
        verdict=FAULT,
        action="released",
        actor=hold.released_by,
        reasons=(f"Scoring and promotions may go on: {hold.release_reason}",),
    )


def _answered(file: CaseFile) -> Decided:
    """A person's answer to a case, with what was done for it."""
    said = file.answer
    assert said is not None
    event = next(event for event in file.events if event.answer is not None)
    until = f" until {said.until}" if said.until else ""
    return Decided(
        at=event.at_utc[:16].replace("T", " "),
        days=day_span(file.case.days[0], file.case.days[-1]),
        verdict=file.case.kind,
        action="answered",
        actor=said.actor,
        reasons=(f"Case {file.case_id}: {said.reason}", *file.done, *filter(None, [file.revoked])),
        outcome=f"{said.answer.replace('_', ' ')}{until}",
    )


def decided_days(item: StoredDecision) -> str:
    """The days that a decision is about, in words; empty when it is about none."""
    first, last = item.first_day, item.last_day
    return "" if first is None or last is None else day_span(first, last)

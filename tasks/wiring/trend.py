"""The trend page of a pipeline, from the metadata store's series, decisions and deployment log; no prediction is read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from tasks.core import Settings
from tasks.core.report_style import page
from tasks.wiring.context import Context, open_context
from tasks.wiring.decided import answers_and_releases, decided, told_once

if TYPE_CHECKING:
    from tasks.metadata import StoredDecision
    from tasks.monitoring.cases import CaseFile
    from tasks.monitoring.trend import TrendDay, Verdict

DAYS = 90
_KEY = "monitoring/trend/report.html"
_DECISIONS = 1000
_EVENTS = 50
_NEWEST, _ACTED = 200, 15
"""Decisions that are looked through for what was done, and how many of those are shown."""


def trend_page(settings: Settings, pipeline: str, *, days: int = DAYS) -> str:
    """The body of the page, as HTML: the last `days` days up to the newest that is published."""
    from tasks.monitoring.cases import read_cases
    from tasks.monitoring.decision import NOTE, NOTHING
    from tasks.monitoring.trend import TrendEvent, render_trend

    context = open_context(settings, pipeline)
    metadata, spec = context.metadata, context.spec
    shown = _days(context, days)
    stored = metadata.decisions(spec, limit=_NEWEST)
    # A mitigation is a decision as well; the verdict that it followed is what the page begins with.
    newest = next((item for item in stored if item.record.get("headline")), stored[0] if stored else None)
    events = [
        TrendEvent(f"{event.at_utc:%Y-%m-%d %H:%M}", event.kind, event.version, event.actor, event.reason)
        for event in metadata.history(spec, limit=_EVENTS)
    ]
    live = metadata.live(spec)
    acted = [item for item in told_once(stored) if item.action not in (NOTHING, NOTE)][:_ACTED]
    files = read_cases(context.store)
    both = [*answers_and_releases(context, files), *(decided(item) for item in acted)]
    return render_trend(
        shown,
        events,
        _verdict(newest, files) if newest else None,
        live=live.version if live else None,
        decided=sorted(both, key=lambda item: item.at, reverse=True)[:_ACTED],
    )


def _verdict(newest: StoredDecision, files: Sequence[CaseFile]) -> Verdict:
    from tasks.monitoring.cases import in_words
    from tasks.monitoring.causes import Cause
    from tasks.monitoring.decision import once_answered
    from tasks.monitoring.trend import Verdict

    about = (newest.verdict, newest.first_day, newest.last_day)
    settled = next(
        (
            f"{in_words(file.answer)}." if file.answer else f"It is over: {file.over}."
            for file in files
            if file.status in ("answered", "over")
            and (file.case.kind, file.case.first_day, file.case.last_day) == about
        ),
        "",
    )
    headline = str(newest.record.get("headline") or "")
    return Verdict(
        verdict=newest.verdict,
        headline=once_answered(headline) if settled else headline,
        reasons=newest.reasons,
        next_steps=tuple(newest.record.get("next_steps") or ()),
        decided=f"{newest.decided_at_utc:%Y-%m-%d %H:%M}",
        causes=tuple(Cause.from_json(item) for item in newest.record.get("causes") or ()),
        settled=settled,
    )


def trend_report(settings: Settings, pipeline: str, *, days: int = DAYS) -> dict[str, Any]:
    """The same as a file of the pipeline's store, which works offline."""
    context = open_context(settings, pipeline)
    html = page(f"Trend of {pipeline}", trend_page(settings, pipeline, days=days), f"The last {days} days")
    context.store.put(_KEY, html.encode())
    return {"report_key": _KEY, "report_url": context.report_url(_KEY)}


def _days(context: Context, count: int) -> list[TrendDay]:
    from tasks.monitoring import DaySignals
    from tasks.monitoring.trend import TrendDay

    metadata, spec = context.metadata, context.spec
    published = metadata.published_days(spec)
    if not published:
        return []
    last = max(published)
    first = last - timedelta(days=count - 1)
    window: dict[str, Any] = {"since": first, "until": last, "source": "monitor"}
    # by version: a run that scores a day again and finds the same value adds no point of its own
    realised = {(point.day, point.model_version): point for point in metadata.series(spec, "auc", **window)}
    stored = metadata.signals(spec, first_day=first, last_day=last)
    signals = {
        item.day: DaySignals.from_json(item.signals)
        for item in stored
        if published.get(item.day) == item.run_id
    }
    wanted = {day: run_id for day, run_id in published.items() if day >= first}
    runs = {run_id: metadata.run(spec, run_id) for run_id in set(wanted.values())}
    verdicts = _verdicts(context, first)
    found = []
    for day, run_id in sorted(wanted.items()):
        run, seen = runs[run_id], signals.get(day)
        auc = realised.get((day, run.model_version)) if run and run.model_version else None
        found.append(
            TrendDay(
                day=day,
                version=run.model_version if run else None,
                verdict=verdicts.get(day),
                rows=seen.rows if seen else None,
                expected_rows=seen.expected_rows if seen else None,
                dead_letter_share=(run.dead_letters or 0) / run.rows if run and run.rows else None,
                drift_alarms=len(seen.alarms) if seen and seen.judged else None,
                score_mean=seen.score_mean if seen else None,
                score_band=seen.score_band if seen else None,
                expected_auc=seen.expected_auc if seen else None,
                auc=auc.value if auc else None,
                auc_interval=(auc.low, auc.high)
                if auc and auc.low is not None and auc.high is not None
                else None,
            )
        )
    return found


def _verdicts(context: Context, first: date) -> dict[date, str]:
    """What the newest decision about each day says of it."""
    since = datetime.combine(first, time(), UTC)
    found: dict[date, str] = {}
    for decision in context.metadata.decisions(context.spec, since=since, limit=_DECISIONS):
        for line in (*(decision.record.get("days") or ()), *(decision.record.get("corrected") or ())):
            found.setdefault(date.fromisoformat(str(line["day"])), str(line["verdict"]))
    return found

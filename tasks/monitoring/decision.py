"""From signals to a verdict in words and one action: a pure function over the history of signals.

The order of the questions is the policy. Is the data at fault? Then scoring waits and models stay as they
are. Is performance worse than the scores promise? Then a person is asked, with a suggestion. Did channels
move while performance held? Then it is drift without damage seen, or noise when it was one channel on one day.

No model is rolled back here. A rollback must first show that the previous model is better on the same labelled
rows, which costs a scoring of them: `tasks.monitoring.mitigation` judges that, when this asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

from tasks.core.day_span import day_span
from tasks.core.spec import PipelineSpec
from tasks.monitoring.answers import (
    ACCEPT,
    MUTE,
    NEW_NORMAL,
    PERFORMANCE,
    Answered,
    heard,
    muted,
    muted_words,
    signal_names,
)
from tasks.monitoring.signals import (
    ChannelDrift,
    DayDecision,
    DayPerformance,
    DaySignals,
    Decision,
    OperationFinding,
    PerformanceSignal,
)

HEALTHY = "healthy"
NOISE = "noise"
DRIFT = "drift, no damage seen"
FAULT = "data fault"
DAMAGE = "performance damage"
BLIND = "cannot judge"

NOTHING = "nothing"
NOTE = "note"
ALERT = "alert"
HOLD = "hold_scoring"
ASK = "ask_person"

OPEN_DAYS = 3
"""An incident seen on one of the last three days of the window is still open."""
MERGE_DAYS = 7
"""Days of one kind at most this far apart belong to one incident; only its first day alerts."""

STILL_OPEN = "still open"
"""How a headline says so, in brackets."""
MUST_DECIDE = "A person must decide."
"""How it says that the monitor may not, unless it then does so within its limits."""

LABELS_BACK_DAYS = 35
"""How far back labels that come late are taken in, and a labelled day speaks of the present."""

_FORCE = (NOTHING, NOTE, ALERT, ASK, HOLD)
_SEVERITY = (HEALTHY, BLIND, NOISE, DRIFT, FAULT, DAMAGE)
_NEXT_STEPS = {
    HEALTHY: (),
    BLIND: ("Check that the days were scored, and that the reference days of the model have enough rows.",),
    NOISE: ("Nothing to do. The channel is named in case it comes back.",),
    DRIFT: (
        "Look at the features that moved most and find the event behind them (season, holiday, storm, new partner).",
        "If it stays and labels agree with the scores, retrain so that it becomes the reference.",
    ),
    FAULT: (
        "Ask the owner of the feed; scoring of other days and promotions wait meanwhile.",
        "When the days are delivered again, run {pipeline}.score for exactly these days: their published rows are replaced, and the run of "
        "{pipeline}.monitor that follows ends the hold.",
        "Right as they are? Answer the case with Accept, New normal or Mute. Nulls that come again for a reason which another "
        "column shows belong in drift.null_when of pipeline.yaml.",
        "Do not retrain on these days and do not change the model: it is not the cause.",
    ),
    DAMAGE: (
        "Read in the case how the version before does on the same labelled days: roll back if it is better there.",
        "Look at what the model is given (units, codes, joins upstream): it still computes what it did at training, as each worker "
        "replays its golden rows before it scores.",
        "If labels themselves changed meaning, retrain on recent days. If they were wrong and are repaired, run {pipeline}.monitor for their "
        "days: labels that are there are read again only then.",
    ),
}


def decide(
    spec: PipelineSpec,
    signals: Sequence[DaySignals],
    performances: Sequence[DayPerformance] = (),
    gaps: Sequence[PerformanceSignal] = (),
    *,
    operations: Sequence[OperationFinding] = (),
    answered: Sequence[Answered] = (),
) -> Decision:
    """The verdict on a window of days, and on each day in it. Pure.

    The window's action counts what is open at its end: only open incidents hold scoring or ask a person, and
    then name the verdict. Otherwise the verdict is the worst of the days, alerted or noted once. What a person has
    answered keeps its verdict and is only noted.

    Args:
        signals: Tiers 1 and 2 by day; at least one, in any order.
        performances: Tier 3 by day; days may be missing.
        gaps: `judge_gaps` of the performances, over a history that may be longer than the window. While no day of the
            window has labels, the newest one before it says whether damage is open; pass only days of the present model.
        operations: What `tasks.monitoring.operations` found. They add reasons and may raise the action to a note or an
            alert; they change no verdict.
        answered: Cases that people have answered; those about damage, of the model version that scored the window.

    Raises:
        ValueError: `signals` is empty.
    """
    if not signals:
        raise ValueError("decide needs the signals of at least one day")
    ordered = sorted(signals, key=lambda s: s.day)
    by_day = {p.day: p for p in performances}
    days, quiet = _judged(ordered, by_day, {g.day: g for g in gaps}, answered)
    damaged_on = _damaged_on(_newest_gap(gaps, ordered[-1].day), answered)
    action, is_open = _window_action(days, quiet, damaged_on is not None)
    # What acts gives the window its name: an open data fault explains worse performance, not the reverse.
    verdict = {HOLD: FAULT, ASK: DAMAGE}.get(action) or _window_verdict(days)
    raised = max((action, *(found.severity for found in operations)), key=_FORCE.index)
    loud = [found for found in operations if found.severity == ALERT]
    beside = [found.statement for found in operations]
    because = [*_earlier_damage(days, ordered[-1].day, gaps), *_window_reasons(days, ordered, by_day)]
    return Decision(
        pipeline=spec.name,
        first_day=ordered[0].day,
        last_day=ordered[-1].day,
        verdict=verdict,
        action=raised,
        headline=" ".join(
            [_headline(verdict, days, is_open, by_day, gaps, quiet), *(found.statement for found in loud)]
        ),
        # First what the reader was alerted for.
        reasons=tuple([*beside, *because] if raised != action else [*because, *beside]),
        next_steps=(
            *_read_otherwise(verdict, ordered),
            *(step.format(pipeline=spec.name) for step in _NEXT_STEPS[verdict]),
            *(step for found in operations for step in found.next_steps),
        ),
        days=tuple(days),
        evidence=_evidence(days, ordered, performances, gaps),
        operations=tuple(operations),
        data_action=action,
        damaged_on=damaged_on,
    )


def _judged(
    ordered: Sequence[DaySignals],
    performances: Mapping[date, DayPerformance],
    gaps: Mapping[date, PerformanceSignal],
    answered: Sequence[Answered],
) -> tuple[list[DayDecision], set[date]]:
    """(the verdict on each day, days about which somebody has answered)."""
    silent = {s.day: muted(answered, s.day) for s in ordered}
    left = {s.day: heard(s, silent[s.day]) for s in ordered}
    moving = {day: s.alarms for day, s in left.items() if s.alarms}
    days: list[DayDecision] = []
    quiet: set[date] = set()
    incidents: dict[str, tuple[date, date]] = {}
    for spoken in ordered:
        day, signal = spoken.day, left[spoken.day]
        gap = None if PERFORMANCE in silent[day] else gaps.get(day)
        verdict, reasons = _judge_day(signal, performances.get(day), gap, moving)
        said = muted_words(silent[day], spoken, gaps.get(day))
        if said:
            verdict, reasons = NOISE if verdict == HEALTHY else verdict, (*reasons, *said)
        incident = None
        if verdict in (DRIFT, FAULT, DAMAGE):
            first, latest = incidents.get(verdict, (day, day))
            first = first if (day - latest).days <= MERGE_DAYS else day
            incidents[verdict] = (first, day)
            incident = first
        action = _day_action(verdict, day, incident)
        known = known_answer(answered, verdict, day, signal_names(signal))
        if known is not None:
            quiet.add(day)
            action, reasons = NOTE, (*reasons, f"{known.words}.")
        days.append(DayDecision(day, verdict, action, reasons, incident))
    return days, quiet


def _damaged_on(newest: PerformanceSignal | None, answered: Sequence[Answered]) -> date | None:
    """The newest labelled day, when it shows damage about which nobody has answered."""
    if newest is None or newest.alarm is None:
        return None
    silent = PERFORMANCE in muted(answered, newest.day)
    known = known_answer(answered, DAMAGE, newest.day, (PERFORMANCE,)) is not None
    return None if silent or known else newest.day


def _judge_day(
    signal: DaySignals,
    performance: DayPerformance | None,
    gap: PerformanceSignal | None,
    moving: dict[date, tuple[ChannelDrift, ...]],
) -> tuple[str, tuple[str, ...]]:
    reasons = [finding.detail for finding in signal.faults]
    damage = _damage(gap)
    if damage:
        reasons.append(damage)
    drift = _moved(signal.alarms)
    if drift:
        reasons.append(drift)
    warnings = [finding.detail for finding in signal.warnings]
    if signal.faults:
        return FAULT, tuple(reasons + warnings)
    if damage:
        return DAMAGE, tuple(reasons + warnings)
    if drift:
        near = {day for day in moving if day != signal.day and abs((day - signal.day).days) < OPEN_DAYS}
        lone = len(signal.alarms) == 1 and signal.alarms[0].kind != "score" and not near
        measured = performance is not None and performance.state == "measured"
        reasons.append(
            "AUC on labels is within what the scores promise."
            if measured
            else "Not yet confirmed by labels."
            if performance is None
            else performance.statement
        )
        return (NOISE if lone and measured else DRIFT), tuple(reasons + warnings)
    if warnings:
        return NOISE, tuple(warnings)
    if not signal.judged:
        return BLIND, signal.statements
    return HEALTHY, ()


def _day_action(verdict: str, day: date, incident: date | None) -> str:
    if verdict == FAULT:
        return HOLD
    if verdict == DAMAGE:
        return ASK if day == incident else NOTE
    if verdict == DRIFT:
        return ALERT if day == incident else NOTE
    return NOTHING if verdict == HEALTHY else NOTE


def _window_verdict(days: Sequence[DayDecision]) -> str:
    verdicts = {day.verdict for day in days}
    if verdicts <= {HEALTHY, BLIND}:
        judged = sum(day.verdict == HEALTHY for day in days)
        return HEALTHY if judged * 2 >= len(days) and judged else BLIND
    return max(verdicts, key=_SEVERITY.index)


def _window_action(days: Sequence[DayDecision], quiet: set[date], hurts: bool) -> tuple[str, bool]:
    """(action, whether the incident behind it is open).

    Args:
        quiet: Days about which somebody has answered.
        hurts: Whether the newest labelled day shows damage about which nobody has answered.
    """
    since = days[-1].day - timedelta(days=OPEN_DAYS - 1)
    opened = {day.verdict for day in days if day.day >= since and day.day not in quiet}
    if hurts:
        opened.add(DAMAGE)
    ever = {day.verdict for day in days if day.day not in quiet}
    if FAULT in opened:
        return HOLD, True
    if DAMAGE in opened:
        return ASK, True
    if DRIFT in opened:
        return ALERT, True
    if DAMAGE in ever or FAULT in ever:
        return ALERT, False
    if quiet or DRIFT in ever or NOISE in ever or BLIND in ever:
        return NOTE, False
    return NOTHING, False


def known_answer(
    answered: Sequence[Answered], verdict: str, day: date, signals: Sequence[str]
) -> Answered | None:
    """The answer that covers a day, if one does.

    A fault is answered for its days only; drift while the incident lasts and no other channel joins; damage while the
    incident lasts. A marked incident of a feed leaves its hold as it is.

    Args:
        signals: What speaks on that day, as `signal_names` gives it.
    """
    for item in answered:
        if item.kind != verdict:
            continue
        lasts = item.days[0] <= day and (day - item.days[-1]).days <= MERGE_DAYS
        if verdict == FAULT:
            covers = day in item.days and item.answer in (ACCEPT, NEW_NORMAL, MUTE)
        elif verdict == DRIFT:
            covers = lasts and set(signals) <= item.signals
        else:
            covers = verdict == DAMAGE and lasts
        if covers:
            return item
    return None


def _newest_gap(gaps: Sequence[PerformanceSignal], last: date) -> PerformanceSignal | None:
    """The newest labelled day up to `last`, unless it is so old that it says nothing of now."""
    known = [gap for gap in gaps if last - timedelta(days=LABELS_BACK_DAYS) <= gap.day <= last]
    return max(known, key=lambda gap: gap.day, default=None)


def _read_otherwise(verdict: str, signals: Sequence[DaySignals]) -> tuple[str, ...]:
    """The first step when the model reads values otherwise than before."""
    alarmed = any(channel.kind == "attribution" for signal in signals for channel in signal.alarms)
    if not alarmed or verdict not in (DRIFT, DAMAGE):
        return ()
    return (
        "The model reads values otherwise than before: compare the encoding of the features named with training "
        "(units, order of columns, category codes) before looking for events in the world.",
    )


def _earlier_damage(
    days: Sequence[DayDecision], last: date, gaps: Sequence[PerformanceSignal]
) -> tuple[str, ...]:
    """The reason of damage that labels of a day before the window show."""
    newest = _newest_gap(gaps, last)
    if newest is None or newest.alarm is None or newest.day >= days[0].day:
        return ()
    return (f"{newest.day}, the newest day with labels: {_damage(newest)}",)


def _damage(gap: PerformanceSignal | None) -> str:
    if gap is None or gap.alarm is None:
        return ""
    how = (
        f"z {gap.z:.1f}, beyond -4"
        if gap.alarm == "once"
        else f"CUSUM {gap.cusum:.1f} over several days, above 4"
    )
    if gap.gap >= 0:
        return f"AUC on labels is {gap.gap:.3f} above what the scores promise, but {gap.usual - gap.gap:.3f} less than usual ({how})."
    return f"AUC on labels is {-gap.gap:.3f} below what the scores promise ({how})."


def _moved(alarms: Sequence[ChannelDrift]) -> str:
    if not alarms:
        return ""
    names = [
        f"{c.channel} (z {c.z:.1f}{', two days in three' if c.alarm == 'persistent' else ''})" for c in alarms
    ]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    inside = "".join(
        f" {'Attributions: ' if c.kind == 'attribution' else ''}{c.detail}." for c in alarms if c.detail
    )
    return f"Moved: {', '.join(names[:4])}{more}.{inside}"


def once_answered(headline: str) -> str:
    """A headline without what it says only while nobody has answered."""
    return headline.replace(f" ({STILL_OPEN})", "").replace(f" {MUST_DECIDE}", "")


def _headline(
    verdict: str,
    days: Sequence[DayDecision],
    is_open: bool,
    performances: dict[date, DayPerformance],
    gaps: Sequence[PerformanceSignal],
    quiet: set[date],
) -> str:
    newest = _newest_gap(gaps, days[-1].day)
    fallback = newest.day if verdict == DAMAGE and newest is not None else days[-1].day
    affected = [day.day for day in days if day.verdict == verdict] or [fallback]
    when = _dates(affected)
    hurt = [day.day for day in days if day.verdict == DAMAGE]
    worse = {gap.day for gap in gaps if gap.alarm}
    both = [day for day in affected if day in worse]
    known = set(affected) <= quiet
    state = "answered" if known else STILL_OPEN if is_open else "over by the end of the window"
    measured = sum(p.state == "measured" for day, p in performances.items() if days[0].day <= day)
    of = f"labels of {measured} day{'' if measured == 1 else 's'}"
    labels = f"{of} agree with the scores" if measured else "no labels have come yet"
    return {
        HEALTHY: f"{'The judged day looks' if len(affected) == 1 else f'All {len(affected)} judged days look'} "
        f"like the reference; {labels}.",
        BLIND: f"{len(affected)} of {len(days)} days could not be judged; nothing alarming was seen.",
        NOISE: f"Single blips on {when}, none of which lasted; {labels}.",
        DRIFT: f"Inputs or scores moved on {when} ({state}); {labels}, so no damage is seen."
        if measured
        else f"Inputs or scores moved on {when} ({state}); whether it matters is unknown until labels come.",
        FAULT: f"The data of {when} breaks the training contract ({state})."
        + (
            f" Besides, on {_dates(hurt)} the model ranked worse than its scores promise."
            if hurt
            else f" On {_dates(both)} the model ranked worse than its scores promise too, which the data may explain."
            if both
            else " The model is not the cause."
        ),
        DAMAGE: f"On {when} the model ranked worse than its own scores promise ({state})."
        + ("" if known else f" {MUST_DECIDE}"),
    }[verdict]


def _window_reasons(
    days: Sequence[DayDecision],
    signals: Sequence[DaySignals],
    performances: dict[date, DayPerformance],
) -> tuple[str, ...]:
    reasons = [
        f"{day.day}: {reason}"
        for day in days
        if day.verdict not in (HEALTHY, BLIND)
        for reason in day.reasons
    ]
    blind = [signal for signal in signals if not signal.judged]
    said = sorted({statement for signal in blind for statement in signal.statements})
    for statement in said:
        which = [signal.day for signal in blind if statement in signal.statements]
        reasons.append(f"{_dates(which)}: {statement}")
    late = [day.day for day in days if day.day not in performances]
    unmeasured = [p for p in performances.values() if p.state != "measured" and p.day >= days[0].day]
    if late:
        reasons.append(f"{_dates(late)}: no labels were joined.")
    reasons += [f"{p.day}: {p.statement}" for p in sorted(unmeasured, key=lambda p: p.day)]
    return tuple(reasons)


def _evidence(
    days: Sequence[DayDecision],
    signals: Sequence[DaySignals],
    performances: Sequence[DayPerformance],
    gaps: Sequence[PerformanceSignal],
) -> dict[str, float]:
    count = {name: float(sum(day.verdict == name for day in days)) for name in _SEVERITY}
    zs = [channel.z for signal in signals for channel in signal.drift]
    inside = [gap for gap in gaps if days[0].day <= gap.day <= days[-1].day]
    evidence = {f"days {name}": value for name, value in count.items() if value}
    evidence |= {
        "days": float(len(days)),
        "days with measured performance": float(sum(p.state == "measured" for p in performances)),
        "faults": float(sum(len(signal.faults) for signal in signals)),
        "channel alarms": float(sum(len(signal.alarms) for signal in signals)),
    }
    if zs:
        evidence["largest z"] = max(zs)
    if inside:
        evidence["lowest AUC gap"] = min(gap.gap for gap in inside)
        evidence["largest CUSUM"] = max(gap.cusum for gap in inside)
    return evidence


def _dates(days: Sequence[date]) -> str:
    """`3 May`, `3-5 May 2013` style ranges, at most four of them."""
    if not days:
        return "no day"
    runs: list[tuple[date, date]] = []
    for day in sorted(days):
        if runs and (day - runs[-1][1]).days == 1:
            runs[-1] = (runs[-1][0], day)
        else:
            runs.append((day, day))
    texts = [day_span(a, b) for a, b in runs]
    return ", ".join(texts[:4]) + (f" and {len(texts) - 4} more" if len(texts) > 4 else "")

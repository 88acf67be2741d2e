"""Days as the decision policy sees them: signals, labels and gaps by number of the day."""

from __future__ import annotations

from datetime import date, timedelta

from tasks.monitoring import (
    ChannelDrift,
    ContractFinding,
    DayPerformance,
    DaySignals,
    PerformanceSignal,
)

FIRST = date(2024, 5, 1)


def day(
    index: int, *, alarms: tuple[str, ...] = (), fault: str = "", warn: str = "", judged: bool = True
) -> DaySignals:
    drift = tuple(
        ChannelDrift(
            channel=name,
            kind="score" if name == "score" else "numeric",
            distance=0.2,
            expected=0.1,
            z=6.0 if name in alarms else 0.1,
            alarm="once" if name in alarms else None,
        )
        for name in ("price", "visits", "score")
    )
    findings = [ContractFinding("nulls", "fault", "price", fault)] if fault else []
    findings += [ContractFinding("unseen", "warn", "city", warn)] if warn else []
    return DaySignals(
        day=FIRST + timedelta(days=index),
        rows=800,
        expected_rows=800.0,
        findings=tuple(findings),
        drift=drift if judged else (),
        statements=() if judged else ("Drift is not judged: no reference.",),
        compared_with=(),
        score_mean=0.2,
        score_band=None,
        expected_auc=0.75,
        expected_brier=0.1,
        grid="g",
    )


def labels(index: int, state: str = "measured") -> DayPerformance:
    when = FIRST + timedelta(days=index)
    if state != "measured":
        return DayPerformance(when, state, f"Labels of {when} are due later.", 800, 0)
    return DayPerformance(
        when,
        state,
        "",
        800,
        800,
        200,
        auc=0.75,
        auc_se=0.02,
        expected_auc=0.75,
        brier=0.1,
        expected_brier=0.1,
    )


def gap(index: int, alarm: str | None = None) -> PerformanceSignal:
    return PerformanceSignal(
        FIRST + timedelta(days=index),
        -0.1 if alarm else 0.0,
        -5.0 if alarm else 0.0,
        5.0 if alarm else 0.0,
        alarm,
        (0.7, 0.8),
    )

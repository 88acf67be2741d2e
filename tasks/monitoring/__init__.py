"""Monitoring: signals from profiles and labels, a verdict in words, and a report.

`Monitor.of` calibrates on a bundle's reference days; `measure_days` and `performance` + `judge_gaps` measure;
`decide` judges, `suspect` looks for causes; `render_report` shows. All of them are pure.
"""

from __future__ import annotations

from tasks.monitoring.causes import Cause, Change, suspect
from tasks.monitoring.decision import decide
from tasks.monitoring.measure import Monitor, measure_day, measure_days, unjudged_day
from tasks.monitoring.performance import (
    expected_auc,
    judge_gaps,
    performance,
    remembered,
    still_missing,
    to_join_again,
    unread,
)
from tasks.monitoring.report import render_report
from tasks.monitoring.signals import (
    ChannelDrift,
    ContractFinding,
    DayDecision,
    DayPerformance,
    DaySignals,
    Decision,
    OperationFinding,
    PerformanceSignal,
)

__all__ = [
    "Cause",
    "Change",
    "ChannelDrift",
    "ContractFinding",
    "DayDecision",
    "DayPerformance",
    "DaySignals",
    "Decision",
    "Monitor",
    "OperationFinding",
    "PerformanceSignal",
    "decide",
    "expected_auc",
    "judge_gaps",
    "measure_day",
    "measure_days",
    "performance",
    "remembered",
    "render_report",
    "still_missing",
    "suspect",
    "to_join_again",
    "unjudged_day",
    "unread",
]

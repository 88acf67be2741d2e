"""Results for which a task fails though its step has done its work: somebody has to know, and what to do next is said.

What is said has the three parts of every error, so that the task's log ends as it does after any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.core.day_span import day_span
from tasks.core.errors import TerminalError


def refusal(pipeline: str, step: str, result: Mapping[str, Any]) -> TerminalError | None:
    """The error that a finished step's task ends with; None when its result lets the run go on."""
    outcome = result.get("outcome")
    if step == "canary_model" and outcome == "fail":
        report = f" in the canary's report {result['report_url']}" if result.get("report_url") else ""
        return _error(
            pipeline,
            result,
            "the canary refused the challenger; the champion stays",
            f"compare the slices of both{report} and train a better model; nothing is urgent",
        )
    if step == "advance_ramp" and outcome == "withdrawn":
        version = result.get("version")
        return _error(
            pipeline,
            result,
            "the exposed challenger was withdrawn and barred; the champion stays",
            f"repair what the reasons name and train again; readers keep the rows that it published until "
            f"`penstock registry rescore {pipeline} {version}`",
        )
    if step != "mitigate_window":
        return None
    case = result.get("case_id")
    asked = f"answer case {case} (Required Actions, or {result.get('case_url')})"
    if outcome == "held":
        days = list(result.get("days") or ())
        span = day_span(days[0], days[-1]) if days else "the days"
        again = f"have {span} delivered again, and run {pipeline}.score for exactly these days and {pipeline}.monitor"
        return _error(
            pipeline,
            result,
            "scoring and promotions are held for a data fault",
            f"{asked}; or {again}" if case else again,
        )
    if outcome == "asked":
        return _error(
            pipeline,
            result,
            "the champion is worse than its scores promise; a person must decide",
            asked if case else f"look at what was answered: penstock monitoring cases {pipeline}",
        )
    if outcome == "rolled_back":
        left, now = result.get("left"), result.get("version")
        return _error(
            pipeline,
            result,
            f"the champion was worse and was rolled back to version {now}",
            f"find out what was wrong with version {left}, which is barred now; score anew what it published with "
            f"`penstock registry rescore {pipeline} {left}`",
        )
    return None


def reasons_of(result: Mapping[str, Any]) -> list[str]:
    """Why a step ended as it did, whether its result has one reason or several."""
    said = result.get("reasons") or result.get("reason") or ()
    return [said] if isinstance(said, str) else [str(reason) for reason in said]


def _error(pipeline: str, result: Mapping[str, Any], what: str, fix: str) -> TerminalError:
    reasons = reasons_of(result)
    return TerminalError("\n  ".join([f"{what}:" if reasons else what, *reasons]), which=pipeline, fix=fix)

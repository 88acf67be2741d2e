"""What a person is shown who approves a promotion, and the record of a refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.core import Settings
from tasks.core.day_span import day_span
from tasks.wiring.context import Context, open_context

if TYPE_CHECKING:
    from tasks.evaluation import Evaluation

_METRICS = {"auc": "AUC", "pr_auc": "PR-AUC", "brier": "Brier score", "log_loss": "log loss", "ece": "ECE"}
_SLICES = 8
_DECISIONS = 3


def approval_evidence(
    settings: Settings, pipeline: str, *, version: int, evaluation_key: str
) -> dict[str, Any]:
    """What speaks for and against a challenger: metrics with intervals, its weakest slices, and drift of late.

    Returns:
        `version`; `champion` (version, since, reason; None when none is live); `metrics`: rows of name, candidate,
        champion and difference as text with intervals; `slices`: the same of the eight judged slices with the lowest AUC;
        `monitor`: the last three decisions of the monitor; `report_url`.
    """
    from tasks.evaluation import load_evaluation

    context = open_context(settings, pipeline)
    evaluation = load_evaluation(context.store, evaluation_key)
    live = context.metadata.live(context.spec)
    return {
        "version": version,
        "champion": {
            "version": live.version,
            "since": f"{live.at_utc:%Y-%m-%d %H:%M} UTC",
            "reason": live.reason,
        }
        if live
        else None,
        "validation": f"{evaluation.rows:,} labelled rows of {evaluation.validation_days} days, "
        f"{day_span(evaluation.validation_first_day, evaluation.validation_last_day)}",
        "metrics": _metrics(evaluation),
        "slices": _slices(evaluation, context.spec.gates.slice_min_rows),
        "monitor": _monitor(context),
        "report_url": context.report_url(evaluation.report_key),
    }


def reject_model(
    settings: Settings, pipeline: str, *, version: int, actor: str, reason: str, dag_run: str | None = None
) -> dict[str, Any]:
    """Record that a person refused a challenger, or did not answer in time; the champion stays.

    The version is not barred: it may be asked for again. Once for each DAG run, however often it is called.
    """
    from tasks.registry import reject

    context = open_context(settings, pipeline)
    marked = f"{reason} ({dag_run})" if dag_run else reason
    event = reject(settings, context.spec, version, actor=actor, reason=marked)
    result = {
        "version": version,
        "outcome": "rejected",
        "event_id": event.event_id,
        "actor": actor,
        "reasons": [reason],
    }
    context.evidence(dag_run, "approval", result)
    return result


def _metrics(evaluation: Evaluation) -> list[dict[str, str]]:
    models, differences = evaluation.models, evaluation.differences.get("candidate-champion", {})
    champion = models.get("champion", {})
    return [
        {
            "name": shown,
            "candidate": models["candidate"][name].text,
            "champion": champion[name].text if name in champion else "",
            "difference": differences[name].text if name in differences else "",
        }
        for name, shown in _METRICS.items()
        if name in models.get("candidate", {})
    ]


def _slices(evaluation: Evaluation, least_rows: int) -> list[dict[str, str]]:
    known = [item for item in evaluation.slices if item.auc.value is not None and item.rows >= least_rows]
    known.sort(key=lambda item: item.auc.value or 0.0)
    return [
        {
            "name": item.name,
            "rows": f"{item.rows:,}",
            "candidate": item.auc.text,
            "champion": item.champion_auc.text if item.champion_auc else "",
        }
        for item in known[:_SLICES]
    ]


def _monitor(context: Context) -> list[dict[str, str]]:
    from tasks.wiring.decided import decided_days, told_once

    return [
        {
            "days": decided_days(found),
            "verdict": found.verdict,
            "action": found.action.replace("_", " "),
            "reasons": "; ".join(found.reasons[:3]),
        }
        for found in told_once(context.metadata.decisions(context.spec, limit=2 * _DECISIONS))[:_DECISIONS]
    ]

"""Steps that read explanation data, by id and by window."""

from __future__ import annotations

from typing import Any

from tasks.core import Settings
from tasks.wiring.context import open_context, parse_moment


def audit_prediction(settings: Settings, pipeline: str, *, prediction_id: str) -> dict[str, Any]:
    """Everything about one prediction: features, model, run and explanation."""
    from tasks.audit import by_prediction

    return by_prediction(settings, open_context(settings, pipeline).spec, prediction_id).to_json()


def audit_predictions(
    settings: Settings,
    pipeline: str,
    *,
    start: str,
    end: str,
    limit: int = 20,
    cursor: str | None = None,
) -> dict[str, Any]:
    """Predictions about `start` <= event time < `end`, page by page."""
    from tasks.audit import by_window

    context = open_context(settings, pipeline)
    page = by_window(
        settings,
        context.spec,
        parse_moment(start, "start"),
        parse_moment(end, "end"),
        limit=limit,
        cursor=cursor,
    )
    return page.to_json()

"""Steps that read explanation data, by id and by window, and those that compute it again."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from tasks.core import Settings
from tasks.core.errors import ConfigError, NotFound
from tasks.core.ids import event_millis, id_parts
from tasks.core.ids import prediction_id as id_of
from tasks.wiring.context import open_context, parse_moment


def decode_prediction_id(
    *,
    prediction_id: str,
    pipeline: str | None = None,
    entity: str | None = None,
    event_time: str | None = None,
) -> dict[str, Any]:
    """What an id says by itself and, with a pipeline and an entity, whether it is that row's.

    Args:
        prediction_id: The id.
        pipeline: Name of a pipeline, which need not be there any more.
        entity: Entity id as on the audit row: the key's values, joined by `|`.
        event_time: ISO 8601; default: the id's own.

    Raises:
        InvalidQuery: `prediction_id` is malformed.
        ConfigError: Only one of `pipeline` and `entity` is given, or `event_time` cannot be read.
    """
    from tasks.audit.query import check_id

    check_id(prediction_id)
    parts = id_parts(prediction_id)
    day = parts.event_time.date().isoformat()
    found: dict[str, Any] = {
        "prediction_id": prediction_id,
        "event_time": parts.event_time.isoformat(timespec="milliseconds"),
        "event_date": day,
        "version": parts.version,
        "variant": parts.variant,
        "hash_bits": parts.hash_bits,
        "sampling_draw": parts.draw,
        "lies_in": [
            f"tables/predictions/event_date={day}",
            f"tables/audit/event_date={day}",
            f"archive/audit/{day}",
        ],
    }
    if pipeline is None and entity is None and event_time is None:
        return found
    if pipeline is None or entity is None:
        raise ConfigError(
            "is missing",
            which="--entity" if pipeline else "--pipeline",
            fix="give both --pipeline and --entity to ask whether the id is that row's",
        )
    asked = parts.millis if event_time is None else event_millis(parse_moment(event_time, "event_time"))
    try:
        belongs = id_of(pipeline, entity, asked)
    except ValueError as error:
        raise ConfigError(str(error), which="event_time", fix="give a time from 1970 on") from error
    return {**found, "is_of_this_row": belongs == prediction_id, "id_of_this_row": belongs}


def audit_prediction(
    settings: Settings,
    pipeline: str,
    *,
    prediction_id: str,
    run_id: str | None = None,
    explain: bool = False,
) -> dict[str, Any]:
    """Everything about one prediction: features, model, run and explanation.

    Args:
        prediction_id: The prediction.
        run_id: The scoring of that run; default: the newest.
        explain: Compute the attributions now when they are not stored; `explanation` is `computed` then.
    """
    from tasks.audit import by_prediction
    from tasks.audit import explain as explained_now

    spec = open_context(settings, pipeline).spec
    record = by_prediction(settings, spec, prediction_id, run_id=run_id)
    return (explained_now(settings, spec, record) if explain else record).to_json()


def reproduce_prediction(
    settings: Settings, pipeline: str, *, prediction_id: str, run_id: str | None = None
) -> dict[str, Any]:
    """Compute a recorded prediction again and say what differs; `reproduced` is whether nothing does."""
    from tasks.audit import by_prediction, reproduce
    from tasks.inference.records import read_plan

    context = open_context(settings, pipeline)
    record = by_prediction(settings, context.spec, prediction_id, run_id=run_id)
    precision = context.spec.inference.precision
    with suppress(NotFound):  # an online prediction has no plan
        planned = read_plan(context.store, record.run_id).fingerprint.scoring_config
        precision = planned.get("precision", "float32")
    return reproduce(settings, context.spec, record, bfloat16=precision == "bfloat16").to_json()


def audit_predictions(
    settings: Settings,
    pipeline: str,
    *,
    start: str,
    end: str,
    limit: int = 20,
    cursor: str | None = None,
    model_version: int | None = None,
    min_prediction: float | None = None,
    max_prediction: float | None = None,
    entity_id: str | None = None,
) -> dict[str, Any]:
    """Predictions about `start` <= event time < `end`, page by page, of which a scoring passes the filters."""
    from tasks.audit import AuditFilter, by_window

    context = open_context(settings, pipeline)
    page = by_window(
        settings,
        context.spec,
        parse_moment(start, "start"),
        parse_moment(end, "end"),
        filter=AuditFilter(model_version, min_prediction, max_prediction, entity_id),
        limit=limit,
        cursor=cursor,
    )
    return page.to_json()

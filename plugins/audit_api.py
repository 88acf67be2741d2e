"""The audit store in the REST API: predictions by id and by window, explanations, files of them."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any

from airflow.api_fastapi.core_api.security import requires_authenticated
from fastapi import Depends, FastAPI, Query
from fastapi import Path as PathParameter
from fastapi.responses import Response, StreamingResponse
from pydantic.dataclasses import dataclass

from plugins.access import PredictionsReader, ReadablePipeline, SettingsDep, WiringDep
from plugins.explaining import Explain, ExplainOnDemand
from plugins.exports import MAX_EXPORT_ROWS, MEDIA_TYPES, Format, chunks, exported
from plugins.problems import SAFE
from plugins.rest import checked_moment, documented, json_answer
from tasks.audit import AuditFilter, AuditPage, AuditRecord
from tasks.audit.query import check_id
from tasks.core.ids import prediction_event_time

MAX_PAGE = 1_000
"""Records of one page: about two megabytes of JSON."""
_MAX_VERSION = 2**31 - 1
_ID = "018df9c3-4a00-8b6e-9d41-5f0c2a7e1b33"


@dataclass(frozen=True)
class PipelineEntry:
    """A pipeline whose predictions the user may read."""

    name: str
    description: str
    first_day: date | None
    """First day of the source that has published predictions; null when there is none yet."""
    last_day: date | None


@dataclass(frozen=True)
class PipelineList:
    """The pipelines whose predictions the user may read, by name."""

    pipelines: list[PipelineEntry]


@dataclass(frozen=True)
class DecodedId:
    """What a prediction id says by itself."""

    prediction_id: str
    event_time: datetime
    """UTC, to the millisecond."""
    event_date: date
    """UTC; the date under which the audit table keeps the row."""


_explain = ExplainOnDemand()


def read_explainer() -> Explain:
    """What computes explanations; a dependency of its own so that tests can replace it."""
    return _explain


ExplainDep = Annotated[Explain, Depends(read_explainer)]


def checked_filter(
    model_version: Annotated[
        int | None, Query(ge=0, le=_MAX_VERSION, description="Only scorings by this version.")
    ] = None,
    min_prediction: Annotated[
        float | None, Query(ge=0, le=1, allow_inf_nan=False, description="Lowest score, included.")
    ] = None,
    max_prediction: Annotated[
        float | None, Query(ge=0, le=1, allow_inf_nan=False, description="Highest score, included.")
    ] = None,
    entity_id: Annotated[
        str | None, Query(min_length=1, max_length=1024, description="Only about this entity.")
    ] = None,
) -> AuditFilter:
    """Which scorings of a window are wanted."""
    return AuditFilter(model_version, min_prediction, max_prediction, entity_id)


def checked_window(
    start: Annotated[datetime, Query(description="First event time, included; with a time zone.")],
    end: Annotated[datetime, Query(description="Last event time, excluded; with a time zone.")],
) -> tuple[datetime, datetime]:
    """The bounds in UTC."""
    return checked_moment(start, "start"), checked_moment(end, "end")


def checked_prediction(
    prediction_id: Annotated[
        str, PathParameter(description="A prediction id: a UUID of version 8.", examples=[_ID])
    ],
) -> str:
    """Raises `InvalidQuery` for what is not a prediction id."""
    check_id(prediction_id)
    return prediction_id


WindowDep = Annotated[tuple[datetime, datetime], Depends(checked_window)]
FilterDep = Annotated[AuditFilter, Depends(checked_filter)]
PredictionDep = Annotated[str, Depends(checked_prediction)]
RunId = Annotated[
    str | None,
    Query(min_length=1, max_length=64, description="The scoring by this run; default: the newest one."),
]
FormatQuery = Annotated[Format, Query(description="Of the file.")]


def pipelines(settings: SettingsDep, wiring: WiringDep, may_read: PredictionsReader) -> Response:
    """The pipelines whose predictions you may read."""
    from tasks.core import pipeline_names

    names = [name for name in pipeline_names(settings) if may_read(name)]
    return json_answer(
        {"pipelines": [entry.to_json() for entry in wiring.audited_pipelines(settings, names)]}
    )


def predictions(
    settings: SettingsDep,
    wiring: WiringDep,
    pipeline: ReadablePipeline,
    window: WindowDep,
    wanted: FilterDep,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Records of a page.")] = 100,
    cursor: Annotated[
        str | None, Query(max_length=512, description="`cursor` of the page before, of the same question.")
    ] = None,
) -> Response:
    """Predictions about a window of event time, in order of their id, page by page."""
    start, end = window
    return json_answer(
        wiring.audit_window(settings, pipeline, start, end, filter=wanted, limit=limit, cursor=cursor)
    )


def prediction(
    settings: SettingsDep,
    wiring: WiringDep,
    explainer: ExplainDep,
    pipeline: ReadablePipeline,
    prediction_id: PredictionDep,
    run_id: RunId = None,
    explain: Annotated[
        bool,
        Query(
            description="Compute the explanation with the recorded model when it was not kept in full; takes seconds."
        ),
    ] = False,
) -> Response:
    """Everything about one prediction: what was predicted, from what, by which model and run, and why."""
    record: AuditRecord = wiring.audit_record(settings, pipeline, prediction_id, run_id)
    if explain and wants_explanation(record):
        record = explainer(settings, pipeline, prediction_id, run_id)
    return json_answer(record)


def prediction_export(
    settings: SettingsDep,
    wiring: WiringDep,
    pipeline: ReadablePipeline,
    prediction_id: PredictionDep,
    run_id: RunId = None,
    format: FormatQuery = "csv",
) -> Response:
    """One prediction as a file of one row."""
    record: AuditRecord = wiring.audit_record(settings, pipeline, prediction_id, run_id)
    return _download([(record,)], format, f"{pipeline}-{prediction_id}")


def export(
    settings: SettingsDep,
    wiring: WiringDep,
    pipeline: ReadablePipeline,
    window: WindowDep,
    wanted: FilterDep,
    format: FormatQuery = "csv",
) -> Response:
    """The predictions of a window as a file: `feature.<name>` and `attribution.<name>` are columns of their own."""
    start, end = window
    blocks = wiring.audit_records(settings, pipeline, start, end, filter=wanted, most=MAX_EXPORT_ROWS)
    return _download(blocks, format, f"{pipeline}-{start:%Y%m%dT%H%M%S}-{end:%Y%m%dT%H%M%S}")


def decode(prediction_id: PredictionDep) -> Response:
    """What an id says by itself; nothing is looked up."""
    moment = prediction_event_time(prediction_id)
    return json_answer(
        {
            "prediction_id": prediction_id,
            "event_time": moment.isoformat(),
            "event_date": moment.date().isoformat(),
        }
    )


def wants_explanation(record: AuditRecord) -> bool:
    """Whether there is an explanation to compute: the whole one was not kept, and its features were."""
    return record.explanation != "stored" and record.erasure_id is None and bool(record.features)


_PROBLEMS = {
    400: "The question is wrong: a malformed id, a window that ends before it starts or is too long, another query's cursor.",
    401: "Not logged in.",
    403: "No access to the runs of `<pipeline>.score`, whether or not there is such a pipeline.",
    404: "There is no such pipeline, or no such prediction.",
    410: "It was there, and retention has deleted it.",
    413: f"More than {MAX_EXPORT_ROWS:,} predictions.",
    500: "Stored data is damaged, or the installation is not set up right; `which` names what.",
    503: "The store does not answer, or too many explanations are being computed: ask again after `Retry-After` seconds.",
}


def add_audit_routes(api: FastAPI) -> None:
    """Add the endpoints about predictions."""
    whole, of_pipeline = (400, 401, 500, 503), (400, 401, 403, 404, 500, 503)
    files = {
        200: {
            "description": "The file.",
            "content": {kind: {"schema": {"type": "string"}} for kind in MEDIA_TYPES.values()},
        }
    }
    routes: tuple[tuple[str, Any, tuple[int, ...], dict[str, Any]], ...] = (
        ("/pipelines", pipelines, (401, 500, 503), {"response_model": PipelineList}),
        ("/pipelines/{pipeline}/predictions", predictions, of_pipeline, {"response_model": AuditPage}),
        (
            "/pipelines/{pipeline}/predictions/{prediction_id}",
            prediction,
            (*of_pipeline, 410),
            {"response_model": AuditRecord},
        ),
        (
            "/pipelines/{pipeline}/predictions/{prediction_id}/export",
            prediction_export,
            (*of_pipeline, 410),
            {"responses": files, "response_class": Response},
        ),
        (
            "/pipelines/{pipeline}/export",
            export,
            (*of_pipeline, 413),
            {"responses": files, "response_class": Response},
        ),
        ("/ids/{prediction_id}", decode, whole[:2], {"response_model": DecodedId}),
    )
    for path, endpoint, statuses, more in routes:
        api.add_api_route(
            path,
            endpoint,
            dependencies=[Depends(requires_authenticated())],
            responses={**documented(statuses, _PROBLEMS), **more.pop("responses", {})},
            operation_id=endpoint.__name__,
            tags=["audit"],
            **more,
        )


RECORDS = (AuditRecord, AuditPage, PipelineEntry, DecodedId)
"""What the endpoints answer."""
LIMITS = {"max_page_rows": MAX_PAGE, "max_export_rows": MAX_EXPORT_ROWS}


def _download(blocks: Any, kind: Format, name: str) -> Response:
    file = exported(blocks, kind)
    return StreamingResponse(
        chunks(file),
        media_type=MEDIA_TYPES[kind],
        headers={**SAFE, "Content-Disposition": f'attachment; filename="{name}.{kind}"'},
    )

"""The audit page in Airflow's UI: search by id or by window, one prediction with its explanation, print views.

Forms are plain GET forms and no page runs a script. What a page shows comes from the same functions as the REST API's
answers, under the same permission; downloads are the API's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag, requires_authenticated
from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from markupsafe import Markup

from plugins import audit_charts as charts
from plugins.access import PredictionsReader, ReadablePipeline, SettingsDep, WiringDep, require_predictions
from plugins.audit_api import ExplainDep, wants_explanation
from plugins.explaining import Explain
from plugins.exports import MAX_EXPORT_ROWS
from plugins.links import PAGES
from plugins.problems import status_of
from plugins.rendering import PAGE_POLICY, html_page
from plugins.rest import API, checked_moment
from tasks.audit import AuditFilter, AuditRecord, InvalidQuery
from tasks.audit.query import check_id
from tasks.core.errors import PenstockError
from tasks.core.settings import Settings

POLICY = PAGE_POLICY.replace("form-action 'none'", "form-action 'self'")
"""These pages have forms, which lead back here."""
PAGE_ROWS, PRINT_ROWS = 50, 500
_TOP_SHOWN = 3
_FILTERS = ("model_version", "min_prediction", "max_prediction", "entity_id")
_WINDOW = ("start", "end", *_FILTERS)


@dataclass(frozen=True)
class FeatureRow:
    """One line of a prediction's table of features."""

    name: str
    value: str
    whole: str
    shift: str
    chart: Markup
    words: str
    unseen: bool


def add_audit_pages(app: FastAPI) -> None:
    """Add the routes below `/audit`."""
    login = [Depends(requires_authenticated())]
    app.add_api_route("/audit/", search, dependencies=login, response_class=HTMLResponse)
    app.add_api_route(
        "/audit/run/{dag_id}/{run_id:path}",
        of_run,
        dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.RUN))],
        response_class=HTMLResponse,
    )
    app.add_api_route("/audit/{pipeline}", search_in, dependencies=login, response_class=HTMLResponse)
    app.add_api_route(
        "/audit/{pipeline}/{prediction_id}", one_prediction, dependencies=login, response_class=HTMLResponse
    )


def search_in(pipeline: str) -> Response:
    """The search forms of a pipeline, under the address that one would guess."""
    return RedirectResponse(f"{PAGES}/audit/?{urlencode({'pipeline': pipeline})}", status_code=307)


def search(
    request: Request, settings: SettingsDep, wiring: WiringDep, user: GetUserDep, may_read: PredictionsReader
) -> Response:
    """The search forms, and what they found."""
    from tasks.core import pipeline_names

    asked = {name: value.strip() for name, value in request.query_params.items() if value.strip()}
    names = [name for name in pipeline_names(settings) if may_read(name)]
    chosen = asked.get("pipeline") or (names[0] if len(names) == 1 else "")
    if chosen:
        require_predictions(request, user, chosen)
    values: dict[str, Any] = {
        "names": names,
        "chosen": chosen,
        "asked": asked,
        "about": next(iter(wiring.audited_pipelines(settings, [chosen])), None) if chosen else None,
        "printing": asked.get("view") == "print",
        "rows": None,
    }
    values["offered"] = _offered(settings, wiring, values["about"])
    status = 200
    if chosen and not values["about"]:
        values["error"] = {"what": "There is no such pipeline", "which": chosen, "fix": "choose one above"}
        status = 404
    elif chosen and "id" in asked:
        try:
            check_id(asked["id"].lower())
        except InvalidQuery as error:
            values["error"], status = error, 400
        else:
            return RedirectResponse(_prediction_path(chosen, asked["id"].lower()), status_code=303)
    elif chosen and ("start" in asked or "end" in asked):
        try:
            values |= _found(settings, wiring, chosen, asked, printing=values["printing"])
        except PenstockError as error:
            values["error"], status = error, status_of(error)
    return html_page(
        request,
        "Audit",
        "audit_search.html",
        subtitle=_subtitle(values),
        status=status,
        policy=POLICY,
        **values,
    )


def of_run(request: Request, settings: SettingsDep, wiring: WiringDep, dag_id: str, run_id: str) -> Response:
    """The window that a DAG run predicted, in the search page; a run without predictions says so."""
    window = wiring.run_window(settings, dag_id, run_id)
    if window is None:
        lines = [
            "This run has published no predictions. Runs of the .score DAGs do, once they have planned their work."
        ]
        return html_page(request, "Audit", "message.html", subtitle=run_id, lines=lines)
    pipeline = dag_id.rpartition(".")[0]
    start, end = wiring.utc_bounds(settings, pipeline, window.first_day, window.last_day)
    question = {"pipeline": pipeline, "start": _form_time(start), "end": _form_time(end)}
    if window.model_version is not None:
        question["model_version"] = str(window.model_version)
    return RedirectResponse(f"{PAGES}/audit/?{urlencode(question)}", status_code=303)


def one_prediction(
    request: Request,
    settings: SettingsDep,
    wiring: WiringDep,
    explainer: ExplainDep,
    pipeline: ReadablePipeline,
    prediction_id: str,
    run_id: str | None = None,
    explain: str = "",
    view: str = "",
) -> Response:
    """Why one prediction was made."""
    record: AuditRecord = wiring.audit_record(settings, pipeline, prediction_id, run_id or None)
    record, problem = _explained(explainer, settings, pipeline, record, run_id, asked=bool(explain))
    learnt, missing = _training(wiring, settings, pipeline, record)
    return html_page(
        request,
        "Why this prediction?",
        "audit_prediction.html",
        subtitle=f"{pipeline} · {prediction_id}",
        status=status_of(problem) if problem else 200,
        policy=POLICY,
        record=record,
        problem=problem,
        learnt=learnt,
        missing=missing,
        base_probability=charts.probability,
        links=wiring.prediction_links(settings, pipeline, record),
        chart=Markup(charts.waterfall(record)) if record.attributions is not None else None,
        features=_feature_rows(record, learnt),
        can_explain=wants_explanation(record),
        printing=view == "print",
        path=_prediction_path(pipeline, prediction_id),
        api=f"{PAGES}{API}/pipelines/{pipeline}/predictions/{prediction_id}",
        of_run={"run_id": run_id} if run_id else {},
        others=(*record.superseded_runs, *((record.superseded_by,) if record.superseded_by else ())),
        **_words(),
    )


def _explained(
    explainer: Explain,
    settings: Settings,
    pipeline: str,
    record: AuditRecord,
    run_id: str | None,
    *,
    asked: bool,
) -> tuple[AuditRecord, PenstockError | None]:
    """The record with the explanation that was asked for, or as it is with why there is none."""
    if not asked or not wants_explanation(record):
        return record, None
    try:
        return explainer(settings, pipeline, record.prediction_id, run_id), None
    except PenstockError as error:
        return record, error


def _training(wiring: Any, settings: Settings, pipeline: str, record: AuditRecord) -> tuple[Any, str]:
    """(training distribution, why there is none)."""
    if not record.features:
        return None, ""
    try:
        learnt = wiring.training_distribution(settings, pipeline, record.bundle_digest)
    except PenstockError as error:
        return None, f"{error.which}: {error.what}" if error.which else error.what
    return learnt, "" if learnt else "the model's bundle is no longer in the store"


def _feature_rows(record: AuditRecord, learnt: Any) -> list[FeatureRow]:
    """Features by size of their shift, then as the model takes them."""
    known = {one.name: one for one in learnt.features} if learnt else {}
    shifts = record.attributions or {}
    rows = []
    for name in sorted(record.features, key=lambda name: -abs(shifts.get(name, 0.0))):
        value, distribution = record.features[name], known.get(name)
        words, unseen = charts.distribution_words(distribution, value) if distribution else ("", False)
        chart = charts.distribution_chart(distribution, value) if distribution else ""
        rows.append(
            FeatureRow(
                name,
                charts.value_text(value),
                "" if value is None else str(value),
                charts.signed(shifts[name]) if name in shifts else "",
                Markup(chart),
                words,
                unseen,
            )
        )
    return rows


def _offered(settings: Settings, wiring: Any, about: Any) -> tuple[str, str]:
    """The window that the form begins with: the last published day."""
    if about is None or about.last_day is None:
        return "", ""
    start, end = wiring.utc_bounds(settings, about.name, about.last_day, about.last_day)
    return _form_time(start), _form_time(end)


def _found(
    settings: Settings, wiring: Any, pipeline: str, asked: dict[str, str], *, printing: bool
) -> dict[str, Any]:
    """One page of a window, and the questions that its links ask."""
    start, end = _moment(asked, "start"), _moment(asked, "end")
    page = wiring.audit_window(
        settings,
        pipeline,
        start,
        end,
        filter=_filter(asked),
        limit=PRINT_ROWS if printing else PAGE_ROWS,
        cursor=asked.get("cursor"),
    )
    question = {"pipeline": pipeline, **{name: asked[name] for name in _WINDOW if name in asked}}
    told = {"start": start.isoformat(), "end": end.isoformat()}
    told |= {name: asked[name] for name in _FILTERS if name in asked}
    here = f"{PAGES}/audit/"
    return {
        "rows": page.records,
        "first_href": f"{here}?{urlencode(question)}" if "cursor" in asked else "",
        "next_href": f"{here}?{urlencode({**question, 'cursor': page.cursor})}" if page.cursor else "",
        "print_href": f"{here}?{urlencode({**question, 'view': 'print'})}",
        "more": page.cursor is not None,
        "export": {
            kind: f"{PAGES}{API}/pipelines/{pipeline}/export?{urlencode({**told, 'format': kind})}"
            for kind in ("csv", "parquet", "jsonl")
        },
        "most": MAX_EXPORT_ROWS,
        "path_of": lambda record: _prediction_path(pipeline, record.prediction_id, _older_run(record)),
        "top_of": _largest_shifts,
        **_words(),
    }


def _older_run(record: AuditRecord) -> str | None:
    """The run to ask for when the row is not of the newest one."""
    return record.run_id if record.superseded_by else None


def _largest_shifts(record: AuditRecord) -> list[tuple[str, str]]:
    """(feature, signed shift) of the largest attributions."""
    shifts = record.attributions or {}
    return [(name, charts.signed(shifts[name])) for name in record.top_features[:_TOP_SHOWN]]


def _words() -> dict[str, Any]:
    return {"percent": charts.percent, "moment": lambda at: f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"}


def _moment(asked: dict[str, str], name: str) -> datetime:
    """A moment of a form, UTC when it says no zone."""
    try:
        moment = datetime.fromisoformat(asked[name])
    except KeyError as error:
        raise InvalidQuery("is missing", which=name, fix="give both ends of the window") from error
    except ValueError as error:
        raise InvalidQuery(
            f"is not a moment: {asked[name]!r}", which=name, fix="write it as 2024-03-01T14:00"
        ) from error
    return checked_moment(moment if moment.tzinfo else moment.replace(tzinfo=UTC), name)


def _filter(asked: dict[str, str]) -> AuditFilter:
    version = _number(asked, "model_version", int)
    if version is not None and not 0 <= version < 2**31:
        raise InvalidQuery(f"is {version}", which="model_version", fix="give the number of a model version")
    return AuditFilter(
        version,
        _number(asked, "min_prediction", float),
        _number(asked, "max_prediction", float),
        asked.get("entity_id"),
    )


def _number(asked: dict[str, str], name: str, kind: Any) -> Any:
    if name not in asked:
        return None
    try:
        return kind(asked[name])
    except ValueError as error:
        raise InvalidQuery(
            f"is not a number: {asked[name]!r}", which=name, fix="give a number, or nothing"
        ) from error


def _prediction_path(pipeline: str, prediction_id: str, run_id: str | None = None) -> str:
    path = f"{PAGES}/audit/{quote(pipeline, safe='')}/{quote(prediction_id, safe='')}"
    return f"{path}?{urlencode({'run_id': run_id})}" if run_id else path


def _form_time(moment: datetime) -> str:
    """A moment as a form's field holds it."""
    return f"{moment:%Y-%m-%dT%H:%M}"


def _subtitle(values: dict[str, Any]) -> str:
    if not values["printing"] or values["rows"] is None:
        return "Why was this prediction made?"
    asked = values["asked"]
    told = [f"{name.replace('_', ' ')} {asked[name]}" for name in _FILTERS if name in asked]
    return f"{values['chosen']} · {asked['start']} to {asked['end']} UTC" + (
        f" · {', '.join(told)}" if told else ""
    )

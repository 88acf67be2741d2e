"""Pages in Airflow's UI: what every pipeline stands at, the evidence of a DAG run, and stored reports.

Airflow does not protect a plugin's application by itself; every route here depends on Airflow's own
authentication and on its authorisation for the DAG in question. All text is escaped, no page runs a script, and a
report is served as a document of no origin: whatever is in it cannot act as the user who reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag, requires_authenticated
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from plugins.access import PIPELINE, SettingsDep, WiringDep, read_settings, read_wiring
from plugins.audit_page import add_audit_pages
from plugins.cases_page import add_case_pages
from plugins.deployments_page import add_deployment_pages
from plugins.links import PAGES
from plugins.metrics import add_metrics
from plugins.rendering import (
    REPORT_POLICY,
    badge,
    failure,
    html_page,
    page_headers,
    refusal,
    said,
)
from plugins.request_limits import BodyLimit, request_counter
from plugins.rest_api import API, create_api
from plugins.tenancy_page import add_tenancy_pages
from plugins.trend_page import add_trend_pages
from tasks.core.errors import PenstockError

__all__ = ["PAGES", "create_app", "read_settings", "read_wiring"]

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]*")
REPORT_DAGS = {"validation": "train", "evaluation": "train", "monitoring": "monitor"}
"""Folders of the store whose HTML reports are served, with the DAG whose readers may read them."""


def readable_pipelines(user: GetUserDep) -> Callable[[str], bool]:
    """Whether the user may read a pipeline's DAGs, by the pipeline's name."""
    allowed = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
    return lambda name: any(f"{name}.{kind}" in allowed for kind in ("train", "score", "monitor"))


def may_read_report(request: Request, user: GetUserDep, pipeline: str, key: str) -> str:
    """The checked key of a report; 404 for anything that is not a report, 403 without access to its DAG."""
    checked = checked_report_key(pipeline, key)
    kind = REPORT_DAGS[checked.split("/", 1)[0]]
    requires_access_dag("GET", DagAccessEntity.RUN, f"{pipeline}.{kind}")(request, user)
    return checked


def checked_report_key(pipeline: str, key: str) -> str:
    """`key` when it names an HTML file in a report folder; an `HTTPException` with status 404 otherwise."""
    segments = key.split("/")
    well_formed = PIPELINE.fullmatch(pipeline) and all(_SEGMENT.fullmatch(part) for part in segments)
    if not well_formed or len(segments) < 2 or segments[0] not in REPORT_DAGS or not key.endswith(".html"):
        raise HTTPException(404, "There is no such report")
    return key


def create_app() -> FastAPI:
    """The application that Airflow mounts under `/penstock`."""
    counted = [Depends(request_counter())]
    app = FastAPI(title="Penstock", docs_url=None, redoc_url=None, openapi_url=None, dependencies=counted)
    app.add_middleware(BodyLimit)
    app.add_api_route(
        "/", overview, dependencies=[Depends(requires_authenticated())], response_class=HTMLResponse
    )
    app.add_api_route(
        "/run/{dag_id}/{run_id:path}",
        run_evidence,
        dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.RUN))],
        response_class=HTMLResponse,
    )
    app.add_api_route("/report/{pipeline}/{key:path}", report, response_class=HTMLResponse)
    add_audit_pages(app)
    add_case_pages(app)
    add_deployment_pages(app)
    add_metrics(app, readable_pipelines)
    add_tenancy_pages(app)
    add_trend_pages(app)
    app.add_exception_handler(StarletteHTTPException, refusal)  # of an address without a page too
    app.add_exception_handler(PenstockError, failure)
    api = create_api(counted)
    api.dependency_overrides = app.dependency_overrides
    app.mount(API, api)
    return app


def overview(
    request: Request,
    settings: SettingsDep,
    wiring: WiringDep,
    may_read: Annotated[Callable[[str], bool], Depends(readable_pipelines)],
) -> Response:
    """Every pipeline the user may read, with champion, last verdicts and last published day."""
    return html_page(
        request,
        "Pipelines",
        "overview.html",
        subtitle="Where every pipeline stands",
        rows=wiring.overview(settings, may_read),
        airflow_url=settings.airflow_url,
    )


def run_evidence(
    request: Request, settings: SettingsDep, wiring: WiringDep, dag_id: str, run_id: str
) -> Response:
    """What the gates and steps of one DAG run decided, with reasons and links."""
    items = wiring.dag_run_evidence(settings, dag_id, run_id)
    verdict, words = summary_of(items)
    return html_page(
        request,
        dag_id,
        "run.html",
        subtitle=run_id,
        items=items,
        verdict=verdict,
        words=words,
        run_href=f"{settings.airflow_url}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}",
    )


def report(
    settings: SettingsDep, wiring: WiringDep, pipeline: str, key: Annotated[str, Depends(may_read_report)]
) -> Response:
    """One stored report, as it was written."""
    content: bytes = wiring.read_report(settings, pipeline, key)
    return HTMLResponse(content, headers=page_headers(REPORT_POLICY))


def summary_of(items: list[dict[str, Any]]) -> tuple[str, str]:
    """(`pass`, `warn` or `fail`, one sentence) over all evidence of a run."""
    if not items:
        return "warn", "Nothing is recorded for this run yet."
    failed = [item for item in items if badge(said(item)) == "fail"]
    held = [item for item in items if badge(said(item)) == "warn"]
    names = ", ".join(str(item.get("title") or item.get("kind")) for item in (failed or held))
    decided = next((item for item in failed if item.get("kind") == "decision"), None)
    if decided:  # the monitor has found something: that stops no run
        return "fail", str((decided.get("summary") or {}).get("headline") or said(decided))
    if failed:
        return "fail", f"Stopped by: {names}."
    if refused := next((item for item in items if said(item) == "rejected"), None):
        why = "; ".join(map(str, refused.get("reasons") or ()))
        return "warn", f"Not promoted: {why or 'rejected'}. The champion stays."
    if held:
        return "warn", f"Needs attention: {names}."
    return "pass", _achieved(items) or "Everything recorded so far has passed."


def _achieved(items: list[dict[str, Any]]) -> str:
    """What a run that passed has brought about, in one sentence; empty while it is on its way."""
    made = {item.get("kind"): item["summary"] for item in items if isinstance(item.get("summary"), dict)}
    if (promoted := made.get("promotion")) and "version" in promoted:
        return f"Every gate passed: version {promoted['version']} is the champion."
    if (back := made.get("rollback")) and "version" in back:
        went = f"Rolled back: version {back['version']} is the champion"
        left, anew = back.get("affected rows") or 0, (made.get("re-scoring") or {}).get("rows")
        if anew:
            return f"{went}, and {anew:,} predictions of version {back.get('previous version')} were scored anew."
        return (
            f"{went}; readers still see {left:,} predictions of version {back.get('previous version')}."
            if left
            else f"{went}."
        )
    if (published := made.get("publication")) and isinstance(published.get("rows"), int):
        return f"{published['rows']:,} predictions are published."
    if decided := made.get("decision"):
        return str(decided.get("headline") or "")
    version, live = (
        made.get("registration", {}).get("version"),
        made.get("canary", {}).get("champion version"),
    )
    if version is not None and version == live:
        return f"The same model again: version {version} is live already."
    return ""

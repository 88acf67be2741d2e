"""Pages in Airflow's UI: what every pipeline stands at, the evidence of a DAG run, and stored reports.

Airflow does not protect a plugin's application by itself; every route here depends on Airflow's own
authentication and on its authorisation for the DAG in question. All text is escaped, no page runs a script, and a
report is served as a document of no origin: whatever is in it cannot act as the user who reads it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag, requires_authenticated
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from plugins.evidence_view import facts, link_label, reason_groups
from plugins.links import PAGES
from tasks.core.errors import NotFound, PenstockError
from tasks.core.report_style import page
from tasks.core.settings import Settings

log = logging.getLogger(__name__)

_PIPELINE = re.compile(r"[a-z][a-z0-9_]{0,47}")
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]*")
REPORT_DAGS = {"validation": "train", "evaluation": "train", "monitoring": "monitor"}
"""Folders of the store whose HTML reports are served, with the DAG whose readers may read them."""

PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; "
    "base-uri 'none'; form-action 'none'"
)
REPORT_POLICY = f"{PAGE_POLICY}; font-src data:; sandbox allow-popups allow-popups-to-escape-sandbox"

_templates = Environment(
    loader=PackageLoader("plugins", "templates"),
    autoescape=select_autoescape(default=True, default_for_string=True),
    trim_blocks=True,
    lstrip_blocks=True,
)
_BADGES = {
    "pass": "pass",
    "ok": "pass",
    "success": "pass",
    "none": "pass",
    "healthy": "pass",
    "noise": "pass",
    "fail": "fail",
    "error": "fail",
    "data fault": "fail",
    "performance damage": "fail",
    "warn": "warn",
    "inconclusive": "warn",
    "hold": "warn",
    "alert": "warn",
    "drift, no damage seen": "warn",
    "cannot judge": "warn",
    "skipped": "skip",
}


def read_settings() -> Settings:
    """The installation's settings; a dependency of its own so that tests can replace it."""
    return Settings.from_environment()


def read_wiring() -> Any:
    """`tasks.wiring`, loaded with the first page and not with the API server."""
    import tasks.wiring

    return tasks.wiring


SettingsDep = Annotated[Settings, Depends(read_settings)]
WiringDep = Annotated[Any, Depends(read_wiring)]


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
    well_formed = _PIPELINE.fullmatch(pipeline) and all(_SEGMENT.fullmatch(part) for part in segments)
    if not well_formed or len(segments) < 2 or segments[0] not in REPORT_DAGS or not key.endswith(".html"):
        raise HTTPException(404, "There is no such report")
    return key


def create_app() -> FastAPI:
    """The application that Airflow mounts under `/penstock`."""
    app = FastAPI(title="Penstock", docs_url=None, redoc_url=None, openapi_url=None)
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
    app.add_exception_handler(HTTPException, _refusal)
    app.add_exception_handler(PenstockError, _failure)
    return app


def overview(
    request: Request,
    settings: SettingsDep,
    wiring: WiringDep,
    may_read: Annotated[Callable[[str], bool], Depends(readable_pipelines)],
) -> Response:
    """Every pipeline the user may read, with champion, last verdicts and last published day."""
    rows = [row for row in wiring.overview(settings) if may_read(str(row.get("pipeline") or row.get("name")))]
    return _page(
        request,
        "Pipelines",
        "overview.html",
        subtitle="Where every pipeline stands",
        rows=rows,
        airflow_url=settings.airflow_url,
    )


def run_evidence(
    request: Request, settings: SettingsDep, wiring: WiringDep, dag_id: str, run_id: str
) -> Response:
    """What the gates and steps of one DAG run decided, with reasons and links."""
    items = wiring.dag_run_evidence(settings, dag_id, run_id)
    verdict, words = summary_of(items)
    return _page(
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
    return HTMLResponse(content, headers=_headers(REPORT_POLICY))


def summary_of(items: list[dict[str, Any]]) -> tuple[str, str]:
    """(`pass`, `warn` or `fail`, one sentence) over all evidence of a run."""
    if not items:
        return "warn", "Nothing is recorded for this run yet."
    failed = [item for item in items if badge(said(item)) == "fail"]
    held = [item for item in items if badge(said(item)) == "warn"]
    names = ", ".join(str(item.get("title") or item.get("kind")) for item in (failed or held))
    if failed:
        return "fail", f"Stopped by: {names}."
    if held:
        return "warn", f"Needs attention: {names}."
    return "pass", _achieved(items) or "Everything recorded so far has passed."


def _achieved(items: list[dict[str, Any]]) -> str:
    """What a run that passed has brought about, in one sentence; empty while it is on its way."""
    made = {item.get("kind"): item["summary"] for item in items if isinstance(item.get("summary"), dict)}
    if (promoted := made.get("promotion")) and "version" in promoted:
        return f"Every gate passed: version {promoted['version']} is the champion."
    if (published := made.get("publication")) and isinstance(published.get("rows"), int):
        return f"{published['rows']:,} predictions are published."
    if decided := made.get("decision"):
        return str(decided.get("headline") or "")
    return ""


def said(item: dict[str, Any]) -> str:
    """The word for a record's badge: its outcome, or whether a verification found everything in order."""
    outcome = str(item.get("outcome") or "")
    summary = item.get("summary")
    if not outcome and isinstance(summary, dict) and isinstance(summary.get("ok"), bool):
        return "pass" if summary["ok"] else "fail"
    return outcome


def badge(outcome: Any) -> str:
    """The badge's colour class for an outcome's word; an unknown word is neutral."""
    return _BADGES.get(str(outcome or "").lower(), "info")


def links_in(raw: Any, *, framed: bool) -> list[dict[str, Any]]:
    """Links of a record, as `{label: url}` or `[{"title", "url"}]`, in one form; only http(s) and own paths stay.

    Inside Airflow's tab the browser opens no new window and other services refuse to be framed: there a link to
    another service is shown as an address to copy.
    """
    pairs = (
        list(raw.items())
        if isinstance(raw, dict)
        else [
            (item.get("title") or item.get("label"), item.get("url"))
            for item in raw or ()
            if isinstance(item, dict)
        ]
    )
    found = []
    for label, url in pairs:
        parts = urlsplit(str(url or ""))
        if not (parts.scheme in ("http", "https") or str(url).startswith(f"{PAGES}/")):
            continue
        own = parts.path.startswith(f"{PAGES}/")
        href = parts.path if own else str(url)
        found.append(
            {
                "label": link_label(str(label or ""), str(url)),
                "href": href,
                "own": own,
                "open": own or not framed,
            }
        )
    return found


_templates.filters |= {"badge": badge, "said": said, "facts": facts, "reason_groups": reason_groups}


def _page(request: Request, title: str, template: str, *, subtitle: str, **values: Any) -> Response:
    framed = request.headers.get("sec-fetch-dest") == "iframe"
    body = _templates.get_template(template).render(
        **values, framed=framed, links_in=lambda raw: links_in(raw, framed=framed), pages=PAGES
    )
    return HTMLResponse(page(title, Markup(body), subtitle), headers=_headers(PAGE_POLICY))


def _headers(policy: str) -> dict[str, str]:
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "private, no-store",
    }


def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    wants_page = "text/html" in request.headers.get("accept", "")
    framed = request.headers.get("sec-fetch-dest") == "iframe"
    if error.status_code == 401 and wants_page and not framed:
        login = get_auth_manager().get_url_login()
        target = quote(str(request.url.replace(fragment=None)), safe="")
        return RedirectResponse(f"{login}{'&' if '?' in login else '?'}next={target}", status_code=303)
    titles = {401: "Log in first", 403: "Not for this user", 404: "Not found"}
    return _message(error.status_code, titles.get(error.status_code, "Refused"), str(error.detail))


def _failure(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PenstockError)
    log.warning("Page failed: %s", error)
    return _message(
        404 if isinstance(error, NotFound) else 503, "This page cannot be shown", error.what, error.fix
    )


def _message(status: int, title: str, *lines: str) -> Response:
    body = _templates.get_template("message.html").render(lines=[line for line in lines if line])
    return HTMLResponse(page(title, Markup(body)), status_code=status, headers=_headers(PAGE_POLICY))

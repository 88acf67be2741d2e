"""The trend page in Airflow's UI: one page a pipeline, for whoever may read the runs of `<pipeline>.monitor`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated
from urllib.parse import quote

from airflow.api_fastapi.core_api.security import GetUserDep, requires_authenticated
from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, Response

from plugins.access import SettingsDep, WiringDep, require_runs, runs_reader
from plugins.links import PAGES
from plugins.rendering import PAGE_POLICY, page_headers
from tasks.core.report_style import page
from tasks.core.spec import pipeline_names


def readable(request: Request, user: GetUserDep, pipeline: str) -> str:
    """The pipeline of the path; 403 without access to its monitor, whether there is one or not."""
    return require_runs(request, user, pipeline, "monitor")


def may_read(request: Request, user: GetUserDep) -> Callable[[str], bool]:
    """Whether the user may read a pipeline's trend, by the pipeline's name."""
    return runs_reader(request, user, "monitor")


def add_trend_pages(app: FastAPI) -> None:
    """Add the routes below `/trend`."""
    login = [Depends(requires_authenticated())]
    app.add_api_route("/trend/", every, dependencies=login, response_class=HTMLResponse)
    app.add_api_route("/trend/{pipeline}", one, dependencies=login, response_class=HTMLResponse)


def every(settings: SettingsDep, may: Annotated[Callable[[str], bool], Depends(may_read)]) -> Response:
    """A list of the pipelines that the user may read."""
    names = [name for name in pipeline_names(settings) if may(name)]
    items = "".join(f'<li><a href="{PAGES}/trend/{quote(name)}">{name}</a></li>' for name in names)
    return _page("Trend", f"<ul>{items}</ul>" if items else "<p>There is no pipeline to show.</p>", "")


def one(
    settings: SettingsDep,
    wiring: WiringDep,
    pipeline: Annotated[str, Depends(readable)],
    days: Annotated[int, Query(ge=1, le=730)] = 90,
) -> Response:
    """One pipeline: verdict, decisions, drift, scores, performance, volume and deployments by day."""
    here = f"{PAGES}/trend/{quote(pipeline)}"
    others = " · ".join(f'<a href="{here}?days={n}">{n} days</a>' for n in (30, 90, 365))
    body = f'<p class="note"><a href="{PAGES}/trend/">All pipelines</a> · {others} · <a href="{PAGES}/deployments/{quote(pipeline)}">Deployments</a> · <a href="{PAGES}/cases/">Cases</a></p>'
    return _page(
        f"Trend of {pipeline}",
        body + wiring.trend_page(settings, pipeline, days=days),
        f"The last {days} days",
    )


def _page(title: str, body: str, subtitle: str) -> Response:
    return HTMLResponse(page(title, body, subtitle), headers=page_headers(PAGE_POLICY))

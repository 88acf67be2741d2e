"""The cases page in Airflow's UI: what waits for a person, the evidence and log of each case, and its answers.

Reading needs what Airflow asks for the runs of `<pipeline>.monitor`; answering, the right to trigger `<pipeline>.case`, and to be
one of `drift.responders` where there are any. The question under *Required Actions* and this page answer the same case.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag, requires_authenticated
from fastapi import Depends, FastAPI, HTTPException, Path, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from plugins.access import PIPELINE, SettingsDep, WiringDep
from plugins.case_answers import LABELS
from plugins.forms import POLICY, REASON, allowed, own_origin, read_form, reason_of, with_own_referrer
from plugins.links import PAGES, dag_run_url
from plugins.problems import status_of
from plugins.rendering import html_page
from plugins.trend_page import may_read, readable
from tasks.core.errors import PenstockError
from tasks.core.settings import Settings
from tasks.core.spec import load_pipeline, pipeline_names

_CASE = re.compile(r"[a-z]{1,20}-[0-9-]{1,20}")
Readable = Annotated[str, Depends(readable)]


def case_in_path(case_id: Annotated[str, Path()]) -> str:
    """The id of a case in the path; 404 for what cannot be one."""
    if not _CASE.fullmatch(case_id):
        raise HTTPException(404, "There is no such case")
    return case_id


CaseDep = Annotated[str, Depends(case_in_path)]


def add_case_pages(app: FastAPI) -> None:
    """Add the routes below `/cases`."""
    login = [Depends(requires_authenticated())]
    app.add_api_route("/cases/", every, dependencies=login, response_class=HTMLResponse)
    app.add_api_route("/cases/run/{dag_id}/{run_id}", of_run, dependencies=login, response_class=HTMLResponse)
    app.add_api_route("/cases/{pipeline}/{case_id}", one, dependencies=login, response_class=HTMLResponse)
    app.add_api_route(
        "/cases/{pipeline}/{case_id}",
        answer,
        methods=["POST"],
        dependencies=[*login, Depends(own_origin)],
        response_class=HTMLResponse,
    )


def every(
    request: Request,
    settings: SettingsDep,
    wiring: WiringDep,
    may: Annotated[Callable[[str], bool], Depends(may_read)],
) -> Response:
    """All cases of the pipelines that the user may read, open ones first."""
    names = [name for name in pipeline_names(settings) if may(name)]
    return html_page(
        request,
        "Cases",
        "cases.html",
        subtitle="What the monitor put before a person",
        cases=wiring.all_cases(settings, names),
    )


def one(
    request: Request,
    settings: SettingsDep,
    wiring: WiringDep,
    user: GetUserDep,
    pipeline: Readable,
    case_id: CaseDep,
) -> Response:
    """One case: verdict, likely cause, reasons, what each answer does, its log."""
    return _page(request, settings, wiring, user, pipeline, case_id)


def of_run(
    request: Request, settings: SettingsDep, wiring: WiringDep, user: GetUserDep, dag_id: str, run_id: str
) -> Response:
    """The case that a DAG run asks about; another run has none and says so."""
    pipeline, _, kind = dag_id.rpartition(".")
    if kind == "case" and PIPELINE.fullmatch(pipeline) and _CASE.fullmatch(run_id):
        readable(request, user, pipeline)
        return _page(request, settings, wiring, user, pipeline, run_id)
    lines = ["This run asks about no case. The cases of a pipeline are under Browse, Cases."]
    return html_page(request, "Case", "message.html", subtitle=run_id[:250], lines=lines)


async def answer(
    request: Request,
    settings: SettingsDep,
    wiring: WiringDep,
    user: GetUserDep,
    pipeline: Readable,
    case_id: CaseDep,
) -> Response:
    """Keep the answer of the form; then the page again."""
    from starlette.concurrency import run_in_threadpool

    form = await read_form(request)
    requires_access_dag("POST", DagAccessEntity.RUN, f"{pipeline}.case")(request, user)
    if not _responds(settings, user, pipeline):
        raise HTTPException(403, "pipeline.yaml names who answers cases (drift.responders); ask one of them")
    if form.get("answer", "") not in LABELS:
        raise HTTPException(400, "The form does not say what to answer")
    said = {
        "case_id": case_id,
        "answer": form["answer"],
        "actor": f"airflow:{user.get_name()}",
        "reason": reason_of(form),
        "until": form.get("until", "") or None,
    }
    try:
        await run_in_threadpool(lambda: wiring.answer_case(settings, pipeline, **said))
    except PenstockError as error:
        refused = status_of(error)
        problem = {"problem": error, "status": 400 if refused == 500 else refused}
        return await run_in_threadpool(
            lambda: _page(request, settings, wiring, user, pipeline, case_id, **problem)
        )
    done = urlencode({"done": form["answer"]})
    return RedirectResponse(f"{_href(pipeline, case_id)}?{done}", status_code=303)


def _page(
    request: Request,
    settings: Settings,
    wiring: Any,
    user: Any,
    pipeline: str,
    case_id: str,
    *,
    problem: PenstockError | None = None,
    status: int = 200,
) -> Response:
    found = wiring.show_case(settings, pipeline, case_id=case_id)
    done = request.query_params.get("done", "")
    return with_own_referrer(
        html_page(
            request,
            found["kind"].capitalize(),
            "case.html",
            subtitle=f"{pipeline}, case {case_id}",
            status=status,
            policy=POLICY,
            case=found,
            labels=LABELS,
            problem=problem,
            done=LABELS.get(done, ""),
            may_answer=allowed(request, user, pipeline, "case", "POST")
            and _responds(settings, user, pipeline),
            here=_href(pipeline, case_id),
            reason_length=REASON,
            run_href=dag_run_url(settings, f"{pipeline}.case", case_id),
            monitor_href=_run_href(settings, found["monitor_run"]),
        )
    )


def _responds(settings: Settings, user: Any, pipeline: str) -> bool:
    responders = load_pipeline(settings, pipeline).drift.responders
    return not responders or str(user.get_id()) in responders or user.get_name() in responders


def _run_href(settings: Settings, dag_run: str) -> str:
    dag_id, _, run_id = dag_run.partition("/")
    return dag_run_url(settings, dag_id, run_id) if run_id else ""


def _href(pipeline: str, case_id: str) -> str:
    return f"{PAGES}/cases/{quote(pipeline)}/{quote(case_id)}"

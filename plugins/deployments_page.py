"""The deployments page in Airflow's UI: what is live and was, on what evidence, and the buttons that change it.

Reading needs what Airflow asks for the runs of `<pipeline>.train`. The buttons are shown to, and work for, whoever may
trigger `<pipeline>.train` (promote) or `<pipeline>.rollback` (roll back, withdraw, bar, unbar). A form names the version that its
page showed as live: if something else is live by then, nothing moves and the page says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag, requires_authenticated
from fastapi import Depends, FastAPI, HTTPException, Path, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from markupsafe import Markup

from plugins.access import PIPELINE, SettingsDep, WiringDep, require_runs, runs_reader
from plugins.deployments_charts import legend, timeline
from plugins.forms import POLICY, REASON, allowed, own_origin, read_form, reason_of, with_own_referrer
from plugins.links import PAGES
from plugins.problems import status_of
from plugins.rendering import html_page
from tasks.core.clock import utc_now
from tasks.core.errors import PenstockError, PromotionConflict
from tasks.core.settings import Settings

DAG_KINDS = ("train", "score", "monitor", "case", "rollback")
"""Of a pipeline's DAGs, whose names are `<pipeline>.<kind>`."""
_KINDS = {
    "promote": "train",
    "rollback": "rollback",
    "withdraw": "rollback",
    "bar": "rollback",
    "unbar": "rollback",
}
"""What a form does -> the DAG that one must be allowed to trigger."""


def may_read(request: Request, user: GetUserDep) -> Callable[[str], bool]:
    """Whether the user may read a pipeline's deployments, by the pipeline's name."""
    return runs_reader(request, user, "train")


def readable(request: Request, user: GetUserDep, pipeline: Annotated[str, Path()]) -> str:
    """The pipeline of the path when the user may read it; 403 otherwise, whether there is one or not."""
    return require_runs(request, user, pipeline, "train")


Readable = Annotated[str, Depends(readable)]


def add_deployment_pages(app: FastAPI) -> None:
    """Add the routes below `/deployments`."""
    login = [Depends(requires_authenticated())]
    app.add_api_route("/deployments/", every, dependencies=login, response_class=HTMLResponse)
    app.add_api_route("/deployments/dag/{dag_id}", of_dag, dependencies=login, response_class=HTMLResponse)
    app.add_api_route("/deployments/{pipeline}", one, dependencies=login, response_class=HTMLResponse)
    app.add_api_route(
        "/deployments/{pipeline}",
        act,
        methods=["POST"],
        dependencies=[*login, Depends(own_origin)],
        response_class=HTMLResponse,
    )


def every(
    request: Request,
    settings: SettingsDep,
    wiring: WiringDep,
    reader: Annotated[Callable[[str], bool], Depends(may_read)],
) -> Response:
    """All pipelines that the user may read: what is live, the last verdict, events of the last day."""
    return with_own_referrer(
        html_page(
            request,
            "Deployments",
            "deployments.html",
            subtitle="What is live, since when, and why",
            policy=POLICY,
            lines=wiring.deployments_overview(settings, reader),
            moment=_moment,
        )
    )


def one(
    request: Request, settings: SettingsDep, wiring: WiringDep, user: GetUserDep, pipeline: Readable
) -> Response:
    """One pipeline: live version, timeline, canary, verdicts, versions with their buttons, the log."""
    return _page(request, settings, wiring, user, pipeline)


def of_dag(
    request: Request, settings: SettingsDep, wiring: WiringDep, user: GetUserDep, dag_id: str
) -> Response:
    """The page of the pipeline that a DAG belongs to; another DAG has none and says so."""
    from tasks.core import pipeline_names

    pipeline, _, kind = dag_id.rpartition(".")
    if kind in DAG_KINDS and PIPELINE.fullmatch(pipeline):
        readable(request, user, pipeline)
        if pipeline in pipeline_names(settings):
            return _page(request, settings, wiring, user, pipeline)
    lines = ["This DAG belongs to no pipeline, so it deploys nothing."]
    return html_page(request, "Deployments", "message.html", subtitle=dag_id[:250], lines=lines)


async def act(
    request: Request, settings: SettingsDep, wiring: WiringDep, user: GetUserDep, pipeline: Readable
) -> Response:
    """Promote, roll back, bar or unbar, as the form says; then the page again."""
    form = await read_form(request)
    kind = form.get("action", "")
    if kind not in _KINDS:
        raise HTTPException(400, "The form does not say what to do")
    requires_access_dag("POST", DagAccessEntity.RUN, f"{pipeline}.{_KINDS[kind]}")(request, user)
    reason = reason_of(form)
    from starlette.concurrency import run_in_threadpool

    actor = f"airflow:{user.get_name()}"
    try:
        done = await run_in_threadpool(_do, wiring, settings, pipeline, kind, form, actor, reason)
    except PromotionConflict as error:
        return await run_in_threadpool(
            _page, request, settings, wiring, user, pipeline, problem=error, status=409
        )
    except PenstockError as error:
        refused = status_of(error)
        return await run_in_threadpool(
            _page,
            request,
            settings,
            wiring,
            user,
            pipeline,
            problem=error,
            status=400 if refused == 500 else refused,
        )
    question = urlencode({"done": done})
    return RedirectResponse(f"{PAGES}/deployments/{quote(pipeline)}?{question}", status_code=303)


def _do(
    wiring: Any,
    settings: Settings,
    pipeline: str,
    kind: str,
    form: Mapping[str, str],
    actor: str,
    reason: str,
) -> str:
    """The step behind a form; returns the word for what was done."""
    version, live = _number(form, "version"), _number(form, "live")
    who = {"actor": actor, "reason": reason}
    if kind == "promote":
        wiring.promote_model(settings, pipeline, version=version, expected=live, despite_case=True, **who)
    elif kind == "rollback":
        wiring.rollback_model(settings, pipeline, expected=live, to_version=version, **who)
    elif kind == "withdraw":
        wiring.withdraw_model(settings, pipeline, **who)
    elif kind == "bar":
        wiring.bar_model(settings, pipeline, version=version, **who)
    else:
        wiring.unbar_model(settings, pipeline, version=version, **who)
    return kind


def _number(form: Mapping[str, str], name: str) -> int:
    try:
        number = int(form[name])
    except (KeyError, ValueError):
        number = -1
    if not 0 <= number < 2**31:
        raise HTTPException(400, f"The form's field {name} is not a version")
    return number


def _page(
    request: Request,
    settings: Settings,
    wiring: Any,
    user: Any,
    pipeline: str,
    *,
    problem: PenstockError | None = None,
    status: int = 200,
) -> Response:
    asked = request.query_params if request.method == "GET" else {}
    at, wrong = _asked_moment(asked.get("at", ""))
    before = asked.get("before", "")
    found = wiring.deployments(
        settings, pipeline, before=int(before) if before.isdecimal() and len(before) < 16 else None, at=at
    )
    chart = Markup(timeline(found.spans, found.marks, utc_now())) if found.spans else None
    here = f"{PAGES}/deployments/{quote(pipeline)}"
    return with_own_referrer(
        html_page(
            request,
            "Deployments",
            "deployments_of.html",
            subtitle=pipeline,
            status=400 if wrong else status,
            policy=POLICY,
            it=found,
            chart=chart,
            legend=legend(found.marks),
            canary=Markup(found.canary_figure),
            problem=problem,
            wrong=wrong,
            done=asked.get("done", "") if asked.get("done", "") in _KINDS else "",
            may_promote=allowed(request, user, pipeline, "train", "POST"),
            may_roll_back=allowed(request, user, pipeline, "rollback", "POST"),
            here=here,
            asked_at=asked.get("at", ""),
            newest_href=here if before else "",
            older_href=f"{here}?before={found.next_before}" if found.next_before else "",
            airflow_url=settings.airflow_url,
            mlflow_url=settings.mlflow_url,
            moment=_moment,
            reason_length=REASON,
        )
    )


def _asked_moment(text: str) -> tuple[datetime | None, str]:
    """(the moment, what is wrong with it); UTC when it says no zone."""
    if not text.strip():
        return None, ""
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC), ""
    except (ValueError, OverflowError):
        return None, f"{text[:60]!r} is not a moment: write it as 2024-03-01T14:00"


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"

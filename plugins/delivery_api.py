"""Model delivery in the REST API: what is live and was, on what evidence, and promotions and rollbacks.

Rights are those of the deployments page: reading needs read access to runs of `<pipeline>.train`, a promotion the right to
trigger that DAG, a rollback the right to trigger `<pipeline>.rollback`. Whoever is logged in is the actor. A request that
changes something and carries a cookie must come from a page of this origin.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag, requires_authenticated
from fastapi import Body, Depends, FastAPI, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from plugins.access import PIPELINE, SettingsDep, WiringDep, sent_by_own_origin
from plugins.json_values import jsonable
from plugins.problems import MEDIA_TYPE, SAFE, Refused, status_of
from plugins.rest import checked_moment, documented, json_answer
from tasks.core.errors import ConfigError, PenstockError, TerminalError
from tasks.metadata.records import KINDS
from tasks.wiring.delivery_records import (
    RECORDS as DELIVERY_RECORDS,
)
from tasks.wiring.delivery_records import (
    CanaryList,
    DeploymentEntry,
    DeploymentPage,
    LiveVersion,
    PipelineStates,
    Promotion,
    Rollback,
    VerdictList,
)

MAX_EVENTS = 500
"""Lines of one page of the log."""
MAX_VERDICTS = 200
MAX_CANARIES = 50
_LARGEST = 2**31 - 1
_REASON = 400

Kind = StrEnum("Kind", [(kind.upper(), kind) for kind in KINDS])  # type: ignore[misc]
Gate = Literal["data", "evaluation", "canary"]


def _said(reason: str) -> str:
    text = reason.strip()
    if not text:
        raise ValueError("a reason is needed: it goes into the log")
    if any(ord(character) < 32 and character not in "\n\t" for character in text):
        raise ValueError("has control characters")
    return text


Reason = Annotated[
    str,
    Field(min_length=1, max_length=_REASON, description="Why; it goes into the log with your name."),
    AfterValidator(_said),
]
Number = Annotated[int, Field(ge=1, le=_LARGEST)]


class PromotionOrder(BaseModel):
    """Make a registered version the champion."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: Number = Field(description="The version to promote.")
    expected_event_id: Number | None = Field(
        description="`event_id` of what is live, as you last read it; null: nothing was. If something else is live by "
        "now, nothing moves."
    )
    reason: Reason


class RollbackOrder(BaseModel):
    """Go back to an earlier champion, and bar the one that is left."""

    model_config = ConfigDict(extra="forbid", strict=True)

    expected_event_id: Number = Field(
        description="`event_id` of what is live and is to be left. If something else is live by now, nothing moves."
    )
    version: Number | None = Field(
        default=None,
        description="Where to go; null: the last different version that was live and is not barred.",
    )
    reason: Reason


@dataclass(frozen=True)
class Conflict:
    """Why nothing was changed, and what is live."""

    type: str
    """Class of the error: `PromotionConflict` when something else is live than was expected."""
    what: str
    """What stands against it."""
    which: str
    """The pipeline, or the version."""
    fix: str
    """What to do next."""
    live: DeploymentEntry | None
    """The line that made the live version live; null: nothing is."""


RECORDS: tuple[type, ...] = (*DELIVERY_RECORDS, Conflict)
"""What the endpoints answer."""
LIMITS = {"max_page_events": MAX_EVENTS, "max_verdicts": MAX_VERDICTS, "max_canaries": MAX_CANARIES}

PipelineName = Annotated[
    str,
    PathParameter(
        pattern=f"^{PIPELINE.pattern}$", description="Name of a pipeline.", examples=["flight_delay"]
    ),
]


def require(request: Request, user: Any, pipeline: str, kind: str, method: str) -> None:
    """Raises `HTTPException` with status 403 unless the user may do `method` with runs of `<pipeline>.<kind>`.

    Nothing is looked up before: to who may not read it, a pipeline that exists looks like one that does not.
    """
    if not PIPELINE.fullmatch(pipeline):
        raise HTTPException(404, "There is no such pipeline")
    try:
        requires_access_dag(method, DagAccessEntity.RUN, f"{pipeline}.{kind}")(request, user)  # type: ignore[arg-type]
    except HTTPException as refused:
        if refused.status_code != 403:
            raise
        right = "read access to the runs" if method == "GET" else "the right to trigger runs"
        raise Refused("NoAccess", str(refused.detail), f"ask for {right} of <pipeline>.{kind}") from None


def own_origin(request: Request) -> None:
    """Raises `HTTPException` with status 403 for a request that a page of another origin may have made."""
    if not sent_by_own_origin(request):
        raise Refused(
            "ForeignOrigin",
            "a page of another site may have sent this with your cookie",
            "get a token from POST /auth/token and send it as Authorization: Bearer",
        )


def readable(request: Request, user: GetUserDep, pipeline: PipelineName) -> str:
    """The pipeline of the path, when the user may read its deployments."""
    require(request, user, pipeline, "train", "GET")
    return pipeline


def promotable(request: Request, user: GetUserDep, pipeline: PipelineName) -> str:
    """The pipeline of the path, when the user may promote its versions."""
    require(request, user, pipeline, "train", "POST")
    return pipeline


def reversible(request: Request, user: GetUserDep, pipeline: PipelineName) -> str:
    """The pipeline of the path, when the user may roll it back."""
    require(request, user, pipeline, "rollback", "POST")
    return pipeline


def reader(request: Request, user: GetUserDep) -> Callable[[str], bool]:
    """Whether the user may read a pipeline's deployments, by the pipeline's name."""

    def may(pipeline: str) -> bool:
        try:
            require(request, user, pipeline, "train", "GET")
        except HTTPException:
            return False
        return True

    return may


def actor_of(user: GetUserDep) -> str:
    """Who is logged in, as the log says it."""
    return f"airflow:{user.get_name()}"


Readable = Annotated[str, Depends(readable)]
Actor = Annotated[str, Depends(actor_of)]


def deployments(
    settings: SettingsDep, wiring: WiringDep, may_read: Annotated[Callable[[str], bool], Depends(reader)]
) -> Response:
    """What is live in every pipeline that you may read."""
    return json_answer(wiring.delivery_overview(settings, may_read))


def deployment_log(
    settings: SettingsDep,
    wiring: WiringDep,
    pipeline: Readable,
    since: Annotated[datetime | None, Query(description="First moment, included; with a time zone.")] = None,
    until: Annotated[datetime | None, Query(description="Last moment, excluded; with a time zone.")] = None,
    kind: Annotated[list[Kind] | None, Query(description="Only these kinds; may be repeated.")] = None,
    before: Annotated[
        int | None, Query(ge=1, le=_LARGEST, description="`before` of the page that you have.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_EVENTS, description="Lines of a page.")] = 100,
) -> Response:
    """The deployment log of a pipeline, newest first, page by page."""
    return json_answer(
        wiring.delivery_log(
            settings,
            pipeline,
            kinds=[str(one) for one in kind or ()],
            since=checked_moment(since, "since") if since else None,
            until=checked_moment(until, "until") if until else None,
            before=before,
            limit=limit,
        )
    )


def live(
    settings: SettingsDep,
    wiring: WiringDep,
    pipeline: Readable,
    at: Annotated[datetime | None, Query(description="A moment, with a time zone; default: now.")] = None,
) -> Response:
    """What is live in a pipeline, or was at a moment."""
    return json_answer(wiring.delivery_live(settings, pipeline, at=checked_moment(at, "at") if at else None))


def verdicts(
    settings: SettingsDep,
    wiring: WiringDep,
    pipeline: Readable,
    gate: Annotated[Gate | None, Query(description="Only of this gate.")] = None,
    version: Annotated[
        int | None, Query(ge=1, le=_LARGEST, description="Only about this registered version.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_VERDICTS, description="The newest so many.")] = 50,
) -> Response:
    """Verdicts of a pipeline's gates with every finding, newest first."""
    return json_answer(wiring.delivery_verdicts(settings, pipeline, gate=gate, version=version, limit=limit))


def canaries(
    settings: SettingsDep,
    wiring: WiringDep,
    pipeline: Readable,
    limit: Annotated[int, Query(ge=1, le=MAX_CANARIES, description="The newest so many.")] = 10,
) -> Response:
    """Comparisons of challengers with the champion by day, newest first, each with its confidence sequence."""
    return json_answer(wiring.delivery_canaries(settings, pipeline, limit=limit))


def promote(
    settings: SettingsDep,
    wiring: WiringDep,
    pipeline: Annotated[str, Depends(promotable)],
    actor: Actor,
    order: Annotated[PromotionOrder, Body()],
) -> Response:
    """Make a registered version the champion, once it has been loaded and has scored its golden rows.

    Of any number of requests that expect the same event, one wins. The same request again answers with the promotion that
    the first one made.
    """
    return _done(
        settings,
        wiring,
        pipeline,
        lambda: wiring.promote_over(
            settings,
            pipeline,
            version=order.version,
            expected_event=order.expected_event_id,
            actor=actor,
            reason=order.reason,
        ),
    )


def roll_back(
    settings: SettingsDep,
    wiring: WiringDep,
    pipeline: Annotated[str, Depends(reversible)],
    actor: Actor,
    order: Annotated[RollbackOrder, Body()],
) -> Response:
    """Go back to an earlier champion, once it has been loaded and has scored its golden rows, and bar the one left.

    The same request again answers with the rollback that the first one made. Nothing is scored anew.
    """
    return _done(
        settings,
        wiring,
        pipeline,
        lambda: wiring.roll_back_from(
            settings,
            pipeline,
            expected_event=order.expected_event_id,
            to_version=order.version,
            actor=actor,
            reason=order.reason,
        ),
    )


def _done(settings: Any, wiring: Any, pipeline: str, act: Callable[[], Any]) -> Response:
    """201 with what was made; 409 with what is live when that stands against it."""
    try:
        return json_answer(act(), status=201)
    except ConfigError:
        raise
    except TerminalError as error:
        if status_of(error) not in (409, 500):
            raise
        return _conflict(error, wiring.delivery_live(settings, pipeline).live)


def _conflict(error: PenstockError, live: DeploymentEntry | None) -> Response:
    raw = {**error.as_record(), "live": live.to_json() if live else None}
    return JSONResponse(jsonable(raw), status_code=409, media_type=MEDIA_TYPE, headers=SAFE)


_PROBLEMS = {
    400: "The question is wrong: a parameter of a wrong form, a moment without a time zone.",
    401: "Not logged in.",
    403: "No such right on the runs of `<pipeline>.train` or `<pipeline>.rollback`, whether or not there is such a "
    "pipeline; or the request came with a cookie from a page of another site.",
    404: "There is no such pipeline, or no such version.",
    409: "Nothing was changed: something else is live than was expected, the version is barred or cannot be loaded, or "
    "there is none to go back to. `live` is what is live now.",
    422: "The body is wrong; `which` names the field.",
    500: "The pipeline's folder or the installation is not set up right; `which` names what.",
    503: "A store does not answer, or it is not known whether it has changed something: send the same request again "
    "after `Retry-After` seconds.",
}


def add_delivery_routes(api: FastAPI) -> None:
    """Add the endpoints about deployments."""
    login = Depends(requires_authenticated())
    reading = (400, 401, 403, 404, 500, 503)
    routes: tuple[tuple[str, Any, tuple[int, ...], type], ...] = (
        ("/deployments", deployments, (401, 500, 503), PipelineStates),
        ("/pipelines/{pipeline}/deployments", deployment_log, reading, DeploymentPage),
        ("/pipelines/{pipeline}/live", live, reading, LiveVersion),
        ("/pipelines/{pipeline}/verdicts", verdicts, reading, VerdictList),
        ("/pipelines/{pipeline}/canaries", canaries, reading, CanaryList),
        ("/pipelines/{pipeline}/promotions", promote, (*reading, 409, 422), Promotion),
        ("/pipelines/{pipeline}/rollbacks", roll_back, (*reading, 409, 422), Rollback),
    )
    for path, endpoint, statuses, answer in routes:
        changes = 409 in statuses
        api.add_api_route(
            path,
            endpoint,
            methods=["POST" if changes else "GET"],
            status_code=201 if changes else 200,
            dependencies=[login, Depends(own_origin)] if changes else [login],
            responses=documented(statuses, _PROBLEMS, {409: Conflict}),
            response_model=answer,
            operation_id=endpoint.__name__,
            tags=["delivery"],
        )

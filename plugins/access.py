"""Who may read what: Airflow's own login and permissions, as dependencies of the plugin's routes.

Airflow does not protect a plugin's application by itself, so every route depends on one of these.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlsplit

from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import Depends, HTTPException, Path, Request

from tasks.core.settings import Settings

PIPELINE = re.compile(r"[a-z][a-z0-9_]{0,47}")


def read_settings() -> Settings:
    """The installation's settings; a dependency of its own so that tests can replace it."""
    return Settings.from_environment()


def read_wiring() -> Any:
    """`tasks.wiring`, loaded with the first page and not with the API server."""
    import tasks.wiring

    return tasks.wiring


SettingsDep = Annotated[Settings, Depends(read_settings)]
WiringDep = Annotated[Any, Depends(read_wiring)]


def predictions_reader(request: Request, user: GetUserDep) -> Callable[[str], bool]:
    """Whether the user may read a pipeline's predictions, by the pipeline's name."""
    return runs_reader(request, user, "score")


def readable_predictions(
    request: Request,
    user: GetUserDep,
    pipeline: Annotated[
        str,
        Path(pattern=f"^{PIPELINE.pattern}$", description="Name of a pipeline.", examples=["flight_delay"]),
    ],
) -> str:
    """The pipeline of the path, when the user may read the runs of `<pipeline>.score`; 403 otherwise.

    The permission is checked before anything is looked up: to who may not read it, a pipeline that exists looks like
    one that does not.
    """
    require_predictions(request, user, pipeline)
    return pipeline


def require_predictions(request: Request, user: Any, pipeline: str) -> None:
    """Raises `HTTPException` with status 403 without access, 404 for what cannot be a pipeline's name."""
    require_runs(request, user, pipeline, "score")


def require_runs(request: Request, user: Any, pipeline: str, kind: str) -> str:
    """The pipeline, when the user may read the runs of `<pipeline>.<kind>`.

    Raises `HTTPException` with status 403 without access, whether there is such a pipeline or not, and 404 for what
    cannot be a pipeline's name.
    """
    if not PIPELINE.fullmatch(pipeline):
        raise HTTPException(404, "There is no such pipeline")
    requires_access_dag("GET", DagAccessEntity.RUN, f"{pipeline}.{kind}")(request, user)
    return pipeline


def runs_reader(request: Request, user: Any, kind: str) -> Callable[[str], bool]:
    """Whether the user may read the runs of a pipeline's `kind`, by the pipeline's name."""

    def may(pipeline: str) -> bool:
        try:
            require_runs(request, user, pipeline, kind)
        except HTTPException:
            return False
        return True

    return may


ReadablePipeline = Annotated[str, Depends(readable_predictions)]
PredictionsReader = Annotated[Callable[[str], bool], Depends(predictions_reader)]


def sent_by_own_origin(request: Request) -> bool:
    """Whether a request that changes something cannot have been made by a page of another origin.

    A browser sends Airflow's cookie by itself; what counts is a header that only pages of this origin can have sent, or a
    bearer token and no cookie. No browser adds such a token by itself, as it does Basic and Negotiate; beside a cookie it says
    nothing, whatever it is, for then Airflow asks the cookie who is there.

    Source: OWASP, "Cross-Site Request Forgery Prevention", on fetch metadata and verifying the origin.
    """
    token = request.headers.get("authorization", "").lower().startswith("bearer ")
    if token and COOKIE_NAME_JWT_TOKEN not in request.cookies:
        return True
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return urlsplit(request.headers.get("origin", "")).netloc == request.headers.get("host")

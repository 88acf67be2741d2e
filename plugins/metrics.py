"""`/penstock/metrics`: batch metrics for a scrape, with Airflow's own login: a user sees the pipelines whose DAGs it may read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from airflow.api_fastapi.core_api.security import requires_authenticated
from fastapi import Depends, FastAPI
from fastapi.responses import Response

from plugins.access import SettingsDep, WiringDep

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_metrics(app: FastAPI, readable: Callable[..., Callable[[str], bool]]) -> None:
    """Add the route; `readable` is the dependency that says which pipelines the user may read."""

    def metrics(
        settings: SettingsDep,
        wiring: WiringDep,
        may_read: Annotated[Callable[[str], bool], Depends(readable)],
    ) -> Response:
        text = wiring.batch_metrics(settings, may_read=may_read)
        return Response(text, headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})

    # annotations are strings here, and `readable` is no global that they could name
    metrics.__annotations__ = {
        "settings": SettingsDep,
        "wiring": WiringDep,
        "may_read": Annotated[Callable[[str], bool], Depends(readable)],
    }
    app.add_api_route(
        "/metrics", metrics, dependencies=[Depends(requires_authenticated())], response_class=Response
    )

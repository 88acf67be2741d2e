"""The REST API, mounted at `/penstock/api/v1` under Airflow's own login and permissions.

Every endpoint is a plain function, so Airflow's API server runs it in a thread and its event loop is not held up by
a store. Errors are problem documents (`plugins.problems`); `openapi.json` is made from the records themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.api_fastapi.core_api.security import requires_authenticated
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse

from plugins import audit_api, delivery_api
from plugins.links import PAGES
from plugins.problems import SAFE, Problem, answer_with_problems
from plugins.rest import API, document

__all__ = ["API", "create_api"]


def create_api(dependencies: Sequence[Any] = ()) -> FastAPI:
    """The application that the pages mount.

    Args:
        dependencies: Of every endpoint, before its own.
    """
    api = FastAPI(
        dependencies=dependencies,
        title="Penstock API",
        version="1.1",
        description="Why was this prediction made, what is live, and who decided? Log in with `POST /auth/token` and "
        "send the token as Bearer.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        servers=[{"url": f"{PAGES}{API}"}],
    )
    audit_api.add_audit_routes(api)
    delivery_api.add_delivery_routes(api)
    records = (*audit_api.RECORDS, *delivery_api.RECORDS, Problem)
    limits = {**audit_api.LIMITS, **delivery_api.LIMITS}
    api.add_api_route(
        "/openapi.json",
        lambda: JSONResponse(document(api, records, limits), headers=SAFE),
        dependencies=[Depends(requires_authenticated())],
        include_in_schema=False,
    )
    answer_with_problems(api)
    return api

"""Forms of the pages: who may send one, where it must come from, and what it must say.

A browser sends Airflow's cookie by itself, so a form of another site must not count: what changes something needs a
header that only pages of this origin can have sent, or a token in `Authorization`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import HTTPException, Request
from fastapi.responses import Response

from plugins.access import sent_by_own_origin
from plugins.rendering import PAGE_POLICY

POLICY = PAGE_POLICY.replace("form-action 'none'", "form-action 'self'")
"""Content security policy of a page with a form."""
REASON = 400
"""Most characters of a reason."""
_BODY = 10_000


def allowed(request: Request, user: Any, pipeline: str, kind: str, method: str) -> bool:
    """Whether the user may do `method` with runs of `<pipeline>.<kind>`."""
    try:
        requires_access_dag(method, DagAccessEntity.RUN, f"{pipeline}.{kind}")(request, user)  # type: ignore[arg-type]
    except HTTPException:
        return False
    return True


def own_origin(request: Request) -> None:
    """Raises `HTTPException` with status 403 for a request that a page of another origin may have made."""
    if sent_by_own_origin(request):
        return
    raise HTTPException(403, "This form was sent by a page of another site: open the page and use its form")


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; an `HTTPException` with status 413 for one that is too long."""
    body = await request.body()
    if len(body) > _BODY:
        raise HTTPException(413, "The form is too long")
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))


def reason_of(form: dict[str, str]) -> str:
    """The form's reason; an `HTTPException` with status 400 without one, or for one that is too long."""
    reason = form.get("reason", "").strip()
    if not reason or len(reason) > REASON:
        raise HTTPException(400, f"A reason of 1 to {REASON} characters is needed: it goes into the log")
    return reason


def with_own_referrer(response: Response) -> Response:
    """Without a referrer a browser hides the origin of a form, also from its own site."""
    response.headers["Referrer-Policy"] = "same-origin"
    return response

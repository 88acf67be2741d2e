"""Errors as HTTP says them: the status of each class, and the problem document of the REST API."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from tasks.audit.query import InvalidQuery
from tasks.core.errors import (
    Expired,
    NotFound,
    OutcomeUnknown,
    PenstockError,
    PromotionConflict,
    TerminalError,
    TransientError,
)

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5
MEDIA_TYPE = "application/problem+json"


class TooManyRows(TerminalError):
    """An export would have more rows than one answer may."""


class Refused(HTTPException):
    """403 with words of its own: what to ask for."""

    def __init__(self, kind: str, what: str, fix: str) -> None:
        super().__init__(403, what)
        self.kind = kind
        self.fix = fix


@dataclass(frozen=True)
class Problem:
    """What went wrong, with which thing, and what to do next."""

    type: str
    """Class of the error."""
    what: str
    which: str
    fix: str


def status_of(error: PenstockError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, InvalidQuery):
        return 400
    if isinstance(error, TooManyRows):
        return 413
    if isinstance(error, PromotionConflict):
        return 409
    if isinstance(error, NotFound):
        return 410 if isinstance(error, Expired) else 404
    if isinstance(error, TransientError | OutcomeUnknown):
        return 503
    return 500


def headers_of(status: int) -> dict[str, str]:
    """What a client is told besides: when to ask again, how to log in."""
    if status == 503:
        return {"Retry-After": str(RETRY_AFTER_S)}
    return {"WWW-Authenticate": "Bearer"} if status == 401 else {}


def answer_with_problems(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""
    app.add_exception_handler(PenstockError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(Exception, _unexpected)


def _ours(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PenstockError)
    status = status_of(error)
    if status >= 500:
        log.warning("API: %s", error)
    return problem(status, type(error).__name__, error.what, error.which, error.fix)


def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    which = ".".join(str(part) for part in first["loc"][1:]) or first["loc"][0]
    status, kind = (422, "InvalidBody") if first["loc"][0] == "body" else (400, "InvalidQuery")
    return problem(status, kind, first["msg"], which, "see openapi.json for what is accepted")


_REFUSALS = {
    401: ("NotLoggedIn", "get a token from POST /auth/token and send it as Authorization: Bearer"),
    403: (
        "NoAccess",
        "ask for read access to the runs of <pipeline>.score, or get a new token if yours is too old",
    ),
    404: ("NotFound", "see openapi.json for what there is"),
    413: ("TooLarge", "send less in a request"),
    429: ("TooManyRequests", "wait as long as Retry-After says"),
    405: ("MethodNotAllowed", "see openapi.json for what may be done there"),
}


def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException | StarletteHTTPException)
    kind, fix = _REFUSALS.get(error.status_code, (HTTPStatus(error.status_code).phrase.replace(" ", ""), ""))
    if isinstance(error, Refused):
        kind, fix = error.kind, error.fix
    headers = dict(error.headers or {})
    return problem(error.status_code, kind, str(error.detail), "", fix, headers)


def _unexpected(_request: Request, error: Exception) -> Response:
    log.error("API", exc_info=error)
    return problem(500, "InternalError", "the server failed", "", "see the API server's log")


def problem(
    status: int, kind: str, what: str, which: str, fix: str, headers: dict[str, str] | None = None
) -> Response:
    """A problem document."""
    return JSONResponse(
        {"type": kind, "what": what, "which": which, "fix": fix},
        status_code=status,
        media_type=MEDIA_TYPE,
        headers={**SAFE, **headers_of(status), **(headers or {})},
    )


SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-store"}
"""Headers of every answer of the API."""

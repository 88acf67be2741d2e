"""Requests that get no prediction: why, as a metric counts it, and as HTTP says it.

The document is that of the audit API: `application/problem+json` with `type`, `what`, `which` and `fix`.
"""

from __future__ import annotations

import json
from typing import Any

from tasks.core.errors import PenstockError

MEDIA_TYPE = "application/problem+json"

CAUSES = (
    "invalid_request",
    "invalid_field",
    "too_large",
    "media_type",
    "slow_client",
    "not_found",
    "unknown_entity",
    "entity_too_old",
    "not_ready",
    "queue_full",
    "would_be_late",
    "audit_backlog",
    "expired",
    "row_failed",
    "model_failed",
    "internal",
)
"""Every cause that the error metric may name: a fixed set, so that its cardinality is."""


class Refused(PenstockError):
    """A request that is not answered with a prediction.

    Args:
        status: HTTP status.
        cause: One of `CAUSES`.
        retry_after_s: When it may succeed, as a whole number of seconds; None: not by waiting.
        close: Whether the connection is to be closed, because the rest of the request is not read.
    """

    def __init__(
        self,
        status: int,
        cause: str,
        what: str,
        *,
        which: str = "",
        fix: str = "",
        retry_after_s: int | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(what, which=which, fix=fix)
        self.status = status
        self.cause = cause
        self.retry_after_s = retry_after_s
        self.close = close

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (
            self.status,
            self.cause,
            self.what,
            self.which,
            self.fix,
            self.retry_after_s,
            self.close,
        )

    @property
    def kind(self) -> str:
        """`type` of the document."""
        return _KINDS[self.cause]

    def document(self) -> dict[str, str]:
        """The problem document."""
        return {"type": self.kind, "what": self.what, "which": self.which, "fix": self.fix}

    def body(self) -> bytes:
        return json.dumps(self.document()).encode()


_KINDS = {
    "invalid_request": "InvalidRequest",
    "invalid_field": "InvalidField",
    "too_large": "RequestTooLarge",
    "media_type": "UnsupportedMediaType",
    "slow_client": "RequestTimeout",
    "not_found": "NotFound",
    "unknown_entity": "UnknownEntity",
    "entity_too_old": "EntityTooOld",
    "not_ready": "NotReady",
    "queue_full": "Overloaded",
    "would_be_late": "Overloaded",
    "audit_backlog": "Overloaded",
    "expired": "DeadlineExceeded",
    "row_failed": "RowFailed",
    "model_failed": "ModelFailed",
    "internal": "InternalError",
}


def _rebuild(
    status: int, cause: str, what: str, which: str, fix: str, retry_after_s: int | None, close: bool
) -> Refused:
    return Refused(status, cause, what, which=which, fix=fix, retry_after_s=retry_after_s, close=close)

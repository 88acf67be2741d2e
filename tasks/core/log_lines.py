"""Log lines as JSON, one object a line, with the ids of what they are about.

The ids are bound where the work is: a step binds tenant, pipeline and step, a worker run, shard and attempt. Every line
that is written inside, by whatever library, carries them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import IO, Any

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_bound: ContextVar[dict[str, Any]] = ContextVar("penstock_log_ids", default={})  # noqa: B039  # never changed in place


@contextmanager
def bound(**ids: Any) -> Iterator[None]:
    """Lines that are written inside carry these ids, next to those that are bound already; None is left out."""
    token = _bound.set({**_bound.get(), **{name: value for name, value in ids.items() if value is not None}})
    try:
        yield
    finally:
        _bound.reset(token)


def bound_ids() -> dict[str, Any]:
    """The ids that a line written now would carry."""
    return dict(_bound.get())


def handler(stream: IO[str], form: str) -> logging.Handler:
    """Writes lines to `stream`: `text` for people, `json` for programs."""
    made = logging.StreamHandler(stream)
    made.setFormatter(JsonLines() if form == "json" else logging.Formatter(_TEXT))
    return made


class JsonLines(logging.Formatter):
    """One JSON object a line: `at`, `level`, `logger`, `message`, the bound ids, and `error` with the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_bound.get(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)

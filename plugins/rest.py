"""What the parts of the REST API have in common: answers, moments, and how the OpenAPI document tells of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from plugins.json_values import jsonable
from plugins.problems import MEDIA_TYPE, SAFE, Problem
from tasks.audit import InvalidQuery
from tasks.audit.contract import field_descriptions
from tasks.core.records import JsonRecord

API = "/api/v1"
"""Below the plugin's own prefix."""
_FIRST_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_TIME = datetime(9999, 12, 30, tzinfo=UTC)


def checked_moment(moment: datetime, name: str) -> datetime:
    """`moment` in UTC. Raises `InvalidQuery` without a time zone, or outside what ids and calendars can hold."""
    if moment.tzinfo is None:
        raise InvalidQuery(
            "has no time zone", which=name, fix="end it with Z or an offset, such as 2024-03-01T00:00:00Z"
        )
    try:
        utc = moment.astimezone(UTC)
    except OverflowError:
        utc = datetime.max.replace(tzinfo=UTC)
    if not _FIRST_TIME <= utc <= _LAST_TIME:
        raise InvalidQuery(
            f"is {moment.isoformat()}", which=name, fix="use a moment from 1970-01-01 to 9999-12-30"
        )
    return utc


def json_answer(value: JsonRecord | dict[str, Any], status: int = 200) -> Response:
    """A record as JSON."""
    raw = value.to_json() if isinstance(value, JsonRecord) else value
    return JSONResponse(jsonable(raw), status_code=status, headers=SAFE)


def documented(
    statuses: Iterable[int], words: Mapping[int, str], models: Mapping[int, type] | None = None
) -> dict[int | str, dict[str, Any]]:
    """The problem documents that an endpoint may answer, for FastAPI's `responses`.

    Args:
        words: Of each status, when it is answered.
        models: Of a status whose problem has more fields, its class.
    """
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        model = (models or {}).get(status, Problem)
        reference = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
        found[status] = {
            "model": model,
            "description": words[status],
            "content": {MEDIA_TYPE: reference},
        }
    return found


def document(api: FastAPI, records: Iterable[type], limits: Mapping[str, int]) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's own, with the records' docstrings, and without what is not answered."""
    found = api.openapi()
    if "x-penstock" not in found:
        for path in found["paths"].values():
            for operation in path.values():
                if MEDIA_TYPE not in operation["responses"].get("422", {}).get("content", {}):
                    operation["responses"].pop("422", None)
                for status, answer in operation["responses"].items():
                    if status >= "400":
                        del answer["content"]["application/json"]
        schemas = found["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for record in records:
            for name, said in field_descriptions(record).items():
                schemas[record.__name__]["properties"][name]["description"] = said
        found["x-penstock"] = dict(limits)
    return found

"""The OpenAPI document: written by hand, because the model's own signature says what a row is."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from tasks.serving.limits import ServingLimits
from tasks.serving.refusals import MEDIA_TYPE
from tasks.serving.requests import MAX_REQUEST_ID
from tasks.serving.signature import Signature

_PROBLEMS = {
    "400": "The request cannot be read.",
    "404": "No published row of an entity is known.",
    "408": "The client was too slow.",
    "413": "The request is too large.",
    "415": "The body is not JSON.",
    "422": "A field is wrong, or a row cannot be scored; `which` names it.",
    "429": "Too much waits; `Retry-After` says when to come again.",
    "500": "The model or the server failed.",
    "503": "No model answers.",
    "504": "The deadline was over before the request was scored.",
}
_TEXT = {"type": "string"}


def describe(
    api: FastAPI, native_path: str, signature: Signature | None, limits: ServingLimits
) -> dict[str, Any]:
    """The document; without a signature, before the first model is loaded, a row is any object."""
    row = signature.json_schema() if signature else {"type": "object"}
    rows = {
        "type": "array",
        "minItems": 1,
        "maxItems": limits.max_rows,
        "items": {"$ref": "#/components/schemas/Row"},
    }
    timeout = {"type": "number", "exclusiveMinimum": 0, "maximum": limits.max_timeout_s * 1000}
    native = {
        "type": "object",
        "properties": {
            "rows": rows,
            "entities": {**rows, "items": {"$ref": "#/components/schemas/EntityKey"}},
            "timeout_ms": {**timeout, "description": "Deadline; goes before the header's."},
            "request_id": {**_TEXT, "minLength": 1, "maxLength": MAX_REQUEST_ID, "pattern": "^[ -~]+$"},
        },
        "oneOf": [{"required": ["rows"]}, {"required": ["entities"]}],
        "additionalProperties": False,
    }
    split = {
        "type": "object",
        "properties": {
            "columns": {"type": "array", "items": _TEXT, "uniqueItems": True},
            "data": {"type": "array", "minItems": 1, "items": {"type": "array"}},
        },
        "required": ["columns", "data"],
    }
    mlflow = {
        "oneOf": [
            {"type": "object", "properties": {name: form}, "required": [name], "additionalProperties": False}
            for name, form in (
                ("dataframe_split", split),
                ("dataframe_records", rows),
                ("instances", rows),
                ("inputs", rows),
            )
        ]
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": api.title, "version": api.version, "description": api.description},
        "paths": {
            native_path: {
                "post": _operation("predict", "Predictions for rows.", native, _answer(), limits),
            },
            "/invocations": {
                "post": _operation(
                    "invocations",
                    "The same, as MLflow's scoring server is asked.",
                    mlflow,
                    _object({"predictions": {"type": "array", "items": _score()}}),
                    limits,
                ),
            },
            "/health/live": {"get": _get("live", "Whether the process runs.", "200")},
            "/health/ready": {
                "get": _get("ready", "Whether it answers predictions, and with what.", "200", "503")
            },
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Prometheus metrics.",
                    "responses": {
                        "200": {"description": "Text.", "content": {"text/plain": {"schema": _TEXT}}}
                    },
                }
            },
        },
        "components": {
            "schemas": {
                "Row": row,
                "EntityKey": signature.key_schema() if signature else {"type": "object"},
                "Problem": _object({"type": _TEXT, "what": _TEXT, "which": _TEXT, "fix": _TEXT}),
            }
        },
    }


def _operation(
    name: str, summary: str, body: dict[str, Any], answer: dict[str, Any], limits: ServingLimits
) -> dict[str, Any]:
    problem = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    timeout = {"type": "number", "exclusiveMinimum": 0, "maximum": limits.max_timeout_s * 1000}
    identifier = {**_TEXT, "minLength": 1, "maxLength": MAX_REQUEST_ID, "pattern": "^[!-~]+$"}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [
            _header("X-Request-Timeout-Ms", timeout, "Deadline in milliseconds."),
            _header("X-Request-Id", identifier, "A retry with the same id is recorded once."),
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {"description": "Predictions.", "content": {"application/json": {"schema": answer}}},
            **{status: {"description": text, "content": problem} for status, text in _PROBLEMS.items()},
        },
    }


def _answer() -> dict[str, Any]:
    one = _object(
        {
            "prediction_id": {**_TEXT, "format": "uuid"},
            "score": _score(),
            "model_version": {"type": "integer"},
        }
    )
    one["properties"]["outputs"] = {"type": "object", "description": "What the model says beside the score."}
    one["properties"]["input"] = {
        "type": "object",
        "description": "Of an entity that was looked up: the snapshot, event time and age of the row that was scored.",
        "properties": {
            "snapshot_id": _TEXT,
            "event_time": {**_TEXT, "format": "date-time"},
            "age_s": {"type": "number"},
        },
    }
    return _object({"pipeline": _TEXT, "request_id": _TEXT, "predictions": {"type": "array", "items": one}})


def _score() -> dict[str, Any]:
    return {"type": "number", "minimum": 0, "maximum": 1}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _header(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": text}


def _get(name: str, summary: str, *statuses: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {status: {"description": summary, "content": content} for status in statuses},
    }

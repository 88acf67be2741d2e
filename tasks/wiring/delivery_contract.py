"""The delivery API's data contract, by the rule of the audit records' (`tasks.audit.contract`)."""

from __future__ import annotations

from typing import Any

from tasks.audit.contract import OPEN_VALUES, VERSION, record_schema
from tasks.metadata.records import KINDS
from tasks.wiring.delivery_records import RECORDS

DELIVERY_VERSION = "1.0"
"""Of the records in `tasks.wiring.delivery_records`."""
_FACTS: dict[str, dict[str, Any]] = {
    "kind": {OPEN_VALUES: list(KINDS)},
    "gate": {OPEN_VALUES: ["data", "evaluation", "canary"]},
    "outcome": {OPEN_VALUES: ["pass", "fail", "inconclusive"]},
    "status": {OPEN_VALUES: ["pass", "warn", "fail"]},
}


def delivery_documents() -> dict[str, dict[str, Any]]:
    """The documents of today's code by file name."""
    major = DELIVERY_VERSION.split(".")[0]
    return {
        f"delivery-{major}.json": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"urn:penstock:delivery:{major}",
            "title": "Penstock delivery API",
            VERSION: DELIVERY_VERSION,
            "$defs": {record.__name__: record_schema(record, _FACTS) for record in RECORDS},
        }
    }

"""The data contract: what a consumer of audit records and of the audit table may rely on, and what may change.

The code is the source. `documents` makes a JSON Schema (2020-12) of `AuditRecord` and `AuditPage`, and a list of the
table's columns; the published ones are in `docs/contracts`, one for each major version. Within a major version fields
may be added, which are optional then, and values of open enums. Anything else needs a new major version, whose document
stands beside the old one.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import types
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from tasks.audit.record import SCHEMA_VERSION, AuditPage, AuditRecord
from tasks.audit.rows import AUDIT_SCHEMA
from tasks.core.errors import TerminalError
from tasks.core.records import JsonRecord

TABLE_VERSION = "1.0"
"""Of the audit table's columns."""

VERSION = "x-version"
UNIT = "x-unit"
OPEN_VALUES = "x-open-values"
"""Values that occur today; others may come within a major version, so a consumer must bear unknown ones."""

_SCHEMA = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}
_FACTS: dict[str, dict[str, Any]] = {
    "prediction_id": {"format": "uuid"},
    "prediction": {UNIT: "probability"},
    "attributions": {UNIT: "logit"},
    "base_value": {UNIT: "logit"},
    "residual": {UNIT: "logit"},
    "attribution_bits": {UNIT: "bit"},
    "explanation": {OPEN_VALUES: ["stored", "top", "computed"]},
    "tier": {OPEN_VALUES: ["hot", "warm", "cold"]},
    "schema_version": {"pattern": rf"^{SCHEMA_VERSION.split('.')[0]}\.[0-9]+$"},
}
"""What the types of fields do not say."""
_ALWAYS_THERE = ("schema_version",)
"""Required although it has a default."""


class ContractBroken(TerminalError):
    """The code no longer keeps what was published, or what it adds has no version of its own."""


def documents() -> dict[str, dict[str, Any]]:
    """The documents of today's code by file name."""
    return {
        f"audit-record-{_major(SCHEMA_VERSION)}.json": _record_document(),
        f"audit-table-{_major(TABLE_VERSION)}.json": _table_document(),
    }


def record_schema(
    record: type[JsonRecord], facts: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The JSON Schema of a record class, as its `to_json` writes it; other records are `$ref`s into `$defs`.

    A field without a default is required. Fields that are unknown to the schema are allowed: they may come later. `facts`
    are what the types of fields do not say, by the field's name.
    """
    assert dataclasses.is_dataclass(record)
    hints, said = get_type_hints(record), field_descriptions(record)
    properties, required = {}, []
    for field in dataclasses.fields(record):
        properties[field.name] = {
            **_schema_of(hints[field.name]),
            **(_FACTS if facts is None else facts).get(field.name, {}),
            "description": said.get(field.name, ""),
        }
        if field.name in _ALWAYS_THERE or (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ):
            required.append(field.name)
    return {
        "type": "object",
        "description": _one_line(inspect.getdoc(record) or ""),
        "properties": properties,
        "required": required,
        "additionalProperties": True,
    }


@cache
def field_descriptions(record: type) -> dict[str, str]:
    """What the docstring below each field of a record class says, in one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(record))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[field.target.id] = _one_line(text.value)
    return found


def compatible(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Where `new` breaks what `old` promised within its major version; empty when it keeps all of it.

    Added fields that are optional, added values of open enums, a null that no longer comes and other wording are no
    breaks. Removing, renaming, retyping, a null that may come now, another unit or format, and a field that may be
    absent now are. A change of meaning without any of them is for people to see: publishing shows the new wording.

    Args:
        old: A published document of `documents`.
        new: The document that is to replace it.
    """
    if "columns" in old:
        return list(_column_breaks(old["columns"], new.get("columns", {})))
    found: list[str] = []
    for name, promised in old["$defs"].items():
        if name in new["$defs"]:
            found += _breaks(name, promised, new["$defs"][name])
        else:
            found.append(f"{name} is removed")
    return found


def unpublished(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Why `new` may not be published over `old`: breaks, and additions under the number that `old` has."""
    problems = compatible(old, new)
    before, after = _numbers(old[VERSION]), _numbers(new[VERSION])
    if after < before:
        problems.append(f"version {new[VERSION]} is below the published {old[VERSION]}")
    if not problems and after == before and _without_words(old) != _without_words(new):
        problems.append(f"something was added, and version {new[VERSION]} is published: raise its minor part")
    return problems


def publish(folder: Path, made: dict[str, dict[str, Any]] | None = None) -> list[str]:
    """Write the documents whose content changed into `folder`; returns their names.

    Raises:
        ContractBroken: A document of the same major version would break its published one, or adds to it under the
            same number. Nothing is written.
    """
    made = documents() if made is None else made
    changed = []
    for name, document in made.items():
        path = folder / name
        published = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        problems = unpublished(published, document) if published else []
        if problems:
            raise ContractBroken(
                "; ".join(problems),
                which=str(path),
                fix="keep what was published, or raise the major part of SCHEMA_VERSION (tasks/audit/record.py), "
                "TABLE_VERSION (tasks/audit/contract.py) or DELIVERY_VERSION (tasks/wiring/delivery_contract.py); for an "
                "addition the minor part",
            )
        if published != document:
            changed.append(name)
    folder.mkdir(parents=True, exist_ok=True)
    for name in changed:
        (folder / name).write_text(text(made[name]), encoding="utf-8")
    return changed


def text(document: dict[str, Any]) -> str:
    """A document as its file holds it."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _record_document() -> dict[str, Any]:
    return {
        "$schema": _SCHEMA,
        "$id": f"urn:penstock:audit-record:{_major(SCHEMA_VERSION)}",
        "title": "Penstock audit record",
        VERSION: SCHEMA_VERSION,
        "$ref": "#/$defs/AuditRecord",
        "$defs": {record.__name__: record_schema(record) for record in (AuditRecord, AuditPage)},
    }


def _table_document() -> dict[str, Any]:
    said = field_descriptions(AuditRecord)
    columns: dict[str, Any] = {}
    for field in AUDIT_SCHEMA:
        columns[field.name] = {"type": str(field.type), "nullable": field.nullable}
        if field.name in said:
            columns[field.name]["description"] = said[field.name]
    columns["event_date"] = {
        "type": "date32[day]",
        "nullable": False,
        "description": "Partition: the UTC date of `event_time`.",
    }
    return {
        "title": "Penstock audit table",
        "description": "Columns of the Delta table `tables/audit`, as Arrow types.",
        VERSION: TABLE_VERSION,
        "columns": columns,
    }


def _schema_of(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = [one for one in arguments if one is not type(None)]
        schema = _schema_of(inner)
        if "$ref" in schema:
            return {"anyOf": [schema, {"type": "null"}]}
        return {**schema, "type": [schema["type"], "null"]}
    if origin is tuple:
        return {"type": "array", "items": _schema_of(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1])}
    if hint is Any:  # of a feature's value
        return {"type": ["number", "string", "null"]}
    if issubclass(hint, datetime):
        return {"type": "string", "format": "date-time"}
    if issubclass(hint, date):
        return {"type": "string", "format": "date"}
    if issubclass(hint, JsonRecord):
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return {"type": _PLAIN[hint]}


def _breaks(path: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    before, after = _types(old), _types(new)
    if before - {"null"} != after - {"null"}:
        yield f"{path} has another type: {_shown(before)} became {_shown(after)}"
        return
    if "null" in after - before:
        yield f"{path} may be null now"
    for fact in ("format", "pattern", "enum", UNIT):
        if old.get(fact) != new.get(fact):
            yield f"{path} has another {fact.removeprefix('x-')}: {old.get(fact)} became {new.get(fact)}"
    gone = [value for value in old.get(OPEN_VALUES, ()) if value not in new.get(OPEN_VALUES, ())]
    if gone:
        yield f"{path} no longer has the values {', '.join(gone)}"
    if isinstance(old.get("items"), dict):
        yield from _breaks(f"{path}[]", old["items"], new["items"])
    rest, rest_now = old.get("additionalProperties"), new.get("additionalProperties")
    if isinstance(rest, dict) and isinstance(rest_now, dict):
        yield from _breaks(f"{path}{{}}", rest, rest_now)
    elif rest != rest_now:
        yield f"{path} treats other fields differently"
    yield from _field_breaks(path, old, new)


def _field_breaks(path: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    fields, fields_now = old.get("properties", {}), new.get("properties", {})
    required, required_now = set(old.get("required", ())), set(new.get("required", ()))
    for name, promised in fields.items():
        if name not in fields_now:
            yield f"{path}.{name} is removed or renamed"
            continue
        yield from _breaks(f"{path}.{name}", promised, fields_now[name])
        if name in required - required_now:
            yield f"{path}.{name} may be absent now"
        if name in required_now - required:
            yield f"{path}.{name} is required now: records of before may lack it"
    for name in fields_now:
        if name not in fields and name in required_now:
            yield f"{path}.{name} is added as required: records of before lack it"


def _column_breaks(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name, promised in old.items():
        if name not in new:
            yield f"column {name} is removed or renamed"
        elif promised["type"] != new[name]["type"]:
            yield f"column {name} has another type: {promised['type']} became {new[name]['type']}"
        elif new[name]["nullable"] and not promised["nullable"]:
            yield f"column {name} may be null now"
    for name in new:
        if name not in old and not new[name]["nullable"]:
            yield f"column {name} is added and not nullable: rows of before lack it"


def _types(schema: dict[str, Any]) -> set[str]:
    if "anyOf" in schema:
        return set().union(*(_types(one) for one in schema["anyOf"]))
    found = schema.get("type", schema.get("$ref"))
    return {found} if isinstance(found, str) else set(found or ())


def _shown(kinds: set[str]) -> str:
    return " or ".join(sorted(kinds - {"null"})) or "nothing"


def _without_words(document: Any) -> Any:
    """A document without its descriptions and its number: what a program relies on."""
    if isinstance(document, dict):
        words = ("description", "title", VERSION)
        return {
            name: _without_words(value)
            for name, value in document.items()
            if name not in words or not isinstance(value, str)
        }
    return [_without_words(one) for one in document] if isinstance(document, list) else document


def _major(version: str) -> int:
    return _numbers(version)[0]


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


def _one_line(words: str) -> str:
    return " ".join(words.split())

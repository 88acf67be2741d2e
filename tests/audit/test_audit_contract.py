"""The data contract: the code keeps what is published, and real records are what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from audit_support import publish_days
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker, ValidationError

from tasks.audit import AuditPage, AuditRecord, by_prediction, by_window
from tasks.audit.contract import (
    ContractBroken,
    compatible,
    documents,
    publish,
    record_schema,
    text,
    unpublished,
)
from tasks.audit.retention import retain
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.delta import table_view

FOLDER = Path(__file__).parents[2] / "docs" / "contracts"
RECORD, TABLE = "audit-record-1.json", "audit-table-1.json"
PUBLISH = "run .penstock/venv/bin/python scripts/contract.py, which refuses what breaks the contract"


def published(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name).read_text())


def validator(kind: str = "AuditRecord") -> Draft202012Validator:
    document = {**published(RECORD), "$ref": f"#/$defs/{kind}"}
    return Draft202012Validator(document, format_checker=FormatChecker())


# -- the code and what is published


@pytest.mark.parametrize("name", documents())
def test_the_code_keeps_the_published_contract_and_adds_nothing_unpublished(name: str) -> None:
    document = documents()[name]
    assert compatible(published(name), document) == [], "a new major version is needed: docs/audit.md"
    assert (FOLDER / name).read_text() == text(document), PUBLISH


def test_the_document_of_every_major_version_is_kept() -> None:
    for kind in ("record", "table"):
        majors = sorted(int(path.stem.rsplit("-", 1)[1]) for path in FOLDER.glob(f"audit-{kind}-*.json"))
        newest = max(int(name.rsplit("-", 1)[1][:-5]) for name in documents() if f"-{kind}-" in name)
        assert majors == list(range(1, newest + 1))


def test_the_published_schema_is_valid_and_says_what_each_field_is() -> None:
    document = published(RECORD)
    Draft202012Validator.check_schema(document)
    for name, schema in document["$defs"].items():
        missing = [field for field, one in schema["properties"].items() if not one["description"]]
        assert missing == [], name


# -- real records


def test_real_records_and_pages_are_what_the_contract_says(settings: Settings, toy: PipelineSpec) -> None:
    some = toy.model_copy(update={"explanations": toy.explanations.model_copy(update={"share": 0.5})})
    ids, _ = publish_days(settings, some, days=2)
    publish_days(settings, some, days=1, version=2)
    retain(settings, some, as_of=date(2024, 3, 3), warm_days=1)
    start = datetime(2024, 3, 1, tzinfo=UTC)
    page = by_window(settings, some, start, start + timedelta(days=2), limit=100)
    validator("AuditPage").validate(json.loads(json.dumps(page.to_json())))
    records = [by_prediction(settings, some, identifier) for identifier in ids[::10]]
    assert {record.attributions is None for record in records} == {True, False}
    for record in records:
        raw = json.loads(json.dumps(record.to_json()))
        validator().validate(raw)
        assert set(raw) == set(published(RECORD)["$defs"]["AuditRecord"]["properties"])
        assert AuditRecord.from_json(raw) == record
        assert datetime.fromisoformat(raw["event_time"]).tzinfo is not None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw.pop("run_id"),
        lambda raw: raw.pop("schema_version"),
        lambda raw: raw.update(model_version="1"),
        lambda raw: raw.update(prediction_id="x"),
        lambda raw: raw.update(features={"price": [1]}),
        lambda raw: raw.update(top_features="price"),
        lambda raw: raw.update(run_id=None),
        lambda raw: raw.update(schema_version="2.0"),
    ],
)
def test_what_is_no_such_record_is_refused_by_the_schema(
    settings: Settings, toy: PipelineSpec, spoil: Callable[[dict[str, Any]], Any]
) -> None:
    ids, _ = publish_days(settings, toy, days=1)
    raw = by_prediction(settings, toy, ids[0]).to_json()
    validator().validate(raw)
    spoil(raw)
    with pytest.raises(ValidationError):
        validator().validate(raw)


def test_a_consumer_of_the_schema_bears_a_field_that_came_later(
    settings: Settings, toy: PipelineSpec
) -> None:
    ids, _ = publish_days(settings, toy, days=1)
    record = by_prediction(settings, toy, ids[0])
    later = {**record.to_json(), "added_later": 1, "tier": "glacier", "schema_version": "1.7"}
    validator().validate(later)
    assert AuditRecord.from_json(later) == replace(record, tier="glacier", schema_version="1.7")


def test_files_of_the_audit_table_have_the_columns_of_the_contract(
    settings: Settings, toy: PipelineSpec
) -> None:
    import io

    import pyarrow.parquet as pq

    publish_days(settings, toy, days=1)
    store = open_store(settings, prefix=toy.prefix)
    view = table_view(store, "tables/audit")
    assert view is not None
    columns = published(TABLE)["columns"]
    for file in view.files:
        schema = pq.read_schema(io.BytesIO(store.get(f"tables/audit/{file.path}")))
        found = {field.name: str(field.type) for field in schema}
        assert found == {name: one["type"] for name, one in columns.items() if name != "event_date"}


# -- the rule


def of_records(change: Callable[[dict[str, Any]], Any]) -> list[str]:
    """What the rule says of a change of the record's published fields."""
    old = documents()[RECORD]
    new = deepcopy(old)
    change(new["$defs"]["AuditRecord"])
    return compatible(old, new)


FIELDS = st.sampled_from(sorted(documents()[RECORD]["$defs"]["AuditRecord"]["properties"]))


@given(FIELDS)
def test_no_field_may_go_or_change_its_type(name: str) -> None:
    assert of_records(lambda schema: schema["properties"].pop(name)) == [
        f"AuditRecord.{name} is removed or renamed"
    ]
    (problem,) = of_records(lambda schema: schema["properties"][name].update(type="boolean"))
    assert problem.startswith(f"AuditRecord.{name} has another type")


@given(FIELDS)
def test_a_field_that_was_never_null_may_not_become_null_and_the_reverse_is_no_break(name: str) -> None:
    def nullable(schema: dict[str, Any]) -> None:
        kind = schema["properties"][name]["type"]
        schema["properties"][name]["type"] = sorted({*([kind] if isinstance(kind, str) else kind), "null"})

    was_null = "null" in documents()[RECORD]["$defs"]["AuditRecord"]["properties"][name]["type"]
    assert of_records(nullable) == ([] if was_null else [f"AuditRecord.{name} may be null now"])
    narrowed = deepcopy(documents()[RECORD])
    nullable(narrowed["$defs"]["AuditRecord"])
    assert compatible(narrowed, documents()[RECORD]) == []


@pytest.mark.parametrize(
    ("change", "breaks"),
    [
        (lambda s: s["properties"].update(mood={"type": "string"}), []),
        (lambda s: s["properties"]["tier"]["x-open-values"].append("glacier"), []),
        (lambda s: s["properties"]["tier"].update(description="Other words."), []),
        (
            lambda s: (s["properties"].update(mood={"type": "string"}), s["required"].append("mood")),
            ["AuditRecord.mood is added as required: records of before lack it"],
        ),
        (
            lambda s: s["required"].append("superseded_by"),
            ["AuditRecord.superseded_by is required now: records of before may lack it"],
        ),
        (lambda s: s["required"].remove("run_id"), ["AuditRecord.run_id may be absent now"]),
        (
            lambda s: s["properties"]["tier"]["x-open-values"].remove("cold"),
            ["AuditRecord.tier no longer has the values cold"],
        ),
        (
            lambda s: s["properties"]["attributions"].update({"x-unit": "probability"}),
            ["AuditRecord.attributions has another unit: logit became probability"],
        ),
        (
            lambda s: s["properties"]["event_time"].update(format="date"),
            ["AuditRecord.event_time has another format: date-time became date"],
        ),
        (
            lambda s: s["properties"].update(probability=s["properties"].pop("prediction")),
            ["AuditRecord.prediction is removed or renamed"],
        ),
        (
            lambda s: s["properties"]["superseded_runs"]["items"].update(type="integer"),
            ["AuditRecord.superseded_runs[] has another type: string became integer"],
        ),
        (
            lambda s: s["properties"]["attributions"]["additionalProperties"].update(type=["number", "null"]),
            ["AuditRecord.attributions{} may be null now"],
        ),
        (lambda s: s.update(additionalProperties=False), ["AuditRecord treats other fields differently"]),
    ],
)
def test_what_may_change_within_a_major_version(
    change: Callable[[dict[str, Any]], Any], breaks: list[str]
) -> None:
    assert of_records(change) == breaks


def test_the_page_is_part_of_the_contract() -> None:
    old = documents()[RECORD]
    new = deepcopy(old)
    new["$defs"]["AuditPage"]["properties"]["cursor"]["type"] = "string"
    new["$defs"]["AuditPage"]["properties"]["records"]["items"] = {"$ref": "#/$defs/Other"}
    assert [problem.split(" has ")[0] for problem in compatible(old, new)] == ["AuditPage.records[]"]
    del new["$defs"]["AuditPage"]
    assert compatible(old, new) == ["AuditPage is removed"]


def test_columns_of_the_table_follow_the_same_rule() -> None:
    old = documents()[TABLE]

    def changed(**columns: Any) -> list[str]:
        kept = {name: one for name, one in {**old["columns"], **columns}.items() if one}
        return compatible(old, {**old, "columns": kept})

    assert changed(mood={"type": str(pa.string()), "nullable": True}) == []
    assert changed(mood={"type": "string", "nullable": False}) == [
        "column mood is added and not nullable: rows of before lack it"
    ]
    assert changed(residual=None) == ["column residual is removed or renamed"]
    assert changed(shard_id={"type": "int64", "nullable": True}) == [
        "column shard_id has another type: int32 became int64"
    ]
    assert changed(event_date={"type": "date32[day]", "nullable": True}) == [
        "column event_date may be null now"
    ]


# -- publishing


def test_an_addition_needs_a_number_of_its_own(tmp_path: Path) -> None:
    old = documents()
    assert sorted(publish(tmp_path)) == sorted(old)
    assert publish(tmp_path) == []
    more = deepcopy(old)
    more[RECORD]["$defs"]["AuditRecord"]["properties"]["mood"] = {"type": "string", "description": "m"}
    before = (tmp_path / RECORD).read_bytes()
    with pytest.raises(ContractBroken, match="raise its minor part"):
        publish(tmp_path, more)
    assert (tmp_path / RECORD).read_bytes() == before
    more[RECORD]["x-version"] = "1.1"
    assert publish(tmp_path, more) == [RECORD]
    assert json.loads((tmp_path / RECORD).read_text()) == more[RECORD]
    assert unpublished(more[RECORD], old[RECORD])[-1] == "version 1.0 is below the published 1.1"


def test_a_break_is_not_published_whatever_its_minor_number(tmp_path: Path) -> None:
    publish(tmp_path)
    broken = deepcopy(documents())
    del broken[RECORD]["$defs"]["AuditRecord"]["properties"]["run_id"]
    broken[RECORD]["x-version"] = "1.1"
    broken[TABLE]["columns"]["mood"] = {"type": "string", "nullable": True}
    broken[TABLE]["x-version"] = "1.1"
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ContractBroken, match="run_id is removed or renamed"):
        publish(tmp_path, broken)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_words_are_published_under_the_same_number(tmp_path: Path) -> None:
    publish(tmp_path)
    reworded = deepcopy(documents())
    reworded[RECORD]["$defs"]["AuditRecord"]["properties"]["run_id"]["description"] = "The run."
    assert publish(tmp_path, reworded) == [RECORD]


def test_a_new_major_version_stands_beside_the_old_one(tmp_path: Path) -> None:
    publish(tmp_path)
    second = deepcopy(documents()[RECORD])
    del second["$defs"]["AuditRecord"]["properties"]["run_id"]
    second["x-version"] = "2.0"
    assert publish(tmp_path, {"audit-record-2.json": second}) == ["audit-record-2.json"]
    assert json.loads((tmp_path / RECORD).read_text()) == documents()[RECORD]


def test_every_field_of_a_record_class_is_in_its_schema() -> None:
    import dataclasses

    for record in (AuditRecord, AuditPage):
        schema = record_schema(record)
        assert list(schema["properties"]) == [field.name for field in dataclasses.fields(record)]

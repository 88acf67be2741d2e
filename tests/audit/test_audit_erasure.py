"""An erased entity is nowhere in the tables and tiers, and everything else stays what it was."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow.parquet as pq
import pytest
from audit_support import publish_days, table_rows
from inference_support import plan_stub, run_stub, score_and_publish, scoring_snapshot, toy_rows

from tasks import wiring
from tasks.audit import by_prediction, by_window, complete_erasures, erase, retain
from tasks.audit.archive import archived_dates
from tasks.audit.cold import cold_rows
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.crash_points import observe
from tasks.core.erasures import erasures
from tasks.core.errors import ConfigError
from tasks.core.holds import place_hold, release_hold
from tasks.core.object_store import ObjectStore
from tasks.core.rows import entity_ids
from tasks.inference import optimize, publish, verify
from tasks.wiring.audit_upkeep import ErasingTables

AS_OF = date(2024, 3, 4)
START = datetime(2024, 3, 1, tzinfo=UTC)
POINTS = [
    "after-erasure-request",
    "after-erase-file",
    "before-erase-record",
    "after-erase-record",
    "before-erase-commit",
    "after-erase-commit",
    "after-erase-cold-file",
    "after-erase-cold-record",
    "before-erasure-done",
]


class Killed(BaseException):
    """Stands for SIGKILL inside one process: nothing catches it."""


def entity_of(settings: Settings, spec: PipelineSpec, day: int, row: int = 5) -> str:
    return entity_ids(toy_rows(settings, date(2024, 3, 1) + timedelta(days=day)), spec)[row]


def erased(settings: Settings, spec: PipelineSpec, entity: str, **more: Any) -> Any:
    tables = ErasingTables(open_store(settings, prefix=spec.prefix))
    return erase(settings, spec, tables, entity=entity, actor="ada", reason="case 12", **more)


def one_subject(settings: Settings, spec: PipelineSpec, days: int = 3) -> str:
    """Publish days on each of which the same customer occurs; its entity id."""

    def change(rows: Any) -> Any:
        import pyarrow as pa

        names = rows.column("customer").to_pylist()
        names[7] = "c_subject"
        return rows.set_column(rows.schema.get_field_index("customer"), "customer", pa.array(names))

    score_and_publish(settings, spec, scoring_snapshot(settings, spec, days=days, change=change))
    return "c_subject"


def holds_entity(store: ObjectStore, settings: Settings, spec: PipelineSpec, entity: str) -> list[str]:
    """Where a reader of tables or archive still finds the entity."""
    found = [
        f"{table} {row['event_date']}"
        for table in ("predictions", "audit")
        for row in table_rows(settings, spec, table)
        if entity in (row["entity_id"], row.get("customer"))
    ]
    for day, archived in archived_dates(store).items():
        if (
            archived.state == "archived"
            and entity in cold_rows(store, archived, "", "~")["entity_id"].to_pylist()
        ):
            found.append(f"cold {day}")
    return found


def test_an_entity_leaves_every_tier_and_its_run_still_verifies(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    settings = store_settings
    entity = one_subject(settings, toy)
    store = open_store(settings, prefix=toy.prefix)
    retain(settings, toy, as_of=AS_OF, warm_days=2)
    before = {table: table_rows(settings, toy, table) for table in ("predictions", "audit")}
    assert holds_entity(store, settings, toy, entity)
    done = erased(settings, toy, entity)
    assert (done.state, done.erased_dates) == ("erased", tuple(date(2024, 3, i) for i in (1, 2, 3)))
    assert (done.warm_rows, done.cold_rows, done.prediction_rows) == (2, 1, 3)
    assert holds_entity(store, settings, toy, entity) == []
    for table, rows in before.items():
        score = "score" if table == "predictions" else "prediction"
        after = table_rows(settings, toy, table)
        assert [row["prediction_id"] for row in after] == [row["prediction_id"] for row in rows]
        assert [row for row in after if row["entity_id"] is not None] == [
            row for row in rows if row["entity_id"] != entity
        ]
        for row in after:
            if row["entity_id"] is None:
                assert row[score] is None and row["run_id"] and row["model_version"] == 1
    run_id = before["predictions"][0]["run_id"]
    found = verify(settings, toy, run_id)
    assert found.ok, found.problems
    assert publish(settings, toy, run_id).already_published


def test_a_look_up_of_an_erased_prediction_says_so_and_windows_go_on(
    settings: Settings, toy: PipelineSpec
) -> None:
    entity = one_subject(settings, toy)
    retain(settings, toy, as_of=AS_OF, warm_days=2)
    ids = [row["prediction_id"] for row in table_rows(settings, toy) if row["entity_id"] == entity]
    done = erased(settings, toy, entity)
    for identifier, tier in zip(ids, ("cold", "warm", "warm"), strict=True):
        found = by_prediction(settings, toy, identifier)
        assert (found.erasure_id, found.tier, found.prediction_id) == (done.erasure_id, tier, identifier)
        assert (found.entity_id, found.prediction, found.attributions, found.features) == (
            None,
            None,
            None,
            {},
        )
        assert (found.source_key, found.source_row, found.model_version) == (None, None, 1)
    page = by_window(settings, toy, START, START + timedelta(days=3), limit=500)
    assert len(page.records) == 360
    assert sum(record.erasure_id is not None for record in page.records) == 3


def test_erasing_again_does_nothing_and_the_record_holds_no_key(
    settings: Settings, toy: PipelineSpec
) -> None:
    entity = one_subject(settings, toy)
    erased(settings, toy, entity)
    store = open_store(settings, prefix=toy.prefix)
    before = {info.key: store.get(info.key) for info in store.list()}
    again = erased(settings, toy, entity)
    assert (again.state, again.erased_dates, again.replaced_files) == ("erased", (), 0)
    assert {info.key: store.get(info.key) for info in store.list()} == before
    [(request, [outcome])] = erasures(store)
    assert (request.actor, request.reason, request.audit_rows, request.prediction_rows) == (
        "ada",
        "case 12",
        3,
        3,
    )
    assert (outcome.audit_rows, outcome.prediction_rows, outcome.deferred_dates) == (3, 3, ())
    records = [data for key, data in before.items() if key.startswith("audit/erasures/")]
    assert records and not any(entity.encode() in data for data in records)


def test_a_dry_run_says_what_would_go_and_changes_nothing(settings: Settings, toy: PipelineSpec) -> None:
    entity = one_subject(settings, toy)
    retain(settings, toy, as_of=AS_OF, warm_days=2)
    store = open_store(settings, prefix=toy.prefix)
    before = {info.key for info in store.list()}
    told = erased(settings, toy, entity, dry_run=True)
    assert {info.key for info in store.list()} == before
    done = erased(settings, toy, entity)
    same = ("erased_dates", "warm_rows", "cold_rows", "prediction_rows", "replaced_files", "replaced_bytes")
    assert [getattr(told, name) for name in same] == [getattr(done, name) for name in same]
    assert told.state == "dry run"


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_point_is_finished_by_the_next_call(
    settings: Settings, toy: PipelineSpec, point: str
) -> None:
    entity = one_subject(settings, toy)
    retain(settings, toy, as_of=AS_OF, warm_days=2)
    store = open_store(settings, prefix=toy.prefix)

    def die(name: str) -> None:
        if name == point:
            raise Killed

    observe(die)
    try:
        with pytest.raises(Killed):
            erased(settings, toy, entity)
    finally:
        observe(None)
    assert len(table_rows(settings, toy)) == 360
    erased(settings, toy, entity)
    assert holds_entity(store, settings, toy, entity) == []
    assert len(table_rows(settings, toy)) == 360
    assert len(table_rows(settings, toy, "audit")) == 240
    [(_, outcomes)] = erasures(store)
    assert [(one.audit_rows, one.prediction_rows) for one in outcomes] == [(3, 3)]
    run_id = table_rows(settings, toy)[0]["run_id"]
    assert verify(settings, toy, run_id).ok


def test_a_crash_is_finished_by_retention_too_which_does_not_know_the_entity(
    settings: Settings, toy: PipelineSpec
) -> None:
    entity = one_subject(settings, toy)
    store = open_store(settings, prefix=toy.prefix)

    def die(name: str) -> None:
        if name == "after-erasure-request":
            raise Killed

    observe(die)
    try:
        with pytest.raises(Killed):
            erased(settings, toy, entity)
    finally:
        observe(None)
    assert complete_erasures(settings, toy, ErasingTables(store)) == (erasures(store)[0][0].erasure_id,)
    assert holds_entity(store, settings, toy, entity) == []
    assert complete_erasures(settings, toy, ErasingTables(store)) == ()


def test_held_dates_are_left_alone_until_the_hold_is_released(settings: Settings, toy: PipelineSpec) -> None:
    entity = one_subject(settings, toy)
    retain(settings, toy, as_of=AS_OF, warm_days=2)
    store = open_store(settings, prefix=toy.prefix)
    tables = ErasingTables(store)
    first, second = date(2024, 3, 1), date(2024, 3, 2)
    held = place_hold(store, first_day=first, last_day=second, reason="trial", actor="bob")
    done = erased(settings, toy, entity)
    assert (done.state, done.deferred_dates) == ("deferred", (first, second))
    assert holds_entity(store, settings, toy, entity) == [
        "predictions 2024-03-01",
        "predictions 2024-03-02",
        "audit 2024-03-02",
        "cold 2024-03-01",
    ]
    assert complete_erasures(settings, toy, tables) == ()
    release_hold(store, held.hold_id, reason="over", actor="bob")
    assert complete_erasures(settings, toy, tables) == (done.erasure_id,)
    assert holds_entity(store, settings, toy, entity) == []
    [(_, outcomes)] = erasures(store)
    assert [one.deferred_dates for one in outcomes] == [(first, second), ()]
    assert outcomes[-1].actor == "retention"
    assert verify(settings, toy, table_rows(settings, toy)[0]["run_id"]).ok


def test_erased_files_merge_move_expire_and_are_superseded_like_others(
    settings: Settings, toy: PipelineSpec
) -> None:
    entity = one_subject(settings, toy)
    run_id = table_rows(settings, toy)[0]["run_id"]
    optimize(settings, toy)
    erased(settings, toy, entity)
    optimize(settings, toy)
    assert verify(settings, toy, run_id).ok
    store = open_store(settings, prefix=toy.prefix)
    retain(settings, toy, as_of=date(2024, 3, 5), warm_days=1)
    assert holds_entity(store, settings, toy, entity) == []
    assert sum(item.rows for item in archived_dates(store).values()) == 360
    assert verify(settings, toy, run_id).ok
    publish_days(settings, toy, days=3, version=2)
    found = verify(settings, toy, run_id)
    assert found.ok and found.superseded_by, found.problems
    publish(settings, toy, run_id, replace_newer=True)
    assert holds_entity(store, settings, toy, entity) == []


def test_a_date_that_is_archived_meanwhile_does_not_keep_the_entity(
    settings: Settings, toy: PipelineSpec
) -> None:
    entity = one_subject(settings, toy)
    store = open_store(settings, prefix=toy.prefix)

    def interfere(name: str) -> None:
        if name == "after-archive-record":  # the archive has the rows, the table has them still
            observe(None)
            erased(settings, toy, entity)

    observe(interfere)
    try:
        retain(settings, toy, as_of=AS_OF, warm_days=1)
    finally:
        observe(None)
    retain(settings, toy, as_of=AS_OF, warm_days=1)
    assert holds_entity(store, settings, toy, entity) == []
    assert sum(item.rows for item in archived_dates(store).values()) == 240


def test_a_table_that_knows_no_erasures_yet_gets_their_column(settings: Settings, toy: PipelineSpec) -> None:
    snapshot = scoring_snapshot(settings, toy, days=1)
    run_id = plan_stub(settings, toy, snapshot).run_id
    run_stub(settings, toy, run_id, audit_table="audit_support:older_audit_table")
    publish(settings, toy, run_id)
    assert "erasure_id" not in table_rows(settings, toy, "audit")[0]
    done = erased(settings, toy, entity_of(settings, toy, 0))
    marks = [row["erasure_id"] for row in table_rows(settings, toy, "audit")]
    assert (marks.count(done.erasure_id), marks.count(None)) == (1, 119)
    assert verify(settings, toy, run_id).ok


def test_now_deletes_the_replaced_files_and_the_rest_is_named(settings: Settings, toy: PipelineSpec) -> None:
    entity = one_subject(settings, toy)
    run_id = table_rows(settings, toy)[0]["run_id"]
    store = open_store(settings, prefix=toy.prefix)
    later = erased(settings, toy, entity)
    assert len(later.waiting_keys) == 6 and later.deleted_keys == ()
    assert all(store.exists(key) for key in later.waiting_keys)
    assert len([key for key in later.unreached_keys if key.startswith("data/")]) == 3
    done = erased(settings, toy, entity, now=True)
    assert (set(done.deleted_keys), done.waiting_keys) == (set(later.waiting_keys), ())
    for info in store.list("tables"):
        if info.key.endswith(".parquet") and "_delta_log" not in info.key:
            with store.open(info.key) as raw:
                assert entity not in pq.read_table(raw, columns=["entity_id"])["entity_id"].to_pylist()
    assert verify(settings, toy, run_id).ok


def test_an_unknown_entity_leaves_no_record_and_blank_words_are_refused(
    settings: Settings, toy: PipelineSpec
) -> None:
    publish_days(settings, toy, days=1)
    assert erased(settings, toy, "nobody").state == "nothing found"
    assert erasures(open_store(settings, prefix=toy.prefix)) == []
    with pytest.raises(ConfigError, match="empty"):
        erased(settings, toy, " ")


def test_rows_scored_after_an_erasure_are_taken_by_a_repeated_call(
    settings: Settings, toy: PipelineSpec
) -> None:
    publish_days(settings, toy, days=1)
    entity = entity_of(settings, toy, 0)
    erased(settings, toy, entity)
    _, second = publish_days(settings, toy, days=1, version=2)
    store = open_store(settings, prefix=toy.prefix)
    assert holds_entity(store, settings, toy, entity), "the source still has it, so scoring brings it back"
    again = erased(settings, toy, entity)
    assert (again.warm_rows, again.prediction_rows) == (1, 1)
    assert holds_entity(store, settings, toy, entity) == []
    assert verify(settings, toy, second).ok
    [(_, outcomes)] = erasures(store)
    assert [one.audit_rows for one in outcomes] == [1, 2]


def test_the_monitor_measures_what_is_left(settings: Settings, toy: PipelineSpec) -> None:
    run_id = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1)).run_id
    run_stub(settings, toy, run_id)
    wiring.publish_run(settings, "toy", run_id=run_id)
    window = {"first_day": "2024-03-01", "last_day": "2024-03-01", "as_of": "2024-03-10"}
    before = wiring.join_labels(settings, "toy", **window)
    erased(settings, toy, entity_of(settings, toy, 0))
    after = wiring.join_labels(settings, "toy", **window)
    assert after["days_labelled"] == before["days_labelled"] == 1
    assert after["rows_labelled"] == before["rows_labelled"] - 1
    store = open_store(settings, prefix=toy.prefix)
    [measured] = [
        json.loads(store.get(info.key)) for info in store.list("monitoring") if "performance" in info.key
    ]
    assert measured["scored_rows"] == 119


def test_erasures_retention_and_merging_at_once_leave_each_row_once(
    settings: Settings, toy: PipelineSpec
) -> None:
    entity = one_subject(settings, toy)
    run_id = table_rows(settings, toy)[0]["run_id"]
    store = open_store(settings, prefix=toy.prefix)
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(erased, settings, toy, entity),
            pool.submit(optimize, settings, toy),
            pool.submit(retain, settings, toy, as_of=AS_OF, warm_days=1),
            pool.submit(erased, settings, toy, entity),
        ]
        for call in calls:
            call.result()
    erased(settings, toy, entity)
    retain(settings, toy, as_of=AS_OF, warm_days=1)
    assert holds_entity(store, settings, toy, entity) == []
    assert len(table_rows(settings, toy)) == 360
    kept = sum(item.rows for item in archived_dates(store).values())
    assert (kept, len(table_rows(settings, toy, "audit"))) == (240, 120)
    found = verify(settings, toy, run_id)
    assert found.ok, found.problems

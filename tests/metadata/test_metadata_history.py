"""History is append-only in the database itself, whatever program connects to it."""

from __future__ import annotations

from datetime import date

import pytest
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from tasks.core import Finding, Settings, Verdict, utc_now
from tasks.metadata import CanaryStep, MetadataStore, ModelVersion, NewMetric, Scope, schema
from tasks.metadata.deployments import NewEvent

TOY = Scope("toy")
HISTORY = [
    "penstock_deployment_events",
    "penstock_model_versions",
    "penstock_trainings",
    "penstock_verdicts",
    "penstock_decisions",
    "penstock_audit_actions",
    "penstock_metrics",
    "penstock_canary_steps",
]


def fill(store: MetadataStore) -> None:
    """One row in each table of history, by the calls that the steps make."""
    event = NewEvent("promote", 1, "b" * 64, "1", None, "tests", "because")
    store.append_events(TOY, lambda _: [event])
    store.record_model_version(
        TOY, ModelVersion(1, "b" * 64, "1", "s", "t", "toy", None, None, "http://x", utc_now())
    )
    trained = dict.fromkeys(("training_id", "bundle_digest", "snapshot_id", "feature_version"), "x")
    store.record_training(TOY, trained)
    finding = Finding("rows", "pass", "enough", 1.0, 2.0)
    store.record_verdict(
        TOY, Verdict("data", "toy", "s", "pass", (finding,), "2024-03-01T12:00:00.000Z", "e.json", "r.html")
    )
    store.record_decision(TOY, action="nothing", verdict="healthy", reasons=["quiet"])
    store.record_audit_action(TOY, kind="archived", day=date(2024, 3, 1), rows=9, key="a.parquet")
    store.record_metrics(TOY, [NewMetric("auc", 1, date(2024, 3, 1), 0.7, "evaluation", "e.json")])
    store.record_canary_step(TOY, CanaryStep(2, 2, 1, 0.01, "hold", ("early",), {"rows": 7}))


@pytest.mark.parametrize(
    "statement",
    ["UPDATE {} SET pipeline = 'other'", "UPDATE {} SET tenant = tenant", "DELETE FROM {}"],
)
def test_a_row_of_history_is_neither_changed_nor_deleted(settings: Settings, statement: str) -> None:
    fill(MetadataStore.open(settings))
    engine = create_engine(settings.metadata_url)
    for table in HISTORY:
        before = _rows(settings, table)
        with (
            pytest.raises(IntegrityError, match=rf"{table} is append-only"),
            engine.begin() as connection,
        ):
            connection.execute(text(statement.format(table)))
        assert len(before) == 1 and _rows(settings, table) == before


def test_postgresql_refuses_to_truncate_history(settings: Settings) -> None:
    if settings.metadata_url.startswith("sqlite"):
        pytest.skip("SQLite has no TRUNCATE; this runs on PostgreSQL")
    fill(MetadataStore.open(settings))
    for table in HISTORY:
        with (
            pytest.raises(IntegrityError, match="truncate is refused"),
            create_engine(settings.metadata_url).begin() as connection,
        ):
            connection.execute(text(f"TRUNCATE {table}"))
        assert len(_rows(settings, table)) == 1


def test_replacing_a_row_is_no_way_around_on_a_connection_of_the_store(sqlite_settings: Settings) -> None:
    store = MetadataStore.open(sqlite_settings)
    fill(store)
    for table in HISTORY:
        with (
            pytest.raises(IntegrityError, match="delete is refused"),
            store._database.write() as connection,
        ):
            connection.execute(text(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"))


def test_a_repeated_write_is_still_found_done_and_not_refused(store: MetadataStore) -> None:
    fill(store)
    again = {"kind": "archived", "day": date(2024, 3, 1), "rows": 9, "key": "a.parquet"}
    assert store.record_audit_action(TOY, **again) is False  # type: ignore[arg-type]
    assert store.record_decision(TOY, action="nothing", verdict="healthy", reasons=["quiet"]) is False


@pytest.mark.parametrize("opened", [False])
def test_a_database_of_the_first_schema_keeps_its_rows_and_becomes_append_only(settings: Settings) -> None:
    engine = create_engine(settings.metadata_url)
    if settings.metadata_url.startswith("sqlite"):
        settings.home.mkdir(parents=True, exist_ok=True)
    scripts = ScriptDirectory(str(schema.MIGRATIONS))
    with (
        engine.begin() as connection,
        EnvironmentContext(
            Config(), scripts, fn=lambda rev, _: scripts._upgrade_revs("0001", rev)
        ) as context,
    ):
        context.configure(connection=connection, version_table=schema.VERSION_TABLE)
        context.run_migrations()
        connection.execute(
            text(
                "INSERT INTO penstock_deployment_events VALUES ('default', 'toy', 1, 'promote', true, 7, 'b', '1', "
                "NULL, NULL, 'ada', 'first', '2024-03-01T12:00:00.000000+00:00')"
            )
        )
    live = MetadataStore.open(settings).live(TOY)
    assert live is not None and (live.version, live.actor) == (7, "ada")
    with pytest.raises(IntegrityError, match="append-only"), engine.begin() as connection:
        connection.execute(text("DELETE FROM penstock_deployment_events"))


def _rows(settings: Settings, table: str) -> list[tuple[object, ...]]:
    with create_engine(settings.metadata_url).connect() as connection:
        return [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}"))]

"""Opening: migrations, races, and databases that do not answer."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import threading
from pathlib import Path

import pytest
import services
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from children import killed
from fresh_imports import imported_by
from metadata_support import dies_once_migrated, opened_at_once
from sqlalchemy import create_engine, inspect, text

from tasks.core import Settings
from tasks.core.errors import CommitOutcomeUnknown, ConfigError, ServiceUnavailable
from tasks.metadata import MetadataStore, Scope, schema
from tasks.metadata.tables import metadata

TOY = Scope("toy")


@pytest.fixture
def opened() -> bool:
    return False


def test_the_migrations_lead_to_exactly_the_tables_that_the_code_uses(settings: Settings) -> None:
    MetadataStore.open(settings)
    with create_engine(settings.metadata_url).connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": schema.VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, metadata) == []


def test_the_quick_check_knows_the_newest_migration() -> None:
    assert ScriptDirectory(str(schema.MIGRATIONS)).get_current_head() == schema.HEAD


def test_every_table_starts_with_its_tenant_and_shares_no_name_with_mlflow() -> None:
    for table in metadata.tables.values():
        assert table.name.startswith("penstock_")
        assert {"tenant", "pipeline"} <= set(table.columns.keys())


def test_many_processes_may_open_an_empty_database_at_once(settings: Settings) -> None:
    assert opened_at_once(settings, 12) == ["ok"] * 12


def test_opening_a_current_database_does_not_import_alembic(settings: Settings) -> None:
    MetadataStore.open(settings)
    code = (
        "from tasks.core import Settings; from tasks.metadata import MetadataStore;"
        "MetadataStore.open(Settings.from_environment())"
    )
    env = {"PATH": os.environ["PATH"], **settings.as_environment()}
    assert imported_by(code, "alembic", env=env) == []


def test_the_door_does_not_import_sqlalchemy() -> None:
    assert imported_by("import tasks.metadata, tasks.registry", "sqlalchemy", "httpx") == []


def test_a_process_killed_while_it_migrates_leaves_an_empty_database_that_opens(settings: Settings) -> None:
    killed(lambda: dies_once_migrated(settings))
    with create_engine(settings.metadata_url).connect() as connection:
        assert inspect(connection).get_table_names() == []
    assert MetadataStore.open(settings).head(TOY).event_id == 0


def test_a_database_of_a_newer_release_is_refused(settings: Settings) -> None:
    MetadataStore.open(settings)
    with create_engine(settings.metadata_url).begin() as connection:
        connection.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="9999") as caught:
        MetadataStore.open(settings)
    assert "newer release" in caught.value.fix


def test_a_database_of_another_encoding_is_refused_and_left_empty(
    postgres_url: str,
    sqlite_settings: Settings,
) -> None:
    with create_engine(postgres_url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS ascii"))
        connection.execute(text("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'"))
    settings = dataclasses.replace(
        sqlite_settings, metadata_url=postgres_url.removesuffix("/postgres") + "/ascii"
    )
    with pytest.raises(ConfigError, match="has the encoding SQL_ASCII") as caught:
        MetadataStore.open(settings)
    assert "CREATE DATABASE ascii TEMPLATE template0 ENCODING 'UTF8'" in caught.value.fix
    with create_engine(settings.metadata_url, connect_args={"client_encoding": "utf8"}).connect() as there:
        assert inspect(there).get_table_names() == []


def test_sqlite_is_in_wal_mode_and_syncs_fully(sqlite_settings: Settings) -> None:
    store = MetadataStore.open(sqlite_settings)
    with store._database.read() as connection:
        said = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        ]
    assert said == ["wal", 2]


def test_a_locked_sqlite_database_is_a_transient_error_and_reading_goes_on(sqlite_settings: Settings) -> None:
    MetadataStore.open(sqlite_settings)
    store = MetadataStore.open(sqlite_settings, patience_s=0.2)
    other = sqlite3.connect(sqlite_settings.home / "metadata.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(ServiceUnavailable, match="locked"):
            store.record_link(TOY, dag_id="d", dag_run_id="r", task_id="t", kind="k")
        assert store.head(TOY).event_id == 0
    finally:
        other.close()
    store.record_link(TOY, dag_id="d", dag_run_id="r", task_id="t", kind="k")


def test_an_unreachable_server_is_a_transient_error_that_hides_the_password(settings: Settings) -> None:
    url = f"postgresql://user:s3cr3t@127.0.0.1:{services.free_port()}/name?sslpassword=t0ps3cr3t"
    with pytest.raises(ServiceUnavailable) as caught:
        MetadataStore.open(dataclasses.replace(settings, metadata_url=url), patience_s=1)
    shown = str(caught.value)
    assert "127.0.0.1" in shown and "s3cr3t" not in shown


@pytest.mark.parametrize(
    "url", ["not a url", "sqlite://", "sqlite:///:memory:", "mysql://u:s3cr3t@h/d", "postgres://u:s3cr3t@h/d"]
)
def test_a_url_that_cannot_be_used_is_a_configuration_error(sqlite_settings: Settings, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MetadataStore.open(dataclasses.replace(sqlite_settings, metadata_url=url))
    assert "PENSTOCK_METADATA_URL" in str(caught.value) and "s3cr3t" not in str(caught.value)


def test_a_file_that_is_not_a_database_is_named(tmp_path: Path, sqlite_settings: Settings) -> None:
    (tmp_path / "notes.txt").write_text("these are notes, and long enough to be read as a header " * 4)
    url = f"sqlite:///{tmp_path / 'notes.txt'}"
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        MetadataStore.open(dataclasses.replace(sqlite_settings, metadata_url=url))


def test_a_connection_lost_during_a_commit_leaves_the_outcome_unknown(
    sqlite_settings: Settings, postgres_url: str
) -> None:
    url = services.new_postgres_database(postgres_url)
    store = MetadataStore.open(dataclasses.replace(sqlite_settings, metadata_url=url))
    with pytest.raises(CommitOutcomeUnknown), store._database.write() as connection:
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar()
        with create_engine(url).begin() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": backend})
    with pytest.raises(ServiceUnavailable), store._database.write() as connection:
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar()
        with create_engine(url).begin() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": backend})
        connection.execute(text("SELECT 1"))


def test_threads_share_a_store(store: MetadataStore) -> None:
    def write(number: int) -> None:
        store.record_link(TOY, dag_id="d", dag_run_id="r", task_id=f"t{number}", kind="k")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.links(TOY, dag_id="d", dag_run_id="r")) == 16

"""A database of any earlier release, with rows in it, becomes one of this release; nothing in it changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from children import killed
from database_fixtures import put_sqlite_file
from metadata_support import OTHER, TOY, dies_once_migrated, event, opened_at_once, populated_file, verdict
from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    Table,
    and_,
    create_engine,
    insert,
    inspect,
    select,
    text,
)

from tasks.core import Settings
from tasks.metadata import MetadataStore, schema
from tasks.metadata.checking import check_metadata
from tasks.metadata.snapshot import snapshot_metadata
from tasks.metadata.tables import metadata
from tasks.recovery import back_up, restore

SCRIPTS = ScriptDirectory(str(schema.MIGRATIONS))
REVISIONS = sorted(script.revision for script in SCRIPTS.walk_revisions())
LEASES, REQUESTS = "penstock_leases", "penstock_lease_requests"
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def opened() -> bool:
    return False


def test_the_revisions_are_one_line_and_the_newest_is_the_one_that_the_code_expects() -> None:
    assert [f"{number:04d}" for number in range(1, len(REVISIONS) + 1)] == REVISIONS
    assert REVISIONS[-1] == schema.HEAD


def an_older(settings: Settings, revision: str, tmp_path: Path) -> Rows:
    """Make the database as the release of `revision` had it, with all rows that such a one could hold; returns them."""
    source = dataclasses.replace(settings, metadata_url=f"sqlite:///{tmp_path}/now.db")
    put_sqlite_file(source, populated_file())
    settings.home.mkdir(parents=True, exist_ok=True)
    with create_engine(settings.metadata_url).begin() as connection:
        run = EnvironmentContext(Config(), SCRIPTS, fn=lambda rev, _: SCRIPTS._upgrade_revs(revision, rev))
        with run as context:
            context.configure(
                connection=connection, version_table=schema.VERSION_TABLE, transactional_ddl=True
            )
            context.run_migrations()
    there = MetaData()
    with create_engine(settings.metadata_url).connect() as connection:
        there.reflect(connection)
    with (
        create_engine(source.metadata_url).connect() as reading,
        create_engine(settings.metadata_url).begin() as writing,
    ):
        for name in sorted(set(there.tables) & set(metadata.tables)):
            table = as_it_was(name, there.tables[name])
            columns = [column for column in metadata.tables[name].c if column.name in table.c]
            rows = [dict(row) for row in reading.execute(select(*columns)).mappings()]
            if name == LEASES and "reason" in table.c:
                rows = [said(reading, row, table) for row in rows]
            writing.execute(insert(table), rows)
            if "id" in there.tables[name].c and writing.dialect.name == "postgresql":
                counter = text(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), max(id)) FROM {name}")
                writing.execute(counter)
    found = rows_of(settings.metadata_url, there)
    assert all(found[name] for name in set(found) - {schema.VERSION_TABLE})
    return found


def as_it_was(name: str, there: Table) -> Table:
    """The older table, with the types of the columns as they are now."""
    types = {column.name: column.type for column in metadata.tables[REQUESTS].c} if name == LEASES else {}
    types |= {column.name: column.type for column in metadata.tables[name].c}
    return Table(name, MetaData(), *(Column(column.name, types[column.name]) for column in there.c))


def said(reading: Connection, row: dict[str, Any], table: Table) -> dict[str, Any]:
    """A lease of the releases in which it held what its run says of itself; for the clock's row nothing of it."""
    requests = metadata.tables[REQUESTS]
    same = (requests.c[name] == row[name] for name in ("tenant", "pipeline", "run_id"))
    found = reading.execute(select(requests).where(*same)).mappings().first()
    texts = dict.fromkeys(("kind", "reason"), "")
    request = found or dict.fromkeys((column.name for column in requests.c), 0) | texts
    return row | {column.name: request[column.name] for column in table.c if column.name not in row}


def rows_of(url: str, tables: MetaData) -> Rows:
    """All rows of these tables with these columns; of the leases with what has moved into a table of its own since."""
    found: Rows = {}
    with create_engine(url).connect() as connection:
        for name, table in tables.tables.items():
            if name == schema.VERSION_TABLE:
                continue
            query = select(as_it_was(name, table) if name == LEASES else table)
            if name == LEASES and inspect(connection).has_table(REQUESTS) and "reason" in table.c:
                leases, requests = metadata.tables[LEASES], metadata.tables[REQUESTS]
                same = [leases.c[name] == requests.c[name] for name in ("tenant", "pipeline", "run_id")]
                there = [leases.c.get(column.name, requests.c.get(column.name)) for column in table.c]
                query = select(*there).select_from(leases.join(requests, and_(*same)))
            rows = [dict(row) for row in connection.execute(query).mappings()]
            if name == LEASES:
                rows = [row for row in rows if row["tenant"] != "*"]
            found[name] = sorted(rows, key=repr)
    return found


def reflected(url: str) -> MetaData:
    there = MetaData()
    with create_engine(url).connect() as connection:
        there.reflect(connection)
    return there


@pytest.fixture(params=REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_a_database_of_every_release_is_upgraded_with_its_rows(
    settings: Settings, revision: str, tmp_path: Path
) -> None:
    before = an_older(settings, revision, tmp_path)
    old = reflected(settings.metadata_url)
    store = MetadataStore.open(settings)
    assert rows_of(settings.metadata_url, old) == before
    assert check_metadata(settings.metadata_url).problems == ()
    with create_engine(settings.metadata_url).connect() as connection:
        options = {"version_table": schema.VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []

    for of in (TOY, OTHER):
        live = store.live(of)
        assert live is not None and (live.kind, live.version) == ("rollback", 1)
        assert store.head(of).barred == {2}
        assert [one.version for one in store.model_versions(of)] == [2, 1]
        assert store.published_days(of) and store.decisions(of) and store.trainings(of)
        head = store.head(of).event_id
        assert store.append_events(of, lambda _: [event(2, "unbar")])[0].event_id == head + 1
        assert store.record_verdict(of, verdict("later", of.name))
        assert store.record_decision(of, action="retrain", verdict="damage", reasons=["auc"])
    assert check_metadata(settings.metadata_url).problems == ()


def test_an_upgrade_that_is_killed_leaves_the_older_database_as_it_was(
    settings: Settings, tmp_path: Path
) -> None:
    before = an_older(settings, REVISIONS[1], tmp_path)
    old = reflected(settings.metadata_url)

    killed(lambda: dies_once_migrated(settings))
    assert set(reflected(settings.metadata_url).tables) == set(old.tables)
    assert rows_of(settings.metadata_url, old) == before
    MetadataStore.open(settings)
    assert rows_of(settings.metadata_url, old) == before


def test_processes_that_open_an_older_database_at_once_upgrade_it_once(
    settings: Settings, tmp_path: Path
) -> None:
    before = an_older(settings, REVISIONS[0], tmp_path)
    old = reflected(settings.metadata_url)
    assert opened_at_once(settings, 6) == ["ok"] * 6
    assert rows_of(settings.metadata_url, old) == before
    assert check_metadata(settings.metadata_url).problems == ()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Settings]:
    yield Settings.at_home(tmp_path / "old")


def test_a_backup_that_an_earlier_release_could_have_made_is_upgraded_when_it_is_restored(
    files: Settings, settings: Settings, revision: str, tmp_path: Path
) -> None:
    """The file of the older schema is left as it is, also by the backup: SQLite is copied whatever its schema."""
    before = an_older(files, revision, tmp_path)
    old = reflected(files.metadata_url)
    made = back_up(files, str(tmp_path / "backups"))
    assert made.schema == revision
    with create_engine(files.metadata_url).connect() as connection:
        assert (
            connection.execute(text(f"SELECT version_num FROM {schema.VERSION_TABLE}")).scalar() == revision
        )
    other = dataclasses.replace(settings, store_url=str(tmp_path / "restored"))
    restore(other, str(tmp_path / "backups"))
    assert {name: len(rows) for name, rows in rows_of(other.metadata_url, old).items()} == {
        name: len(rows) for name, rows in before.items()
    }
    assert check_metadata(other.metadata_url).problems == ()
    assert [one.reason for one in MetadataStore.open(other).history(TOY)][-1] == "müde, “quoted”, 東京"


def test_a_snapshot_says_which_schema_it_has(files: Settings, tmp_path: Path) -> None:
    an_older(files, REVISIONS[2], tmp_path)
    assert snapshot_metadata(files.metadata_url, tmp_path / "copy.db") == REVISIONS[2]

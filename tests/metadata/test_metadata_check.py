"""`check` calls a whole database whole, and names each kind of damage."""

from __future__ import annotations

import pytest
from metadata_support import open_filled, populate
from sqlalchemy import create_engine, text

from tasks.core import Settings
from tasks.core.errors import NotFound
from tasks.metadata import MetadataStore
from tasks.metadata.checking import check_metadata
from tasks.metadata.copying import copy_metadata

LOG, VERSIONS = "penstock_deployment_events", "penstock_model_versions"
MINE = "tenant = 'default' AND pipeline = 'toy'"
DAMAGE = {
    "a lost event": (LOG, f"DELETE FROM {LOG} WHERE event_id = 2 AND {MINE}", "without a gap"),
    "a lost first event": (LOG, f"DELETE FROM {LOG} WHERE event_id = 1 AND {MINE}", "without a gap"),
    "a clock set back": (
        LOG,
        f"UPDATE {LOG} SET at_utc = '2001-01-01T00:00:00.000000+00:00' WHERE event_id = 3 AND {MINE}",
        "time runs backwards in the log of toy, at event 3",
    ),
    "a version put in by hand": (
        LOG,
        f"UPDATE {LOG} SET version = 2 WHERE event_id = 1 AND {MINE}",
        "toy, event 2 says that another version was live before it",
    ),
    "another bundle under a version's number": (
        LOG,
        f"UPDATE {LOG} SET bundle_digest = 'f00' WHERE event_id = 2 AND {MINE}",
        "toy, event 2 made a version live that is not registered with its bundle",
    ),
    "a lost version": (VERSIONS, f"DELETE FROM {VERSIONS} WHERE version = 2 AND {MINE}", "toy, event 2 made"),
    "a lost publication": (None, "DELETE FROM penstock_publications", "toy, day 2024-03-01 belongs to a run"),
    "a foreign table": (None, "CREATE TABLE penstock_budgets (tenant VARCHAR)", "penstock_budgets"),
}


def damage(settings: Settings, table: str | None, statement: str) -> None:
    """Do it as somebody would who means to: the triggers are taken away and put back."""
    with create_engine(settings.metadata_url).begin() as connection:
        if table is None:
            connection.execute(text(statement))
        elif settings.metadata_url.startswith("sqlite"):
            found = "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :table"
            triggers = connection.execute(text(found), {"table": table}).scalars().all()
            for verb in ("update", "delete"):
                connection.execute(text(f"DROP TRIGGER {table}_no_{verb}"))
            connection.execute(text(statement))
            for trigger in triggers:
                connection.exec_driver_sql(trigger)
        else:
            connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
            connection.execute(text(statement))
            connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER USER"))


def test_a_database_as_the_steps_write_it_has_no_problem(settings: Settings) -> None:
    populate(MetadataStore.open(settings))
    found = check_metadata(settings.metadata_url)
    assert (found.problems, found.rows) == ((), sum(table.rows for table in found.tables))
    assert all(table.rows > 0 for table in found.tables)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(settings: Settings, kind: str) -> None:
    open_filled(settings)
    table, statement, said = DAMAGE[kind]
    damage(settings, table, statement)
    problems = check_metadata(settings.metadata_url).problems
    assert any(said in problem for problem in problems), problems


def test_a_table_whose_history_is_not_kept_any_more_is_named(settings: Settings) -> None:
    MetadataStore.open(settings)
    with create_engine(settings.metadata_url).begin() as connection:
        if settings.metadata_url.startswith("sqlite"):
            connection.execute(text(f"DROP TRIGGER {LOG}_no_delete"))
        else:
            connection.execute(text(f"ALTER TABLE {LOG} DISABLE TRIGGER {LOG}_no_change"))
    [problem] = check_metadata(settings.metadata_url).problems
    assert problem.startswith(f"{LOG} is not append-only")


def test_a_counter_below_its_rows_is_named(settings: Settings) -> None:
    if settings.metadata_url.startswith("sqlite"):
        pytest.skip("SQLite counts from its rows; this runs on PostgreSQL")
    open_filled(settings)
    with create_engine(settings.metadata_url).begin() as connection:
        connection.execute(text("SELECT setval('penstock_verdicts_id_seq', 2)"))
    [problem] = check_metadata(settings.metadata_url).problems
    assert problem == "the counter of penstock_verdicts.id is at 2, below its rows: 6"


def test_many_problems_of_a_kind_are_counted_and_not_all_listed(settings: Settings) -> None:
    store = MetadataStore.open(settings)
    for number in range(9):
        with store._database.write() as connection:
            connection.execute(
                text(
                    "INSERT INTO penstock_publication_days (tenant, pipeline, day, run_id, table_version) "
                    f"VALUES ('default', 'toy', '2024-03-0{number + 1}', 'gone', 1)"
                )
            )
    problems = check_metadata(settings.metadata_url).problems
    assert len(problems) == 6 and problems[-1] == "and 4 more of that kind"


def test_two_databases_that_went_apart_are_told_apart(settings: Settings, sqlite_settings: Settings) -> None:
    open_filled(settings)
    MetadataStore.open(sqlite_settings)
    problems = check_metadata(settings.metadata_url, against=sqlite_settings.metadata_url).problems
    assert any("penstock_verdicts differs: 6 rows here, 0 in sqlite:" in problem for problem in problems)


@pytest.mark.parametrize("opened", [False])
def test_a_database_without_the_schema_is_a_problem_and_stays_as_it_is(settings: Settings) -> None:
    settings.home.mkdir(parents=True, exist_ok=True)
    with create_engine(settings.metadata_url).begin() as connection:
        connection.execute(text("CREATE TABLE others (id INTEGER)"))
    [problem] = check_metadata(settings.metadata_url).problems
    assert "not there" in problem
    with create_engine(settings.metadata_url).connect() as connection:
        assert connection.dialect.has_table(connection, "penstock_verdicts") is False


def test_a_file_that_is_not_there_is_not_made_by_looking_at_it(sqlite_settings: Settings) -> None:
    with pytest.raises(NotFound, match="no such database"):
        check_metadata(sqlite_settings.metadata_url)
    with pytest.raises(NotFound, match="no such database"):
        copy_metadata(sqlite_settings.metadata_url, f"sqlite:///{sqlite_settings.home}/copy.db")
    assert not (sqlite_settings.home / "metadata.db").exists()

"""The metadata store behind PgBouncer, which gives one connection of the server's to many clients in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import psycopg
import pytest
import services
from children import at_once
from metadata_support import DAY, TOY, event, opened_at_once, populate

from tasks.core import Settings
from tasks.metadata import MetadataStore, NewMetric
from tasks.metadata.content import content_of
from tasks.metadata.database import Database
from tasks.metadata.tables import metadata

pytestmark = pytest.mark.skipif(services.pgbouncer_program() is None, reason=services.NO_PGBOUNCER)


@pytest.fixture(params=["session", "transaction"])
def direct(request: pytest.FixtureRequest, sqlite_settings: Settings, postgres_url: str) -> Settings:
    """An empty database, without the pooler."""
    return dataclasses.replace(sqlite_settings, metadata_url=services.new_postgres_database(postgres_url))


@pytest.fixture
def pooled(request: pytest.FixtureRequest, direct: Settings, tmp_path: Path) -> Iterator[Settings]:
    """The same database by way of a pooler in each mode."""
    mode = request.node.callspec.params["direct"]
    url, process = services.start_pgbouncer(direct.metadata_url, tmp_path, mode)
    yield dataclasses.replace(direct, metadata_url=url)
    services.stop(process)


def daily(first: date, days: int, source_run: str) -> list[NewMetric]:
    return [NewMetric("auc", 1, first + timedelta(days=i), 0.7, "monitor", source_run) for i in range(days)]


def test_what_is_written_through_it_is_what_is_read_beside_it(pooled: Settings, direct: Settings) -> None:
    populate(MetadataStore.open(pooled))
    for number in range(3):  # many rows by one statement, which a driver would like to prepare
        MetadataStore.open(pooled).record_metrics(TOY, daily(DAY, 20, f"run {number}"))
    with Database(pooled.metadata_url).read() as one, Database(direct.metadata_url).read() as other:
        for table in metadata.sorted_tables:
            assert content_of(one, table) == content_of(other, table)
    assert len(MetadataStore.open(direct).series(TOY, "auc", source="monitor", since=DAY)) >= 20


def test_nothing_of_a_transaction_is_left_for_the_next_client(pooled: Settings) -> None:
    store = MetadataStore.open(pooled)
    populate(store)
    with store.lease_ledger() as ledger:
        ledger.set_clock(1.0)
    with psycopg.connect(pooled.metadata_url, prepare_threshold=None) as connection:
        for setting, usual in (
            ("lock_timeout", "0"),
            ("statement_timeout", "0"),
            ("synchronous_commit", "on"),
        ):
            assert connection.execute(f"SHOW {setting}".encode()).fetchone() == (usual,)
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
        held = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
        assert held == (0,)


def test_one_decides_at_a_time(pooled: Settings) -> None:
    store = MetadataStore.open(pooled)
    with store.lease_ledger():  # makes it
        pass
    with store.lease_ledger() as ledger:
        ledger.set_clock(1.0)
        with MetadataStore.open(pooled).lease_ledger_if_free() as other:
            assert other is None
    with store.lease_ledger_if_free() as free:
        assert free is not None and free.clock_s == 1.0


def test_the_schema_is_made_once_by_processes_that_open_an_empty_database_at_once(
    pooled: Settings, direct: Settings
) -> None:
    assert opened_at_once(pooled, 4) == ["ok"] * 4
    populate(MetadataStore.open(direct))


def test_events_that_are_appended_at_once_have_numbers_without_a_gap(pooled: Settings) -> None:
    store = MetadataStore.open(pooled)

    def append(version: int) -> int:
        appended = MetadataStore.open(pooled).append_events(TOY, lambda _head: [event(version)])
        return appended[0].event_id

    found = at_once(lambda: append(1), lambda: append(2), lambda: append(3))
    assert sorted(found) == [1, 2, 3] == sorted(one.event_id for one in store.history(TOY))

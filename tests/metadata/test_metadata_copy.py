"""Copying an installation's metadata: all of it or nothing, the same on both sides, and refused when in doubt."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import services
from children import die, killed
from metadata_support import DAY, OTHER, TOY, held, open_filled, verdict
from sqlalchemy import create_engine, insert, inspect, select, text

from tasks.core import Settings, utc_now
from tasks.core.errors import CommitOutcomeUnknown, ConfigError, DataError, DigestMismatch, ServiceUnavailable
from tasks.metadata import MetadataStore, copying
from tasks.metadata.checking import check_metadata
from tasks.metadata.content import BATCH, verbatim
from tasks.metadata.copying import copy_metadata, plan_copy
from tasks.metadata.tables import dag_links, metadata


@pytest.fixture
def target(settings: Settings, tmp_path: Path, postgres_url: str) -> str:
    """URL of an empty database of the other kind than that of `settings`."""
    if settings.metadata_url.startswith("sqlite"):
        return services.new_postgres_database(postgres_url)
    return f"sqlite:///{tmp_path}/copies/target.db"


def at(url: str, settings: Settings) -> MetadataStore:
    return MetadataStore.open(dataclasses.replace(settings, metadata_url=url))


def test_every_row_arrives_and_answers_as_before(settings: Settings, target: str) -> None:
    before = open_filled(settings)
    assert set(held(settings.metadata_url).values()) & {0} == set()
    copied = copy_metadata(settings.metadata_url, target)
    assert held(target) == held(settings.metadata_url)
    assert copied.rows == sum(held(target).values())
    after = at(target, settings)
    for of in (TOY, OTHER):
        for ask in (
            lambda store, of: store.history(of),
            lambda store, of: store.head(of),
            lambda store, of: store.model_versions(of),
            lambda store, of: store.projection(of, "champion"),
            lambda store, of: store.trainings(of),
            lambda store, of: store.verdicts(of),
            lambda store, of: store.links(of, dag_id="d", dag_run_id="r"),
            lambda store, of: store.runs(of),
            lambda store, of: store.publications(of),
            lambda store, of: store.published_days(of),
            lambda store, of: store.signals(of),
            lambda store, of: store.decisions(of),
            lambda store, of: store.audit_actions(of),
            lambda store, of: store.series(of, "auc"),
        ):
            assert ask(after, of) == ask(before, of) != []


def test_there_and_back_again_is_the_same_content(settings: Settings, target: str, tmp_path: Path) -> None:
    open_filled(settings)
    there = copy_metadata(settings.metadata_url, target)
    home = copy_metadata(target, f"sqlite:///{tmp_path}/home-again.db")
    assert home.tables == there.tables
    assert check_metadata(target, against=f"sqlite:///{tmp_path}/home-again.db").problems == ()


def test_the_copy_goes_on_numbering_its_rows_after_the_copied_ones(settings: Settings, target: str) -> None:
    open_filled(settings)
    copy_metadata(settings.metadata_url, target)
    after = at(target, settings)
    assert after.record_verdict(TOY, verdict("s4"))
    assert after.record_decision(TOY, action="retrain", verdict="damage", reasons=["auc"])
    assert after.record_audit_action(TOY, kind="expired", day=DAY, rows=1, key="b")
    assert [kept.verdict.subject for kept in after.verdicts(TOY)] == ["s4", "s3", "s2", "s1"]


def test_more_rows_than_one_batch_are_copied(settings: Settings, target: str) -> None:
    store = MetadataStore.open(settings)
    row = {"tenant": "default", "pipeline": "toy", "dag_id": "d", "dag_run_id": "r", "kind": "k", "url": "",
           "summary": "{}", "map_index": 1, "recorded_at_utc": utc_now()}  # fmt: skip
    with store._database.write() as connection:
        rows = [{**row, "task_id": f"t{number}"} for number in range(2 * BATCH + 1)]
        connection.execute(insert(verbatim(dag_links)), rows)
    copy_metadata(settings.metadata_url, target)
    assert held(target)["penstock_dag_links"] == 2 * BATCH + 1


def test_a_target_that_holds_a_row_is_refused_and_left_alone(settings: Settings, target: str) -> None:
    open_filled(settings)
    at(target, settings).record_link(TOY, dag_id="d", dag_run_id="mine", task_id="t", kind="k")
    for attempt in (copy_metadata, plan_copy):
        with pytest.raises(ConfigError, match="penstock_dag_links 1"):
            attempt(settings.metadata_url, target)
    assert sum(held(target).values()) == 1


def test_a_target_of_an_older_schema_that_holds_rows_is_not_even_migrated(
    settings: Settings, target: str, tmp_path: Path
) -> None:
    MetadataStore.open(settings)
    if target.startswith("sqlite"):
        (tmp_path / "copies").mkdir()
    with create_engine(target).begin() as connection:
        connection.execute(text("CREATE TABLE penstock_trainings (tenant VARCHAR)"))
        connection.execute(text("INSERT INTO penstock_trainings VALUES ('acme')"))
    with pytest.raises(ConfigError, match="penstock_trainings 1"):
        copy_metadata(settings.metadata_url, target)
    with create_engine(target).connect() as connection:
        assert inspect(connection).get_table_names() == ["penstock_trainings"]


def test_a_database_is_not_copied_into_itself(settings: Settings) -> None:
    MetadataStore.open(settings)
    with pytest.raises(ConfigError, match="copied from"):
        copy_metadata(settings.metadata_url, settings.metadata_url)
    if settings.metadata_url.startswith("sqlite"):
        crooked = settings.metadata_url.replace("metadata.db", f"../{settings.home.name}/metadata.db")
        with pytest.raises(ConfigError, match="copied from"):
            copy_metadata(settings.metadata_url, crooked)
    else:
        other_name = settings.metadata_url.replace("127.0.0.1", "localhost")
        with pytest.raises(ServiceUnavailable, match="copied from"):
            copy_metadata(settings.metadata_url, other_name, patience_s=0.2)


def test_nobody_writes_to_the_source_while_it_is_copied_and_readers_go_on(
    settings: Settings, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_filled(settings)
    hasty = MetadataStore.open(settings, patience_s=0.2)
    seen: list[object] = []
    real = copying.in_batches

    def meanwhile(connection: Any, table: Any) -> Iterator[Sequence[Any]]:
        if table.name == "penstock_verdicts":
            with pytest.raises(ServiceUnavailable):
                hasty.record_link(TOY, dag_id="d", dag_run_id="late", task_id="t", kind="k")
            seen.append(hasty.live(TOY))
        yield from real(connection, table)

    monkeypatch.setattr(copying, "in_batches", meanwhile)
    copy_metadata(settings.metadata_url, target)
    assert len(seen) == 1 and seen[0] is not None
    hasty.record_link(TOY, dag_id="d", dag_run_id="after", task_id="t", kind="k")


@pytest.mark.parametrize("moment", ["between tables", "after comparing", "before the commit"])
def test_a_copy_that_is_killed_leaves_no_row_and_can_be_repeated(
    settings: Settings, target: str, moment: str
) -> None:
    open_filled(settings)

    def dies() -> None:
        if moment == "between tables":
            real, left = copying.copied_table, iter(range(6))
            copying.copied_table = lambda *a, **k: real(*a, **k) if next(left, None) is not None else die()
        elif moment == "after comparing":
            copying._number_on = die
        else:
            from sqlalchemy.engine.base import RootTransaction

            renumber = copying._number_on

            def then_no_commit(*arguments: Any) -> None:
                renumber(*arguments)
                RootTransaction.commit = die  # type: ignore[method-assign]

            copying._number_on = then_no_commit
        copy_metadata(settings.metadata_url, target)

    killed(dies)
    assert set(held(target).values()) == {0}
    assert copy_metadata(settings.metadata_url, target).rows == sum(held(settings.metadata_url).values())


def test_a_target_that_gives_back_something_else_keeps_nothing(settings: Settings, target: str) -> None:
    open_filled(settings)
    at(target, settings)
    with create_engine(target).begin() as connection:
        if target.startswith("sqlite"):
            connection.execute(text(
                "CREATE TRIGGER meddles AFTER INSERT ON penstock_dag_links BEGIN "
                "UPDATE penstock_dag_links SET url = 'http://elsewhere'; END"
            ))  # fmt: skip
        else:
            connection.execute(text(
                "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN NEW.url := 'http://elsewhere'; RETURN NEW; END $$"
            ))  # fmt: skip
            connection.execute(text(
                "CREATE TRIGGER meddles BEFORE INSERT ON penstock_dag_links FOR EACH ROW EXECUTE FUNCTION meddle()"
            ))  # fmt: skip
    with pytest.raises(DigestMismatch, match="penstock_dag_links"):
        copy_metadata(settings.metadata_url, target)
    assert set(held(target).values()) == {0}


@pytest.mark.parametrize("value", ["x" * 251, "nul\x00inside"])
def test_a_value_that_postgresql_cannot_hold_is_named_and_nothing_is_kept(
    sqlite_settings: Settings, postgres_url: str, value: str
) -> None:
    store = open_filled(sqlite_settings)
    store.record_link(TOY, dag_id=value, dag_run_id="r", task_id="t", kind="k")
    target = services.new_postgres_database(postgres_url)
    with pytest.raises(DataError, match="a row of penstock_dag_links") as caught:
        copy_metadata(sqlite_settings.metadata_url, target)
    assert "INSERT INTO" not in str(caught.value)
    assert set(held(target).values()) == {0}


def test_a_dry_run_counts_and_changes_nothing(settings: Settings, target: str, tmp_path: Path) -> None:
    open_filled(settings)
    planned = plan_copy(settings.metadata_url, target)
    assert planned.copied is False
    assert {table.table: table.rows for table in planned.tables} == held(settings.metadata_url)
    if target.startswith("sqlite"):
        assert not (tmp_path / "copies").exists()
    else:
        with create_engine(target).connect() as connection:
            assert inspect(connection).get_table_names() == []


def test_a_source_with_a_table_of_a_newer_release_is_refused(settings: Settings, target: str) -> None:
    MetadataStore.open(settings)
    with create_engine(settings.metadata_url).begin() as connection:
        connection.execute(text("CREATE TABLE penstock_budgets (tenant VARCHAR)"))
    for attempt in (copy_metadata, plan_copy):
        with pytest.raises(ConfigError, match="penstock_budgets"):
            attempt(settings.metadata_url, target)


def test_an_error_never_shows_a_password(sqlite_settings: Settings) -> None:
    MetadataStore.open(sqlite_settings)
    url = f"postgresql://user:s3cr3t@127.0.0.1:{services.free_port()}/name"
    with pytest.raises(ServiceUnavailable) as caught:
        copy_metadata(sqlite_settings.metadata_url, url, patience_s=1)
    assert "127.0.0.1" in str(caught.value) and "s3cr3t" not in str(caught.value)
    with pytest.raises(ConfigError, match="--to") as refused:
        copy_metadata(sqlite_settings.metadata_url, "mysql://u:s3cr3t@h/d")
    assert "s3cr3t" not in str(refused.value)


def test_a_connection_lost_during_the_commit_says_how_to_find_out(
    sqlite_settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_filled(sqlite_settings)
    target = services.new_postgres_database(postgres_url)
    real = copying._number_on

    def then_cut(connection: Any, database: Any) -> None:
        real(connection, database)
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar()
        with create_engine(target).begin() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": backend})

    monkeypatch.setattr(copying, "_number_on", then_cut)
    with pytest.raises(CommitOutcomeUnknown, match="all rows or none"):
        copy_metadata(sqlite_settings.metadata_url, target)
    monkeypatch.undo()
    assert copy_metadata(sqlite_settings.metadata_url, target).rows > 0


def test_the_digest_knows_no_order_and_sees_every_value(settings: Settings) -> None:
    store = open_filled(settings)
    with store._database.read() as connection:
        for table in metadata.sorted_tables:
            rows = connection.execute(select(verbatim(table))).all()
            forward, backward, short = (
                copying.ContentDigest(),
                copying.ContentDigest(),
                copying.ContentDigest(),
            )
            forward.add(rows)
            backward.add(rows[::-1])
            assert forward.of("t") == backward.of("t")
            for column in range(len(rows[0])):
                changed = copying.ContentDigest()
                other = [*rows[0][:column], "something else", *rows[0][column + 1 :]]
                changed.add([other, *rows[1:]])  # type: ignore[list-item]
                assert changed.of("t") != forward.of("t")
            short.add(rows[1:])
            assert short.of("t") != forward.of("t")

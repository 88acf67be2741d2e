"""A restore fills what is empty, overwrites nothing, goes on where it was, and moves between databases."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import services
from hot_support import everywhere, online_row
from inference_support import table_rows
from metadata_support import held, open_filled
from recovery_support import fill, killed_in_a_child, objects, seen

from tasks.audit.hot import HotLog, fold
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.errors import ConfigError, ServiceUnavailable
from tasks.metadata import MetadataStore, Scope, copying
from tasks.metadata.checking import check_metadata
from tasks.metadata.snapshot import snapshot_metadata
from tasks.recovery import back_up, restore
from tasks.recovery.backing_up import WORKERS

TOY = Scope("toy")
DIE_AT_THE_NTH_PUT = """
import os, signal, sys
from tasks.core import Settings
from tasks.core.object_store import LocalStore
from tasks.metadata import copying
from tasks.recovery import restore
real, puts = LocalStore.put_file, 0
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def put_file(self, key, path):
    global puts
    puts += 1
    if str(puts) == sys.argv[2]:
        die()
    real(self, key, path)
LocalStore.put_file = put_file
if sys.argv[2] == "database":
    copying._number_on = lambda *_: die()
if sys.argv[2] == "end":
    real_delete = LocalStore.delete
    LocalStore.delete = lambda self, key: die() if "restoring" in key else real_delete(self, key)
restore(Settings.from_environment(), sys.argv[1])
"""


@pytest.fixture
def backed_up(settings: Settings, toy: PipelineSpec, tmp_path: Path) -> str:
    """A place with one backup of `settings`."""
    fill(settings, toy)
    back_up(settings, str(tmp_path / "backups"))
    return str(tmp_path / "backups")


@pytest.fixture
def other(settings: Settings, tmp_path: Path) -> Settings:
    return Settings.at_home(tmp_path / "other", project=settings.project)


@pytest.mark.parametrize("moment", ["1", "5", "12", "19", "database", "end"])
def test_a_restore_that_is_killed_shows_nothing_and_goes_on(
    settings: Settings, toy: PipelineSpec, backed_up: str, other: Settings, moment: str
) -> None:
    killed_in_a_child(other, DIE_AT_THE_NTH_PUT, backed_up, moment)
    for name in ("predictions", "audit"):
        assert table_rows(other, toy, name) in ([], table_rows(settings, toy, name))
    file = other.home / "metadata.db"
    assert not file.exists() if moment.isdigit() else file.exists()
    if moment == "database":
        assert set(held(other.metadata_url).values()) == {0}
    brought = restore(other, backed_up)
    # The first few are copied at once, and none of them may be done.
    assert brought.found > 0 or (moment.isdigit() and int(moment) <= WORKERS)
    assert seen(other, toy) == seen(settings, toy)
    assert not open_store(other).exists("_restoring.json")


def test_what_is_not_empty_is_refused_and_left_alone(
    settings: Settings, toy: PipelineSpec, backed_up: str, other: Settings
) -> None:
    open_store(other).put("mine/file.txt", b"mine")
    with pytest.raises(ConfigError, match=r"is not empty: it holds mine/file\.txt"):
        restore(other, backed_up)
    assert objects(other) == {"mine/file.txt": b"mine"}
    open_store(other).delete("mine/file.txt")

    MetadataStore.open(other).record_link(toy, dag_id="d", dag_run_id="mine", task_id="t", kind="k")
    with pytest.raises(ConfigError, match="penstock_dag_links 1"):
        restore(other, backed_up)
    assert objects(other) == {} and sum(held(other.metadata_url).values()) == 1
    restore(other, backed_up, parts=("store",))
    assert objects(other) == objects(settings)


def test_online_rows_of_this_machine_are_not_mixed_with_those_of_a_backup(
    settings: Settings, toy: PipelineSpec, backed_up: str, other: Settings
) -> None:
    mine = HotLog(other, toy, node="mine")
    mine.append([online_row(100)])
    mine.close()
    with pytest.raises(ConfigError, match="holds online rows already"):
        restore(other, backed_up, parts=("online",))


def test_a_segment_with_more_rows_than_the_backups_is_not_overwritten(
    settings: Settings, toy: PipelineSpec, tmp_path: Path
) -> None:
    MetadataStore.open(settings)
    log = HotLog(settings, toy, node="n1")
    log.append([online_row(number) for number in range(3)])
    place = str(tmp_path / "backups")
    back_up(settings, place)
    log.append([online_row(number) for number in range(3, 9)])
    log.close()
    before = everywhere(settings, toy)
    assert len(before) == 9
    with pytest.raises(ConfigError, match="holds online rows already"):
        restore(settings, place, parts=("online",))
    assert everywhere(settings, toy) == before


def test_online_rows_are_restored_where_a_server_was_whose_rows_are_folded(
    settings: Settings, toy: PipelineSpec, tmp_path: Path
) -> None:
    """Its locks stay. What was brought may be read, which leaves files beside it, and brought again."""
    fill(settings, toy)
    place = str(tmp_path / "backups")
    back_up(settings, place)
    other = Settings.at_home(tmp_path / "other", project=settings.project)
    log = HotLog(other, toy, node="n2")
    log.append([online_row(99)])
    log.close()
    fold(other, toy, seal=True)
    assert any((other.home / "hot").rglob("*.writer"))
    assert restore(other, place, parts=("online",)).found == 0
    found = everywhere(other, toy)
    assert len(found) == 8
    assert restore(other, place, parts=("online",)).found == 1
    assert everywhere(other, toy) == found


def test_a_segment_that_was_folded_after_it_was_copied_is_not_folded_twice(
    settings: Settings, toy: PipelineSpec, other: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segments are copied first: their rows are then in the segment and in the table, and one fold knows."""
    from tasks.recovery import backing_up

    fill(settings, toy)
    real = backing_up.cut

    def folded_meanwhile(store: Any) -> Any:
        assert fold(settings, toy, seal=True).rows == 7
        return real(store)

    monkeypatch.setattr(backing_up, "cut", folded_meanwhile)
    back_up(settings, str(tmp_path / "backups"))
    restore(other, str(tmp_path / "backups"))
    fold(other, toy, seal=True)
    assert table_rows(other, toy, "audit") == table_rows(settings, toy, "audit")


def test_online_rows_of_a_writer_that_is_at_work_are_kept_up_to_its_last_answer(
    settings: Settings, toy: PipelineSpec, other: Settings, tmp_path: Path
) -> None:
    MetadataStore.open(settings)
    log = HotLog(settings, toy, node="n1")
    acknowledged = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal acknowledged
        while not stop.is_set():
            log.append([online_row(acknowledged)])
            acknowledged += 1

    writer = threading.Thread(target=write)
    writer.start()
    while acknowledged < 5:
        pass
    before = acknowledged
    back_up(settings, str(tmp_path / "backups"))
    stop.set()
    writer.join()
    log.close()
    restore(other, str(tmp_path / "backups"))
    rows = seen(other, toy)["online"]
    assert before <= len(rows) <= acknowledged and set(rows.values()) == {1}


@pytest.fixture
def databases(request: pytest.FixtureRequest, tmp_path: Path, postgres_url: str) -> tuple[str, str]:
    made = {
        "sqlite": lambda: f"sqlite:///{tmp_path}/one.db",
        "postgresql": lambda: services.new_postgres_database(postgres_url),
    }
    kinds: tuple[str, str] = request.param
    return made[kinds[0]](), made[kinds[1]]().replace("one.db", "two.db")


@pytest.mark.parametrize(
    "databases",
    [("sqlite", "postgresql"), ("postgresql", "sqlite"), ("postgresql", "postgresql")],
    indirect=True,
)
def test_a_backup_moves_between_databases(
    settings: Settings, other: Settings, databases: tuple[str, str], tmp_path: Path
) -> None:
    source = dataclasses.replace(settings, metadata_url=databases[0])
    target = dataclasses.replace(other, metadata_url=databases[1])
    open_filled(source)
    back_up(source, str(tmp_path / "backups"))
    brought = restore(target, str(tmp_path / "backups"))
    assert brought.metadata_rows == sum(held(source.metadata_url).values())
    assert check_metadata(target.metadata_url, against=source.metadata_url).problems == ()
    again = restore(target, str(tmp_path / "backups"), parts=("metadata",))
    assert again.metadata_rows == brought.metadata_rows  # the rows are there, and they are these


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_snapshot_of_the_database_is_one_moment_and_nobody_waits_for_it(
    settings: Settings,
    kind: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "postgresql":
        server = request.getfixturevalue("postgres_url")
        settings = dataclasses.replace(settings, metadata_url=services.new_postgres_database(server))
    open_filled(settings)
    store = MetadataStore.open(settings, patience_s=0.5)
    before = check_metadata(settings.metadata_url).tables
    if kind == "postgresql":
        real = copying.in_batches

        def meanwhile(connection: Any, table: Any) -> Iterator[Sequence[Any]]:
            if table.name == "penstock_alerts":
                store.record_link(TOY, dag_id="d", dag_run_id="late", task_id="t", kind="k")
            yield from real(connection, table)

        monkeypatch.setattr(copying, "in_batches", meanwhile)
        snapshot_metadata(settings.metadata_url, tmp_path / "one.db")
        assert check_metadata(f"sqlite:///{tmp_path}/one.db").tables == before
        assert len(store.links(TOY, dag_id="d", dag_run_id="late")) == 1
        return
    stop, written = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            name = f"late-{len(written)}"
            store.record_link(TOY, dag_id="d", dag_run_id=name, task_id="t", kind="k")
            written.append(name)

    writer = threading.Thread(target=write)
    writer.start()
    for number in range(5):
        least = len(written)
        snapshot_metadata(settings.metadata_url, tmp_path / f"{number}.db")
        most = len(written) + 1
        kept = held(f"sqlite:///{tmp_path}/{number}.db")["penstock_dag_links"] - 2
        assert least <= kept <= most
        assert check_metadata(f"sqlite:///{tmp_path}/{number}.db").problems == ()
    stop.set()
    writer.join()


def test_a_postgresql_of_another_schema_is_not_read_and_an_unreachable_one_says_so(
    settings: Settings, tmp_path: Path, postgres_url: str
) -> None:
    empty = services.new_postgres_database(postgres_url)
    with pytest.raises(ConfigError, match="has schema none"):
        snapshot_metadata(empty, tmp_path / "one.db")
    down = f"postgresql://ada:s3cr3t@127.0.0.1:{services.free_port()}/penstock"
    with pytest.raises(ServiceUnavailable) as caught:
        back_up(dataclasses.replace(settings, metadata_url=down), str(tmp_path / "backups"))
    assert "s3cr3t" not in str(caught.value)

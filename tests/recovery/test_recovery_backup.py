"""A backup is made while others write, holds one moment, and is whole or is not there."""

from __future__ import annotations

import json
import shutil
import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from inference_support import (
    plan_stub,
    run_stub,
    score_and_publish,
    scoring_snapshot,
    table_rows,
)
from metadata_support import held
from recovery_support import fill, killed_in_a_child, objects, seen
from small_disk import SmallDisk, small_disk

from tasks.audit import by_prediction, erase, retain
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.errors import ConfigError, DigestMismatch, NotFound, ServiceUnavailable, TransientError
from tasks.core.object_store import LocalStore, ObjectInfo, ObjectStore
from tasks.inference import publish, verify
from tasks.metadata import MetadataStore
from tasks.recovery import BackupPlace, back_up, backing_up, restore, verify_backup
from tasks.recovery.cut import Cut, cut, cut_at
from tasks.wiring.audit_upkeep import ErasingTables

__all__ = ["small_disk"]

T = datetime(2024, 3, 1, 12, tzinfo=UTC)
DIE_AT_THE_NTH_COPY = """
import os, signal, sys
from tasks.core import Settings
from tasks.recovery import place as places, back_up
real, copies = places.BackupPlace.keep, 0
def keep(self, path, sha256):
    global copies
    copies += 1
    if copies == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, path, sha256)
places.BackupPlace.keep = keep
back_up(Settings.from_environment(), sys.argv[1])
"""


def test_everything_comes_back(
    store_settings: Settings, spec: PipelineSpec, place: str, elsewhere: Settings
) -> None:
    run_id = fill(store_settings, spec)
    before = seen(store_settings, spec)
    assert before["online"] and before["tables"]["predictions"]
    made = back_up(store_settings, place)
    assert verify_backup(store_settings, place).problems == ()
    brought = restore(elsewhere, place, made.backup_id)
    assert seen(elsewhere, spec) == before
    assert brought.objects == made.objects and brought.found == 0
    assert verify(elsewhere, spec, run_id).ok


def test_a_second_backup_copies_what_is_new_and_each_holds_its_own_moment(
    store_settings: Settings, spec: PipelineSpec, place: str, elsewhere: Settings
) -> None:
    fill(store_settings, spec)
    first, early = back_up(store_settings, place), table_rows(store_settings, spec)
    score_and_publish(store_settings, spec, scoring_snapshot(store_settings, spec, days=3))
    second = back_up(store_settings, place)
    assert 0 < second.new_objects < second.objects / 2
    again = back_up(store_settings, place)
    assert again.new_objects <= 1  # SQLite's own pages may differ
    restore(elsewhere, place, first.backup_id)
    assert table_rows(elsewhere, spec) == early


def test_removing_a_backup_takes_nothing_from_the_others(
    store_settings: Settings, spec: PipelineSpec, place: str
) -> None:
    fill(store_settings, spec)
    first = back_up(store_settings, place)
    MetadataStore.open(store_settings).record_link(spec, dag_id="d", dag_run_id="late", task_id="t", kind="k")
    second = back_up(store_settings, place)
    at = BackupPlace(store_settings, place)
    assert at.ids() == [first.backup_id, second.backup_id]
    assert at.remove(first.backup_id).objects == 1  # the older database file
    assert verify_backup(store_settings, place).problems == ()
    with pytest.raises(NotFound, match="is not a backup here"):
        at.remove(first.backup_id)
    at.remove(second.backup_id)
    assert at.known() == {}


def test_a_backup_beside_writers_is_whole_and_what_was_under_way_is_finished_exactly_once(
    store_settings: Settings, spec: PipelineSpec, place: str, elsewhere: Settings, tmp_path: Path
) -> None:
    fill(store_settings, spec)
    planned = [
        plan_stub(store_settings, spec, scoring_snapshot(store_settings, spec, days=1 + number), version=2)
        for number in range(3)
    ]
    stop = threading.Event()

    def write() -> None:
        store = MetadataStore.open(store_settings)
        for plan in planned:
            run_stub(store_settings, spec, plan.run_id)
            publish(store_settings, spec, plan.run_id)
            store.record_link(spec, dag_id="d", dag_run_id=plan.run_id, task_id="t", kind="published")
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    backups = []
    while not stop.is_set():
        backups.append(back_up(store_settings, place).backup_id)
    writer.join()
    for number, backup_id in enumerate(backups):
        assert verify_backup(store_settings, place, backup_id).problems == ()
        if elsewhere.s3_endpoint is None:
            other = Settings.at_home(tmp_path / f"at-{number}", project=store_settings.project)
        elif number:
            break
        else:
            other = elsewhere
        restore(other, place, backup_id)
        known = MetadataStore.open(other)
        for plan in planned:
            if known.links(
                spec, dag_id="d", dag_run_id=plan.run_id
            ):  # what the database names is in the store
                assert verify(other, spec, plan.run_id).ok
        for plan in planned:
            if open_store(other, prefix=spec.prefix).exists(f"runs/{plan.run_id}/plan.json"):
                run_stub(other, spec, plan.run_id)
                publish(other, spec, plan.run_id)
                assert verify(other, spec, plan.run_id).ok
        assert table_rows(other, spec) == table_rows(store_settings, spec)


@pytest.mark.parametrize("moment", ["before the cut", "after the cut"])
def test_the_database_of_a_backup_names_nothing_that_its_store_lacks(
    settings: Settings, toy: PipelineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A run that is published while the store is looked at may be in the store alone, never in the database alone."""
    fill(settings, toy)
    real = backing_up.cut

    def publish_one() -> None:
        run_id = score_and_publish(settings, toy, scoring_snapshot(settings, toy, days=3))
        store = MetadataStore.open(settings)
        store.record_link(toy, dag_id="d", dag_run_id=run_id, task_id="t", kind="published")

    def cut_beside_a_writer(store: ObjectStore) -> Cut:
        if moment == "before the cut":
            publish_one()
        found = real(store)
        if moment == "after the cut":
            publish_one()
        return found

    before = table_rows(settings, toy)
    monkeypatch.setattr(backing_up, "cut", cut_beside_a_writer)
    back_up(settings, str(tmp_path / "backups"))
    other = Settings.at_home(tmp_path / "other", project=settings.project)
    restore(other, str(tmp_path / "backups"))
    assert held(other.metadata_url)["penstock_dag_links"] == 2  # those of `fill`
    expected = before if moment == "after the cut" else table_rows(settings, toy)
    assert table_rows(other, toy) == expected


@pytest.mark.parametrize(
    "point", ["after-record", "before-delta-commit", "after-delta-commit", "after-audit-file"]
)
def test_a_run_that_died_at_any_point_is_resumed_where_the_backup_was_restored(
    settings: Settings, toy: PipelineSpec, tmp_path: Path, point: str
) -> None:
    whole = Settings.at_home(tmp_path / "whole", project=settings.project)
    score_and_publish(whole, toy, scoring_snapshot(whole, toy, days=2))
    MetadataStore.open(settings)
    run_id = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=2)).run_id
    script = f"import sys, crash_child; sys.argv = ['', {run_id!r}, {point!r}, '1']; crash_child.main()"
    killed_in_a_child(settings, script)
    place = str(tmp_path / "backups")
    back_up(settings, place)
    other = Settings.at_home(tmp_path / "other", project=settings.project)
    restore(other, place)
    run_stub(other, toy, run_id)
    assert publish(other, toy, run_id).rows == 240
    publish(other, toy, run_id)
    assert table_rows(other, toy) == table_rows(whole, toy)
    assert table_rows(other, toy, "audit") == table_rows(whole, toy, "audit")


@pytest.mark.parametrize("nth", [1, 9])
def test_a_backup_that_is_killed_is_none_and_the_next_finds_what_it_copied(
    settings: Settings, toy: PipelineSpec, tmp_path: Path, nth: int
) -> None:
    fill(settings, toy)
    place = str(tmp_path / "backups")
    killed_in_a_child(settings, DIE_AT_THE_NTH_COPY, place, str(nth))
    at = BackupPlace(settings, place)
    assert at.ids() == []
    with pytest.raises(NotFound, match="holds no backup"):
        at.newest()
    copied = len(at.known())
    made = back_up(settings, place)
    assert (
        made.new_objects <= len({kept.sha256 for kept in at.manifest(made.backup_id).everything}) - copied + 1
    )
    assert verify_backup(settings, place).problems == ()
    # What it left says that it may still be at work: nothing is removed beside it.
    with pytest.raises(TransientError, match="a backup is being made here") as caught:
        at.remove(made.backup_id)
    begun = str(caught.value).split("here: ")[1].split()[0]
    at.remove(begun)
    assert at.remove(made.backup_id).objects > 0


def test_a_damaged_content_is_named_with_its_object(
    store_settings: Settings, spec: PipelineSpec, place: str, elsewhere: Settings
) -> None:
    fill(store_settings, spec)
    made = back_up(store_settings, place)
    at = BackupPlace(store_settings, place)
    victim = next(
        kept for kept in at.manifest(made.backup_id).objects if "/tables/predictions/event" in kept.key
    )
    key = f"objects/{victim.sha256[:2]}/{victim.sha256}"
    data = bytearray(at._store.get(key))
    data[len(data) // 2] ^= 1
    at._store.put(key, bytes(data))
    (problem,) = verify_backup(store_settings, place).problems
    assert victim.key in problem and victim.sha256[:16] in problem
    with pytest.raises(DigestMismatch, match="damaged"):
        restore(elsewhere, place)
    assert not open_store(elsewhere).exists(victim.key)
    # A damaged content of the same length is not found by a backup; deleted, it is copied anew.
    at._store.delete(key)
    assert victim.key in verify_backup(store_settings, place).problems[0]
    back_up(store_settings, place)
    assert verify_backup(store_settings, place).problems == ()
    with pytest.raises(ConfigError, match="unfinished restore"):
        restore(elsewhere, place)  # the newer backup; the older one is whole again, too
    restore(elsewhere, place, made.backup_id)
    assert objects(elsewhere) == objects(store_settings)


def test_a_damaged_manifest_is_refused_and_the_next_backup_does_without_it(
    settings: Settings, toy: PipelineSpec, tmp_path: Path
) -> None:
    fill(settings, toy)
    place = str(tmp_path / "backups")
    made = back_up(settings, place)
    file = tmp_path / "backups" / "backups" / f"{made.backup_id}.json"
    file.write_text(file.read_text().replace("predictions", "predictiens", 1))
    with pytest.raises(DigestMismatch, match="not the one that was written"):
        verify_backup(settings, place)
    later = back_up(settings, place)
    assert verify_backup(settings, place, later.backup_id).problems == ()


def test_upkeep_that_takes_a_file_of_a_table_meanwhile_makes_the_backup_fail_and_an_orphan_does_not(
    settings: Settings, toy: PipelineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(settings, toy)
    store = open_store(settings, prefix=toy.prefix)
    store.put("tables/predictions/event_date=2024-03-01/orphan.parquet", b"nobody names me")
    real = LocalStore.get_file

    def deleting(match: str) -> None:
        def get_file(self: LocalStore, key: str, path: Path) -> None:
            if match in key:
                self.delete(key)
            real(self, key, path)

        monkeypatch.setattr(LocalStore, "get_file", get_file)

    deleting("orphan")
    made = back_up(settings, str(tmp_path / "backups"))
    assert made.vanished == 1
    deleting("tables/audit/event_date=2024-03-02")
    with pytest.raises(TransientError, match="is not in the backup"):
        back_up(settings, str(tmp_path / "fresh"))
    assert BackupPlace(settings, str(tmp_path / "fresh")).ids() == []


def test_a_store_that_is_half_restored_is_not_backed_up(
    settings: Settings, toy: PipelineSpec, tmp_path: Path
) -> None:
    """Its tables have no log yet: the backup would look whole."""
    fill(settings, toy)
    place = str(tmp_path / "backups")
    made = back_up(settings, place)
    other = Settings.at_home(tmp_path / "other", project=settings.project)
    restore(other, place, parts=("metadata",))
    open_store(other).put("_restoring.json", json.dumps({"backup_id": made.backup_id}).encode())
    with pytest.raises(ConfigError, match=f"unfinished restore of backup {made.backup_id}"):
        back_up(other, str(tmp_path / "later"))
    assert BackupPlace(other, str(tmp_path / "later")).ids() == []
    restore(other, place, parts=("store",))
    back_up(other, str(tmp_path / "later"))
    assert objects(other) == objects(settings)


def test_a_date_of_the_archive_that_moves_on_meanwhile_makes_the_backup_fail(
    settings: Settings, toy: PipelineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its newer record is too young for the backup, and the file of the older one is gone."""
    fill(settings, toy)
    row = table_rows(settings, toy, "audit")[0]
    retain(settings, toy, as_of=date(2024, 3, 10), warm_days=1, expire_days=9999)
    assert by_prediction(settings, toy, row["prediction_id"]).tier == "cold"
    tables = ErasingTables(open_store(settings, prefix=toy.prefix))
    real = backing_up.cut

    def erased_meanwhile(source: ObjectStore) -> Cut:
        found = real(source)
        erase(settings, toy, tables, entity=row["entity_id"], actor="ada", reason="case 12")
        return found

    monkeypatch.setattr(backing_up, "cut", erased_meanwhile)
    place = str(tmp_path / "backups")
    with pytest.raises(TransientError, match="its date's record names it"):
        back_up(settings, place)
    assert BackupPlace(settings, place).ids() == []
    monkeypatch.setattr(backing_up, "cut", real)
    back_up(settings, place)
    assert verify_backup(settings, place).problems == ()
    other = Settings.at_home(tmp_path / "other", project=settings.project)
    restore(other, place)
    assert by_prediction(other, toy, row["prediction_id"]).erasure_id
    assert seen(other, toy) == seen(settings, toy)


def test_a_date_that_moved_on_before_may_lose_its_older_file_meanwhile(
    settings: Settings, toy: PipelineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(settings, toy)
    retain(settings, toy, as_of=date(2024, 3, 10), warm_days=1, expire_days=9999)
    store = open_store(settings, prefix=toy.prefix)
    orphan = "archive/audit/2024-03-01/0123456789abcdef.parquet"
    store.put(orphan, b"of a retention that another one overtook")
    real = backing_up.cut

    def swept_meanwhile(source: ObjectStore) -> Cut:
        found = real(source)
        store.delete(orphan)
        return found

    monkeypatch.setattr(backing_up, "cut", swept_meanwhile)
    made = back_up(settings, str(tmp_path / "backups"))
    assert made.vanished == 1 and verify_backup(settings, str(tmp_path / "backups")).problems == ()


def test_evidence_of_a_gate_that_is_replaced_meanwhile_makes_the_backup_fail(
    settings: Settings, toy: PipelineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is moved: where it was it is gone, and where it will be the backup has not looked."""
    fill(settings, toy)
    store = open_store(settings)
    key = "default/toy/validation/0123456789abcdef/evidence.json"
    store.put(key, b"{}")
    real = backing_up.cut

    def moved_meanwhile(source: ObjectStore) -> Cut:
        found = real(source)
        store.put(key.replace("evidence", "history/1/evidence"), store.get(key))
        store.delete(key)
        return found

    monkeypatch.setattr(backing_up, "cut", moved_meanwhile)
    with pytest.raises(TransientError, match=f"{key} is not in the backup"):
        back_up(settings, str(tmp_path / "backups"))
    monkeypatch.setattr(backing_up, "cut", real)
    back_up(settings, str(tmp_path / "backups"))


def test_without_space_for_copies_in_passing_the_full_folder_is_named(
    settings: Settings, toy: PipelineSpec, small_disk: SmallDisk
) -> None:
    fill(settings, toy)
    shutil.rmtree(settings.cache_dir, ignore_errors=True)
    settings.cache_dir.symlink_to(small_disk.path)
    small_disk.fill(leave_kib=16)
    with pytest.raises(ServiceUnavailable, match=f"copied to {settings.cache_dir}.*full") as caught:
        back_up(settings, str(settings.home / "backups"))
    assert "free space there" in caught.value.fix
    small_disk.make_space()
    back_up(settings, str(settings.home / "backups"))


@pytest.mark.parametrize("inside", ["", "/default", "/.."])
def test_a_place_that_overlaps_with_the_store_is_refused(settings: Settings, inside: str) -> None:
    at = str(Path(settings.store_url + inside).resolve())
    with pytest.raises(ConfigError, match="overlaps"):
        back_up(settings, at)


def test_an_installation_that_was_never_used_has_nothing_to_back_up(
    settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="no such database"):
        back_up(settings, str(tmp_path / "backups"))


def listed(*keys: tuple[str, float]) -> list[ObjectInfo]:
    return [ObjectInfo(key, 1, T + timedelta(seconds=seconds)) for key, seconds in keys]


def test_a_cut_leaves_out_newer_records_and_keeps_newer_data() -> None:
    run = "t/p/runs/0123456789abcdef"
    found = cut_at(
        T,
        listed(
            (f"{run}/plan.json", -9),
            (f"{run}/shard-00000.json", -1),
            (f"{run}/shard-00001.json", 0),
            (f"{run}/dead-letters/shard-00001-a.parquet", 1),
            ("t/p/monitoring/performance/2024-03-01/x.json", 2),
            ("t/p/monitoring/cases/c1/00001.json", 2),
            ("t/p/bundles/d/bundle.json", 1),
            ("t/p/bundles/d/encoder.json", 1),
            ("jobs/penstock-score-g0-0.json", 1),
            ("_probe/1/now", -1),
        ),
    )
    assert [info.key.removeprefix(f"{run}/") for info in found.objects] == [
        "t/p/bundles/d/encoder.json",
        "t/p/monitoring/performance/2024-03-01/x.json",
        "dead-letters/shard-00001-a.parquet",
        "plan.json",
        "shard-00000.json",
    ]


def test_a_cut_ends_a_tables_log_before_its_first_gap() -> None:
    log = "t/p/tables/predictions/_delta_log"
    commits = [(f"{log}/{version:020d}.json", age) for version, age in ((0, -9), (1, -8), (2, 1), (3, -1))]
    others = [
        (f"{log}/{1:020d}.checkpoint.parquet", -5),
        (f"{log}/{3:020d}.checkpoint.parquet", -1),
        (f"{log}/_last_checkpoint", -1),
        (f"{log}/_commit_4f.json.tmp", -1),
    ]
    found = cut_at(T, listed(*commits, *others))
    assert found.tables == {"t/p/tables/predictions": 1}
    assert [info.key.removeprefix(f"{log}/") for info in found.objects] == [
        "00000000000000000000.json",
        "00000000000000000001.checkpoint.parquet",
        "00000000000000000001.json",
    ]


def test_a_table_whose_log_has_a_checkpoint_comes_back(
    settings: Settings, toy: PipelineSpec, tmp_path: Path
) -> None:
    from deltalake import DeltaTable

    fill(settings, toy)
    table = DeltaTable(open_store(settings, prefix=toy.prefix).url("tables/predictions"))
    table.create_checkpoint()
    score_and_publish(settings, toy, scoring_snapshot(settings, toy, days=3))
    back_up(settings, str(tmp_path / "backups"))
    other = Settings.at_home(tmp_path / "other", project=settings.project)
    restore(other, str(tmp_path / "backups"))
    assert table_rows(other, toy) == table_rows(settings, toy)


def test_what_is_there_is_in_a_cut_however_young_and_a_record_that_comes_after_is_not(
    store_settings: Settings,
) -> None:
    """S3 tells whole seconds: the database may name what was written in this very one."""
    store = open_store(store_settings)
    for number in range(3):
        store.put_exclusive(f"t/p/runs/{number}/plan.json", b"{}")
        now = cut(store)
        assert len(now.objects) == number + 1
        store.put_exclusive(f"t/p/runs/late-{number}/plan.json", b"{}")
        store.put(f"t/p/data/2024-03-01/late-{number}.parquet", b"rows")
        found = [info.key for info in cut_at(now.at, store.list()).objects if "/runs/" in info.key]
        assert f"t/p/runs/{number}/plan.json" in found and f"t/p/runs/late-{number}/plan.json" not in found
        store.delete(f"t/p/runs/late-{number}/plan.json")
        store.delete(f"t/p/data/2024-03-01/late-{number}.parquet")

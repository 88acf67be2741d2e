"""`penstock backup`, as somebody meets it who loses an installation and brings it back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from children import Script
from cli_support import Penstock

from tasks.core import Settings, open_store
from tasks.metadata import MetadataStore, Scope

TERMINATED_WHILE_IT_COPIES = """
import os, signal, sys
from tasks.recovery import BackupPlace
real, number = BackupPlace.keep, getattr(signal, sys.argv[1])
def keep(self, path, sha256):
    os.kill(os.getpid(), number)
    real(self, path, sha256)
BackupPlace.keep = keep
sys.argv[1:] = ["backup", "create", "--to", sys.argv[2]]
from tasks.cli import main
main()
"""


def used(settings: Settings) -> None:
    MetadataStore.open(settings).record_link(
        Scope("toy"), dag_id="d", dag_run_id="r", task_id="t", kind="k", url="http://x"
    )
    open_store(settings).put("default/toy/data/2024-03-01/a.parquet", b"rows")


def test_an_installation_is_backed_up_verified_lost_and_restored(
    penstock: Penstock, settings: Settings, tmp_path: Path
) -> None:
    used(settings)
    place = str(tmp_path / "backups")
    made = penstock("backup", "create", "--to", place, "--json")
    assert made.code == 0
    (listed,) = penstock("backup", "list", place, "--json").json
    assert listed["backup_id"] == made.json["backup_id"]
    assert penstock("backup", "verify", place).code == 0

    empty = Settings.at_home(tmp_path / "new", project=settings.project)
    restored = penstock("backup", "restore", place, "--json", at=empty)
    assert (restored.code, restored.json["metadata_rows"]) == (0, 1)
    assert open_store(empty).get("default/toy/data/2024-03-01/a.parquet") == b"rows"
    assert penstock("metadata", "check", "--against", settings.metadata_url, at=empty).code == 0

    again = penstock("backup", "restore", place, at=empty)
    assert again.code == 2 and "is not empty" in again.err and "Fix:" in again.err
    assert penstock("backup", "remove", place, listed["backup_id"]).code == 0
    gone = penstock("backup", "verify", place)
    assert gone.code == 2 and "holds no backup" in gone.err


def test_a_damaged_backup_is_exit_code_2_and_says_which_object(
    penstock: Penstock, settings: Settings, tmp_path: Path
) -> None:
    used(settings)
    place = tmp_path / "backups"
    penstock("backup", "create", "--to", str(place))
    (content,) = [path for path in place.rglob("*") if path.is_file() and path.read_bytes() == b"rows"]
    content.write_bytes(b"rowz")
    ended = penstock("backup", "verify", str(place))
    assert ended.code == 2 and "data/2024-03-01/a.parquet is damaged" in ended.out


def test_a_part_that_there_is_not_is_refused_with_those_there_are(
    penstock: Penstock, settings: Settings, tmp_path: Path
) -> None:
    ended = penstock("backup", "restore", str(tmp_path), "--only", "airflow")
    assert ended.code == 2 and "store, online, metadata" in ended.err


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_backup_that_is_told_to_end_leaves_nothing_that_keeps_others_from_being_removed(
    penstock: Penstock, settings: Settings, tmp_path: Path, signal: str
) -> None:
    used(settings)
    place = tmp_path / "backups"
    made = penstock("backup", "create", "--to", str(place), "--json").json
    open_store(settings).put("default/toy/data/2024-03-01/b.parquet", b"more")
    script = tmp_path / "terminated.py"
    script.write_text(TERMINATED_WHILE_IT_COPIES)
    root = str(Path(__file__).parents[2])
    code, said = Script(
        script, signal, str(place), env={**os.environ, **settings.as_environment(), "PYTHONPATH": root}
    ).ended()
    assert code == 130, said
    assert list((place / "begun").iterdir()) == []
    assert not any(settings.cache_dir.glob("recovery-*"))
    assert penstock("backup", "remove", str(place), made["backup_id"]).code == 0


def test_a_home_that_is_a_file_is_refused_by_its_name(
    penstock: Penstock, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    ended = penstock(
        "backup", "list", str(tmp_path / "backups"), at=Settings.at_home(file, project=settings.project)
    )
    assert ended.code == 2 and f"in the way: {file}" in ended.err

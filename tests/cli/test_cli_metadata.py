"""`penstock metadata` on a real database, as somebody who moves an installation meets it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from cli_support import Penstock

from tasks.core import Settings
from tasks.metadata import MetadataStore, Scope


def linked(settings: Settings) -> None:
    MetadataStore.open(settings).record_link(
        Scope("toy"), dag_id="d", dag_run_id="r", task_id="t", kind="k", url="http://x"
    )


def test_a_copy_is_counted_first_then_made_then_checked(
    penstock: Penstock, settings: Settings, tmp_path: Path
) -> None:
    linked(settings)
    to = f"sqlite:///{tmp_path}/moved.db"
    planned = penstock("metadata", "copy", "--to", to, "--dry-run")
    assert planned.code == 0 and "1 rows would be copied; nothing was changed" in planned.out
    assert not (tmp_path / "moved.db").exists()
    copied = penstock("metadata", "copy", "--to", to)
    assert copied.code == 0 and "1 rows copied and compared" in copied.out
    assert "PENSTOCK_METADATA_URL" in copied.out
    checked = penstock("metadata", "check", "--against", to, "--json")
    assert (checked.code, checked.json["problems"], checked.json["rows"]) == (0, [], 1)
    again = penstock("metadata", "copy", "--to", to, "--json")
    assert (again.code, again.out) == (2, "")
    assert "penstock_dag_links 1" in again.err and "Fix:" in again.err


def test_a_database_that_is_not_whole_is_exit_code_2_with_its_problems(
    penstock: Penstock, settings: Settings
) -> None:
    linked(settings)
    assert penstock("metadata", "check").code == 0
    with sqlite3.connect(settings.home / "metadata.db") as connection:
        connection.execute("DROP TRIGGER penstock_verdicts_no_update")
    ended = penstock("metadata", "check")
    assert ended.code == 2 and "penstock_verdicts is not append-only" in ended.out


def test_a_target_that_is_down_is_exit_code_75_and_its_password_is_not_shown(
    penstock: Penstock, settings: Settings
) -> None:
    linked(settings)
    ended = penstock("metadata", "copy", "--to", "postgresql://ada:s3cr3t@127.0.0.1:9/penstock")
    assert ended.code == 75 and "127.0.0.1:9" in ended.err and "s3cr3t" not in ended.err + ended.out

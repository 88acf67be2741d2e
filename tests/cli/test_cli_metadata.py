"""`penstock metadata` on a real database, as somebody who moves an installation meets it."""

from __future__ import annotations

import csv
import sqlite3
from datetime import date
from pathlib import Path

from cli_support import Penstock

from tasks.core import Settings
from tasks.metadata import MetadataStore, NewMetric, Scope


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


def test_a_series_is_a_table_csv_or_json_and_an_unknown_metric_names_those_there_are(
    penstock: Penstock, settings: Settings
) -> None:
    empty = penstock("metadata", "series", "toy", "auc")
    assert empty.code == 2 and "has no metric 'auc'" in empty.err
    points = [
        NewMetric("auc", 1, date(2024, 3, day), day / 16, "monitor", "r1", rows=day * 100)
        for day in (1, 2, 3)
    ]
    MetadataStore.open(settings).record_metrics(Scope("toy"), points)
    assert penstock("metadata", "series", "toy", "--json").json["metrics"] == ["auc"]
    table = penstock("metadata", "series", "toy", "auc", "--since", "2024-03-02").out
    assert "2024-03-03" in table and "0.1875" in table and "2024-03-01" not in table
    lines = penstock("metadata", "series", "toy", "auc", "--csv").out.splitlines()
    assert [line["value"] for line in csv.DictReader(lines)] == ["0.0625", "0.125", "0.1875"]
    unknown = penstock("metadata", "series", "toy", "aux")
    assert unknown.code == 2 and "use one of: auc" in unknown.err

"""A place that several calls use at once, that was used by calls that died, and that holds what is no backup."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from metadata_support import open_filled
from recovery_support import objects

from tasks.core import Settings, open_store
from tasks.core.errors import ConfigError, DigestMismatch, TransientError
from tasks.core.object_store import LocalStore
from tasks.recovery import BackupPlace, BackupReport, back_up, verify_backup


class Died(BaseException):
    """Stands for SIGKILL inside one process: nothing catches it."""


def small_installation(settings: Settings) -> None:
    open_filled(settings)
    for number in range(4):
        open_store(settings).put(f"default/toy/data/2024-03-01/{number}.parquet", b"rows %d" % number)


def place_with_one(settings: Settings, place: str) -> tuple[BackupPlace, BackupReport]:
    """The place, and the backup of a small installation that it holds."""
    small_installation(settings)
    first = back_up(settings, place)
    return BackupPlace(settings, place), first


def once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, first: Callable[[], None]) -> None:
    """Before `name` of `owner` is called the next time, `first` is done."""
    real = getattr(owner, name)

    def called(*args: object, **more: object) -> object:
        monkeypatch.setattr(owner, name, real)
        first()
        return real(*args, **more)

    monkeypatch.setattr(owner, name, called)


def test_a_backup_that_begins_while_one_is_removed_is_refused_and_loses_no_content(
    store_settings: Settings, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would count on contents that are about to go."""
    at, first = place_with_one(store_settings, place)
    said: list[str] = []

    def begin() -> None:
        with pytest.raises(TransientError, match="a backup is being removed here") as caught:
            back_up(store_settings, place)
        said.append(str(caught.value))

    once(monkeypatch, BackupPlace, "known", begin)  # remove has looked for begun backups, and found none
    at.remove(first.backup_id)
    assert f"penstock backup remove {at.url} {first.backup_id}" in said[0]
    assert at.known() == {} and list(at._store.list()) == []
    back_up(store_settings, place)
    assert verify_backup(store_settings, place).problems == ()


def test_a_backup_is_not_removed_beside_one_that_has_begun(
    store_settings: Settings, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, first = place_with_one(store_settings, place)

    def remove() -> None:
        with pytest.raises(TransientError, match="a backup is being made here"):
            at.remove(first.backup_id)

    once(monkeypatch, BackupPlace, "known", remove)
    second = back_up(store_settings, place)
    assert at.ids() == [first.backup_id, second.backup_id]
    assert verify_backup(store_settings, place).problems == ()
    assert at.remove(first.backup_id).backup_id == first.backup_id


def test_a_backup_that_was_taken_for_dead_is_none_when_others_were_removed_meanwhile(
    store_settings: Settings, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, first = place_with_one(store_settings, place)

    def believe_it_dead() -> None:
        begun = at._names("begun")
        assert at.remove(begun[0]).objects == 0
        assert at.remove(first.backup_id).objects > 0

    once(monkeypatch, BackupPlace, "last", believe_it_dead)  # what the place held is known by then
    with pytest.raises(TransientError, match="removed while it was being made"):
        back_up(store_settings, place)
    assert at.ids() == []
    back_up(store_settings, place)
    assert verify_backup(store_settings, place).problems == ()


@pytest.mark.parametrize("dies_at", [1, 3])
def test_a_removal_that_dies_holds_backups_up_until_it_is_repeated(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    place = str(tmp_path / "backups")
    at, first = place_with_one(settings, place)
    deletes, real = 0, LocalStore.delete

    def delete(self: LocalStore, key: str) -> None:
        nonlocal deletes
        deletes += 1
        if deletes == dies_at:
            raise Died
        real(self, key)

    monkeypatch.setattr(LocalStore, "delete", delete)
    with pytest.raises(Died):
        at.remove(first.backup_id)
    monkeypatch.setattr(LocalStore, "delete", real)
    with pytest.raises(TransientError, match="being removed here"):
        back_up(settings, place)
    at.remove(first.backup_id)
    assert list(at._store.list()) == []
    back_up(settings, place)
    assert verify_backup(settings, place).problems == ()


def test_beside_a_damaged_manifest_backups_are_listed_and_nothing_is_removed_but_the_damaged_one(
    settings: Settings, tmp_path: Path
) -> None:
    small_installation(settings)
    place = str(tmp_path / "backups")
    damaged, whole = back_up(settings, place).backup_id, back_up(settings, place).backup_id
    file = tmp_path / "backups" / "backups" / f"{damaged}.json"
    file.write_text(file.read_text().replace("parquet", "parkett", 1))
    at = BackupPlace(settings, place)
    first, second = at.summaries()
    assert (first.backup_id, first.objects) == (damaged, None)
    assert "not the one that was written" in (first.problem or "")
    assert (second.backup_id, second.problem) == (whole, None) and second.objects
    before = at.known()
    with pytest.raises(DigestMismatch, match="nothing was removed") as caught:
        at.remove(whole)
    assert f"penstock backup remove {at.url} {damaged}" in caught.value.fix
    assert at.ids() == [damaged, whole] and at.known() == before
    at.remove(damaged)
    assert verify_backup(settings, place, whole).problems == ()
    at.remove(whole)
    assert list(at._store.list()) == []


def test_what_else_lies_in_a_place_is_no_backup(settings: Settings, tmp_path: Path) -> None:
    small_installation(settings)
    place = tmp_path / "backups"
    made = back_up(settings, str(place))
    for folder in ("backups", "begun"):
        (place / folder).mkdir(exist_ok=True)
        (place / folder / "README").write_text("hands off")
    (place / "backups" / "notes.json").write_text("{}")
    at = BackupPlace(settings, str(place))
    assert at.ids() == [made.backup_id] and at.newest() == made.backup_id
    assert [found.backup_id for found in at.summaries()] == [made.backup_id]
    back_up(settings, str(place))
    at.remove(made.backup_id)


def test_a_place_is_in_the_store_however_it_is_spelled(settings: Settings, tmp_path: Path) -> None:
    small_installation(settings)
    (tmp_path / "link").symlink_to(settings.store_url)
    before = objects(settings)
    store = Path(settings.store_url)
    for at in (store.parent / "x" / ".." / store.name / "backups", tmp_path / "link" / "backups"):
        with pytest.raises(ConfigError, match="overlaps"):
            back_up(settings, str(at))
    assert objects(settings) == before


@pytest.mark.parametrize("url", ["gs://bucket/backups", "file:///backups", "s3://", "s3:///backups"])
def test_what_is_no_place_is_named_as_it_was_given(settings: Settings, url: str) -> None:
    with pytest.raises(ConfigError, match="neither a folder nor s3://bucket/prefix") as caught:
        BackupPlace(settings, url)
    assert caught.value.which == url


def test_what_killed_calls_left_half_written_goes_a_day_later(settings: Settings, tmp_path: Path) -> None:
    small_installation(settings)
    place = tmp_path / "backups"
    back_up(settings, str(place))
    old = time.time() - 25 * 3600
    left = [place / "objects" / "aa" / ".aa.123.part", settings.cache_dir / "recovery-old" / "copy"]
    young = [place / "objects" / "bb" / ".bb.123.part", settings.cache_dir / "recovery-young" / "copy"]
    for path in left + young:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    for path in (left[0], left[1].parent):
        os.utime(path, (old, old))
    back_up(settings, str(place))
    assert not any(path.exists() for path in left) and all(path.exists() for path in young)

"""Backups of a whole installation. No pipeline is named, all are meant."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tasks.core import Settings


def create_backup(settings: Settings, *, to: str) -> dict[str, Any]:
    """Copy database, online rows and object store to the place `to`; everybody goes on meanwhile."""
    from tasks.recovery import back_up

    return back_up(settings, to).to_json()


def list_backups(settings: Settings, *, at: str) -> list[dict[str, Any]]:
    """The backups of a place, oldest first."""
    from tasks.recovery import BackupPlace

    return [found.to_json() for found in BackupPlace(settings, at).summaries()]


def verify_backup(settings: Settings, *, at: str, backup_id: str | None = None) -> dict[str, Any]:
    """Read a backup whole and say what is wrong with it."""
    from tasks.recovery import verify_backup as verified

    return verified(settings, at, backup_id).to_json()


def restore_backup(
    settings: Settings, *, at: str, backup_id: str | None = None, parts: Collection[str] | None = None
) -> dict[str, Any]:
    """Bring a backup back into the empty installation that `settings` name."""
    from tasks.recovery import PARTS, restore

    return restore(settings, at, backup_id, parts=parts or PARTS).to_json()


def remove_backup(settings: Settings, *, at: str, backup_id: str) -> dict[str, Any]:
    """Delete a backup and what no other one needs."""
    from tasks.recovery import BackupPlace

    return BackupPlace(settings, at).remove(backup_id).to_json()

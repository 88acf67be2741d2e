"""The metadata database as a whole: copied to another one, and checked. No pipeline is named, all are meant."""

from __future__ import annotations

from typing import Any

from tasks.core import Settings


def copy_metadata(settings: Settings, *, to: str, dry_run: bool = False) -> dict[str, Any]:
    """Copy all rows of `settings.metadata_url` into the empty database `to`, or only say what would be copied."""
    from tasks.metadata import copying

    copy = copying.plan_copy if dry_run else copying.copy_metadata
    return copy(settings.metadata_url, to).to_json()


def check_metadata(settings: Settings, *, against: str | None = None) -> dict[str, Any]:
    """What `settings.metadata_url` holds and what is wrong with it; `against`: another database that must be equal."""
    from tasks.metadata import checking

    return checking.check_metadata(settings.metadata_url, against=against).to_json()

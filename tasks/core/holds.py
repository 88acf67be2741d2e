"""Holds: days of a pipeline whose data nothing may delete or rewrite, until somebody releases them.

holds/<hold id>/placed.json      which days, why and who, by exclusive create
holds/<hold id>/released.json    the same with who released it and why, by exclusive create; the hold is over

A hold is about event dates (UTC), as the tables are partitioned. Upkeep looks right before it deletes.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.errors import ConfigError, NotFound
from tasks.core.object_store import ObjectStore
from tasks.core.placed import place, read_placed, refuse_blank, release
from tasks.core.records import JsonRecord

_FOLDER = "holds"
_SAY_WHY = "say why: the record is all that remains of it"


@dataclass(frozen=True)
class Hold(JsonRecord):
    """Event dates from `first_day` to `last_day`, both included."""

    hold_id: str
    first_day: date
    last_day: date
    reason: str
    actor: str
    placed_at_utc: str
    released_at_utc: str | None = None
    released_by: str | None = None
    release_reason: str | None = None

    def covers(self, event_date: date) -> bool:
        """Whether the hold stands and is about this date."""
        return self.released_at_utc is None and self.first_day <= event_date <= self.last_day


def place_hold(
    store: ObjectStore, *, first_day: date, last_day: date, reason: str, actor: str, clock: Clock = utc_now
) -> Hold:
    """Hold these event dates from now on.

    Raises:
        ConfigError: The window ends before it starts, or nobody says why.
    """
    if last_day < first_day:
        raise ConfigError(
            f"ends on {last_day}, before it starts on {first_day}", which="hold", fix="swap the days"
        )
    refuse_blank(reason, "reason", _SAY_WHY)
    hold = Hold(secrets.token_hex(4), first_day, last_day, reason, actor, iso_utc(clock()))
    place(store, _FOLDER, hold.hold_id, hold)
    return hold


def release_hold(
    store: ObjectStore, hold_id: str, *, reason: str, actor: str, clock: Clock = utc_now
) -> Hold:
    """End a hold. Releasing it again changes nothing: the first release stays.

    Raises:
        NotFound: There is no such hold.
        ConfigError: Nobody says why.
    """
    refuse_blank(reason, "reason", _SAY_WHY)
    return release(
        store,
        _FOLDER,
        hold_id,
        lambda: {hold.hold_id: hold for hold in holds(store)},
        reason=reason,
        actor=actor,
        clock=clock,
        missing=NotFound("is no hold of this pipeline", which=hold_id, fix="list them: penstock audit holds"),
    )


def holds(store: ObjectStore) -> list[Hold]:
    """Every hold that was placed, also those that are over, in order of their placing.

    Raises:
        DataError: One cannot be read; nothing may be deleted then.
    """
    found = read_placed(
        store,
        _FOLDER,
        Hold,
        what="a readable hold",
        fix="restore the object from a backup; upkeep deletes nothing until then",
    )
    return sorted(found, key=lambda hold: (hold.placed_at_utc, hold.hold_id))


def is_held(standing: Sequence[Hold], event_date: date) -> bool:
    """Whether one of these holds is about this event date."""
    return any(hold.covers(event_date) for hold in standing)

"""Steps that keep explanation data: archive and expiry, holds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from tasks.core import ObjectStore, Settings, utc_now
from tasks.wiring.context import Context, open_context, parse_day

if TYPE_CHECKING:
    from tasks.core.erasures import Matches
    from tasks.inference import TombstonedFiles


@dataclass(frozen=True)
class ErasingTables:
    """How an erasure of the audit room replaces files of the tables, which the inference room accounts for."""

    store: ObjectStore

    def tombstone(
        self,
        predictions: bool,
        matches: Matches,
        *,
        erasure_id: str,
        dates: Collection[date] | None,
        dry_run: bool,
    ) -> TombstonedFiles:
        from tasks.audit import KEPT_OF_AUDIT
        from tasks.inference import KEPT_OF_PREDICTIONS, tombstone

        return tombstone(
            self.store,
            "tables/predictions" if predictions else "tables/audit",
            matches,
            kept=KEPT_OF_PREDICTIONS if predictions else KEPT_OF_AUDIT,
            erasure_id=erasure_id,
            dates=dates,
            dry_run=dry_run,
        )

    def let_go(self, matches: Matches) -> tuple[list[str], list[str]]:
        from tasks.inference import let_go_files

        found = [
            let_go_files(self.store, folder, matches) for folder in ("tables/audit", "tables/predictions")
        ]
        return [key for keys, _ in found for key in keys], [key for _, keys in found for key in keys]


def archive_explanations(
    settings: Settings, pipeline: str, *, as_of: str | None = None, dag_run: str | None = None
) -> dict[str, Any]:
    """Archive days older than `explanations.warm_days` and expire archived days, by age on `as_of` (default today)."""
    from tasks.audit import complete_erasures, retain

    context = open_context(settings, pipeline)
    kept = retain(settings, context.spec, as_of=parse_day(as_of, "as_of") or utc_now().date())
    erasures = complete_erasures(settings, context.spec, ErasingTables(context.store))
    _record_actions(context)
    result = {**kept.to_json(), "continued_erasures": list(erasures)}
    context.evidence(dag_run, "archive", result)
    return result


def hold_days(
    settings: Settings, pipeline: str, *, first_day: str, last_day: str, actor: str, reason: str
) -> dict[str, Any]:
    """Keep these event dates (UTC) from upkeep: nothing of them is deleted, moved or rewritten until released."""
    from tasks.core.holds import place_hold

    context = open_context(settings, pipeline)
    first, last = parse_day(first_day, "first_day"), parse_day(last_day, "last_day")
    assert first is not None and last is not None
    hold = place_hold(context.store, first_day=first, last_day=last, actor=actor, reason=reason)
    return hold.to_json()


def release_days(
    settings: Settings, pipeline: str, *, hold_id: str, actor: str, reason: str
) -> dict[str, Any]:
    """End a hold; its days are kept as long as all others from then on. A second release changes nothing."""
    from tasks.core.holds import release_hold

    store = open_context(settings, pipeline).store
    return release_hold(store, hold_id, actor=actor, reason=reason).to_json()


def list_holds(settings: Settings, pipeline: str) -> dict[str, Any]:
    """Every hold of a pipeline, standing or over, oldest first."""
    from tasks.core.holds import holds

    found = holds(open_context(settings, pipeline).store)
    return {"holds": [hold.to_json() for hold in found]}


def erase_entity(
    settings: Settings,
    pipeline: str,
    *,
    entity: str,
    actor: str,
    reason: str,
    dry_run: bool = False,
    now: bool = False,
) -> dict[str, Any]:
    """Make every row about an entity a tombstone, in all tiers and in the predictions table. May be repeated."""
    from tasks.audit import erase

    context = open_context(settings, pipeline)
    done = erase(
        settings,
        context.spec,
        ErasingTables(context.store),
        entity=entity,
        actor=actor,
        reason=reason,
        dry_run=dry_run,
        now=now,
    )
    if not dry_run:
        _record_actions(context)
    return done.to_json()


def restore_days(
    settings: Settings,
    pipeline: str,
    *,
    first_day: str,
    last_day: str,
    actor: str,
    reason: str,
    days: int = 30,
    as_of: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Bring archived event dates back to the audit table for some days, counted from `as_of` (default: today)."""
    from tasks.audit import restore_dates

    context = open_context(settings, pipeline)
    first, last = parse_day(first_day, "first_day"), parse_day(last_day, "last_day")
    assert first is not None and last is not None
    done = restore_dates(
        settings,
        context.spec,
        first_day=first,
        last_day=last,
        actor=actor,
        reason=reason,
        days=days,
        as_of=parse_day(as_of, "as_of"),
        dry_run=dry_run,
    )
    if not dry_run:
        _record_actions(context)
    return done.to_json()


def _record_actions(context: Context) -> None:
    """Keep in the metadata store what the archive says of each date and is not recorded yet.

    Read from the archive and not from what one call did: so a crash in between loses no action.
    """
    from tasks.audit import archived_dates

    dates = archived_dates(context.store)
    known = {
        (action.kind, action.day, action.record.get("generation"))
        for action in context.metadata.audit_actions(context.spec, limit=2 * len(dates) + 1000)
    }
    for day, item in dates.items():
        if (item.state, day, item.generation) not in known:
            context.metadata.record_audit_action(
                context.spec, kind=item.state, day=day, rows=item.rows, key=item.key, record=item.to_json()
            )

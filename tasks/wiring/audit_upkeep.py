"""Steps that keep explanation data: archive and expiry, holds, restores, erasures, and what they cost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from tasks.core import ObjectStore, Settings, load_pipeline, utc_now
from tasks.core.clock import iso_utc
from tasks.core.errors import NotFound, PenstockError
from tasks.core.spec import pipeline_names
from tasks.wiring.context import Context, open_context, parse_day

if TYPE_CHECKING:
    from tasks.core.erasures import Matches
    from tasks.inference import TombstonedFiles

_ALL = 1_000_000


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
    settings: Settings,
    pipeline: str,
    *,
    as_of: str | None = None,
    dry_run: bool = False,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Archive days older than `explanations.warm_days` and expire archived days, by age on `as_of` (default today).

    Erasures that a hold kept from some days are finished where it was released.
    """
    from tasks.audit import complete_erasures, retain

    context = open_context(settings, pipeline)
    moment = parse_day(as_of, "as_of") or utc_now().date()
    kept = retain(settings, context.spec, as_of=moment, dry_run=dry_run)
    if dry_run:
        return {**kept.to_json(), "continued_erasures": []}
    erasures = complete_erasures(settings, context.spec, ErasingTables(context.store))
    record_actions(context)
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
    record_actions(context)
    return hold.to_json()


def release_days(
    settings: Settings, pipeline: str, *, hold_id: str, actor: str, reason: str
) -> dict[str, Any]:
    """End a hold; its days are kept as long as all others from then on. A second release changes nothing."""
    from tasks.core.holds import release_hold

    context = open_context(settings, pipeline)
    released = release_hold(context.store, hold_id, actor=actor, reason=reason)
    record_actions(context)
    return released.to_json()


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
        record_actions(context)
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
        record_actions(context)
    return done.to_json()


def cost_report(settings: Settings, pipeline: str, *, price: float | None = None) -> dict[str, Any]:
    """Days, rows, bytes and files of each tier, and their cost a month at a price of a gigabyte."""
    from tasks.audit import measure_costs

    return measure_costs(settings, open_context(settings, pipeline).spec, price=price).to_json()


def audit_events(settings: Settings, pipeline: str, *, limit: int = 100) -> dict[str, Any]:
    """What was done to explanation data, newest first: also what a command that died did not get to say."""
    context = open_context(settings, pipeline)
    record_actions(context)
    return {
        "events": [
            {
                "at_utc": iso_utc(action.at_utc),
                "kind": action.kind,
                "day": action.day.isoformat(),
                "rows": action.rows,
                "actor": action.actor,
                "reason": action.reason,
                "key": action.key,
            }
            for action in context.metadata.audit_actions(context.spec, limit=limit)
        ]
    }


def archive_tenant(
    settings: Settings, tenant: str, *, as_of: str | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """`archive_explanations` of every pipeline of a tenant; one that fails keeps no other from being done.

    Raises:
        NotFound: No pipeline is of that tenant.
    """
    done: dict[str, Any] = {}
    failed: dict[str, Any] = {}
    for name in pipeline_names(settings):
        try:
            if load_pipeline(settings, name).tenant == tenant:
                done[name] = archive_explanations(settings, name, as_of=as_of, dry_run=dry_run)
        except PenstockError as error:
            failed[name] = error.as_record()
    if not done and not failed:
        raise NotFound("has no pipeline here", which=f"tenant {tenant}", fix="see `tenant:` in pipeline.yaml")
    return {"tenant": tenant, "pipelines": done, "failed": failed}


@dataclass(frozen=True)
class _Action:
    """One event as the store's records tell it."""

    kind: str
    day: date
    rows: int
    key: str
    actor: str
    reason: str
    record: dict[str, Any]

    @property
    def identity(self) -> tuple[Any, ...]:
        return _identity(self.kind, self.day, self.record)


def _identity(kind: str, day: date, record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes an event the same: a later release may put more into its record."""
    return (kind, day, *(record.get(name) for name in ("generation", "hold_id", "erasure_id", "number")))


def record_actions(context: Context) -> None:
    """Keep in the metadata store what the store's records say was done and is not kept yet.

    Read from the records and not from what one call did: so a crash in between loses no event.
    """
    actions = context.metadata.audit_actions(context.spec, limit=_ALL)
    known = {_identity(action.kind, action.day, action.record) for action in actions}
    moved = {
        (one.day, one.record.get("generation")) for one in actions if one.kind in ("archived", "expired")
    }
    for action in (*_archive_actions(context, moved), *_hold_actions(context), *_other_actions(context)):
        if action.identity not in known:
            context.metadata.record_audit_action(
                context.spec,
                kind=action.kind,
                day=action.day,
                rows=action.rows,
                key=action.key,
                actor=action.actor,
                reason=action.reason,
                record=action.record,
            )


def _archive_actions(context: Context, known: Collection[Any]) -> Iterator[_Action]:
    from tasks.audit import archive_history

    for item in archive_history(context.store, known):
        if item.cause == "retention":
            yield _Action(item.state, item.event_date, item.rows, item.key, "retention", "", item.to_json())


def _hold_actions(context: Context) -> Iterator[_Action]:
    from tasks.core.holds import holds

    for hold in holds(context.store):
        key, record = f"holds/{hold.hold_id}", hold.to_json()
        placed = {**record, "released_at_utc": None, "released_by": None, "release_reason": None}
        yield _Action("held", hold.first_day, 0, f"{key}/placed.json", hold.actor, hold.reason, placed)
        if hold.released_at_utc is not None:
            yield _Action(
                "released",
                hold.first_day,
                0,
                f"{key}/released.json",
                hold.released_by or "",
                hold.release_reason or "",
                record,
            )


def _other_actions(context: Context) -> Iterator[_Action]:
    from tasks.audit import restores
    from tasks.core.erasures import erasures, outcome_key

    for day, items in restores(context.store).items():
        for made, end in items:
            yield _Action(
                "restored",
                day,
                made.rows,
                f"tables/audit/{made.path}",
                made.actor,
                made.reason,
                made.to_json(),
            )
            if end is not None:
                yield _Action("returned", day, end.rows, made.path, "retention", "", end.to_json())
    for request, outcomes in erasures(context.store):
        for outcome in outcomes:
            key, record = outcome_key(request.erasure_id, outcome.number), outcome.to_json()
            for kind, days in (("erased", outcome.dates), ("deferred", outcome.deferred_dates)):
                if days:
                    rows = outcome.audit_rows if kind == "erased" else 0
                    yield _Action(kind, days[0], rows, key, outcome.actor, outcome.reason, record)

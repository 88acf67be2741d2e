"""`penstock audit`: how explanation data is kept, held, brought back and erased."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.cli.audit import audit
from tasks.cli.options import Actor, AsOf, DryRun, FirstDay, Json, LastDay, Pipeline, Reason, call, run
from tasks.cli.output import show
from tasks.cli.services import cli_settings
from tasks.core.errors import error_from_record

__all__ = ["audit"]


@audit.command("retain")
def audit_retain(
    pipeline: Annotated[
        str | None, typer.Argument(help="Name of a folder under pipelines/.", show_default=False)
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Instead of one pipeline: all of this tenant.", show_default=False)
    ] = None,
    as_of: AsOf = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Archive and expire explanation data by age, take back what was restored, finish erasures.

    Of a tenant every pipeline is done, also when another one fails; the exit code is that of the first failure.
    """
    if (pipeline is None) == (tenant is None):
        raise typer.BadParameter("give a pipeline, or --tenant")
    if pipeline is not None:
        run("archive_explanations", pipeline, as_json, as_of=as_of, dry_run=dry_run)
        return
    from tasks import wiring

    result = wiring.archive_tenant(cli_settings(), tenant, as_of=as_of, dry_run=dry_run)
    show(result, as_json=as_json, title=f"{tenant}: archive explanations")
    for record in result["failed"].values():
        raise error_from_record(record)


@audit.command("hold")
def audit_hold(
    pipeline: Pipeline,
    first_day: FirstDay,
    last_day: LastDay,
    actor: Actor,
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Keep days from upkeep: none of their files is deleted, archived or merged until the hold is released.

    Days are UTC dates of the event time, both included.
    """
    run("hold_days", pipeline, as_json, first_day=first_day, last_day=last_day, actor=actor, reason=reason)


@audit.command("release")
def audit_release(
    pipeline: Pipeline,
    hold_id: Annotated[str, typer.Argument(help="As `penstock audit holds` lists it.", show_default=False)],
    actor: Actor,
    reason: Reason,
    as_json: Json = False,
) -> None:
    """End a hold. The record of it stays."""
    run("release_days", pipeline, as_json, hold_id=hold_id, actor=actor, reason=reason)


@audit.command("holds")
def audit_holds(pipeline: Pipeline, as_json: Json = False) -> None:
    """Every hold: which days, why, who, and whether it was released."""
    found = call("list_holds", pipeline)
    show(found if as_json else found["holds"], as_json=as_json, title=f"{pipeline}: holds")


@audit.command("erase")
def audit_erase(
    pipeline: Pipeline,
    entity: Annotated[
        str,
        typer.Option(help="The entity_id of its rows: the key's values, joined by |.", show_default=False),
    ],
    actor: Actor,
    reason: Annotated[
        str, typer.Option(help="Why; kept in the record, so do not name the entity in it.", prompt=True)
    ],
    dry_run: DryRun = False,
    now: Annotated[
        bool,
        typer.Option("--now", help="Also delete the replaced files at once, not a week later by vacuum."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make every row about an entity a tombstone, in all tiers and in the predictions table.

    Days with a hold are left alone until it is released. The result names what the command does not reach.
    """
    run(
        "erase_entity",
        pipeline,
        as_json,
        entity=entity,
        actor=actor,
        reason=reason,
        dry_run=dry_run,
        now=now,
    )


@audit.command("restore")
def audit_restore(
    pipeline: Pipeline,
    first_day: FirstDay,
    last_day: LastDay,
    actor: Actor,
    reason: Reason,
    days: Annotated[int, typer.Option(min=1, help="How long they stay.")] = 30,
    as_of: AsOf = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Bring archived days back into the audit table for a while; `retain` takes them away again.

    Days are UTC dates of the event time, both included.
    """
    run(
        "restore_days",
        pipeline,
        as_json,
        first_day=first_day,
        last_day=last_day,
        actor=actor,
        reason=reason,
        days=days,
        as_of=as_of,
        dry_run=dry_run,
    )


@audit.command("cost")
def audit_cost(
    pipeline: Pipeline,
    price: Annotated[
        float | None, typer.Option(min=0, help="Of a gigabyte a month, in any currency.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Days, rows, bytes and files of each tier, and what a month of them costs."""
    found = call("cost_report", pipeline, price=price)
    show(found if as_json else found["tiers"], as_json=as_json, title=f"{pipeline}: explanation data")


@audit.command("events")
def audit_events(
    pipeline: Pipeline,
    limit: Annotated[int, typer.Option(min=1, help="Events, newest first.")] = 100,
    as_json: Json = False,
) -> None:
    """What was done to explanation data: archived, expired, held, released, restored, returned, erased, deferred."""
    found = call("audit_events", pipeline, limit=limit)
    show(found if as_json else found["events"], as_json=as_json, title=f"{pipeline}: audit events")

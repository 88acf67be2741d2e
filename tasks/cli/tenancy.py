"""`penstock tenancy`: who used how much, what it cost, and what each tenant may take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tasks.cli.options import Json
from tasks.cli.output import console, show
from tasks.cli.services import cli_settings

tenancy = typer.Typer(help="Quotas, budgets and costs of teams that share the cluster.", no_args_is_help=True)


@tenancy.command("status")
def tenancy_status(as_json: Json = False) -> None:
    """Each tenant: pipelines, quota, what the month has cost until now, and how that stands to its budget."""
    from tasks import wiring

    found = wiring.tenancy_status(cli_settings())
    title = f"Tenants, {found['month']}{', ' + found['currency'] if found['currency'] else ''}"
    show(found if as_json else found["tenants"], as_json=as_json, title=title)
    if found["cluster"] and not as_json:
        show(found["shares"], as_json=False, title=f"Shares of {found['cluster']}")
        show(found["runs"], as_json=False, title="Runs with workers, and runs that wait")


@tenancy.command("costs")
def tenancy_costs(
    month: Annotated[
        str | None, typer.Option(help="As 2026-11 (UTC); default: this month.", show_default=False)
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.", show_default=False)] = None,
    to_csv: Annotated[
        Path | None,
        typer.Option("--csv", help="Write every run and training to this file.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """What scoring and training used and cost in a month, by tenant and pipeline."""
    from tasks import wiring
    from tasks.wiring.tenancy import ledger_csv

    found = wiring.cost_ledger(cli_settings(), month=month, tenant=tenant)
    if to_csv is not None:
        to_csv.write_text(ledger_csv(found), encoding="utf-8")
        if not as_json:
            console.print(f"{len(found['lines'])} lines in {to_csv}")
    title = f"Costs of {found['month']}{', ' + found['currency'] if found['currency'] else ''}"
    show(found if as_json else found["by_pipeline"], as_json=as_json, title=title)


@tenancy.command("sync")
def tenancy_sync(as_json: Json = False) -> None:
    """Make Airflow's pools what the tenants' files say; needs Airflow."""
    from tasks import wiring

    show(wiring.sync_pools(cli_settings()), as_json=as_json, title="Pools")

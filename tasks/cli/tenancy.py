"""`penstock tenancy`: who used how much, what it cost, and what each tenant may take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tasks.cli.interrupts import one_interrupt
from tasks.cli.options import Json
from tasks.cli.output import console, show
from tasks.cli.services import cli_settings

tenancy = typer.Typer(help="Quotas, budgets and costs of teams that share the cluster.", no_args_is_help=True)

_SHOWN = (
    *("tenant", "pipeline", "kind", "runs", "attempts", "failed", "rows", "bytes_read", "bytes_written"),
    *("gib_months", "allocated_s", "used_s", "idle_s", "wasted_s", "cost"),
)
"""Of the sums; --json has all of them."""


@tenancy.command("status")
def tenancy_status(as_json: Json = False) -> None:
    """Each tenant: pipelines, quota, what the month has cost until now, and how that stands to its budget."""
    from tasks import wiring

    found = wiring.tenancy_status(cli_settings())
    title = f"Tenants, {found['month']}{', ' + found['currency'] if found['currency'] else ''}"
    show(found if as_json else found["tenants"], as_json=as_json, title=title)
    if found["cluster"] and not as_json:
        for said in filter(None, (found["undecided"], found["short"])):
            console.print(said)
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
        typer.Option("--csv", help="Write every attempt to this file.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """What scoring, training and storage had and cost in a month, by tenant and pipeline; with --csv, a line for each attempt."""
    from tasks import wiring

    found = wiring.cost_ledger(cli_settings(), month=month, tenant=tenant, stored=True)
    if to_csv is not None:
        to_csv.write_text(wiring.ledger_csv(found), encoding="utf-8")
        if not as_json:
            console.print(f"{len(found['lines'])} lines in {to_csv}")
    title = f"Costs of {found['month']}{', ' + found['currency'] if found['currency'] else ''}"
    shown = [{name: line[name] for name in _SHOWN if name in line} for line in found["by_pipeline"]]
    show(found if as_json else shown, as_json=as_json, title=title)
    if as_json:
        return
    if found["unpriced"]:
        console.print(f"Without a price in tenants/_prices.yaml: {', '.join(found['unpriced'])}.")
    if found["stored"]:
        show(found["stored"], as_json=False, title="Bytes in the predictions and audit tables now")
    if found["storage"]:
        show(found["storage"], as_json=False, title="Bytes in the store at the last look")


@tenancy.command("render")
def tenancy_render(
    kind: Annotated[str, typer.Argument(help="`kueue`, `s3-policy` or `postgres`.")],
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Folder; default: rendered/KIND of PENSTOCK_HOME.", show_default=False),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="Container image; default: that of docker-compose.yml.", show_default=False),
    ] = None,
    services_namespace: Annotated[
        str, typer.Option(help="Where Airflow, MLflow and the databases are.")
    ] = "penstock",
    operator_namespace: Annotated[
        str, typer.Option(help="Where KubeRay's operator is.")
    ] = "kuberay-operator",
    run: Annotated[
        str | None,
        typer.Option(help="As PIPELINE/RUN_ID: also a RayJob that finishes this run.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tenants as Kueue and KubeRay manifests, or as policies of the object store or of PostgreSQL, one file a tenant."""
    from tasks import wiring

    settings = cli_settings()
    found = wiring.render_tenancy(
        settings,
        kind,
        to or settings.home / "rendered" / kind,
        image=image or "",
        services_namespace=services_namespace,
        operator_namespace=operator_namespace,
        run=run,
    )
    show(found, as_json=as_json, title="Rendered")


@tenancy.command("mlflow")
def tenancy_mlflow(
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            help="Folder of the logins; default: rendered/mlflow of PENSTOCK_HOME.",
            show_default=False,
        ),
    ] = None,
    tenant: Annotated[
        list[str] | None,
        typer.Option(help="Only this tenant; may be given again. Default: all.", show_default=False),
    ] = None,
    new_passwords: Annotated[
        bool, typer.Option("--new-passwords", help="Give their users new passwords; the old ones end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """A login of MLflow's for each tenant, for the experiments and models of its own pipelines and no others; needs MLflow's admin.

    The admin's password comes from MLFLOW_AUTH_ADMIN_PASSWORD; of the MLflow of `penstock up` it is known. Logins are
    written into TENANT.env, which only its owner may read. Run it again after a new pipeline or tenant.
    """
    from tasks import wiring

    settings = cli_settings()
    found = wiring.sync_mlflow(
        settings,
        to or settings.home / "rendered" / "mlflow",
        tenants=tenant or (),
        new_passwords=new_passwords,
    )
    show(found if as_json else found["tenants"], as_json=as_json, title="Logins of MLflow")
    if found["broken"] and not as_json:
        show(
            found["broken"],
            as_json=False,
            title="Cannot be read: their experiments and models stay as they are",
        )


@tenancy.command("sync")
def tenancy_sync(as_json: Json = False) -> None:
    """Make Airflow's pools what the tenants' files say; needs Airflow."""
    from tasks import wiring

    show(wiring.sync_pools(cli_settings()), as_json=as_json, title="Pools")


@tenancy.command("keep")
def tenancy_keep(
    once: Annotated[bool, typer.Option("--once", help="Decide once, and say what was decided.")] = False,
    beat_file: Annotated[
        Path | None,
        typer.Option(
            "--beat-file",
            help="Write this file anew after each decision: a health check looks at its age.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Decide how many workers each run may have, until SIGTERM: where tenants have logins of their own, which cannot.

    With the owner's login of the metadata database. It also ends transactions of tenants' logins that are older than a minute.
    Two may run, on two machines: one of them decides at a time.
    """
    from tasks import wiring

    try:
        with one_interrupt():
            found = wiring.keep_leases(cli_settings(), once=once, beat_file=beat_file)
    except KeyboardInterrupt:
        return
    show(found, as_json=as_json, title="Decided")

"""`penstock metadata`: the database of deployments, verdicts, runs and decisions."""

from __future__ import annotations

import csv
import sys
from dataclasses import fields
from typing import Annotated

import typer

from tasks.cli.options import DryRun, Json, Pipeline, call
from tasks.cli.output import console, show
from tasks.cli.services import cli_settings
from tasks.metadata import MetricPoint

metadata = typer.Typer(
    help="The database of deployments, verdicts, runs and decisions.", no_args_is_help=True
)


@metadata.command("copy")
def metadata_copy(
    to: Annotated[str, typer.Option(help="URL of an empty database, as in PENSTOCK_METADATA_URL.")],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Copy everything into another, empty database: from SQLite to PostgreSQL, or back.

    Nobody can write meanwhile. All rows land in one transaction, after counts and digests of what the target gave back agree.
    """
    from tasks import wiring

    found = wiring.copy_metadata(cli_settings(), to=to, dry_run=dry_run)
    if as_json:
        show(found, as_json=True)
        return
    title = f"{found['source']} -> {found['target']}"
    show(_short(found["tables"]), as_json=False, title=title)
    if dry_run:
        console.print(f"{found['rows']:,} rows would be copied; nothing was changed")
    else:
        console.print(
            f"{found['rows']:,} rows copied and compared. Now set PENSTOCK_METADATA_URL to the new database for every "
            "service and run `penstock metadata check`."
        )


@metadata.command("check")
def metadata_check(
    against: Annotated[
        str | None,
        typer.Option(
            help="URL of another metadata database that must hold the same rows.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Is the database whole? Rows and digest of each table, the log's rules, triggers, counters; exit code 2 when not."""
    from tasks import wiring

    found = wiring.check_metadata(cli_settings(), against=against)
    if as_json:
        show(found, as_json=True)
    else:
        show(_short(found["tables"]), as_json=False, title=f"{found['database']}, schema {found['schema']}")
        show(found["problems"], as_json=False, title="Problems")
    if found["problems"]:
        raise typer.Exit(2)


@metadata.command("rebuild")
def metadata_rebuild(as_json: Json = False) -> None:
    """Enter what the object store and MLflow know and the database does not: after it was lost, or an older backup restored.

    Rows that are there stay. The deployment log, people's bars and rejections, alerts and costs of leases cannot be rebuilt.
    """
    from tasks import wiring

    found = wiring.rebuild_metadata(cli_settings())
    if as_json:
        show(found, as_json=True)
        return
    hidden = ("problems", "next_steps")
    show(
        [{key: value for key, value in line.items() if key not in hidden} for line in found],
        as_json=False,
        title="Rows entered",
    )
    for key, title in zip(hidden, ("Problems", "Next"), strict=True):
        show(
            [f"{line['pipeline']}: {said}" for line in found for said in line[key]],
            as_json=False,
            title=title,
        )


@metadata.command("series")
def metadata_series(
    pipeline: Pipeline,
    metric: Annotated[
        str | None,
        typer.Argument(help="Name of a metric; left out: lists the names there are.", show_default=False),
    ] = None,
    version: Annotated[int | None, typer.Option(help="Of this version alone.", show_default=False)] = None,
    since: Annotated[str | None, typer.Option(help="First day, YYYY-MM-DD.", show_default=False)] = None,
    until: Annotated[str | None, typer.Option(help="Last day, YYYY-MM-DD.", show_default=False)] = None,
    source: Annotated[
        str | None, typer.Option(help="training, evaluation, canary or monitor.", show_default=False)
    ] = None,
    superseded: Annotated[bool, typer.Option("--superseded", help="Also earlier measurements.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for programs.")] = False,
    as_json: Json = False,
) -> None:
    """A metric of a pipeline's models by day, from training to production."""
    found = call(
        "metric_series",
        pipeline,
        metric=metric,
        version=version,
        since=since,
        until=until,
        source=source,
        superseded=superseded,
    )
    if as_json:
        show(found, as_json=True)
    elif metric is None:
        show(found["metrics"], as_json=False, title=f"{pipeline}: metrics")
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, [item.name for item in fields(MetricPoint)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(found["points"])
    else:
        columns = ("day", "model_version", "value", "low", "high", "rows", "source", "measurement")
        rows = [{name: point[name] for name in columns} for point in found["points"]]
        show(rows, as_json=False, title=f"{pipeline}: {metric}")


def _short(tables: list[dict[str, object]]) -> list[dict[str, object]]:
    """For a terminal: the first 16 digits tell two tables apart."""
    return [{**table, "digest": str(table["digest"])[:16] or None} for table in tables]

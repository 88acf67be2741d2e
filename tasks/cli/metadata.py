"""`penstock metadata`: the database of deployments, verdicts, runs and decisions."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.cli.options import DryRun, Json
from tasks.cli.output import console, show
from tasks.cli.services import cli_settings

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


def _short(tables: list[dict[str, object]]) -> list[dict[str, object]]:
    """For a terminal: the first 16 digits tell two tables apart."""
    return [{**table, "digest": str(table["digest"])[:16] or None} for table in tables]

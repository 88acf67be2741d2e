"""`penstock backup`: an installation copied while it works, checked, and brought back."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.cli.interrupts import one_interrupt
from tasks.cli.options import Json
from tasks.cli.output import show
from tasks.cli.services import cli_settings
from tasks.core.errors import ConfigError

backup = typer.Typer(help="Backups of the whole installation.", no_args_is_help=True)

Place = Annotated[
    str, typer.Argument(help="Folder or s3://bucket/prefix that holds backups.", show_default=False)
]
BackupId = Annotated[
    str | None,
    typer.Argument(help="As `penstock backup list` shows it; default: the newest.", show_default=False),
]


@backup.command("create")
def backup_create(
    to: Annotated[
        str,
        typer.Option(
            help="Folder or s3://bucket/prefix for backups, outside PENSTOCK_STORE.", show_default=False
        ),
    ],
    as_json: Json = False,
) -> None:
    """Copy the metadata database, online rows and the object store, as of one moment; everybody goes on meanwhile.

    Contents that the place holds already are not copied again, be they of an earlier backup or of one that was interrupted.
    """
    from tasks import wiring

    with one_interrupt():  # its note and its copies in passing go away then
        found = wiring.create_backup(cli_settings(), to=to)
    show(found, as_json=as_json, title=f"Backup {found['backup_id']}")


@backup.command("list")
def backup_list(place: Place, as_json: Json = False) -> None:
    """The backups of a place, oldest first."""
    from tasks import wiring

    show(wiring.list_backups(cli_settings(), at=place), as_json=as_json, title=place)


@backup.command("verify")
def backup_verify(place: Place, backup_id: BackupId = None, as_json: Json = False) -> None:
    """Read a backup whole: every digest, the database, and that tables lack no file. Exit code 2 when it is damaged."""
    from tasks import wiring

    with one_interrupt():
        found = wiring.verify_backup(cli_settings(), at=place, backup_id=backup_id)
    show(found, as_json=as_json, title=f"Backup {found['backup_id']}")
    if found["problems"]:
        raise typer.Exit(2)


@backup.command("restore")
def backup_restore(
    place: Place,
    backup_id: BackupId = None,
    only: Annotated[
        str | None,
        typer.Option(help="store, online or metadata: this part alone.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring a backup back into an empty store and an empty database: those that the settings name.

    Nothing is ever overwritten. Interrupted, the same command goes on where it was.
    """
    from tasks import wiring
    from tasks.recovery import PARTS

    if only is not None and only not in PARTS:
        raise ConfigError(
            "is not a part of a backup", which=f"--only {only}", fix=f"use one of: {', '.join(PARTS)}"
        )
    parts = (only,) if only else None
    with one_interrupt():
        found = wiring.restore_backup(cli_settings(), at=place, backup_id=backup_id, parts=parts)
    show(found, as_json=as_json, title=f"Restored {found['backup_id']}")


@backup.command("remove")
def backup_remove(
    place: Place,
    backup_id: Annotated[str, typer.Argument(help="As `penstock backup list` shows it.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Delete a backup, and the contents that no other backup of the place holds."""
    from tasks import wiring

    found = wiring.remove_backup(cli_settings(), at=place, backup_id=backup_id)
    show(found, as_json=as_json, title=f"Removed {found['backup_id']}")

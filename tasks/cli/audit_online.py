"""`penstock audit fold` and `hot`: online predictions that are not in the audit table yet."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.cli.options import Json, Pipeline, call, run
from tasks.cli.output import show

Seal = Annotated[
    bool,
    typer.Option("--seal", help="Also segments that are written to now: they are closed first."),
]


def add_online_commands(audit: typer.Typer) -> None:
    """Give the `audit` group its commands about online predictions."""
    audit.command("fold")(audit_fold)
    audit.command("hot")(audit_hot)


def audit_fold(pipeline: Pipeline, seal: Seal = False, as_json: Json = False) -> None:
    """Bring this machine's online predictions into the audit table."""
    run("fold_online", pipeline, as_json, seal=seal)


def audit_hot(pipeline: Pipeline, as_json: Json = False) -> None:
    """Online predictions of this machine that are not in the audit table yet."""
    found = call("hot_online", pipeline)
    if as_json:
        show(found, as_json=True)
        return
    show(found["segments"], as_json=False, title=f"{pipeline}: segments")
    show({key: value for key, value in found.items() if key != "segments"}, as_json=False)

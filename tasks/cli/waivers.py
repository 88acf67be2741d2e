"""`penstock evaluation`: waivers of findings, and the verdicts there were."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.cli.options import Actor, Json, Pipeline, Reason, call, run
from tasks.cli.output import show


def add_waiver_commands(evaluation: typer.Typer) -> None:
    """Put the commands into the group."""
    evaluation.command("waive")(evaluation_waive)
    evaluation.command("waivers")(evaluation_waivers)
    evaluation.command("unwaive")(evaluation_unwaive)
    evaluation.command("verdicts")(evaluation_verdicts)


def evaluation_waive(
    pipeline: Pipeline,
    finding: Annotated[
        str, typer.Argument(help="Its name, as the verdict's reasons give it.", show_default=False)
    ],
    until: Annotated[
        str, typer.Option(help="Last day (UTC) on which it holds, YYYY-MM-DD.", show_default=False)
    ],
    actor: Actor,
    reason: Reason,
    candidate: Annotated[
        str | None,
        typer.Option(help="Only for this bundle digest; default: any candidate.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Let one finding of the evaluation gate pass for a while; then run the gate again.

    The finding stays on the verdict, with who waived it and why. Data, behaviour and what is not measured cannot be waived.
    """
    run(
        "waive_finding",
        pipeline,
        as_json,
        finding=finding,
        until=until,
        actor=actor,
        reason=reason,
        candidate=candidate,
    )


def evaluation_waivers(pipeline: Pipeline, as_json: Json = False) -> None:
    """Every waiver: which finding, until when, why, who, and whether it stands today."""
    found = call("list_waivers", pipeline)
    show(found if as_json else found["waivers"], as_json=as_json, title=f"{pipeline}: waivers")


def evaluation_unwaive(
    pipeline: Pipeline,
    waiver_id: Annotated[
        str, typer.Argument(help="As `penstock evaluation waivers` lists it.", show_default=False)
    ],
    actor: Actor,
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Take a waiver back. The record of it stays."""
    run("release_waived", pipeline, as_json, waiver_id=waiver_id, actor=actor, reason=reason)


def evaluation_verdicts(
    pipeline: Pipeline,
    gate: Annotated[
        str | None, typer.Option(help="Only this gate: data, evaluation or canary.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="Most verdicts.", min=1)] = 100,
    as_json: Json = False,
) -> None:
    """Verdicts of the gates with their reasons, newest first, and how many of each outcome by month."""
    found = call("list_verdicts", pipeline, gate=gate, limit=limit)
    if as_json:
        show(found, as_json=True)
        return
    show(found["verdicts"], as_json=False, title=f"{pipeline}: verdicts, newest first")
    show(found["counts"], as_json=False, title=f"{pipeline}: outcomes by month")

"""What the commands share: their arguments and options, and how they call a step."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer

from tasks.cli.output import show
from tasks.cli.services import cli_settings
from tasks.core.placed import refuse_blank

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Pipeline = Annotated[str, typer.Argument(help="Name of a folder under pipelines/.", show_default=False)]
Day = Annotated[str | None, typer.Option(help="YYYY-MM-DD", show_default=False)]
FirstDay = Annotated[str, typer.Option(help="First day of the window, YYYY-MM-DD.", show_default=False)]
LastDay = Annotated[str, typer.Option(help="Last day of the window, YYYY-MM-DD.", show_default=False)]
AsOf = Annotated[
    str | None,
    typer.Option(help="Day on which it is done, YYYY-MM-DD; default: today.", show_default=False),
]
SnapshotId = Annotated[
    str, typer.Argument(help="As the snapshot or validation step prints it.", show_default=False)
]
RunId = Annotated[str, typer.Argument(help="As `penstock inference runs` lists it.", show_default=False)]
Version = Annotated[int, typer.Argument(help="Number of a registered version.", show_default=False)]
Replacing = Annotated[
    int | None,
    typer.Option(help="Refuse unless this version is live; default: whatever is.", show_default=False),
]
EvaluationKey = Annotated[
    str, typer.Argument(help="As `penstock evaluation run` prints it.", show_default=False)
]
ValidationFirstDay = Annotated[
    str, typer.Option(help="First day that is not trained on, YYYY-MM-DD.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def _said(option: typer.CallbackParam, text: str) -> str:
    refuse_blank(text, f"--{option.name}", "say who decides, and why: the record is all that remains of it")
    return text


Actor = Annotated[str, typer.Option(help="Who decides; kept in the record.", envvar="USER", callback=_said)]
Reason = Annotated[str, typer.Option(help="Why; kept in the record.", prompt=True, callback=_said)]


def call(step: str, pipeline: str, **arguments: Any) -> dict[str, Any]:
    from tasks import wiring

    with redirect_stdout(sys.stderr):  # Ray prints its workers' lines; stdout is for the result alone
        return wiring.step(step)(cli_settings(), pipeline, **arguments)


def run(step: str, pipeline: str, as_json: bool, **arguments: Any) -> None:
    result = call(step, pipeline, **arguments)
    show(result, as_json=as_json, title=f"{pipeline}: {step.replace('_', ' ')}")

"""`penstock ci`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tasks.cli.options import Json, Pipeline, call
from tasks.cli.output import console, errors, show


def ci(
    pipeline: Pipeline,
    sample_days: Annotated[
        int | None,
        typer.Option(help="Whole days to try, at least 11; default: 21.", show_default=False),
    ] = None,
    sample_rows: Annotated[
        int | None,
        typer.Option(help="Instead: as many whole days as hold about so many rows.", show_default=False),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(help="Write the checks as JUnit XML to this file.", show_default=False)
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Write a summary for a pull request to this file.", show_default=False),
    ] = None,
    reports: Annotated[
        Path | None, typer.Option(help="Copy the HTML reports into this folder.", show_default=False)
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the sandbox with its store and reports, and say where.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Try a pipeline before its change is merged: lint, tests, suite, sample, gates and a promotion that is not made.

    Needs no service, and writes nothing to the installation. Exit code 2 when a check blocks the merge; 75 when one could not be made now.
    """
    result = call(
        "run_ci",
        pipeline,
        sample_days=sample_days,
        sample_rows=sample_rows,
        keep=keep,
        reports=str(reports) if reports else None,
        say=(lambda _: None) if as_json else (lambda line: errors.print(line, markup=False)),
    )
    if junit or markdown:
        from tasks.wiring import ci as rendering

        for path, render in ((junit, rendering.junit), (markdown, rendering.markdown)):
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(render(result), encoding="utf-8")
    if as_json:
        show(result, as_json=True)
    else:
        _print(result)
    if result.get("exit_code"):
        raise typer.Exit(result["exit_code"])


def _print(result: dict[str, Any]) -> None:
    """What did not pass, in full, then the metrics and the answer; each check was printed as it ended."""
    for item in result["checks"]:
        for note in item["notes"]:
            console.print(f"{item['name']}: [{note['status']}] {note['text']}", markup=False, soft_wrap=True)
    for item in result["checks"]:
        if item["status"] == "fail":
            error = item["error"]
            console.print(f"\n{item['name']}: {error['type']} {error['which']}", markup=False, soft_wrap=True)
            console.print(f"  {error['what']}\n  Fix: {error['fix']}", markup=False, soft_wrap=True)
    show(result["metrics"], as_json=False, title="Of the sample, with intervals over days")
    for path in result["reports"]:
        console.print(f"report {path}", markup=False, soft_wrap=True)
    if result["sandbox"]:
        console.print(f"sandbox {result['sandbox']}", markup=False, soft_wrap=True)
    console.print(f"{result['pipeline']}: {result['outcome']}, {result['wall_s']:.0f} s", markup=False)

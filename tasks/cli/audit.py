"""`penstock audit`: why was this prediction made?"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from tasks.cli.options import Json, Pipeline, run

audit = typer.Typer(help="Why was this prediction made?", no_args_is_help=True)


@audit.command("id")
def audit_id(
    pipeline: Pipeline,
    prediction_id: Annotated[
        str,
        typer.Argument(help="As in the predictions table and `penstock audit window`.", show_default=False),
    ],
    as_json: Json = False,
) -> None:
    """One prediction: features, model, run, explanation."""
    run("audit_prediction", pipeline, as_json, prediction_id=prediction_id)


@audit.command("window")
def audit_window(
    pipeline: Pipeline,
    start: Annotated[datetime, typer.Option(help="UTC, included.")],
    end: Annotated[datetime, typer.Option(help="UTC, excluded.")],
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Predictions on a page.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="From the page before.")] = None,
    as_json: Json = False,
) -> None:
    """Predictions about a time window, page by page."""
    run(
        "audit_predictions",
        pipeline,
        as_json,
        start=start.isoformat(),
        end=end.isoformat(),
        limit=limit,
        cursor=cursor,
    )

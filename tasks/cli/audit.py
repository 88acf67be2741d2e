"""`penstock audit`: why was this prediction made?"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from tasks.cli.options import Json, Pipeline, call, run
from tasks.cli.output import console, show

audit = typer.Typer(help="Why was this prediction made?", no_args_is_help=True)


PredictionId = Annotated[
    str, typer.Argument(help="As in the predictions table and `penstock audit window`.", show_default=False)
]
OfRun = Annotated[
    str | None,
    typer.Option("--run", help="The scoring of this run; default: the newest.", show_default=False),
]


@audit.command("id")
def audit_id(
    prediction_id: PredictionId,
    pipeline: Annotated[
        str | None, typer.Option(help="With --entity: whether the id is that row's.", show_default=False)
    ] = None,
    entity: Annotated[
        str | None,
        typer.Option(
            help="Values of the entity key, joined by |, as in column entity_id.", show_default=False
        ),
    ] = None,
    event_time: Annotated[
        datetime | None, typer.Option(help="UTC; default: the time in the id.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """What a prediction id says by itself: event time, where its rows lie, and whose it is. Needs no pipeline."""
    from tasks import wiring

    moment = event_time and event_time.isoformat()
    found = wiring.decode_prediction_id(
        prediction_id=prediction_id, pipeline=pipeline, entity=entity, event_time=moment
    )
    show(found, as_json=as_json, title=prediction_id)


@audit.command("show")
def audit_show(
    pipeline: Pipeline,
    prediction_id: PredictionId,
    run_id: OfRun = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Compute the attributions now when they are not stored.")
    ] = False,
    as_json: Json = False,
) -> None:
    """One prediction: features, model, run, explanation."""
    run("audit_prediction", pipeline, as_json, prediction_id=prediction_id, run_id=run_id, explain=explain)


@audit.command("reproduce")
def audit_reproduce(
    pipeline: Pipeline,
    prediction_id: PredictionId,
    run_id: OfRun = None,
    as_json: Json = False,
) -> None:
    """Compute a prediction again with its recorded model: features, score, attributions; exit code 2 when one differs."""
    found = call("reproduce_prediction", pipeline, prediction_id=prediction_id, run_id=run_id)
    show(found, as_json=as_json, title=f"{pipeline}: {prediction_id}")
    if found.get("reproduced") is False:
        raise typer.Exit(2)


@audit.command("window")
def audit_window(
    pipeline: Pipeline,
    start: Annotated[datetime, typer.Option(help="UTC, included.")],
    end: Annotated[datetime, typer.Option(help="UTC, excluded.")],
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Predictions on a page.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="From the page before.")] = None,
    model_version: Annotated[int | None, typer.Option(help="Scored by this version.")] = None,
    min_prediction: Annotated[float | None, typer.Option(help="Lowest score, included.")] = None,
    max_prediction: Annotated[float | None, typer.Option(help="Highest score, included.")] = None,
    entity: Annotated[str | None, typer.Option(help="About this entity: its entity_id.")] = None,
    as_json: Json = False,
) -> None:
    """Predictions about a time window, page by page; of each its newest scoring that passes the filters."""
    found = call(
        "audit_predictions",
        pipeline,
        start=start.isoformat(),
        end=end.isoformat(),
        limit=limit,
        cursor=cursor,
        model_version=model_version,
        min_prediction=min_prediction,
        max_prediction=max_prediction,
        entity_id=entity,
    )
    if as_json:
        show(found, as_json=True)
        return
    lines = [_line(record) for record in found["records"]]
    show(lines, as_json=False, title=f"{pipeline}: predictions", whole="prediction_id")
    if not lines:
        console.print(
            f"A prediction is here once its run is published, until its day expires: penstock audit events {pipeline}",
            markup=False,
            soft_wrap=True,
        )
    if found["cursor"]:
        console.print(f"There are more: add --cursor {found['cursor']}", markup=False, soft_wrap=True)


def _line(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as one line of a table; `penstock audit show` has all of it."""
    moment = datetime.fromisoformat(record["event_time"]).astimezone(UTC)
    return {
        "prediction_id": record["prediction_id"],
        "event_time": f"{moment:%Y-%m-%d %H:%M:%S}",
        "score": record["prediction"],
        "version": record["model_version"],
        "entity": record["entity_id"],
    }

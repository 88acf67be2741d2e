"""`penstock inference`: batch scoring and the upkeep of its tables."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from tasks.cli.options import (
    DryRun,
    Json,
    Pipeline,
    RunId,
    SnapshotId,
    call,
    run,
)
from tasks.cli.output import show
from tasks.cli.services import cli_settings


class RunStatus(StrEnum):
    """`tasks.metadata.runs.STATUSES`, without importing the database for them."""

    PLANNED = "planned"
    SCORED = "scored"
    PUBLISHED = "published"
    VERIFIED = "verified"


inference = typer.Typer(help="Batch scoring: plan, score, publish, verify.", no_args_is_help=True)


@inference.command("plan")
def inference_plan(pipeline: Pipeline, snapshot_id: SnapshotId, as_json: Json = False) -> None:
    """Cut a validated scoring snapshot into shards for the champion; prints the run id."""
    run("plan_scoring", pipeline, as_json, snapshot_id=snapshot_id)


@inference.command("run")
def inference_run(
    pipeline: Pipeline,
    run_id: RunId,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    as_json: Json = False,
) -> None:
    """Score what is not committed yet."""
    run("score_run", pipeline, as_json, run_id=run_id, local=local)


@inference.command("resume")
def inference_resume(
    pipeline: Pipeline,
    run_id: RunId,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    as_json: Json = False,
) -> None:
    """Score what is missing, publish and verify, whatever stopped the run; safe at any moment."""
    run("resume_run", pipeline, as_json, run_id=run_id, local=local)


@inference.command("replay")
def inference_replay(
    pipeline: Pipeline,
    run_id: RunId,
    snapshot_id: Annotated[
        str | None,
        typer.Option(
            "--snapshot",
            help="Take the rows from this validated scoring snapshot of a corrected delivery; "
            "without it they are scored as they were.",
            show_default=False,
        ),
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    as_json: Json = False,
) -> None:
    """Score a published run's dead letters again and add those that can be scored now, each once."""
    run("replay_run", pipeline, as_json, run_id=run_id, snapshot_id=snapshot_id, local=local)


@inference.command("publish")
def inference_publish(
    pipeline: Pipeline,
    run_id: RunId,
    replace_newer: Annotated[
        bool,
        typer.Option(
            "--replace-newer", help="Take the days back from runs that were planned later: after a rollback."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Add a finished run to the predictions table in one transaction; a second call changes nothing."""
    run("publish_run", pipeline, as_json, run_id=run_id, replace_newer=replace_newer)


@inference.command("runs")
def inference_runs(
    pipeline: Pipeline,
    status: Annotated[
        RunStatus | None, typer.Option(help="Only runs that got so far and no further.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """The scoring runs of a pipeline, newest first: how far each got, its days, model version and rows."""
    found = call("list_runs", pipeline, status=status.value if status else None, limit=limit)
    shown = found if as_json else found["runs"]
    show(shown, as_json=as_json, title=f"{pipeline}: scoring runs, newest first", whole="run_id")


@inference.command("status")
def inference_status(pipeline: Pipeline, run_id: RunId, as_json: Json = False) -> None:
    """A progress bar, rows, rate, time left, work by node, dead letters and cost so far."""
    run("run_status", pipeline, as_json, run_id=run_id)


@inference.command("verify")
def inference_verify(pipeline: Pipeline, run_id: RunId, as_json: Json = False) -> None:
    """Check counts, digests and uniqueness of a published run; exit code 2 when something is wrong."""
    run("verify_run", pipeline, as_json, run_id=run_id)


@inference.command("optimize")
def inference_optimize(
    pipeline: Pipeline,
    target_mb: Annotated[
        float, typer.Option(help="MiB; files below half of it are merged, up to it.", min=0.001)
    ] = 32.0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Merge small files of the predictions and audit tables, never across runs or days; safe at any moment.

    Exit code 2 when a file is damaged: everything else is merged first. 75 or 76: repeat it. Days with a hold stay as they are.
    """
    run("optimize_tables", pipeline, as_json, target_mb=target_mb, dry_run=dry_run)


@inference.command("vacuum")
def inference_vacuum(
    pipeline: Pipeline,
    older_than_days: Annotated[int, typer.Option(help="Files that were let go longer ago.", min=1)] = 7,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Delete files that the tables let go: superseded or merged ones. Days with a hold stay as they are."""
    run("vacuum_tables", pipeline, as_json, older_than_days=older_than_days, dry_run=dry_run)


@inference.command("torture")
def inference_torture(
    kills: Annotated[int, typer.Option(help="How many faults to deliver.", min=1)] = 100,
    store: Annotated[
        str, typer.Option(help="local, or s3://bucket/prefix: a fresh prefix below it is used.")
    ] = "local",
    seconds: Annotated[
        float | None, typer.Option(help="Begin no round after this time; default: no limit.", min=0.0)
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed strikes the same way.")] = 1,
    as_json: Json = False,
) -> None:
    """Kill and pause drivers of a small run of its own, let its store fail, and count what is lost, doubled or seen in part.

    Needs no pipeline and no service, and touches none. Exit code 1 when anything is wrong; the rounds that failed are kept then.
    """
    from tasks.cli.interrupts import one_interrupt
    from tasks.cli.torture import show_torture
    from tasks.inference.torture import torture

    with one_interrupt():
        report = torture(cli_settings(), kills=kills, store=store, seconds=seconds, seed=seed)
    show_torture(report, as_json=as_json)
    if not report.ok:
        raise typer.Exit(1)

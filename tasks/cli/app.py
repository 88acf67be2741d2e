"""The commands. A room's verbs call the wiring and print what it returns; no logic lives here."""

from __future__ import annotations

import logging
import sys
from datetime import datetime
from typing import Annotated, Any

import typer

from tasks.cli.output import console, show
from tasks.cli.services import cli_settings

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Pipeline = Annotated[str, typer.Argument(help="Name of a folder under pipelines/.", show_default=False)]
Day = Annotated[str | None, typer.Option(help="YYYY-MM-DD", show_default=False)]
Actor = Annotated[str, typer.Option(help="Who decides; kept in the record.", envvar="USER")]
Reason = Annotated[str, typer.Option(help="Why; kept in the record.", prompt=True)]


def _group(name: str, help_text: str) -> typer.Typer:
    group = typer.Typer(help=help_text, no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


app = typer.Typer(
    help="An ML pipeline that a team can trust with its production scoring.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data = _group("data", "Snapshots of a pipeline's source.")
validation = _group("validation", "The data gate.")
training = _group("training", "Train a model; needs MLflow.")
evaluation = _group("evaluation", "Measure a model and judge it.")
registry = _group("registry", "Challenger, champion and their history.")
inference = _group("inference", "Batch scoring: plan, score, publish, verify.")
monitoring = _group("monitoring", "Drift, performance and what to do about it.")
audit = _group("audit", "Why was this prediction made?")


@app.callback()
def _start(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show progress lines on stderr.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def _run(step: str, pipeline: str, as_json: bool, **arguments: Any) -> Any:
    from tasks import wiring

    result = wiring.step(step)(cli_settings(), pipeline, **arguments)
    show(result, as_json=as_json, title=f"{pipeline}: {step.replace('_', ' ')}")
    return result


# -- this machine's services


@app.command()
def up() -> None:
    """Start Airflow, MLflow and a Ray head on loopback, and wait until they are healthy."""
    from tasks.cli.services import start

    start(cli_settings())


@app.command()
def down() -> None:
    """End every service of this installation, by pid."""
    from tasks.cli.services import stop

    stop(cli_settings())


@app.command()
def status(as_json: Json = False) -> None:
    """Show the services: running, healthy, where, and their logs. Exit code 1 when one is not healthy."""
    from tasks.cli.services import show_status

    if not show_status(cli_settings(), as_json=as_json):
        raise typer.Exit(1)


@app.command()
def demo() -> None:
    """The whole chain on 336,776 real flights through Airflow; what was done before is skipped."""
    from tasks.cli.demo import run_demo

    raise typer.Exit(run_demo(cli_settings()))


@app.command()
def job(
    step: str,
    pipeline: str,
    arguments: Annotated[str, typer.Option(help="JSON object of the step's arguments.")] = "{}",
    result: Annotated[str, typer.Option(help="Key in the store for the outcome.")] = "",
) -> None:
    """Run one step as a job: what Airflow submits to Ray."""
    from tasks.cli.job import run_job

    raise typer.Exit(run_job(cli_settings(), step, pipeline, arguments, result))


# -- pipelines


@app.command()
def pipelines(as_json: Json = False) -> None:
    """List the pipelines with their champion and the last published day."""
    from tasks import wiring

    found = wiring.overview(cli_settings())
    lines = [
        {
            "pipeline": entry["pipeline"],
            "champion": entry["champion"] and f"version {entry['champion']['version']}",
            "last published day": entry["published"] and entry["published"]["last_day"],
            "verdicts": ", ".join(f"{item['gate']}: {item['outcome']}" for item in entry["verdicts"]),
            "problem": entry.get("error"),
        }
        for entry in found
    ]
    show(found if as_json else lines, as_json=as_json, title="Pipelines")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the new pipeline: a-z, 0-9 and _.")],
    source: Annotated[
        str, typer.Option("--from", help="Parquet or CSV: a file, a folder or s3://bucket/prefix.")
    ],
    label: Annotated[str, typer.Option(help="Column to predict, 0 or 1.")],
    time: Annotated[str, typer.Option(help="Timestamp column: the moment a prediction is about.")],
    key: Annotated[list[str], typer.Option(help="Column that identifies a row; repeat for several.")],
    time_zone: Annotated[str, typer.Option(help="IANA zone whose midnight divides the days.")] = "UTC",
) -> None:
    """Write a working pipeline folder and expectation suite for your own file."""
    from tasks import wiring

    folder = wiring.new_pipeline(
        cli_settings(), name, source=source, label=label, time=time, keys=key, time_zone=time_zone
    )
    console.print(f"Wrote {folder}. Read its pipeline.yaml, then: penstock data snapshot {name}")


# -- rooms


@data.command("snapshot")
def data_snapshot(
    pipeline: Pipeline,
    scoring: Annotated[bool, typer.Option("--scoring", help="Without labels, for scoring.")] = False,
    first_day: Day = None,
    last_day: Day = None,
    as_json: Json = False,
) -> None:
    """Freeze the training windows, or with --scoring some days, into an immutable snapshot."""
    if scoring:
        _run("snapshot_scoring", pipeline, as_json, first_day=first_day, last_day=last_day)
    else:
        _run("snapshot_training", pipeline, as_json, train_first_day=first_day, validation_last_day=last_day)


@data.command("show")
def data_show(pipeline: Pipeline, snapshot_id: str, as_json: Json = False) -> None:
    """The partitions of a snapshot: day, rows, bytes, digest."""
    _run("show_snapshot", pipeline, as_json, snapshot_id=snapshot_id)


@validation.command("run")
def validation_run(pipeline: Pipeline, snapshot_id: str, as_json: Json = False) -> None:
    """Judge a snapshot by its suite; bad rows are quarantined, a critical failure ends with exit code 2."""
    _run("validate_snapshot", pipeline, as_json, snapshot_id=snapshot_id)


@training.command("run")
def training_run(
    pipeline: Pipeline,
    snapshot_id: str,
    validation_first_day: Annotated[str, typer.Option(help="First day that is not trained on.")],
    as_json: Json = False,
) -> None:
    """Train on a validated snapshot; the same snapshot, code and settings are trained once."""
    _run("train_model", pipeline, as_json, snapshot_id=snapshot_id, validation_first_day=validation_first_day)


@evaluation.command("run")
def evaluation_run(
    pipeline: Pipeline,
    snapshot_id: str,
    bundle_digest: str,
    validation_first_day: Annotated[str, typer.Option(help="First day to evaluate on.")],
    as_json: Json = False,
) -> None:
    """Measure a model on the validation days against the champion and logistic regression."""
    _run(
        "evaluate_model",
        pipeline,
        as_json,
        snapshot_id=snapshot_id,
        bundle_digest=bundle_digest,
        validation_first_day=validation_first_day,
    )


@evaluation.command("gate")
def evaluation_gate(pipeline: Pipeline, evaluation_key: str, as_json: Json = False) -> None:
    """Judge an evaluation; a refused model ends with exit code 2."""
    _run("gate_model", pipeline, as_json, evaluation_key=evaluation_key)


@registry.command("history")
def registry_history(pipeline: Pipeline, as_json: Json = False) -> None:
    """Every promotion and rollback: when, what, who and why."""
    _run("deployment_history", pipeline, as_json)


@registry.command("live")
def registry_live(
    pipeline: Pipeline,
    at: Annotated[datetime | None, typer.Option(help="UTC moment; default now.")] = None,
    as_json: Json = False,
) -> None:
    """What is live, or was live at a moment."""
    _run("live_model", pipeline, as_json, at=at.isoformat() if at else None)


@registry.command("promote")
def registry_promote(
    pipeline: Pipeline, version: int, actor: Actor, reason: Reason, as_json: Json = False
) -> None:
    """Make a registered version the champion, after loading it and replaying its golden rows."""
    _run("promote_model", pipeline, as_json, version=version, actor=actor, reason=reason)


@registry.command("rollback")
def registry_rollback(
    pipeline: Pipeline,
    actor: Actor,
    reason: Reason,
    to_version: Annotated[int | None, typer.Option("--to", help="Default: the version before.")] = None,
    as_json: Json = False,
) -> None:
    """Go back to an earlier version, load-verified; the version left is barred."""
    _run("rollback_model", pipeline, as_json, to_version=to_version, actor=actor, reason=reason)


@registry.command("unbar")
def registry_unbar(
    pipeline: Pipeline, version: int, actor: Actor, reason: Reason, as_json: Json = False
) -> None:
    """Allow a rolled-back version to be promoted again."""
    _run("unbar_model", pipeline, as_json, version=version, actor=actor, reason=reason)


@registry.command("reconcile")
def registry_reconcile(pipeline: Pipeline, as_json: Json = False) -> None:
    """Make MLflow's aliases say what the event log says."""
    _run("reconcile_registry", pipeline, as_json)


@inference.command("plan")
def inference_plan(pipeline: Pipeline, snapshot_id: str, as_json: Json = False) -> None:
    """Cut a validated scoring snapshot into shards for the champion; prints the run id."""
    _run("plan_scoring", pipeline, as_json, snapshot_id=snapshot_id)


@inference.command("run")
def inference_run(
    pipeline: Pipeline,
    run_id: str,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    as_json: Json = False,
) -> None:
    """Score what is not committed yet; also the way to resume."""
    _run("score_run", pipeline, as_json, run_id=run_id, local=local)


@inference.command("publish")
def inference_publish(pipeline: Pipeline, run_id: str, as_json: Json = False) -> None:
    """Add a finished run to the predictions table in one transaction; a second call changes nothing."""
    _run("publish_run", pipeline, as_json, run_id=run_id)


@inference.command("status")
def inference_status(pipeline: Pipeline, run_id: str, as_json: Json = False) -> None:
    """Shards and rows done, rate, dead letters and cost so far."""
    _run("run_status", pipeline, as_json, run_id=run_id)


@inference.command("verify")
def inference_verify(pipeline: Pipeline, run_id: str, as_json: Json = False) -> None:
    """Check counts, digests and uniqueness of a published run; exit code 2 when something is wrong."""
    _run("verify_run", pipeline, as_json, run_id=run_id)


@inference.command("sweep")
def inference_sweep(pipeline: Pipeline, as_json: Json = False) -> None:
    """Remove files that no run and no table refers to any more."""
    _run("maintain", pipeline, as_json)


@monitoring.command("run")
def monitoring_run(
    pipeline: Pipeline,
    first_day: Day = None,
    last_day: Day = None,
    as_of: Annotated[str | None, typer.Option(help="Day on which labels are read; default: today.")] = None,
    as_json: Json = False,
) -> None:
    """Measure, join labels, decide and report for a window of scored days."""
    _run("monitor_window", pipeline, as_json, first_day=first_day, last_day=last_day, as_of=as_of)


@audit.command("id")
def audit_id(pipeline: Pipeline, prediction_id: str, as_json: Json = False) -> None:
    """One prediction: features, model, run, explanation."""
    _run("audit_prediction", pipeline, as_json, prediction_id=prediction_id)


@audit.command("window")
def audit_window(
    pipeline: Pipeline,
    start: Annotated[datetime, typer.Option(help="UTC, included.")],
    end: Annotated[datetime, typer.Option(help="UTC, excluded.")],
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    cursor: Annotated[str | None, typer.Option(help="From the page before.")] = None,
    as_json: Json = False,
) -> None:
    """Predictions about a time window, page by page."""
    _run(
        "audit_predictions",
        pipeline,
        as_json,
        start=start.isoformat(),
        end=end.isoformat(),
        limit=limit,
        cursor=cursor,
    )


@audit.command("retain")
def audit_retain(pipeline: Pipeline, as_of: Day = None, as_json: Json = False) -> None:
    """Archive and expire explanation data by age."""
    _run("archive_explanations", pipeline, as_json, as_of=as_of)

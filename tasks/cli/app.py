"""The commands. A room's verbs call the wiring and print what it returns; no logic lives here."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Annotated

import typer

from tasks.cli.audit_online import add_online_commands
from tasks.cli.audit_upkeep import audit
from tasks.cli.ci import ci
from tasks.cli.logs import log_to_stderr
from tasks.cli.metadata import metadata
from tasks.cli.options import (
    Actor,
    AsOf,
    Day,
    DryRun,
    EvaluationKey,
    FirstDay,
    Json,
    LastDay,
    Pipeline,
    Reason,
    RunId,
    SnapshotId,
    ValidationFirstDay,
    Version,
    call,
    run,
)
from tasks.cli.output import console, show
from tasks.cli.services import cli_settings
from tasks.cli.waivers import add_waiver_commands
from tasks.core.errors import ConfigError


def _group(name: str, help_text: str) -> typer.Typer:
    group = typer.Typer(help=help_text, no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


_ABOUT = """An ML pipeline that a team can trust with its production scoring.

Every step of a DAG can be run by hand, and repeated: what is done already is found, not done again.

Exit codes: 0 done; 2 wrong input or a refusal: fix it first; 75 try again later; 76 the outcome is unknown: look it up by its id first; 130 interrupted; 1 anything else.
"""

app = typer.Typer(
    help=_ABOUT,
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
app.command("ci")(ci)
add_online_commands(audit)
add_waiver_commands(evaluation)
app.add_typer(audit, name="audit")
app.add_typer(metadata, name="metadata")


@app.callback()
def _start(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show progress lines on stderr.")] = False,
) -> None:
    log_to_stderr(logging.INFO if verbose else logging.WARNING)


# -- this machine's services


@app.command()
def up() -> None:
    """Start Airflow, MLflow and a Ray head on loopback, and wait until they are healthy."""
    from tasks.cli.interrupts import one_interrupt
    from tasks.cli.services import start

    with one_interrupt():
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
    step: Annotated[str, typer.Argument(help="Name of a step, for example train_model.", show_default=False)],
    pipeline: Pipeline,
    result: Annotated[
        str, typer.Option(help="Key in the store for the outcome, as JSON.", show_default=False)
    ],
    arguments: Annotated[str, typer.Option(help="JSON object of the step's arguments.")] = "{}",
) -> None:
    """Run one step as a job and leave its outcome in the store: what Airflow submits to Ray."""
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
    console.print(f"Wrote {folder}", soft_wrap=True)
    console.print("1. Read its pipeline.yaml: are all its features known when the prediction is made?")
    console.print(f"2. Start {name}.train in Airflow (`penstock up` starts Airflow and says where it is),")
    console.print(f"   or go step by step here: penstock data snapshot {name}")


@app.command()
def maintain(pipeline: Pipeline, as_json: Json = False) -> None:
    """Daily upkeep: remove files that nothing refers to, put MLflow's aliases right, merge small files. Safe beside running work."""
    run("maintain", pipeline, as_json)


# -- rooms


@data.command("snapshot")
def data_snapshot(
    pipeline: Pipeline,
    train_first_day: Day = None,
    train_last_day: Day = None,
    validation_first_day: Day = None,
    validation_last_day: Day = None,
    scoring: Annotated[
        bool, typer.Option("--scoring", help="Rows to score, without labels, instead of rows to train on.")
    ] = False,
    first_day: Annotated[
        str | None,
        typer.Option(help="With --scoring; default: the oldest unpublished day.", show_default=False),
    ] = None,
    last_day: Annotated[str | None, typer.Option(help="With --scoring.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Freeze rows into an immutable snapshot: the training and validation windows, or days to score.

    Days that are not given are those of split in pipeline.yaml.
    """
    split = {
        "train_first_day": train_first_day,
        "train_last_day": train_last_day,
        "validation_first_day": validation_first_day,
        "validation_last_day": validation_last_day,
    }
    days = {"first_day": first_day, "last_day": last_day}
    wrong = [name for name, value in (split if scoring else days).items() if value is not None]
    if wrong:
        raise ConfigError(
            "belongs to a training snapshot" if scoring else "belongs to a scoring snapshot",
            which=", ".join(f"--{name.replace('_', '-')}" for name in wrong),
            fix="use --first-day and --last-day"
            if scoring
            else "add --scoring, or use --train-first-day ...",
        )
    if scoring:
        run("snapshot_scoring", pipeline, as_json, **days)
    else:
        run("snapshot_training", pipeline, as_json, **split)


@data.command("show")
def data_show(pipeline: Pipeline, snapshot_id: SnapshotId, as_json: Json = False) -> None:
    """The partitions of a snapshot: day, rows, bytes, digest."""
    run("show_snapshot", pipeline, as_json, snapshot_id=snapshot_id)


@validation.command("run")
def validation_run(pipeline: Pipeline, snapshot_id: SnapshotId, as_json: Json = False) -> None:
    """Judge a snapshot by its suite; bad rows are quarantined, a critical failure ends with exit code 2.

    Prints the id of the clean snapshot: the next step takes that one.
    """
    run("validate_snapshot", pipeline, as_json, snapshot_id=snapshot_id)


@training.command("run")
def training_run(
    pipeline: Pipeline,
    snapshot_id: SnapshotId,
    validation_first_day: ValidationFirstDay,
    as_json: Json = False,
) -> None:
    """Train on a validated snapshot; the same snapshot, code and settings are trained once."""
    run("train_model", pipeline, as_json, snapshot_id=snapshot_id, validation_first_day=validation_first_day)


@training.command("due")
def training_due(
    pipeline: Pipeline,
    trigger: Annotated[str, typer.Option(help="new_data, drift or code.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Whether a trigger asks for a training now, and why; starts none."""
    run("training_due", pipeline, as_json, trigger=trigger)


@evaluation.command("run")
def evaluation_run(
    pipeline: Pipeline,
    snapshot_id: SnapshotId,
    bundle_digest: Annotated[
        str, typer.Argument(help="As `penstock training run` prints it.", show_default=False)
    ],
    validation_first_day: ValidationFirstDay,
    as_json: Json = False,
) -> None:
    """Measure a model on the validation days against the champion and logistic regression."""
    run(
        "evaluate_model",
        pipeline,
        as_json,
        snapshot_id=snapshot_id,
        bundle_digest=bundle_digest,
        validation_first_day=validation_first_day,
    )


@evaluation.command("gate")
def evaluation_gate(pipeline: Pipeline, evaluation_key: EvaluationKey, as_json: Json = False) -> None:
    """Judge an evaluation; a refused model ends with exit code 2."""
    run("gate_model", pipeline, as_json, evaluation_key=evaluation_key)


@evaluation.command("reproduce-training")
def evaluation_reproduce_training(
    pipeline: Pipeline,
    snapshot_id: Annotated[
        str | None,
        typer.Option("--snapshot", help="Default: that of the newest training.", show_default=False),
    ] = None,
    validation_first_day: Day = None,
    sample_rows: Annotated[
        int | None,
        typer.Option(
            min=1, help="Train on days with about so many rows; default 50,000.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train twice with the same seed in clean processes, keep nothing, and compare; exit code 2 when they differ."""
    run(
        "reproduce_training",
        pipeline,
        as_json,
        snapshot_id=snapshot_id,
        validation_first_day=validation_first_day,
        sample_rows=sample_rows,
    )


@registry.command("history")
def registry_history(pipeline: Pipeline, as_json: Json = False) -> None:
    """Every promotion and rollback: when, what, who and why."""
    found = call("deployment_history", pipeline)
    show(
        found if as_json else found["events"], as_json=as_json, title=f"{pipeline}: deployments, newest first"
    )


@registry.command("live")
def registry_live(
    pipeline: Pipeline,
    at: Annotated[datetime | None, typer.Option(help="UTC moment; default now.")] = None,
    as_json: Json = False,
) -> None:
    """What is live, or was live at a moment."""
    run("live_model", pipeline, as_json, at=at.isoformat() if at else None)


@registry.command("register")
def registry_register(pipeline: Pipeline, evaluation_key: EvaluationKey, as_json: Json = False) -> None:
    """Register the model of a passed evaluation as challenger; needs MLflow. Once for each bundle."""
    run("register_model", pipeline, as_json, evaluation_key=evaluation_key)


@registry.command("canary")
def registry_canary(
    pipeline: Pipeline,
    version: Version,
    after: Annotated[
        str | None,
        typer.Option(
            help="Compare on days after this one; default: the model's last day.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare a challenger with the champion on labelled days that neither was judged on.

    Prints its verdict: promote after pass or skipped; fail and inconclusive mean that the champion stays.
    """
    run("canary_model", pipeline, as_json, version=version, validation_last_day=after)


@registry.command("promote")
def registry_promote(
    pipeline: Pipeline,
    version: Version,
    actor: Actor,
    reason: Reason,
    replacing: Annotated[
        int | None,
        typer.Option(help="Refuse unless this version is live; default: whatever is.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a registered version the champion, after loading it and replaying its golden rows."""
    run("promote_model", pipeline, as_json, version=version, actor=actor, reason=reason, expected=replacing)


@registry.command("rollback")
def registry_rollback(
    pipeline: Pipeline,
    actor: Actor,
    reason: Reason,
    leaving: Annotated[
        int | None,
        typer.Option(
            help="The version to leave: the one that is live. Repeating is safe.", show_default=False
        ),
    ] = None,
    to_version: Annotated[
        int | None, typer.Option("--to", help="Default: the version live before.", show_default=False)
    ] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Then score anew what the version left has published.")
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="Re-score in this process, without Ray.")] = False,
    as_json: Json = False,
) -> None:
    """Go back to an earlier version, load-verified; the version left is barred, and its published rows are counted."""
    if leaving is None:
        live = call("live_model", pipeline)["version"]
        raise ConfigError(
            "is needed, so that a repeated command does not go back one version more",
            which="--leaving",
            fix=f"version {live} is live; to leave it, add: --leaving {live}"
            if live
            else "no version is live, so there is nothing to leave",
        )
    run(
        "rollback_model",
        pipeline,
        as_json,
        expected=leaving,
        to_version=to_version,
        actor=actor,
        reason=reason,
        rescore=rescore,
        local=local,
    )


@registry.command("blast-radius")
def registry_blast_radius(pipeline: Pipeline, version: Version, as_json: Json = False) -> None:
    """Which predictions of a version were published, and which of them readers still see."""
    run("blast_radius", pipeline, as_json, version=version)


@registry.command("rescore")
def registry_rescore(
    pipeline: Pipeline,
    version: Version,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Plan the runs and stop: `inference resume` does the rest.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score anew with the live version what a version that was left still shows; each run is replaced at once."""
    if plan_only:
        run("plan_rescoring", pipeline, as_json, version=version)
    else:
        run("rescore_version", pipeline, as_json, version=version, local=local)


@registry.command("bar")
def registry_bar(
    pipeline: Pipeline, version: Version, actor: Actor, reason: Reason, as_json: Json = False
) -> None:
    """Forbid the promotion of a version until somebody unbars it."""
    run("bar_model", pipeline, as_json, version=version, actor=actor, reason=reason)


@registry.command("unbar")
def registry_unbar(
    pipeline: Pipeline, version: Version, actor: Actor, reason: Reason, as_json: Json = False
) -> None:
    """Allow a rolled-back version to be promoted again."""
    run("unbar_model", pipeline, as_json, version=version, actor=actor, reason=reason)


@registry.command("reconcile")
def registry_reconcile(pipeline: Pipeline, as_json: Json = False) -> None:
    """Make MLflow's aliases say what the event log says."""
    run("reconcile_registry", pipeline, as_json)


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


@monitoring.command("run")
def monitoring_run(
    pipeline: Pipeline, first_day: Day = None, last_day: Day = None, as_of: AsOf = None, as_json: Json = False
) -> None:
    """All of it: measure, join labels, decide and report. Without days: those of the newest publication."""
    run("monitor_window", pipeline, as_json, first_day=first_day, last_day=last_day, as_of=as_of)


@monitoring.command("measure")
def monitoring_measure(
    pipeline: Pipeline, first_day: Day = None, last_day: Day = None, as_json: Json = False
) -> None:
    """Drift and contract signals of each published day. Without days: those of the newest publication."""
    run("measure_window", pipeline, as_json, first_day=first_day, last_day=last_day)


@monitoring.command("labels")
def monitoring_labels(
    pipeline: Pipeline, first_day: FirstDay, last_day: LastDay, as_of: AsOf = None, as_json: Json = False
) -> None:
    """Realised performance of each day whose labels are known."""
    run("join_labels", pipeline, as_json, first_day=first_day, last_day=last_day, as_of=as_of)


@monitoring.command("decide")
def monitoring_decide(
    pipeline: Pipeline, first_day: FirstDay, last_day: LastDay, as_json: Json = False
) -> None:
    """The verdict on a measured window, and what to do about it."""
    run("decide_window", pipeline, as_json, first_day=first_day, last_day=last_day)


@monitoring.command("report")
def monitoring_report(
    pipeline: Pipeline, first_day: FirstDay, last_day: LastDay, as_json: Json = False
) -> None:
    """One page for a measured window: the verdict and the charts it stands on."""
    run("report_window", pipeline, as_json, first_day=first_day, last_day=last_day)

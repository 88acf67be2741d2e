"""The commands. A room's verbs call the wiring and print what it returns; no logic lives here."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from tasks.cli.alerts import alerts
from tasks.cli.audit_online import add_online_commands
from tasks.cli.audit_upkeep import audit
from tasks.cli.backup import backup
from tasks.cli.cases import add_case_commands
from tasks.cli.ci import ci
from tasks.cli.inference import inference
from tasks.cli.logs import log_to_stderr
from tasks.cli.metadata import metadata
from tasks.cli.metrics import metrics, trend
from tasks.cli.options import (
    Actor,
    AsOf,
    Day,
    EvaluationKey,
    FirstDay,
    Json,
    LastDay,
    Pipeline,
    Reason,
    SnapshotId,
    ValidationFirstDay,
    run,
)
from tasks.cli.output import console, show
from tasks.cli.registry import registry
from tasks.cli.serve import serve
from tasks.cli.services import cli_settings
from tasks.cli.tenancy import tenancy
from tasks.cli.waivers import add_waiver_commands
from tasks.core import Settings
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
app.add_typer(registry, name="registry")
app.add_typer(inference, name="inference")
monitoring = _group("monitoring", "Drift, performance and what to do about it.")
app.command("ci")(ci)
app.command("serve")(serve)
app.command("metrics")(metrics)
monitoring.command("trend")(trend)
add_online_commands(audit)
add_waiver_commands(evaluation)
add_case_commands(monitoring)
app.add_typer(tenancy, name="tenancy")
app.add_typer(audit, name="audit")
app.add_typer(metadata, name="metadata")
app.add_typer(backup, name="backup")
app.add_typer(alerts, name="alerts")


@app.callback()
def _start(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show progress lines on stderr.")] = False,
) -> None:
    log_to_stderr(logging.INFO if verbose else logging.WARNING)


# -- this machine's services


@app.command()
def up(
    profile: Annotated[
        str | None,
        typer.Option(
            help="embedded (SQLite, folders, one Ray node) or production (PostgreSQL, S3, two Ray nodes); "
            "default: the one that was started last, at first embedded.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Start Airflow, MLflow and Ray on loopback, and wait until they are healthy."""
    from tasks.cli.interrupts import one_interrupt
    from tasks.cli.services import start

    with one_interrupt():
        # Not those of the services there are: with another profile they would be another installation's.
        start(Settings.from_environment(), profile)


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


@monitoring.command("mitigate")
def monitoring_mitigate(
    pipeline: Pipeline, first_day: FirstDay, last_day: LastDay, as_of: AsOf = None, as_json: Json = False
) -> None:
    """Act on the decision: hold scoring, roll back within the limits, or say that a person must decide."""
    run("mitigate_window", pipeline, as_json, first_day=first_day, last_day=last_day, as_of=as_of)


@monitoring.command("holds")
def monitoring_holds(pipeline: Pipeline, as_json: Json = False) -> None:
    """Whether a data fault holds scoring and promotions, and every hold there was."""
    run("scoring_status", pipeline, as_json)


@monitoring.command("release")
def monitoring_release(
    pipeline: Pipeline,
    hold: Annotated[str, typer.Argument(metavar="HOLD", help="As `penstock monitoring holds` shows it.")],
    actor: Actor,
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Let scoring and promotions go on though the fault was not seen to be gone."""
    run("release_held_scoring", pipeline, as_json, hold_id=hold, actor=actor, reason=reason)


@monitoring.command("report")
def monitoring_report(
    pipeline: Pipeline, first_day: FirstDay, last_day: LastDay, as_json: Json = False
) -> None:
    """One page for a measured window: the verdict and the charts it stands on."""
    run("report_window", pipeline, as_json, first_day=first_day, last_day=last_day)

"""`penstock registry`: what is live, what was, and moving it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from tasks.cli.options import (
    Actor,
    EvaluationKey,
    Json,
    Pipeline,
    Reason,
    Replacing,
    Version,
    call,
    run,
)
from tasks.cli.output import console, show
from tasks.core.errors import ConfigError

registry = typer.Typer(help="Challenger, champion and their history.", no_args_is_help=True)


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
    found = call("live_model", pipeline, at=at.isoformat() if at else None)
    if not as_json and found.get("version") is None:
        then = f"was live at {at}" if at else "is live"
        console.print(f"{pipeline}: nothing {then}. What was: penstock registry history {pipeline}")
    else:
        show(found, as_json=as_json, title=f"{pipeline}: live model")


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
    replacing: Replacing = None,
    despite_case: Annotated[
        bool,
        typer.Option("--despite-case", help="Though nobody has answered that the live version does damage."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a registered version the champion, after loading it and replaying its golden rows."""
    run(
        "promote_model",
        pipeline,
        as_json,
        version=version,
        actor=actor,
        reason=reason,
        expected=replacing,
        despite_case=despite_case,
    )


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


@registry.command("begin-ramp")
def registry_begin_ramp(
    pipeline: Pipeline,
    version: Version,
    actor: Actor,
    reason: Reason,
    replacing: Replacing = None,
    as_json: Json = False,
) -> None:
    """Expose a challenger to the first share of canary.ramp, as NAME.train does after its canary."""
    run("begin_ramp", pipeline, as_json, version=version, actor=actor, reason=reason, expected=replacing)


@registry.command("expose")
def registry_expose(
    pipeline: Pipeline,
    version: Version,
    actor: Actor,
    reason: Reason,
    share: Annotated[
        float | None,
        typer.Option(
            help="Share of entities, above 0 and below 1; default: the next of canary.ramp.",
            show_default=False,
        ),
    ] = None,
    replacing: Replacing = None,
    as_json: Json = False,
) -> None:
    """Give a share of the entities the predictions of a challenger; the champion stays what is live."""
    run(
        "expose_model",
        pipeline,
        as_json,
        version=version,
        share=share,
        expected=replacing,
        actor=actor,
        reason=reason,
    )


@registry.command("withdraw")
def registry_withdraw(
    pipeline: Pipeline,
    actor: Actor,
    reason: Reason,
    bar: Annotated[
        bool, typer.Option("--bar", help="Also forbid its promotion until somebody unbars it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """End the exposure of a challenger: everybody gets the champion's predictions again."""
    run("withdraw_model", pipeline, as_json, actor=actor, reason=reason, bar=bar)


@registry.command("ramp")
def registry_ramp(pipeline: Pipeline, as_json: Json = False) -> None:
    """What is exposed, what was seen of it, and the steps so far."""
    run("ramp_status", pipeline, as_json)


@registry.command("advance")
def registry_advance(
    pipeline: Pipeline,
    as_of: Annotated[
        str | None,
        typer.Option(help="Count only labels known by this day; default: today.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at the exposed challenger now: withdraw, hold, or give it the next share, as the monitor does.

    After the last share it says `pass`; promote it then.
    """
    run("advance_ramp", pipeline, as_json, as_of=as_of)


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

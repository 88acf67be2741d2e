"""Steps from a gated model to the champion, and back: register, canary, promote, roll back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasks.core import Settings
from tasks.core.errors import NotFound
from tasks.metadata import ModelVersion
from tasks.wiring.context import Context, open_context, parse_day, parse_moment, window
from tasks.wiring.fits_source import refuse_unfit
from tasks.wiring.loading import loaded_anew
from tasks.wiring.mitigation import refuse_damaged, refuse_held
from tasks.wiring.rollback_target import rollback_target
from tasks.wiring.series import keep_canary, keep_registered
from tasks.wiring.train import evaluation_verdict

NOTHING_LIVE = 0
"""Versions start at 1, so this says in plain JSON that no version is live."""


def register_model(
    settings: Settings,
    pipeline: str,
    *,
    evaluation_key: str,
    trained: dict[str, Any] | None = None,
    links: dict[str, str] | None = None,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Register a gated model as challenger, in MLflow and in the metadata store; once per bundle.

    `trained` is what the train step returned; left out, it is the recorded training of the judged bundle.
    """
    from tasks.registry import register_challenger

    context = open_context(settings, pipeline)
    verdict = evaluation_verdict(context, evaluation_key)
    trained = trained or _training_of(context, verdict.subject)
    reports = {"Evaluation report": context.report_url(verdict.report_key)}
    version = register_challenger(settings, context.spec, trained, verdict, {**(links or {}), **reports})
    keep_registered(context, version.version, trained, evaluation_key)
    result = {"version": version.version, "bundle_digest": version.bundle_digest, "url": version.url}
    context.evidence(dag_run, "registration", result)
    return result


def canary_model(
    settings: Settings,
    pipeline: str,
    *,
    version: int,
    validation_last_day: str | None = None,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Compare a challenger with the champion on the same rows of labelled days it was not judged on.

    Skipped, with the reason, when there is no champion to compare with.
    """
    from tasks.data import source_days, take_snapshot
    from tasks.evaluation import run_canary
    from tasks.registry import champion
    from tasks.registry import version as registered
    from tasks.validation import require, validate

    context = open_context(settings, pipeline)
    live = champion(settings, context.spec)
    challenger = registered(settings, context.spec, version)
    if live is None or live.version == version:
        reason = "there is no champion yet" if live is None else f"version {version} is the champion already"
        result: dict[str, Any] = {
            "outcome": "skipped",
            "reasons": [f"{reason}: nothing to compare with"],
            "champion_version": live.version if live else NOTHING_LIVE,
        }
        context.evidence(dag_run, "canary", result)
        return result
    after = (
        parse_day(validation_last_day, "validation_last_day")
        or context.snapshot(challenger.snapshot_id).days[-1]
    )
    days = [day for day in source_days(settings, context.spec) if day > after][: context.spec.canary.days]
    if not days:
        result = {
            "outcome": "inconclusive",
            "reasons": [f"the source has no day after {after} to compare on"],
            "champion_version": live.version,
        }
        context.evidence(dag_run, "canary", result)
        return result
    snapshot = take_snapshot(settings, context.spec, kind="training", window=window(days[0], days[-1]))
    validated = validate(settings, context.spec, snapshot)
    require(validated)
    verdict = run_canary(
        settings,
        context.spec,
        context.snapshot(validated.clean_snapshot_id),
        challenger_digest=challenger.bundle_digest,
        champion_digest=live.bundle_digest,
    )
    context.metadata.record_verdict(context.spec, verdict, dag_run=dag_run)
    keep_canary(context, version, verdict)
    result = {
        "outcome": verdict.outcome,
        "reasons": verdict.reasons(),
        "first_day": days[0].isoformat(),
        "last_day": days[-1].isoformat(),
        "report_url": context.report_url(verdict.report_key),
        "champion_version": live.version,
    }
    context.evidence(dag_run, "canary", result)
    return result


def promote_model(
    settings: Settings,
    pipeline: str,
    *,
    version: int,
    actor: str,
    reason: str,
    expected: int | None = None,
    expected_event: int | None = None,
    despite_case: bool = False,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Make a registered version the champion, after loading it and replaying its golden rows (I6, I7).

    `expected` is the version believed to be live (0: none is), so that a promotion run again after somebody else's
    is refused instead of undoing it; left out, it is read now. `expected_event` is the event that made it so. The version that is live, to which a rollback would go
    back, is loaded first as well: `rollback_target` says `loaded`, or why it does not. While a data fault holds the pipeline, or
    nobody has answered a case about damage of the live version, it is refused; a person may promote in spite of such a
    case (`despite_case`).
    """
    from tasks.registry import champion, promote

    context = open_context(settings, pipeline)
    refuse_held(context, "promotion")
    if not despite_case:
        refuse_damaged(context)
    live = champion(settings, context.spec)
    target = rollback_target(context, live, version, _loads_and_scores(context))
    deployment = promote(
        settings,
        context.spec,
        version,
        expected=(live.version if live else None) if expected is None else expected or None,
        expected_event=expected_event,
        actor=actor,
        reason=reason,
        check=_loads_and_scores(context),
    )
    result = {**_deployment(deployment.to_json()), "rollback_target": target}
    context.evidence(dag_run, "promotion", result)
    return result


def rollback_model(
    settings: Settings,
    pipeline: str,
    *,
    actor: str,
    reason: str,
    expected: int,
    expected_event: int | None = None,
    to_version: int | None = None,
    rescore: bool = False,
    local: bool = False,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Go back from version `expected` to an earlier champion, load-verified, and bar the version left (I7).

    Naming the version to leave makes a repeat safe: it finds the rollback done and does not go back one more.
    The result says which published predictions came from the version left; with `rescore` they are then scored
    anew, on Ray or in this process (`local`).
    """
    from tasks.registry import rollback
    from tasks.wiring.rollback import blast_radius, in_short, rescore_version

    context = open_context(settings, pipeline)
    deployment = rollback(
        settings,
        context.spec,
        to_version=to_version,
        expected=expected,
        expected_event=expected_event,
        actor=actor,
        reason=reason,
        check=_loads_and_scores(context),
    )
    result = _deployment(deployment.to_json())
    result |= in_short(blast_radius(settings, pipeline, version=expected))
    context.evidence(dag_run, "rollback", result)
    if rescore:
        result["rescored"] = rescore_version(
            settings, pipeline, version=expected, local=local, dag_run=dag_run
        )
    return result


def bar_model(settings: Settings, pipeline: str, *, version: int, actor: str, reason: str) -> dict[str, Any]:
    """Forbid the promotion of a version until somebody unbars it."""
    from tasks.registry import bar

    context = open_context(settings, pipeline)
    bar(settings, context.spec, version, actor=actor, reason=reason)
    return {"version": version, "barred": True}


def unbar_model(
    settings: Settings, pipeline: str, *, version: int, actor: str, reason: str
) -> dict[str, Any]:
    """Allow a rolled-back version to be promoted again."""
    from tasks.registry import unbar

    context = open_context(settings, pipeline)
    unbar(settings, context.spec, version, actor=actor, reason=reason)
    return {"version": version, "barred": False}


def reconcile_registry(settings: Settings, pipeline: str) -> dict[str, Any]:
    """Make MLflow's aliases say what the event log says.

    An alias that somebody moved by hand is recorded, and put back or adopted as `promotion.alias_policy` says.
    """
    from tasks.registry import reconcile

    context = open_context(settings, pipeline)
    policy = context.spec.promotion.alias_policy
    return {"changes": reconcile(settings, context.spec, policy=policy, check=_loads_and_scores(context))}


def deployment_history(settings: Settings, pipeline: str) -> dict[str, Any]:
    """Every deployment event, newest first."""
    from tasks.registry import history

    events = history(settings, open_context(settings, pipeline).spec)
    return {
        "events": [
            {
                "event": event.event_id,
                "at": f"{event.at_utc:%Y-%m-%dT%H:%M:%SZ}",
                "kind": event.kind,
                "version": event.version,
                "was": event.previous_version,
                "by": event.actor,
                "reason": event.reason,
            }
            for event in events
        ]
    }


def live_model(settings: Settings, pipeline: str, *, at: str | None = None) -> dict[str, Any]:
    """What is live now, or was live at `at` (ISO 8601; UTC when it says no zone)."""
    from tasks.registry import champion, live_at

    context = open_context(settings, pipeline)
    found = (
        live_at(settings, context.spec, parse_moment(at, "at")) if at else champion(settings, context.spec)
    )
    return _deployment(found.to_json()) if found else {"version": None}


def _training_of(context: Context, bundle_digest: str) -> dict[str, Any]:
    for training in context.metadata.trainings(context.spec):
        if training.bundle_digest == bundle_digest:
            return training.record
    raise NotFound(
        "was not trained by this installation, or long ago",
        which=f"{context.spec.name} bundle {bundle_digest[:16]}",
        fix="run the train step again: it finds what was trained and records it",
    )


def _deployment(raw: dict[str, Any]) -> dict[str, Any]:
    return {"version": raw["version"], "previous_version": raw["previous_version"], **raw}


def _loads_and_scores(context: Context) -> Callable[[ModelVersion], None]:
    """A check that loads a version from the store, replays its golden rows and looks at what it reads."""

    def check(version: ModelVersion) -> None:
        with loaded_anew(context.store, version.bundle_digest) as scorer:
            refuse_unfit(context, version, scorer)

    return check

"""Model delivery as the REST API asks for it: what is live and was, on what evidence, and how it is changed.

What changes something names the event that the caller believes to have made the live version live. That one number is the
compare of the compare-and-swap and makes a repeated request safe: after the first, another event is the live one, so that
the second finds its own deployment there, or is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from tasks.core import Clock, Settings, utc_now
from tasks.core.errors import NotFound, PromotionConflict, TerminalError
from tasks.metadata import DeploymentEvent
from tasks.metadata.records import POINTER_KINDS, StoredVerdict
from tasks.wiring.context import Context, open_context
from tasks.wiring.delivery_records import (
    CanaryComparison,
    CanaryDayEntry,
    CanaryList,
    DeploymentEntry,
    DeploymentPage,
    FindingEntry,
    LiveVersion,
    PipelineState,
    PipelineStates,
    Promotion,
    Rollback,
    VerdictEntry,
    VerdictList,
)

NOT_CHECKED = "not checked again: the promotion was made by an earlier request"


def delivery_log(
    settings: Settings,
    pipeline: str,
    *,
    kinds: Collection[str] = (),
    since: datetime | None = None,
    until: datetime | None = None,
    before: int | None = None,
    limit: int = 100,
) -> DeploymentPage:
    """Lines of the deployment log from `since` to before `until` (timezone-aware), newest first.

    Args:
        kinds: Only these; empty: all.
        before: Only lines with a smaller id; for paging.

    Raises:
        NotFound, ConfigError: There is no such pipeline, or its file is not right.
    """
    context = open_context(settings, pipeline)
    found = context.metadata.history(
        context.spec, kinds=kinds or None, since=since, until=until, before=before, limit=limit + 1
    )
    return DeploymentPage(
        events=tuple(_entry(pipeline, event) for event in found[:limit]),
        before=found[limit - 1].event_id if len(found) > limit else None,
    )


def delivery_live(settings: Settings, pipeline: str, *, at: datetime | None = None) -> LiveVersion:
    """What is live, or was at `at` (timezone-aware)."""
    context = open_context(settings, pipeline)
    store, spec = context.metadata, context.spec
    head = store.head(spec)
    event, exposed = (store.live_at(spec, at), None) if at else (head.live, head.exposed)
    return LiveVersion(
        pipeline=pipeline,
        at_utc=at,
        live=_entry(pipeline, event) if event else None,
        exposed=_entry(pipeline, exposed) if exposed else None,
    )


def delivery_verdicts(
    settings: Settings, pipeline: str, *, gate: str | None = None, version: int | None = None, limit: int = 50
) -> VerdictList:
    """Verdicts of the gates, newest first; of one gate or about one registered version.

    Raises:
        NotFound: That version is not registered, or there is no such pipeline.
    """
    context = open_context(settings, pipeline)
    subject = _registered_digest(context, version) if version is not None else None
    found = context.metadata.verdicts(context.spec, gate=gate, subject=subject, limit=limit)
    versions = _versions_of(context, found)
    return VerdictList(tuple(_verdict(context, stored, versions) for stored in found))


def delivery_canaries(settings: Settings, pipeline: str, *, limit: int = 10) -> CanaryList:
    """The newest comparisons of a challenger with the champion, each with its days and its confidence sequence."""
    context = open_context(settings, pipeline)
    found = context.metadata.verdicts(context.spec, gate="canary", limit=limit)
    versions = _versions_of(context, found)
    return CanaryList(tuple(_canary(context, stored, versions) for stored in found))


def delivery_overview(
    settings: Settings, may_read: Callable[[str], bool] = lambda _name: True, *, clock: Clock = utc_now
) -> PipelineStates:
    """What is live in every pipeline that may be read; one that cannot be loaded says why."""
    from tasks.wiring.deployment_pages import deployments_overview

    states = []
    for line in deployments_overview(settings, may_read, clock=clock):
        name, live, verdict = line["pipeline"], line.get("live"), line.get("verdict")
        states.append(
            PipelineState(
                pipeline=name,
                error=line["error"],
                live=_entry(name, live) if live else None,
                last_gate=verdict.outcome if verdict else None,
                events_of_last_day=line.get("recent", 0),
            )
        )
    return PipelineStates(tuple(states))


def promote_over(
    settings: Settings, pipeline: str, *, version: int, expected_event: int | None, actor: str, reason: str
) -> Promotion:
    """Make `version` the champion if the event `expected_event` (None: nothing is live) made the live version live.

    The same request again (version, expected event and actor equal, its version still live) returns the promotion that
    the first one made.

    Raises:
        PromotionConflict: Another event made the live version live; the message names it.
        TerminalError: The version is barred, or does not load and score its golden rows.
        NotFound: The version is not registered, or there is no such pipeline.
        ServiceUnavailable: The database does not answer.
    """
    from tasks.wiring.release import NOTHING_LIVE, promote_model

    context = open_context(settings, pipeline)
    _registered_digest(context, version)
    live = context.metadata.live(context.spec)
    if _made_by(context, live, "promote", version, expected_event, actor):
        assert live is not None
        return Promotion(_entry(pipeline, live), _alias_pending(context, live), NOT_CHECKED)
    _require_live(context, live, expected_event, f"promote version {version}")
    with _bundle_in_place(f"{pipeline} version {version}"):
        done = promote_model(
            settings,
            pipeline,
            version=version,
            expected=live.version if live else NOTHING_LIVE,
            expected_event=expected_event or 0,
            despite_case=True,  # whoever calls is a person, or acts for one
            actor=actor,
            reason=reason,
        )
    return Promotion(_made(pipeline, done), done["alias_pending"], done["rollback_target"])


def roll_back_from(
    settings: Settings,
    pipeline: str,
    *,
    expected_event: int,
    to_version: int | None = None,
    actor: str,
    reason: str,
) -> Rollback:
    """Go back from what the event `expected_event` made live to `to_version` (None: the last one that is not barred).

    The same request again returns the rollback that the first one made. Nothing is scored anew here: that takes a
    run of `<pipeline>.rollback`, which finds the rollback made.

    Raises:
        PromotionConflict: Another event made the live version live; the message names it.
        TerminalError: There is nothing to go back to, or `to_version` was never live, is barred or does not load.
        NotFound: `to_version` is not registered, or there is no such pipeline.
        ServiceUnavailable: The database does not answer.
    """
    from tasks.wiring.release import rollback_model

    context = open_context(settings, pipeline)
    if to_version is not None:
        _registered_digest(context, to_version)
    live = context.metadata.live(context.spec)
    if _made_by(context, live, "rollback", to_version, expected_event, actor):
        assert live is not None and live.previous_version is not None
        leaving = live.previous_version
    else:
        _require_live(context, live, expected_event, "roll back")
        assert live is not None
        leaving = live.version
    with _bundle_in_place(f"{pipeline} version {to_version}" if to_version else pipeline):
        done = rollback_model(
            settings,
            pipeline,
            expected=leaving,
            expected_event=expected_event,
            to_version=to_version,
            actor=actor,
            reason=reason,
        )
    return Rollback.from_json(
        {**done, "deployment": _made(pipeline, done).to_json(), "barred_version": leaving}
    )


@contextmanager
def _bundle_in_place(which: str) -> Iterator[None]:
    """Of what is registered, only the bundle can be missing: that is no unknown version, and stands against the change."""
    try:
        yield
    except NotFound as error:
        raise TerminalError(
            f"cannot be loaded: {error.what}",
            which=which,
            fix="restore the bundle from a backup, or choose another version",
        ) from error


def _made_by(
    context: Context,
    live: DeploymentEvent | None,
    kind: str,
    version: int | None,
    expected_event: int | None,
    actor: str,
) -> bool:
    """Whether `live` is what such a request of this actor has made: the move that follows the expected event."""
    if live is None or (live.kind, live.actor) != (kind, actor) or version not in (None, live.version):
        return False
    moves = context.metadata.history(context.spec, kinds=POINTER_KINDS, before=live.event_id, limit=1)
    return (moves[0].event_id if moves else None) == expected_event


def _require_live(
    context: Context, live: DeploymentEvent | None, expected_event: int | None, wanted: str
) -> None:
    if (live.event_id if live else None) == expected_event:
        return
    believed = "nothing" if expected_event is None else f"what event {expected_event} made live"
    found = (
        f"version {live.version} is, by event {live.event_id} ({live.kind} by {live.actor} at "
        f"{live.at_utc:%Y-%m-%d %H:%M:%S} UTC)"
        if live
        else "nothing is"
    )
    raise PromotionConflict(
        f"cannot {wanted}: {believed} was expected to be live, but {found}",
        which=context.spec.name,
        fix="compare with the version that is live now, then decide again",
    )


def _registered_digest(context: Context, version: int) -> str:
    """The bundle of a registered version. Raises `NotFound`, listing those there are."""
    from tasks.registry import version as registered

    return registered(context.settings, context.spec, version).bundle_digest


def _alias_pending(context: Context, live: DeploymentEvent) -> bool:
    shown = context.metadata.projection(context.spec, "champion")
    return (shown.version if shown else None) != live.version


def _entry(pipeline: str, event: DeploymentEvent) -> DeploymentEntry:
    return DeploymentEntry(
        pipeline=pipeline,
        event_id=event.event_id,
        kind=event.kind,
        moves=event.kind in POINTER_KINDS,
        version=event.version,
        previous_version=event.previous_version,
        bundle_digest=event.bundle_digest,
        feature_version=event.feature_version,
        actor=event.actor,
        reason=event.reason,
        at_utc=event.at_utc,
        share=event.share,
    )


def _made(pipeline: str, done: dict[str, Any]) -> DeploymentEntry:
    """The line of a step's result, which is a `Deployment` as JSON and more."""
    return DeploymentEntry.from_json({**done, "pipeline": pipeline, "moves": True})


def _versions_of(context: Context, found: list[StoredVerdict]) -> dict[str, int]:
    """Subject -> version, of those subjects that are a registered bundle."""
    versions = {}
    for subject in {stored.verdict.subject for stored in found if stored.verdict.gate != "data"}:
        model = context.metadata.model_version_of_bundle(context.spec, subject)
        if model:
            versions[subject] = model.version
    return versions


def _verdict(context: Context, stored: StoredVerdict, versions: dict[str, int]) -> VerdictEntry:
    verdict = stored.verdict
    return VerdictEntry(
        gate=verdict.gate,
        outcome=verdict.outcome,
        waived=bool(verdict.waived),
        subject=verdict.subject,
        version=versions.get(verdict.subject),
        reasons=tuple(verdict.reasons()),
        findings=tuple(
            FindingEntry(item.name, item.status, item.detail, item.value, item.limit, item.waived)
            for item in verdict.findings
        ),
        recorded_at_utc=stored.recorded_at_utc,
        dag_run=stored.dag_run,
        report_url=context.report_url(verdict.report_key),
    )


def _canary(context: Context, stored: StoredVerdict, versions: dict[str, int]) -> CanaryComparison:
    verdict = stored.verdict
    margin: float | None = None
    champion: int | None = None
    steps: tuple[CanaryDayEntry, ...] = ()
    try:
        if not verdict.evidence_key:
            raise NotFound("the verdict names no evidence", which=verdict.subject[:16])
        margin, champion, steps = _evidence(context, json.loads(context.store.get(verdict.evidence_key)))
        words = "read"
    except NotFound as error:
        words = f"cannot be read: {error.which}: {error.what}"
    except (ValueError, KeyError, TypeError) as error:
        words = f"cannot be read: {verdict.evidence_key} is damaged: {type(error).__name__}"
    return CanaryComparison(
        outcome=verdict.outcome,
        version=versions.get(verdict.subject),
        challenger_digest=verdict.subject,
        champion_version=champion,
        margin_brier=margin,
        steps=steps,
        evidence=words,
        reasons=tuple(verdict.reasons()),
        recorded_at_utc=stored.recorded_at_utc,
        report_url=context.report_url(verdict.report_key),
    )


def _evidence(
    context: Context, evidence: dict[str, Any]
) -> tuple[float, int | None, tuple[CanaryDayEntry, ...]]:
    """(margin, version of the champion, the days) of a canary's evidence."""
    from tasks.evaluation.records import CanaryBound, CanaryDay

    bounds = {bound.day: bound for bound in map(CanaryBound.from_json, evidence["sequence"])}
    steps = []
    for day in map(CanaryDay.from_json, evidence["days"]):
        bound = bounds.get(day.day)
        steps.append(
            CanaryDayEntry(
                day=day.day,
                rows=day.rows,
                challenger_brier=day.challenger_brier,
                champion_brier=day.champion_brier,
                mean=bound.mean if bound else None,
                low=bound.low if bound else None,
                high=bound.high if bound else None,
            )
        )
    champion = context.metadata.model_version_of_bundle(context.spec, evidence["champion_digest"])
    return float(evidence["canary"]["margin_brier"]), champion.version if champion else None, tuple(steps)

"""The exposure ramp: a challenger that passed its canary gets a growing share of the entities before it is promoted.

Both models score the same labelled rows whatever is exposed, so the comparison does not depend on the share; the ramp
decides whose predictions are published, and watches what only production shows: rows that cannot be scored, and cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from tasks.core import Settings, Verdict, utc_now
from tasks.core.day_span import day_span
from tasks.core.errors import ConfigError, DataGateFailed, PromotionConflict, TerminalError
from tasks.core.report_style import percent
from tasks.metadata import CanaryStep, ModelVersion, ScoringRun
from tasks.metadata.records import EXPOSURE_KINDS, POINTER_KINDS
from tasks.registry import Exposure, RampDecision, RampState
from tasks.wiring.comparing import bounds_of, compare_days, days_of
from tasks.wiring.context import Context, open_context, parse_day
from tasks.wiring.fits_source import refuse_unfit
from tasks.wiring.loading import loaded_anew

if TYPE_CHECKING:
    from tasks.evaluation.records import CanaryDay

ACTOR = "canary ramp"
_LEAST_SECONDS = 0.05
"""CPU-seconds of the champion below which a ratio of times says nothing."""
_STEPS = 200


@dataclass(frozen=True)
class _Seen:
    """What was published under an exposure."""

    days: dict[date, float]
    """Day -> share at which it was published."""
    rows: int
    errors: int
    example: str


def begin_ramp(
    settings: Settings,
    pipeline: str,
    *,
    version: int,
    actor: str,
    reason: str,
    expected: int | None = None,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Expose a challenger to the first share of `canary.ramp`; `skipped` where there is nothing to stand beside.

    `expected` is the version believed to be live (0: none is). A version that is exposed already stays as it is; while
    another one is, `busy`: this one stays a challenger.
    """
    from tasks.registry import expose
    from tasks.registry import version as registered

    context = open_context(settings, pipeline)
    registered(settings, context.spec, version)
    head = context.metadata.head(context.spec)
    live = head.live.version if head.live else None
    now = Exposure.of(head)
    if now is not None and now.version == version:
        result = _exposed(now, "it is exposed already")
    elif now is not None:
        result = {
            "outcome": "busy",
            "version": version,
            "reasons": [f"version {now.version} is exposed: version {version} stays a challenger"],
        }
    elif not context.spec.canary.ramp or live is None or live == version:
        if live is None:
            why = "there is no champion to stand beside"
        else:
            why = f"version {version} is live already" if live == version else "canary.ramp is empty"
        result = {"outcome": "skipped", "version": version, "reasons": [why]}
    else:
        found = expose(
            settings,
            context.spec,
            version,
            share=context.spec.canary.ramp[0],
            expected=live if expected is None else expected or None,
            actor=actor,
            reason=reason,
            check=_check(context),
        )
        result = _exposed(found, f"{context.spec.name}.monitor looks after it from now on")
    context.evidence(dag_run, "exposure", result)
    return result


def expose_model(
    settings: Settings,
    pipeline: str,
    *,
    version: int,
    share: float | None = None,
    expected: int | None = None,
    actor: str,
    reason: str,
) -> dict[str, Any]:
    """Expose a version, or change the share of the one that is exposed; left out, the share is the ramp's next.

    Raises:
        ConfigError: The pipeline has no ramp, so that nothing would look after an exposure.
    """
    from tasks.registry import expose

    context = open_context(settings, pipeline)
    ramp = context.spec.canary.ramp
    if not ramp:
        raise ConfigError(
            "is empty, so that nothing would look after an exposed challenger",
            which=f"{pipeline}: canary.ramp",
            fix="give its shares in pipeline.yaml, for example [0.01, 0.05, 0.25]",
        )
    head = context.metadata.head(context.spec)
    now = Exposure.of(head)
    if share is None:
        at = now.share if now is not None and now.version == version else 0.0
        share = next((item for item in ramp if item > at), None)
        if share is None:
            raise TerminalError(
                "is exposed to the last share of canary.ramp",
                which=f"{pipeline} version {version}",
                fix=f"promote it: `penstock registry promote {pipeline} {version} --reason ...`; or give --share",
            )
    live = head.live.version if head.live else None
    found = expose(
        settings,
        context.spec,
        version,
        share=share,
        expected=live if expected is None else expected or None,
        actor=actor,
        reason=reason,
        check=_check(context),
    )
    return _exposed(found, reason)


def withdraw_model(
    settings: Settings, pipeline: str, *, actor: str, reason: str, bar: bool = False
) -> dict[str, Any]:
    """End the exposure, whichever version has it; with `bar` that version is barred as well.

    The result says which published predictions are the challenger's.
    """
    from tasks.registry import require_exposed, withdraw
    from tasks.wiring.rollback import blast_radius, in_short

    context = open_context(settings, pipeline)
    now = require_exposed(settings, context.spec)
    withdraw(settings, context.spec, version=now.version, bar=bar, actor=actor, reason=reason)
    radius = blast_radius(settings, pipeline, version=now.version)
    return {"version": now.version, "share": now.share, "barred": bar, **in_short(radius)}


def ramp_status(settings: Settings, pipeline: str) -> dict[str, Any]:
    """What is exposed, what was seen of it, what would follow now, and the steps so far, newest first. Changes nothing."""
    context = open_context(settings, pipeline)
    now = Exposure.of(context.metadata.head(context.spec))
    steps = [step.to_json() for step in context.metadata.canary_steps(context.spec, limit=_STEPS)]
    if now is None:
        return {"exposed": None, "ramp": list(context.spec.canary.ramp), "steps": steps}
    seen = _seen(context, now)
    return {
        "exposed": now.to_json(),
        "ramp": list(context.spec.canary.ramp),
        "days": {day.isoformat(): share for day, share in sorted(seen.days.items())},
        "rows": seen.rows,
        "errors": seen.errors,
        "steps": steps,
    }


def advance_ramp(
    settings: Settings, pipeline: str, *, as_of: str | None = None, dag_run: str | None = None
) -> dict[str, Any]:
    """Look at the exposed challenger, and withdraw it, hold it, or give it the next share; kept as a canary step.

    After the last share the outcome is `pass`: the caller promotes `version` in the place of `champion_version`. A
    challenger that does harm is withdrawn and barred. Repeating it after a crash finds what was done.

    Args:
        as_of: Only labels known by that day count; default today.
    """
    from tasks.registry import expose, next_step, withdraw

    context = open_context(settings, pipeline)
    now = Exposure.of(context.metadata.head(context.spec))
    if now is None:
        result: dict[str, Any] = {"nothing_to_do": True, "reason": "no challenger is exposed"}
        context.evidence(dag_run, "ramp", result)
        return result
    asked = parse_day(as_of, "as_of") or utc_now().date()
    state = _state(context, now, asked, dag_run)
    decision = next_step(context.spec, state)
    reason = "; ".join(decision.reasons)
    if decision.action == "withdraw":
        withdraw(settings, context.spec, version=now.version, bar=True, actor=ACTOR, reason=reason)
    elif decision.action == "advance" and decision.share is not None:
        expose(
            settings,
            context.spec,
            now.version,
            share=decision.share,
            expected=now.champion_version,
            actor=ACTOR,
            reason=reason,
            check=lambda _version: None,  # of a version that is exposed: it was checked when it began
        )
    _keep(context, now, state, decision, dag_run)
    result = _outcome(context, now, state, decision)
    context.evidence(dag_run, "ramp", result)
    return result


def _outcome(context: Context, now: Exposure, state: RampState, decision: RampDecision) -> dict[str, Any]:
    from tasks.wiring.rollback import blast_radius, in_short

    outcome = {"promote": "pass", "withdraw": "withdrawn"}.get(decision.action, decision.action)
    result: dict[str, Any] = {
        "outcome": outcome,
        "version": now.version,
        "champion_version": now.champion_version,
        "share": now.share,
        "next_share": decision.share,
        "reasons": list(decision.reasons),
        "days_at_share": state.days_at_share,
        "judged_days": state.judged_days,
        "rows": state.rows,
        "errors": state.errors,
    }
    if decision.action == "withdraw":
        result |= in_short(blast_radius(context.settings, context.spec.name, version=now.version))
    return result


def _keep(
    context: Context, now: Exposure, state: RampState, decision: RampDecision, dag_run: str | None
) -> None:
    context.metadata.record_canary_step(
        context.spec,
        CanaryStep(
            exposure=now.event_id,
            version=now.version,
            champion_version=now.champion_version,
            share=now.share,
            action=decision.action,
            reasons=decision.reasons,
            evidence={**state.to_json(), "next_share": decision.share},
            dag_run=dag_run,
        ),
    )


def _state(context: Context, now: Exposure, as_of: date, dag_run: str | None) -> RampState:
    from tasks.registry import next_step

    seen = _seen(context, now)
    state = RampState(
        share=now.share,
        days_at_share=sum(share == now.share for share in seen.days.values()),
        judged_days=0,
        rows=seen.rows,
        errors=seen.errors,
        error_example=seen.example,
        trouble=_trouble(context),
    )
    mature = sorted(day for day in seen.days if context.spec.label.known_from(day) <= as_of)
    if state.trouble or not mature or next_step(context.spec, state).action == "withdraw":
        return state
    try:
        verdict = _compare(context, now, mature, dag_run)
    except DataGateFailed as error:
        return replace(state, trouble=f"{error.which} {error.what}")
    judged_days, low, high = bounds_of(verdict)
    return replace(
        state,
        judged_days=judged_days,
        verdict=verdict.outcome,
        because="; ".join(_refusals(verdict)),
        low=low,
        high=high,
        latency_ratio=_latency_ratio(days_of(context, verdict)),
    )


def _refusals(verdict: Verdict) -> list[str]:
    """Why a comparison refuses the challenger, each reason once: what is surely worse is not below the margin either."""
    failed = {item.name: item.detail for item in verdict.findings if item.status == "fail"}
    if "worse_than_champion" in failed:
        failed.pop("no_worse_than_margin", None)
    return list(failed.values())


def _trouble(context: Context) -> str:
    """Why the newest days cannot be trusted, as the monitor sees it."""
    from tasks.monitoring.mitigation import scoring_holds

    for hold in scoring_holds(context.store):
        if hold.open:
            return f"the monitor holds scoring for a data fault of {day_span(hold.days[0], hold.days[-1])}: {hold.reason}"
    return ""


def _compare(context: Context, now: Exposure, days: list[date], dag_run: str | None) -> Verdict:
    """The paired comparison on the exposed days whose labels are known; as many as there are."""
    from tasks.registry import version as registered
    from tasks.wiring.series import keep_canary

    champion = registered(context.settings, context.spec, now.champion_version)
    verdict = compare_days(
        context, days, challenger_digest=now.bundle_digest, champion_digest=champion.bundle_digest
    )
    context.metadata.record_verdict(context.spec, verdict, dag_run=dag_run)
    keep_canary(context, now.version, verdict)
    return verdict


def _latency_ratio(days: Sequence[CanaryDay]) -> float | None:
    ours = sum(day.challenger_seconds or 0.0 for day in days)
    theirs = sum(day.champion_seconds or 0.0 for day in days)
    return ours / theirs if theirs >= _LEAST_SECONDS else None


def _seen(context: Context, now: Exposure) -> _Seen:
    """The published days of this exposure, and what the challenger did on them.

    An exposure begins with the first `expose` of the version that nothing has ended since.
    """
    past = context.metadata.history(context.spec, kinds=[*EXPOSURE_KINDS, *POINTER_KINDS])
    began = list(takewhile(lambda e: e.kind == "expose" and e.version == now.version, past))[-1]
    published = context.metadata.published_days(context.spec)
    runs: dict[str, ScoringRun] = {
        run.run_id: run
        for run in context.metadata.runs_of(context.spec, now.version)
        if run.exposed_version == now.version
        and run.planned_at_utc >= began.at_utc
        and "exposed" in run.record
    }
    days = {
        day: float(runs[run_id].record["exposed"]["share"])
        for day, run_id in published.items()
        if run_id in runs
    }
    found = [runs[run_id].record["exposed"] for run_id in sorted({published[day] for day in days})]
    examples = [example for item in found for example in item["error_examples"]]
    return _Seen(
        days=days,
        rows=sum(item["rows"] for item in found),
        errors=sum(item["errors"] for item in found),
        example=examples[0] if examples else "",
    )


def _exposed(found: Exposure, why: str) -> dict[str, Any]:
    shown = f"version {found.version} is exposed to {percent(found.share)} of entities beside version {found.champion_version}"
    return {
        "outcome": "exposed",
        "version": found.version,
        "champion_version": found.champion_version,
        "share": found.share,
        "reasons": [f"{shown}: {why}"],
    }


def _check(context: Context) -> Callable[[ModelVersion], None]:
    """A check that loads a version as a promotion does, and refuses one whose rows do not fit beside the champion's."""

    def check(version: ModelVersion) -> None:
        live = context.require_champion()
        with loaded_anew(context.store, version.bundle_digest) as scorer:
            refuse_unfit(context, version, scorer)
            mine = tuple(scorer.output_names)
        with loaded_anew(context.store, live.bundle_digest) as scorer:
            theirs = tuple(scorer.output_names)
        if mine != theirs:
            raise PromotionConflict(
                f"gives {', '.join(mine) or 'no outputs'} beside the score, version {live.version} gives "
                f"{', '.join(theirs) or 'none'}: their rows do not fit into one table",
                which=f"{context.spec.name} version {version.version}",
                fix="promote it without an exposure",
            )

    return check

"""What follows from the monitor's decision: scoring held, the champion rolled back, or a person asked with the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from tasks.core import Settings, utc_now
from tasks.core.day_span import day_span
from tasks.core.errors import DataGateFailed, TerminalError
from tasks.wiring.comparing import bounds_of, challengers_skill, compare_days, days_of
from tasks.wiring.context import Context, open_context, parse_day
from tasks.wiring.deciding import decision_of
from tasks.wiring.measured import labelled_history, scorer_of, signals_of

_NEWEST = 28
"""Labelled days of a comparison. Not those since the damage alone: chosen by how the live version did, they would speak against it."""

if TYPE_CHECKING:
    from tasks.monitoring import Decision
    from tasks.monitoring.mitigation import RollbackCase, ScoringHold
    from tasks.registry import Deployment


def mitigate_window(
    settings: Settings,
    pipeline: str,
    *,
    first_day: str,
    last_day: str,
    as_of: str | None = None,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Act on the decision about a window; kept as a decision of its own when something is done or asked.

    A data fault holds scoring and promotions until its days are measured without a fault or a person releases the hold. Damage is
    compared with the version that a rollback would go to; the champion is rolled back when the limits allow it, else
    the outcome is `asked`. Repeating it finds what was done. What needs a person becomes a case: `case_id` and
    `case_url`, where its question is open, else empty.

    Args:
        as_of: Only labels known by that day count; default today.
    """
    from tasks.monitoring.decision import ASK, HOLD
    from tasks.wiring.cases import case_url, keep_cases

    context = open_context(settings, pipeline)
    first, last = parse_day(first_day, "first_day"), parse_day(last_day, "last_day")
    assert first is not None and last is not None
    history = labelled_history(context, first, last)
    decision = decision_of(context, first, last, history)
    over = _release_cured(context)
    if decision.action == HOLD:
        result = _hold(context, decision)
    elif decision.action == ASK:
        result = _rollback(context, decision, parse_day(as_of, "as_of") or utc_now().date())
    else:
        result = {"outcome": "released" if over else "nothing", "reasons": [decision.headline]}
    result["released"] = [hold.hold_id for hold in over]
    result["case_id"] = keep_cases(context, decision, history, result, dag_run)
    result["case_url"] = case_url(settings, pipeline, result["case_id"]) if result["case_id"] else ""
    if result["outcome"] in ("asked", "held"):
        context.metadata.record_decision(
            context.spec,
            action={"asked": "ask_person", "held": "hold_scoring"}[result["outcome"]],
            verdict=decision.verdict,
            reasons=result["reasons"],
            first_day=first,
            last_day=last,
            model_version=result.get("model_version"),
            dag_run=dag_run,
            record={"mitigation": result, "next_steps": list(decision.next_steps)},
        )
    context.evidence(dag_run, "mitigation", result)
    return result


def scoring_status(settings: Settings, pipeline: str) -> dict[str, Any]:
    """The holds of a pipeline's scoring, newest first, and whether one stands."""
    from tasks.monitoring.mitigation import scoring_holds

    found = scoring_holds(open_context(settings, pipeline).store)[::-1]
    return {"held": any(hold.open for hold in found), "holds": [hold.to_json() for hold in found]}


def release_held_scoring(
    settings: Settings, pipeline: str, *, hold_id: str, actor: str, reason: str
) -> dict[str, Any]:
    """Let a pipeline be scored and promoted again though the fault was not seen to be gone.

    It answers the case of the hold with `accept`, where one is open.
    """
    from tasks.monitoring.mitigation import release_scoring
    from tasks.wiring.cases import accept_released

    context = open_context(settings, pipeline)
    released = release_scoring(context.store, hold_id, actor=actor, reason=reason)
    accept_released(context, released)
    return released.to_json()


def refuse_held(context: Context, wanted: str, days: Sequence[date] = ()) -> None:
    """Raises `TerminalError` while a data fault holds the pipeline; scoring its faulty days alone is the cure, and allowed."""
    from tasks.monitoring.mitigation import scoring_holds
    from tasks.wiring.cases import open_case_ids

    for hold in scoring_holds(context.store):
        if not hold.open or (days and set(days) <= set(hold.days)):
            continue
        span = day_span(hold.days[0], hold.days[-1])
        name = context.spec.name
        answered = "".join(
            f"answer case {case_id} (Required Actions in Airflow), or "
            for case_id in open_case_ids(context, hold)
        )
        raise TerminalError(
            f"{wanted} is held since {hold.placed_at_utc[:16]}Z for a data fault of {span}: {hold.reason}",
            which=name,
            fix=f"deliver {span} again, run {name}.score for these days and {name}.monitor; or, when the data is right as it is, "
            f"{answered}`penstock monitoring release {name} {hold.hold_id} --reason ...`",
        )


def refuse_damaged(context: Context) -> None:
    """Raises `TerminalError` while nobody has answered that the live version does damage: what is wrong must be known first."""
    from tasks.monitoring.cases import read_cases
    from tasks.monitoring.decision import DAMAGE

    live = context.metadata.live(context.spec)
    for file in read_cases(context.store):
        case = file.case
        if file.status == "open" and case.kind == DAMAGE and live and live.version == case.model_version:
            name = context.spec.name
            raise TerminalError(
                f"promotion is held: nobody has answered case {case.case_id}. {case.headline}",
                which=name,
                fix=f"answer it (Required Actions in Airflow, or `penstock monitoring answer {name} {case.case_id} retrain --reason ...`), "
                "then run the promotion again; a person may promote in spite of it",
            )


def _hold(context: Context, decision: Decision) -> dict[str, Any]:
    from tasks.monitoring.decision import FAULT
    from tasks.monitoring.mitigation import hold_scoring

    faulty = [day for day in decision.days if day.verdict == FAULT]
    reason = faulty[-1].reasons[0] if faulty[-1].reasons else decision.headline
    hold = hold_scoring(context.store, [day.day for day in faulty], reason=reason)
    if hold is None:
        return {"outcome": "nothing", "reasons": [decision.headline, "a person has released these days"]}
    return {
        "outcome": "held",
        "hold_id": hold.hold_id,
        "days": [day.isoformat() for day in hold.days],
        "reasons": [decision.headline, *decision.reasons[:3]],
    }


def _release_cured(context: Context) -> list[ScoringHold]:
    """Release the monitor's holds whose days were all measured since, without a fault."""
    from tasks.monitoring.mitigation import ACTOR, release_scoring, scoring_holds
    from tasks.wiring.cases import note_released

    over = []
    for hold in scoring_holds(context.store):
        if not hold.open or hold.actor != ACTOR:
            continue
        signals = {item.day: item for item in signals_of(context, hold.days[0], hold.days[-1])}
        if all(day in signals and not signals[day].faults for day in hold.days):
            reason = "its days were measured again, without a fault"
            over.append(release_scoring(context.store, hold.hold_id, actor=ACTOR, reason=reason))
            note_released(context, over[-1])
    return over


def _rollback(context: Context, decision: Decision, as_of: date) -> dict[str, Any]:
    from tasks.metadata.records import POINTER_KINDS
    from tasks.monitoring.decision import once_answered
    from tasks.monitoring.mitigation import ACTOR, judge_rollback, scoring_holds
    from tasks.wiring.release import rollback_model

    live = context.require_champion()
    scorer = scorer_of(context, decision.first_day, decision.last_day)
    if (live.kind, live.actor, live.previous_version) == ("rollback", ACTOR, scorer):
        return _rolled_back(
            context, decision, live, {}
        )  # by an attempt that died before it could say so, or by this one
    if scorer != live.version:
        reason = f"version {scorer}, which scored these days, is not live any more"
        return {"outcome": "nothing", "reasons": [decision.headline, reason]}
    try:
        case = _case(context, live.version, live.bundle_digest, as_of)
    except DataGateFailed as error:
        return {
            "outcome": "asked",
            "model_version": live.version,
            "reasons": [decision.headline, f"no comparison: {error.which} {error.what}"],
        }
    moves = context.metadata.history(context.spec, kinds=POINTER_KINDS, limit=50)
    held = next((hold.reason for hold in scoring_holds(context.store) if hold.open), "")
    judged = judge_rollback(context.spec, case, moves, utc_now(), held=held)
    result: dict[str, Any] = {
        "outcome": "asked",
        "model_version": live.version,
        "comparison": case.to_json(),
        "report_url": context.report_url(case.report_key) if case.report_key else "",
        "reasons": [decision.headline, *judged.reasons],
    }
    if not judged.automatic:
        return result
    try:
        done = rollback_model(
            context.settings,
            context.spec.name,
            expected=live.version,
            to_version=case.target,
            actor=ACTOR,
            reason=" ".join([once_answered(decision.headline), f"{'; '.join(judged.reasons)}."]),
        )
    except TerminalError as error:  # the target does not load, or somebody was faster: a person has to look
        return {**result, "reasons": [*result["reasons"], f"not rolled back: {error.which} {error.what}"]}
    return _rolled_back(context, decision, context.require_champion(), {**result, **done})


def _rolled_back(
    context: Context, decision: Decision, live: Deployment, result: dict[str, Any]
) -> dict[str, Any]:
    """Keep the decision of a rollback once, by its event; who asks again is told that it is done."""
    made = {"event_id": live.event_id, "version": live.version, "left": live.previous_version}
    for known in context.metadata.decisions(context.spec, limit=50):
        if known.record.get("mitigation") == made:
            reason = (
                f"version {live.previous_version}, which scored these days, was rolled back: {live.reason}"
            )
            return {"outcome": "nothing", "reasons": [decision.headline, reason]}
    context.metadata.record_decision(
        context.spec,
        action="roll_back",
        verdict=decision.verdict,
        reasons=[live.reason],
        first_day=decision.first_day,
        last_day=decision.last_day,
        model_version=live.previous_version,
        record={"mitigation": made},
    )
    return {
        "reasons": [live.reason],
        **result,
        **made,
        "outcome": "rolled_back",
        "model_version": live.previous_version,
    }


def _case(context: Context, live: int, digest: str, as_of: date) -> RollbackCase:
    """The live version beside the next rollback target, on the days that the live one scored and whose labels are known."""
    from tasks.monitoring.mitigation import RollbackCase
    from tasks.registry import rollback_targets
    from tasks.registry import version as registered

    targets = [number for number in rollback_targets(context.settings, context.spec) if number != live]
    runs = {run.run_id for run in context.metadata.runs_of(context.spec, live) if run.model_version == live}
    published = context.metadata.published_days(context.spec)
    known_from = context.spec.label.known_from
    days = sorted(day for day, run in published.items() if run in runs and known_from(day) <= as_of)[
        -_NEWEST:
    ]
    if not targets or not days:
        return RollbackCase(live, targets[0] if targets else None, len(days), None, None)
    target = registered(context.settings, context.spec, targets[0])
    verdict = compare_days(context, days, challenger_digest=target.bundle_digest, champion_digest=digest)
    counted, low, high = bounds_of(verdict)  # of target - live
    return RollbackCase(
        live=live,
        target=target.version,
        days=counted,
        gain=None if high is None else -high,
        loss=None if low is None else -low,
        skill=challengers_skill(days_of(context, verdict)),
        report_key=verdict.report_key or "",
    )

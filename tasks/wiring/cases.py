"""Cases of the monitor: opened with their evidence, answered by people, and what follows from an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from tasks.core import Settings
from tasks.core.day_span import day_span
from tasks.core.errors import ConfigError, PenstockError, TerminalError
from tasks.core.object_store import AlreadyExists
from tasks.wiring.causes import explained
from tasks.wiring.context import Context, open_context, parse_day
from tasks.wiring.measured import LabelledHistory, scorer_of, signals_of

if TYPE_CHECKING:
    from tasks.monitoring import DaySignals, Decision
    from tasks.monitoring.cases import Answer, Case, CaseEvent, CaseFile
    from tasks.monitoring.mitigation import ScoringHold

_ACTED = ("held", "asked", "rolled_back")
"""Outcomes of the mitigation that a person has to know of."""
_RELEASING = ("accept", "new_normal", "mute")
"""Answers that say of a data fault: score on."""


@dataclass(frozen=True)
class _Window:
    """What a run of the monitor found and did."""

    context: Context
    decision: Decision
    history: LabelledHistory
    signals: list[DaySignals]
    version: int | None
    """That scored its newest day."""
    mitigation: Mapping[str, Any]
    dag_run: str | None


def keep_cases(
    context: Context,
    decision: Decision,
    history: LabelledHistory,
    mitigation: Mapping[str, Any],
    dag_run: str | None,
) -> str:
    """Open, update or close the cases that a window speaks of; the id of the one whose question is open, or empty."""
    from tasks.monitoring.cases import asks, close_case, kinds_of, read_cases
    from tasks.monitoring.decision import ALERT

    first, last = decision.first_day, decision.last_day
    window = _Window(
        context,
        decision,
        history,
        signals_of(context, first, last),
        scorer_of(context, first, last),
        mitigation,
        dag_run,
    )
    # The mitigation may have found nothing to ask: the version is gone, or a person has released the days.
    acts = decision.data_action == ALERT or mitigation["outcome"] in _ACTED
    asked = asks(decision) if acts else ""
    known = read_cases(context.store)
    open_id = ""
    for kind in kinds_of(decision):
        file = _kept(window, known, kind, acts=kind == asked)
        if file is None:
            continue
        if kind == asked and mitigation["outcome"] == "rolled_back":
            words = f"the monitor went back to version {mitigation['version']} by itself"
            file = close_case(context.store, file.case_id, words)
        elif kind == asked and file.status == "open":
            open_id = file.case_id
        known = [file, *(other for other in known if other.case_id != file.case_id)]
    _close_ended(context, decision, known, keep=open_id)
    _note_missed_releases(context, known)
    return open_id


def open_case_ids(context: Context, hold: ScoringHold) -> list[str]:
    """Open cases that are about the days of a hold: one, or none once it was answered."""
    from tasks.monitoring.cases import read_cases

    return [
        file.case_id
        for file in read_cases(context.store)
        if file.status == "open" and hold.hold_id in file.case.holds
    ]


def accept_released(context: Context, hold: ScoringHold) -> None:
    """Answer the open case of a hold that a person has released."""
    from tasks.monitoring.answers import ACCEPT
    from tasks.monitoring.cases import Answer, answer_case

    for case_id in open_case_ids(context, hold):
        said = Answer(ACCEPT, hold.released_by or "", hold.release_reason or "")
        answer_case(context.store, context.spec, case_id, said)
    note_released(context, hold)


def note_released(context: Context, hold: ScoringHold) -> None:
    """Into the logs of the answered cases of a hold: that it is over. One that is open is closed for it."""
    from tasks.monitoring.cases import read_cases

    for file in read_cases(context.store):
        if file.answer is not None and hold.hold_id in file.case.holds:
            _note_released(context, file.case_id, hold)


def list_cases(settings: Settings, pipeline: str) -> dict[str, Any]:
    """Every case of a pipeline, newest first."""
    from tasks.monitoring.cases import read_cases

    return {"cases": [in_short(file) for file in read_cases(open_context(settings, pipeline).store)]}


def all_cases(settings: Settings, pipelines: Sequence[str]) -> list[dict[str, Any]]:
    """The cases of many pipelines, open ones first, then newest first; a pipeline that does not load has none."""
    found = []
    for name in pipelines:
        try:
            found += [{"pipeline": name, **item} for item in list_cases(settings, name)["cases"]]
        except PenstockError as error:
            found.append({"pipeline": name, "error": str(error)})
    found.sort(key=lambda item: str(item.get("opened_at_utc", "")), reverse=True)
    return sorted(found, key=lambda item: item.get("status") != "open")


def show_case(
    settings: Settings, pipeline: str, *, case_id: str, dag_run: str | None = None
) -> dict[str, Any]:
    """A case with its evidence, its log and what each answer does. `nothing_to_do` when nobody need answer any more.

    It has next steps while it waits for an answer, or its answer left a hold.
    """
    from tasks.monitoring.cases import read_case

    context = open_context(settings, pipeline)
    file = read_case(context.store, case_id)
    case = file.case
    result = {
        **in_short(file),
        "pipeline": pipeline,
        "reasons": list(case.reasons),
        "next_steps": list(case.next_steps) if _waits(file) else [],
        "causes": [dict(cause) for cause in case.causes],
        "days": [day.isoformat() for day in case.days],
        "signals": list(case.signals),
        "first_day": case.first_day.isoformat(),
        "last_day": case.last_day.isoformat(),
        "suggestion": case.suggestion,
        "because": case.because,
        "options": [{"answer": name, "does": _does(context, case, name)} for name in case.options],
        "holds": list(case.holds),
        "report_url": context.report_url(_report_key(context, case)),
        "page_url": case_url(settings, pipeline, case_id),
        "monitor_run": case.dag_run or "",
        "log": [
            {"at": event.at_utc[:16].replace("T", " "), "kind": event.kind, "words": _event_words(event)}
            for event in file.events
        ],
    }
    if dag_run:
        result["nothing_to_do"] = file.status != "open"
        context.evidence(
            dag_run,
            "case",
            {
                "outcome": case.kind,
                "case": case_id,
                "headline": file.headline,
                "suggestion": case.suggestion or "wait",
                "reasons": [*case.reasons[:6], *(cause.get("what", "") for cause in case.causes[:2])],
                "links": {"Case": result["page_url"], "Drift report": result["report_url"]},
            },
        )
    return result


def case_status(settings: Settings, pipeline: str, *, case_id: str) -> dict[str, Any]:
    """`status`, and the answer when there is one: what a question that waits looks at."""
    from tasks.monitoring.cases import read_case

    file = read_case(open_context(settings, pipeline).store, case_id)
    said = file.answer
    return {
        "case_id": case_id,
        "status": file.status,
        "over": file.over,
        "answer": said.answer if said else "",
        "actor": said.actor if said else "",
        "reason": said.reason if said else file.over,
        "until": said.until.isoformat() if said and said.until else None,
    }


def check_case_answer(
    settings: Settings,
    pipeline: str,
    *,
    case_id: str,
    answer: str,
    actor: str,
    reason: str,
    until: str | None,
) -> None:
    """Raises what `answer_case` would say against an answer itself; who answers meanwhile is not looked at.

    Raises:
        NotFound: There is no such case.
        ConfigError: The answer does not suit it.
    """
    from tasks.monitoring.cases import checked_answer, read_case

    context = open_context(settings, pipeline)
    case = read_case(context.store, case_id).case
    checked_answer(context.spec, case, _said(answer, actor, reason, until))


def answer_case(
    settings: Settings,
    pipeline: str,
    *,
    case_id: str,
    answer: str,
    actor: str,
    reason: str,
    until: str | None = None,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Keep a person's answer to a case and do what needs no other task; safe to repeat.

    An answer that says of a data fault that scoring may go on releases its holds. `then` names what is left to do: `roll_back`
    or `retrain`, which the case's own DAG run does.

    Raises:
        NotFound: There is no such case.
        ConfigError: The answer does not suit it.
        TerminalError: Somebody else has answered, or it is over.
    """
    from tasks.monitoring import cases
    from tasks.monitoring.decision import FAULT
    from tasks.monitoring.mitigation import release_scoring

    context = open_context(settings, pipeline)
    said = _said(answer, actor, reason, until)
    file = cases.answer_case(context.store, context.spec, case_id, said)
    kept = file.answer
    assert kept is not None
    released = []
    if file.case.kind == FAULT and kept.answer in _RELEASING:
        for hold_id in file.case.holds:
            why = f"case {case_id}: {kept.reason}"
            hold = release_scoring(context.store, hold_id, reason=why, actor=actor)
            _note_released(context, case_id, hold)
            released.append(hold.hold_id)
    result = {
        "case_id": case_id,
        "answer": kept.answer,
        "actor": kept.actor,
        "reason": kept.reason,
        "until": kept.until.isoformat() if kept.until else None,
        "released": released,
        "then": kept.answer if kept.answer in ("roll_back", "retrain") else "",
        "does": _does(context, file.case, kept.answer),
    }
    context.evidence(dag_run, "answer", {**result, "outcome": "answered", "reasons": [cases.in_words(kept)]})
    return result


def revoke_case_answer(
    settings: Settings, pipeline: str, *, case_id: str, actor: str, reason: str
) -> dict[str, Any]:
    """Take an answer back: mute, confirmed shift or acknowledgement count no more from the next run of the monitor.

    What it has done (a rollback, a training, a hold released) is not undone.

    Raises:
        NotFound: There is no such case.
        TerminalError: It was not answered.
    """
    from tasks.monitoring.cases import revoke_answer

    store = open_context(settings, pipeline).store
    return in_short(revoke_answer(store, case_id, actor=actor, reason=reason))


def close_unanswered(
    settings: Settings, pipeline: str, *, case_id: str, words: str, dag_run: str | None = None
) -> dict[str, Any]:
    """Close a case that nobody has answered; one that is answered or over stays as it is."""
    from tasks.monitoring.cases import close_case

    context = open_context(settings, pipeline)
    file = close_case(context.store, case_id, words)
    result = {"case_id": case_id, "status": file.status, "reasons": [file.over or "it was answered"]}
    context.evidence(dag_run, "answer", {**result, "outcome": file.status})
    return result


def roll_back_case(
    settings: Settings, pipeline: str, *, case_id: str, dag_run: str | None = None
) -> dict[str, Any]:
    """Roll the champion back because a case was answered so; once, however often it is called.

    Raises:
        TerminalError: Another version is live by now, or there is none to go back to.
    """
    from tasks.monitoring.cases import in_words, note_done, read_case
    from tasks.wiring.release import rollback_model

    context = open_context(settings, pipeline)
    file = read_case(context.store, case_id)
    if file.answer is None or file.answer.answer != "roll_back" or file.revoked:
        return _nothing("a rollback was not asked for")
    left = file.case.model_version
    live = context.require_champion()
    if (live.kind, live.previous_version) != ("rollback", left):
        if live.version != left:
            raise TerminalError(
                f"asks to leave version {left}, but version {live.version} is live",
                which=f"case {case_id}",
                fix="nothing moves: look at the deployments page at what happened meanwhile",
            )
        rollback_model(
            settings,
            pipeline,
            expected=live.version,
            actor=file.answer.actor,
            reason=f"case {case_id}: {in_words(file.answer)}",
            dag_run=dag_run,
        )
        live = context.require_champion()
    note_done(context.store, case_id, f"rolled back from version {left} to version {live.version}")
    return {"version": live.version, "previous_version": left, "case_id": case_id}


def begin_retraining(
    settings: Settings, pipeline: str, *, case_id: str, training_run: str, dag_run: str | None = None
) -> dict[str, Any]:
    """Keep that a training was started because a case was answered so; `nothing_to_do` when it was not."""
    from tasks.monitoring.cases import note_done, read_case

    context = open_context(settings, pipeline)
    file = read_case(context.store, case_id)
    if file.answer is None or file.answer.answer != "retrain" or file.revoked:
        return _nothing("a training was not asked for")
    note_done(context.store, case_id, f"started {training_run}")
    result = {
        "case_id": case_id,
        "actor": file.answer.actor,
        "reason": f"case {case_id}: {file.answer.reason}",
    }
    context.evidence(dag_run, "retraining", {**result, "outcome": "started"})
    return result


def in_short(file: CaseFile) -> dict[str, Any]:
    """One line of a list of cases."""
    from tasks.monitoring.cases import in_words

    case = file.case
    return {
        "case_id": case.case_id,
        "status": file.status,
        "kind": case.kind,
        "since": case.days[0].isoformat(),
        "last_seen": case.days[-1].isoformat(),
        "headline": file.headline,
        "model_version": case.model_version,
        "outcome": case.outcome,
        "opened_at_utc": file.opened_at_utc,
        "answer": in_words(file.answer) if file.answer else "",
        "revoked": file.revoked,
        "over": file.over,
        "done": list(file.done),
    }


def case_url(settings: Settings, pipeline: str, case_id: str) -> str:
    """Where Airflow shows a case."""
    return f"{settings.airflow_url}/penstock/cases/{pipeline}/{case_id}"


def _kept(window: _Window, known: list[CaseFile], kind: str, *, acts: bool) -> CaseFile | None:
    """The case of a window's days of one kind, as it stands after this window; None when there is none.

    A kind that does not act opens none, and leaves the evidence of the one there is.
    """
    from tasks.monitoring.cases import case_of, open_case, read_cases, see_again

    store = window.context.store
    while True:
        file, days, spoken = case_of(
            window.decision,
            window.signals,
            known,
            kind=kind,
            model_version=window.version,
            hold_id=str(window.mitigation.get("hold_id") or ""),
        )
        if not days or (file is None and not acts):
            return None
        if file is not None and not acts:
            return see_again(store, file, replace(file.case, days=days, signals=spoken))
        case = _case(window, kind, days, spoken)
        if file is not None:
            return see_again(store, file, case)
        try:
            return open_case(store, case, taken=[item.case_id for item in known])
        except AlreadyExists:  # another process saw the same
            known = read_cases(store)


def _case(window: _Window, kind: str, days: tuple[date, ...], spoken: tuple[str, ...]) -> Case:
    from tasks.monitoring.cases import Case, options_of, report_key

    decision, mitigation = window.decision, window.mitigation
    suggestion, because = _suggested(kind, decision, days, mitigation)
    causes = explained(window.context, decision, window.history).causes
    told = mitigation["reasons"] if mitigation["outcome"] in _ACTED else ()
    return Case(
        case_id="",
        kind=kind,
        days=days,
        signals=spoken,
        first_day=decision.first_day,
        last_day=decision.last_day,
        headline=decision.headline,
        reasons=tuple(
            reason for reason in dict.fromkeys((*told, *decision.reasons)) if reason != decision.headline
        ),
        next_steps=decision.next_steps,
        causes=tuple(cause.to_json() for cause in causes),
        options=options_of(kind, spoken, target=(mitigation.get("comparison") or {}).get("target")),
        suggestion=suggestion,
        because=because,
        model_version=window.version,
        outcome=str(mitigation["outcome"]),
        holds=(str(mitigation["hold_id"]),) if mitigation.get("hold_id") else (),
        report_key=report_key(decision.first_day, decision.last_day, kind),
        dag_run=window.dag_run,
    )


def _report_key(context: Context, case: Case) -> str:
    """Of the report that shows the incident; of the newest one while that is not drawn, and for cases of older releases."""
    from tasks.monitoring.cases import report_key

    if case.report_key and context.store.exists(case.report_key):
        return case.report_key
    return report_key(case.first_day, case.last_day)


def _suggested(
    kind: str, decision: Decision, days: tuple[date, ...], mitigation: Mapping[str, Any]
) -> tuple[str, str]:
    """(the answer that the evidence speaks for or empty, why)."""
    from tasks.monitoring.decision import DAMAGE, FAULT
    from tasks.monitoring.mitigation import LEAST_DAYS, LEAST_GAIN, RollbackCase

    if kind == FAULT:
        return "incident", "the feed is to be repaired; measured without a fault, its days release the hold"
    if kind == DAMAGE:
        raw = mitigation.get("comparison")
        compared = RollbackCase.from_json(dict(raw)) if raw else None
        if compared is None or compared.target is None:
            return "retrain", "there is no version to go back to that could be compared"
        if compared.days < LEAST_DAYS:
            return (
                "",
                f"{compared.days} labelled days are too few to compare with version {compared.target}: wait for labels",
            )
        if compared.skill is None or compared.skill <= 0:
            return (
                "retrain",
                f"version {compared.target} has no skill on these rows either: labels or the world changed",
            )
        if compared.gain is not None and compared.gain > LEAST_GAIN:
            return (
                "roll_back",
                f"version {compared.target} is surely better on the same {compared.days} labelled days",
            )
        return (
            "retrain",
            f"version {compared.target} is not shown to be better on the same {compared.days} labelled days",
        )
    if not decision.evidence.get("days with measured performance"):
        return "", "labels of these days are not known yet: wait for them"
    if len(days) >= LEAST_DAYS:
        return "retrain", f"it lasts {len(days)} days and labels agree with the scores: train on it"
    return "accept", "labels agree with the scores"


def _close_ended(context: Context, decision: Decision, files: list[CaseFile], *, keep: str) -> None:
    from tasks.monitoring.cases import close_case, ended
    from tasks.monitoring.mitigation import scoring_holds

    open_files = [file for file in files if file.status == "open" and file.case_id != keep]
    if not open_files:
        return
    live = context.metadata.live(context.spec)
    holds = frozenset(hold.hold_id for hold in scoring_holds(context.store) if hold.open)
    for file in open_files:
        words = ended(file, decision, open_holds=holds, live_version=live.version if live else None)
        if words:
            close_case(context.store, file.case_id, words)


def _waits(file: CaseFile) -> bool:
    """Whether an answer is missing, or the end of a hold."""
    return file.status == "open" or (file.status == "answered" and _misses_release(file))


def _misses_release(file: CaseFile) -> bool:
    """Whether its log does not say yet of each hold that it is over."""
    return len(file.done) < len(file.case.holds)


def _event_words(event: CaseEvent) -> str:
    from tasks.monitoring.cases import in_words

    if event.answer is not None:
        return in_words(event.answer)
    if event.case is not None:
        return event.case.headline
    return event.words


def _said(answer: str, actor: str, reason: str, until: str | None) -> Answer:
    """An answer from words; raises `ConfigError` when it is none."""
    from tasks.monitoring.answers import ANSWERS
    from tasks.monitoring.cases import Answer

    said = Answer(answer.replace("-", "_"), actor, reason, parse_day(until or None, "until"))
    if said.answer not in ANSWERS:
        raise ConfigError("is no answer", which=answer, fix=f"choose one of: {', '.join(ANSWERS)}")
    return said


def _note_missed_releases(context: Context, files: Sequence[CaseFile]) -> None:
    """Of holds that an answer left: what a process that died between a release and its note has not written."""
    from tasks.monitoring.answers import INCIDENT
    from tasks.monitoring.mitigation import scoring_holds

    left = [
        file
        for file in files
        if file.answer is not None and file.answer.answer == INCIDENT and _misses_release(file)
    ]
    if left:
        over = {hold.hold_id: hold for hold in scoring_holds(context.store) if not hold.open}
        for file in left:
            for hold_id in file.case.holds:
                if hold_id in over:
                    _note_released(context, file.case_id, over[hold_id])


def _note_released(context: Context, case_id: str, hold: ScoringHold) -> None:
    from tasks.monitoring.cases import note_done

    days = day_span(hold.days[0], hold.days[-1])
    note_done(context.store, case_id, f"the hold of {days} was released ({hold.hold_id})")


def _nothing(reason: str) -> dict[str, Any]:
    return {"nothing_to_do": True, "reason": reason, "reasons": [reason]}


def _does(context: Context, case: Case, answer: str) -> str:
    """What an answer does, in words."""
    meant = _MEANINGS[case.kind][answer]
    if answer == "retrain" and context.spec.split.train is not None:
        meant += ". It takes the days that `split` in pipeline.yaml names: name newer ones first, or the same model comes again"
    if answer == "mute":
        latest = case.days[-1] + timedelta(days=context.spec.drift.max_mute_days)
        meant += f". The day may be {latest} at the latest"
    return meant


_MUTED = (
    "its signals are left out of verdicts up to a day (a week of data unless you name one), then count again"
)
_MEANINGS: dict[str, dict[str, str]] = {
    "data fault": {
        "incident": "a real fault: scoring stays held until its days are delivered again; as they are, they never become a reference",
        "accept": "these days are right as they are: scoring and promotions go on; the next such day holds again",
        "new_normal": "this is how the data is from now on: scoring goes on and these days become part of the reference",
        "mute": f"scoring goes on; {_MUTED}",
    },
    "performance damage": {
        "roll_back": "the champion goes back to the version before, which is loaded and tested first; this one is barred",
        "retrain": "a training starts now; its model passes the gates before it is promoted",
        "accept": "nothing changes and nobody is asked again while this version's incident lasts; promotions go on",
        "mute": _MUTED,
        "incident": "nothing changes; its days never become a reference; promotions go on",
    },
    "drift, no damage seen": {
        "accept": "nothing changes and nobody is asked again while it lasts, unless other channels join",
        "new_normal": "this is how the world is from now on: these days become part of the reference",
        "retrain": "a training starts now; its model passes the gates before it is promoted",
        "mute": _MUTED,
        "incident": "nothing changes; its days never become a reference",
    },
}
"""What each answer does, by kind of case."""

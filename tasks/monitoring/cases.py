"""Cases: what the monitor found, put before a person, and what that person answered.

A case is an incident of one kind: days of it at most seven apart are one case, in whatever windows they are seen, so a
person is asked once. It is a log of events in the pipeline's store, each an exclusive create:

monitoring/cases/<case_id>/0000.json    opened, with the evidence
monitoring/cases/<case_id>/0001.json    seen again with more days or another outcome, answered, over, done, or its answer revoked
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

from tasks.core.clock import Clock, iso_utc, utc_now
from tasks.core.errors import ConfigError, NotFound, TerminalError
from tasks.core.ids import canonical_json
from tasks.core.object_store import AlreadyExists, ObjectStore
from tasks.core.placed import refuse_blank
from tasks.core.records import JsonRecord
from tasks.core.spec import PipelineSpec
from tasks.core.stored import read_record
from tasks.monitoring.answers import (
    ACCEPT,
    INCIDENT,
    MUTE,
    NEVER_NORMAL,
    NEW_NORMAL,
    PERFORMANCE,
    RETRAIN,
    ROLL_BACK,
    Answered,
    signal_names,
)
from tasks.monitoring.decision import (
    ALERT,
    ASK,
    DAMAGE,
    DRIFT,
    FAULT,
    HOLD,
    MERGE_DAYS,
    OPEN_DAYS,
    once_answered,
)
from tasks.monitoring.signals import DaySignals, Decision

OPENED, SEEN, ANSWERED, OVER, DONE, REVOKED = "opened", "seen", "answered", "over", "done", "revoked"
DEFAULT_MUTE = timedelta(days=7)
_FOLDER = "monitoring/cases"
_SLUGS = {FAULT: "fault", DAMAGE: "damage", DRIFT: "drift"}
_TRIES = 20


@dataclass(frozen=True)
class Case(JsonRecord):
    """What is known of an incident, as it was last seen."""

    case_id: str
    kind: str
    """`data fault`, `performance damage` or `drift, no damage seen`."""
    days: tuple[date, ...]
    """Days on which it was seen, in order."""
    signals: tuple[str, ...]
    """`check:channel` of faults, `drift:channel`, or `performance`."""
    first_day: date
    """Of the window that saw it last."""
    last_day: date
    headline: str
    reasons: tuple[str, ...]
    next_steps: tuple[str, ...]
    causes: tuple[dict[str, Any], ...]
    """Most likely first, as `tasks.monitoring.causes` has them."""
    options: tuple[str, ...]
    """Answers that make sense for it."""
    suggestion: str
    """One of them, or empty: wait."""
    because: str
    model_version: int | None
    outcome: str
    """What the monitor did by itself: `held`, `asked`, `rolled_back` or `nothing`."""
    holds: tuple[str, ...] = ()
    """Holds of scoring that were placed for it."""
    report_key: str = ""
    dag_run: str | None = None


@dataclass(frozen=True)
class Answer(JsonRecord):
    """What a person decided."""

    answer: str
    actor: str
    reason: str
    until: date | None = None
    """Last day of a mute, included."""


@dataclass(frozen=True)
class CaseEvent(JsonRecord):
    """One line of a case's log."""

    number: int
    kind: str
    """`opened`, `seen`, `answered`, `over`, `done` or `revoked`."""
    at_utc: str
    words: str = ""
    case: Case | None = None
    """Of `opened` and `seen`."""
    answer: Answer | None = None
    """Of `answered`."""


@dataclass(frozen=True)
class CaseFile:
    """A case with its whole log."""

    events: tuple[CaseEvent, ...]

    @property
    def case(self) -> Case:
        """As it was last seen."""
        return next(event.case for event in reversed(self.events) if event.case is not None)

    @property
    def case_id(self) -> str:
        return self.case.case_id

    @property
    def headline(self) -> str:
        """The verdict in words; that it is still open, and that a person must decide, only while nobody has answered."""
        return self.case.headline if self.status == "open" else once_answered(self.case.headline)

    @property
    def opened_at_utc(self) -> str:
        return self.events[0].at_utc

    @property
    def answer(self) -> Answer | None:
        return next((event.answer for event in self.events if event.answer is not None), None)

    @property
    def over(self) -> str:
        """Why it was over before anybody answered; empty when it was not."""
        return next((event.words for event in self.events if event.kind == OVER), "")

    @property
    def revoked(self) -> str:
        """Who took the answer back, and why; empty while it stands."""
        return next((event.words for event in self.events if event.kind == REVOKED), "")

    @property
    def status(self) -> str:
        """`open`, `answered`, `revoked` or `over`."""
        if self.answer is None:
            return "over" if self.over else "open"
        return "revoked" if self.revoked else "answered"

    @property
    def done(self) -> tuple[str, ...]:
        """What was done after the answer, in words."""
        return tuple(event.words for event in self.events if event.kind == DONE)


def read_cases(store: ObjectStore) -> list[CaseFile]:
    """Every case of a pipeline, newest first.

    Raises:
        DataError: An event cannot be read.
    """
    logs: dict[str, list[str]] = {}
    for info in store.list(_FOLDER):
        logs.setdefault(info.key.rsplit("/", 1)[0], []).append(info.key)
    found = [CaseFile(tuple(_read(store, key) for key in sorted(keys))) for keys in logs.values()]
    return sorted(found, key=lambda item: (item.opened_at_utc, item.case_id), reverse=True)


def read_case(store: ObjectStore, case_id: str) -> CaseFile:
    """One case.

    Raises:
        NotFound: There is no such case.
        DataError: An event cannot be read.
    """
    keys = sorted(info.key for info in store.list(f"{_FOLDER}/{case_id}")) if _plain(case_id) else []
    if not keys:
        raise NotFound(
            "is no case of this pipeline",
            which=case_id,
            fix="list them: penstock monitoring cases NAME",
        )
    return CaseFile(tuple(_read(store, key) for key in keys))


def case_of(
    decision: Decision,
    signals: Sequence[DaySignals],
    known: Sequence[CaseFile],
    *,
    kind: str,
    model_version: int | None,
    hold_id: str = "",
) -> tuple[CaseFile | None, tuple[date, ...], tuple[str, ...]]:
    """(the case that a window's days of one kind belong to or None, these days, their signals). Pure.

    Only the window's newest incident of the kind counts. A window that has no damaged day of its own is about the labelled
    day before it that asks.

    Args:
        hold_id: Of the hold that was placed for the window. One that no case has is of days that are at fault anew: whoever
            answered before, or need not, is asked again.
    """
    affected = [day for day in decision.days if day.verdict == kind]
    days = tuple(day.day for day in affected if day.incident == affected[-1].incident)
    if not days and decision.data_action == ASK and kind == DAMAGE:
        days = (decision.damaged_on or decision.last_day,)
    if not days:
        return None, (), ()
    names = {name for item in signals if item.day in days for name in signal_names(item)}
    spoken = (
        (PERFORMANCE,)
        if kind == DAMAGE
        else tuple(sorted(name for name in names if name.startswith("drift:") == (kind == DRIFT)))
    )
    if kind == FAULT and hold_id and not any(hold_id in file.case.holds for file in known):
        known = [file for file in known if file.status == "open"]
    return _match(known, kind, days, spoken, model_version), days, spoken


def report_key(first_day: date, last_day: date, kind: str = "") -> str:
    """Key of a window's newest report; with `kind`, of the newest one in which an incident of that kind was seen."""
    return f"monitoring/{first_day}_{last_day}/report{f'-{_SLUGS[kind]}' if kind else ''}.html"


def kinds_of(decision: Decision) -> list[str]:
    """The kinds of incident in a window."""
    found = [kind for kind in _SLUGS if any(day.verdict == kind for day in decision.days)]
    return found if decision.data_action != ASK or DAMAGE in found else [*found, DAMAGE]


def asks(decision: Decision) -> str:
    """The kind that a window's decision puts before a person; empty when it puts none."""
    kind = {HOLD: FAULT, ASK: DAMAGE, ALERT: decision.verdict}.get(decision.data_action, "")
    return kind if kind in _SLUGS else ""


def options_of(kind: str, signals: Sequence[str], *, target: int | None) -> tuple[str, ...]:
    """The answers that make sense for a case: never a rollback for mere drift, never a new normal for damage.

    Args:
        target: The version that a rollback would go to.
    """
    if kind == DAMAGE:
        back = (ROLL_BACK,) if target is not None else ()
        return (*back, RETRAIN, ACCEPT, MUTE, INCIDENT)
    if kind == DRIFT:
        return (ACCEPT, NEW_NORMAL, RETRAIN, MUTE, INCIDENT)
    normal = any(name.partition(":")[0] not in NEVER_NORMAL for name in signals)
    return (INCIDENT, ACCEPT, NEW_NORMAL, MUTE) if normal else (INCIDENT, ACCEPT, MUTE)


def ended(file: CaseFile, decision: Decision, *, open_holds: frozenset[str], live_version: int | None) -> str:
    """Why an open case is over by what a newer window shows, in words; empty when it is not. Pure.

    Args:
        open_holds: Ids of the holds of scoring that stand.
        live_version: The champion's; None when nothing is live.
    """
    case = file.case
    if case.kind == FAULT:
        if case.holds and not open_holds & set(case.holds):
            return "the hold of its days was released"
        if case.holds:
            return ""
    if case.kind == DAMAGE and live_version != case.model_version:
        return f"version {case.model_version} is not live any more"
    if decision.last_day < case.days[-1] + timedelta(days=OPEN_DAYS):
        return ""
    if any(day.verdict == case.kind for day in decision.days if day.day > case.days[-1]):
        return ""
    if case.kind == DAMAGE and not decision.evidence.get("days with measured performance"):
        return ""
    return f"it was not seen again up to {decision.last_day}"


def open_case(store: ObjectStore, case: Case, *, taken: Sequence[str], clock: Clock = utc_now) -> CaseFile:
    """Keep a new case under an id of its own.

    Args:
        case: Its `case_id` is given here.
        taken: Ids that exist.

    Raises:
        AlreadyExists: Another process opened one at this moment: read the cases again.
    """
    plain = f"{_SLUGS[case.kind]}-{case.days[0]}"
    number = 1
    identifier = plain
    while identifier in taken:
        number += 1
        identifier = f"{plain}-{number}"
    event = CaseEvent(0, OPENED, iso_utc(clock()), case=replace(case, case_id=identifier))
    store.put_exclusive(_key(identifier, 0), canonical_json(event.to_json()))
    return CaseFile((event,))


def see_again(store: ObjectStore, file: CaseFile, case: Case, *, clock: Clock = utc_now) -> CaseFile:
    """Keep what a later window knows of a case, when it knows more."""
    had = file.case
    newer = replace(
        case,
        case_id=had.case_id,
        days=tuple(sorted({*had.days, *case.days})),
        signals=tuple(sorted({*had.signals, *case.signals})),
        holds=tuple(dict.fromkeys((*had.holds, *case.holds))),
    )
    telling = ("days", "signals", "outcome", "holds", "suggestion", "model_version")
    if all(getattr(newer, name) == getattr(had, name) for name in telling):
        return file
    return _append(store, had.case_id, lambda _: CaseEvent(0, SEEN, iso_utc(clock()), case=newer))


def answer_case(
    store: ObjectStore, spec: PipelineSpec, case_id: str, answer: Answer, *, clock: Clock = utc_now
) -> CaseFile:
    """Keep a person's answer; the same answer of the same person again changes nothing.

    Raises:
        NotFound: There is no such case.
        ConfigError: The answer does not suit the case, nobody says why, or a mute lasts too long.
        TerminalError: Somebody else has answered, or it is over.
    """
    file = read_case(store, case_id)
    answer = checked_answer(spec, file.case, answer)

    def event(now: CaseFile) -> CaseEvent | None:
        if now.answer is not None:
            if (now.answer.answer, now.answer.actor) == (answer.answer, answer.actor):
                return None
            raise TerminalError(
                f"was answered already: {in_words(now.answer)}",
                which=f"case {case_id}",
                fix="if that was wrong, undo what it did (docs/playbook.md); the log of the case stays",
            )
        if now.over:
            raise TerminalError(
                f"is over: {now.over}", which=f"case {case_id}", fix="there is nothing to answer"
            )
        return CaseEvent(0, ANSWERED, iso_utc(clock()), answer=answer)

    return _append(store, case_id, event)


def revoke_answer(
    store: ObjectStore, case_id: str, *, actor: str, reason: str, clock: Clock = utc_now
) -> CaseFile:
    """Take an answer back: it teaches nothing any more. What it has done is done. A second time changes nothing.

    Raises:
        NotFound: There is no such case.
        ConfigError: Nobody says why.
        TerminalError: It was not answered.
    """
    refuse_blank(reason, "reason", "say why: the record is all that remains of it")

    def event(now: CaseFile) -> CaseEvent | None:
        if now.answer is None:
            raise TerminalError(
                f"is {now.status}, so that there is no answer to take back",
                which=f"case {case_id}",
                fix="see it: penstock monitoring case NAME CASE",
            )
        words = f"{actor} took the answer back: {reason}"
        return None if now.revoked else CaseEvent(0, REVOKED, iso_utc(clock()), words=words)

    return _append(store, case_id, event)


def close_case(store: ObjectStore, case_id: str, words: str, *, clock: Clock = utc_now) -> CaseFile:
    """Keep that a case was over before anybody answered; one that is closed stays as it is."""
    return _append(
        store,
        case_id,
        lambda now: CaseEvent(0, OVER, iso_utc(clock()), words=words) if now.status == "open" else None,
    )


def note_done(store: ObjectStore, case_id: str, words: str, *, clock: Clock = utc_now) -> CaseFile:
    """Keep once what was done after the answer."""
    return _append(
        store,
        case_id,
        lambda now: None if words in now.done else CaseEvent(0, DONE, iso_utc(clock()), words=words),
    )


def in_words(answer: Answer) -> str:
    """`ada answered mute until 2024-03-01: known sensor swap`."""
    until = f" until {answer.until}" if answer.until else ""
    return f"{answer.actor} answered {answer.answer.replace('_', ' ')}{until}: {answer.reason}"


def answered_cases(files: Sequence[CaseFile], *, model_version: int | None) -> tuple[Answered, ...]:
    """What the policy must know of the answers; those about damage only of the version that scored. Pure."""
    return tuple(
        Answered(
            kind=file.case.kind,
            days=file.case.days,
            signals=frozenset(file.case.signals),
            answer=file.answer.answer,
            words=f"Case {file.case_id}: {in_words(file.answer)}",
            until=file.answer.until,
        )
        for file in files
        if file.answer is not None
        and file.status == "answered"
        and (file.case.kind != DAMAGE or file.case.model_version == model_version)
    )


def _match(
    known: Sequence[CaseFile],
    kind: str,
    days: tuple[date, ...],
    signals: tuple[str, ...],
    model_version: int | None,
) -> CaseFile | None:
    """The newest case that these days go on with.

    One that is answered or over takes only what it covers: a feed's answer its own days, an answer about drift its channels. One whose answer was taken back takes nothing: its incident is asked about anew.
    """
    for file in known:
        case = file.case
        if case.kind != kind or (kind == DAMAGE and case.model_version != model_version):
            continue
        near = days[0] - case.days[-1] <= timedelta(days=MERGE_DAYS) and case.days[0] - days[-1] <= timedelta(
            days=MERGE_DAYS
        )
        if not near:
            continue
        inside = set(days) <= set(case.days) and file.status != "revoked"
        if file.status == "open" or inside:
            return file
        if file.status == "answered" and (
            kind == DAMAGE or (kind == DRIFT and set(signals) <= set(case.signals))
        ):
            return file
    return None


def checked_answer(spec: PipelineSpec, case: Case, answer: Answer) -> Answer:
    """The answer as it is kept: a mute has its last day, and no other answer has one. Pure.

    Raises:
        ConfigError: It does not suit the case, nobody says why, or a mute lasts too long.
    """
    if answer.answer not in case.options:
        raise ConfigError(
            f"is no answer to a case of {case.kind}",
            which=answer.answer,
            fix=f"choose one of: {', '.join(case.options)}",
        )
    refuse_blank(answer.reason, "reason", "say why: the record is all that remains of it")
    if answer.answer != MUTE:
        return replace(answer, until=None)
    until = answer.until or case.days[-1] + DEFAULT_MUTE
    latest = case.days[-1] + timedelta(days=spec.drift.max_mute_days)
    if not case.days[-1] < until <= latest:
        raise ConfigError(
            f"{until} is not after {case.days[-1]} and at most {spec.drift.max_mute_days} days later",
            which="until",
            fix=f"choose a day up to {latest}; for longer, retrain or confirm the new normal (drift.max_mute_days)",
        )
    return replace(answer, until=until)


def _append(store: ObjectStore, case_id: str, event: Callable[[CaseFile], CaseEvent | None]) -> CaseFile:
    """Add what `event` makes of the log as it is; None adds nothing. Nobody's event is lost when two write at once."""
    for _ in range(_TRIES):
        file = read_case(store, case_id)
        made = event(file)
        if made is None:
            return file
        number = file.events[-1].number + 1
        made = replace(made, number=number)
        try:
            store.put_exclusive(_key(case_id, number), canonical_json(made.to_json()))
        except AlreadyExists:
            continue
        return CaseFile((*file.events, made))
    raise TerminalError("is written by too many at once", which=f"case {case_id}", fix="try again")


def _key(case_id: str, number: int) -> str:
    return f"{_FOLDER}/{case_id}/{number:04d}.json"


def _read(store: ObjectStore, key: str) -> CaseEvent:
    return read_record(
        store, key, CaseEvent, what="a readable event of a case", fix="restore the object from a backup"
    )


def _plain(case_id: str) -> bool:
    return bool(case_id) and all(part.isalnum() for part in case_id.split("-"))

"""The log of a case: opened once, never lost, answered by one person, over when what it is about is over."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import monitored_shop as shop
import pytest
from decision_support import FIRST, day, gap, labels

from tasks.core.errors import DataError, TerminalError
from tasks.core.object_store import AlreadyExists, LocalStore, ObjectStore
from tasks.monitoring import decide
from tasks.monitoring.cases import (
    Answer,
    Case,
    answer_case,
    answered_cases,
    asks,
    case_of,
    close_case,
    ended,
    kinds_of,
    note_done,
    open_case,
    options_of,
    read_case,
    read_cases,
    revoke_answer,
    see_again,
)
from tasks.monitoring.decision import DAMAGE, DRIFT, FAULT


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return LocalStore(tmp_path)


def a_case(
    kind: str = FAULT, *indices: int, signals: tuple[str, ...] = ("nulls:price",), version: int = 1
) -> Case:
    days = tuple(FIRST + timedelta(days=index) for index in indices or (0,))
    return Case(
        case_id="",
        kind=kind,
        days=days,
        signals=signals,
        first_day=days[0],
        last_day=days[-1],
        headline="Something is wrong.",
        reasons=("because",),
        next_steps=(),
        causes=(),
        options=options_of(kind, signals, target=1),
        suggestion="",
        because="",
        model_version=version,
        outcome="held",
        holds=("h1",),
    )


ADA = Answer("accept", "ada", "it is right")


def test_a_second_case_of_one_day_gets_a_number_and_a_race_has_one_winner(store: ObjectStore) -> None:
    first = open_case(store, a_case(), taken=[])
    assert first.case_id == f"fault-{FIRST}"
    with pytest.raises(AlreadyExists):
        open_case(store, a_case(), taken=[])
    assert open_case(store, a_case(), taken=[first.case_id]).case_id == f"fault-{FIRST}-2"
    assert [file.case_id for file in read_cases(store)] == [f"fault-{FIRST}-2", f"fault-{FIRST}"]


def test_what_is_seen_again_is_kept_only_when_more_is_known(store: ObjectStore) -> None:
    file = open_case(store, a_case(), taken=[])
    same = see_again(store, file, a_case())
    assert len(same.events) == 1
    more = see_again(store, file, replace(a_case(FAULT, 1, signals=("unseen:city",)), holds=("h2",)))
    assert more.case.days == (FIRST, FIRST + timedelta(days=1))
    assert more.case.signals == ("nulls:price", "unseen:city") and more.case.holds == ("h1", "h2")
    assert read_case(store, file.case_id) == more


def test_of_many_who_answer_at_once_one_is_kept_and_the_others_are_told(store: ObjectStore) -> None:
    case_id = open_case(store, a_case(), taken=[]).case_id
    told: list[str] = []
    barrier = threading.Barrier(8)

    def answer(number: int) -> None:
        barrier.wait()
        try:
            answer_case(store, shop.SPEC, case_id, Answer("accept", f"p{number}", "mine"))
        except TerminalError as error:
            told.append(error.what)

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file = read_case(store, case_id)
    assert [event.kind for event in file.events] == ["opened", "answered"] and file.answer
    assert len(told) == 7 and all(f"{file.answer.actor} answered accept" in what for what in told)


def test_the_same_answer_again_changes_nothing_and_what_was_done_is_noted_once(store: ObjectStore) -> None:
    case_id = open_case(store, a_case(), taken=[]).case_id
    for _ in range(2):
        file = answer_case(store, shop.SPEC, case_id, ADA)
        file = note_done(store, case_id, "started a training")
    assert [event.kind for event in file.events] == ["opened", "answered", "done"]
    assert close_case(store, case_id, "too late").over == "", "an answer is not undone"
    assert file.status == "answered"


def test_an_answer_that_is_taken_back_teaches_nothing_and_its_incident_is_asked_about_anew(
    store: ObjectStore,
) -> None:
    case_id = open_case(store, a_case(), taken=[]).case_id
    with pytest.raises(TerminalError, match="is open"):
        revoke_answer(store, case_id, actor="ada", reason="a mistake")
    answer_case(store, shop.SPEC, case_id, ADA)
    for _ in range(2):
        file = revoke_answer(store, case_id, actor="ada", reason="a mistake")
    assert file.status == "revoked" and file.events[-1].words == "ada took the answer back: a mistake"
    assert len(file.events) == 3
    assert answered_cases(read_cases(store), model_version=1) == ()
    assert matched(read_cases(store), day(0, fault="x")) is None


def test_an_event_that_cannot_be_read_is_an_error_that_names_it(store: ObjectStore) -> None:
    case_id = open_case(store, a_case(), taken=[]).case_id
    store.put(f"monitoring/cases/{case_id}/0001.json", b"{half")
    with pytest.raises(DataError, match=r"0001\.json"):
        read_cases(store)


# -- which case days belong to


def file_of(store: ObjectStore, case: Case, answer: Answer | None = None) -> list:
    case_id = open_case(store, case, taken=[file.case_id for file in read_cases(store)]).case_id
    if answer is not None:
        answer_case(store, shop.SPEC, case_id, answer)
    return read_cases(store)


def matched(known: list, *days: object, kind: str = FAULT, version: int = 1, **more: object) -> str | None:
    decision = decide(shop.SPEC, list(days), **more)
    file, _, _ = case_of(decision, list(days), known, kind=kind, model_version=version)
    return file.case_id if file else None


@pytest.mark.parametrize(("later", "same"), [(7, True), (8, False)])
def test_days_at_most_a_week_apart_are_one_open_case(store: ObjectStore, later: int, same: bool) -> None:
    known = file_of(store, a_case())
    assert (matched(known, day(later, fault="x")) is not None) == same


def test_an_answered_fault_takes_its_own_days_and_a_new_day_is_a_new_case(store: ObjectStore) -> None:
    known = file_of(store, a_case(), ADA)
    assert matched(known, day(0, fault="x")) == f"fault-{FIRST}"
    assert matched(known, day(1, fault="x")) is None


def test_answered_drift_takes_its_channels_and_a_new_channel_is_a_new_case(store: ObjectStore) -> None:
    known = file_of(store, a_case(DRIFT, signals=("drift:price",)), ADA)
    goes_on = [day(2, alarms=("price",)), day(3, alarms=("price",))]
    assert matched(known, *goes_on, kind=DRIFT) == f"drift-{FIRST}"
    assert matched(known, day(2, alarms=("price", "visits")), kind=DRIFT) is None


def test_damage_of_another_version_is_another_case(store: ObjectStore) -> None:
    known = file_of(store, a_case(DAMAGE, signals=("performance",)))
    hurt = {"performances": [labels(1)], "gaps": [gap(1, alarm="once")]}
    assert matched(known, day(1), kind=DAMAGE, **hurt) == f"damage-{FIRST}"
    assert matched(known, day(1), kind=DAMAGE, version=2, **hurt) is None


def test_what_is_over_comes_back_as_a_new_case(store: ObjectStore) -> None:
    known = file_of(store, a_case())
    close_case(store, known[0].case_id, "its hold was released")
    assert matched(read_cases(store), day(1, fault="x")) is None


def test_a_window_asks_about_what_acts_and_names_every_kind_in_it() -> None:
    both = decide(shop.SPEC, [day(0, alarms=("price", "visits")), day(1, fault="x")])
    assert (asks(both), set(kinds_of(both))) == (FAULT, {FAULT, DRIFT})
    assert asks(decide(shop.SPEC, [day(0)])) == ""


# -- when it is over


def over(
    store: ObjectStore,
    case: Case,
    *days: object,
    live: int = 1,
    holds: frozenset[str] = frozenset(),
    **more: object,
) -> str:
    (file, *_) = file_of(store, case)
    return ended(file, decide(shop.SPEC, list(days), **more), open_holds=holds, live_version=live)


def test_a_fault_is_over_when_its_hold_is(store: ObjectStore) -> None:
    assert over(store, a_case(), day(9), holds=frozenset({"h1"})) == ""
    assert "released" in over(store, a_case(), day(9))


def test_drift_is_over_after_three_days_without_it(store: ObjectStore) -> None:
    case = replace(a_case(DRIFT, signals=("drift:price",)), holds=())
    assert over(store, case, day(2)) == "", "too early"
    assert over(store, case, day(2), day(3, alarms=("price", "visits"))) == "", "it is there again"
    assert over(store, case, day(2), day(3)) == f"it was not seen again up to {FIRST + timedelta(days=3)}"


def test_damage_is_over_when_its_version_is_gone_or_labels_say_so(store: ObjectStore) -> None:
    case = replace(a_case(DAMAGE, signals=("performance",)), holds=())
    assert over(store, case, day(5), live=2) == "version 1 is not live any more"
    assert over(store, case, day(5)) == "", "without labels nobody knows"
    assert "not seen again" in over(store, case, day(5), performances=[labels(5)], gaps=[gap(5)])


# -- what the policy is told


def test_answers_about_damage_are_of_one_version_and_mutes_carry_their_end(store: ObjectStore) -> None:
    file_of(store, a_case(DAMAGE, signals=("performance",), version=1), ADA)
    file_of(store, a_case(DAMAGE, signals=("performance",), version=2), replace(ADA, answer="retrain"))
    until = FIRST + timedelta(days=3)
    known = file_of(store, a_case(), Answer("mute", "ada", "known", until))
    told = answered_cases(known, model_version=2)
    assert sorted((item.kind, item.answer) for item in told) == [(FAULT, "mute"), (DAMAGE, "retrain")]
    (mute,) = (item for item in told if item.answer == "mute")
    assert mute.until == until and mute.words == f"Case fault-{FIRST}: ada answered mute until {until}: known"


def test_answers_that_make_no_sense_are_not_offered() -> None:
    assert "roll_back" not in options_of(DRIFT, ("drift:price",), target=1)
    assert "roll_back" not in options_of(DAMAGE, ("performance",), target=None)
    assert "new_normal" not in options_of(DAMAGE, ("performance",), target=1)
    assert "new_normal" not in options_of(FAULT, ("repeat:",), target=1)
    assert "new_normal" in options_of(FAULT, ("repeat:", "nulls:price"), target=1)

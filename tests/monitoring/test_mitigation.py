"""What the monitor may do by itself: a pure judgement on rollbacks, and holds that a person has the last word on."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from monitored_shop import SPEC

from tasks.core import Settings, open_store
from tasks.core.errors import ConfigError, NotFound
from tasks.core.object_store import ObjectStore
from tasks.metadata import DeploymentEvent
from tasks.monitoring.mitigation import (
    ACTOR,
    RollbackCase,
    hold_scoring,
    judge_rollback,
    release_scoring,
    scoring_holds,
)

NOW = datetime(2024, 6, 1, tzinfo=UTC)
BETTER = RollbackCase(live=3, target=2, days=4, gain=0.01, loss=0.02, skill=0.2)
DAYS = [date(2024, 5, 2), date(2024, 5, 1)]


def event(kind: str, actor: str, ago_days: float) -> DeploymentEvent:
    return DeploymentEvent(
        event_id=1, kind=kind, version=3, bundle_digest="b", feature_version="1", expected_version=None,
        previous_version=2, actor=actor, reason="r", at_utc=NOW - timedelta(days=ago_days),
    )  # fmt: skip


def test_a_champion_that_is_surely_worse_than_the_version_before_is_left_without_asking() -> None:
    judged = judge_rollback(SPEC, BETTER, [event("promote", "ada", 2)], NOW)
    assert judged.automatic
    assert (
        "version 3 beside version 2 on 4 labelled days: Brier loss +0.0100 to +0.0200 higher"
        in judged.reasons[0]
    )


def test_a_difference_that_rounds_to_zero_has_no_minus() -> None:
    same = replace(BETTER, gain=-0.00001, loss=-0.000002)
    assert judge_rollback(SPEC, same, [], NOW).reasons[0].endswith("Brier loss +0.0000 to +0.0000 higher")


@pytest.mark.parametrize(
    ("case", "moves", "says"),
    [
        (replace(BETTER, target=None), [], "no earlier version"),
        (replace(BETTER, days=2), [], "2 labelled days of version 3, 3 are needed"),
        (replace(BETTER, gain=0.003), [], "not shown to be better by 0.003"),
        (replace(BETTER, gain=-0.02), [], "not shown to be better"),
        (replace(BETTER, gain=None), [], "not shown to be better"),
        (replace(BETTER, skill=-0.1), [], "no version helps"),
        (replace(BETTER, skill=None), [], "no version helps"),
        (BETTER, [event("rollback", ACTOR, 30)], "goes back no second time"),
        (BETTER, [event("promote", "ada", 1), event("rollback", ACTOR, 6.9)], "once in 7 days"),
    ],
)
def test_it_is_left_to_a_person_when_not_proven_too_soon_or_a_second_hop(
    case: RollbackCase, moves: list[DeploymentEvent], says: str
) -> None:
    judged = judge_rollback(SPEC, case, moves, NOW)
    assert not judged.automatic
    assert any(says in reason for reason in judged.reasons), judged.reasons


def test_rollbacks_of_people_and_old_ones_do_not_count_against_it() -> None:
    moves = [event("promote", "ada", 1), event("rollback", "ada", 2), event("rollback", ACTOR, 7.1)]
    assert judge_rollback(SPEC, BETTER, moves, NOW).automatic


def test_a_pipeline_asks_when_it_says_so_or_when_its_promotions_are_approved_by_people() -> None:
    asks = SPEC.model_copy(update={"drift": SPEC.drift.model_copy(update={"rollback": "ask"})})
    approved = SPEC.model_copy(update={"promotion": SPEC.promotion.model_copy(update={"mode": "approval"})})
    both = approved.model_copy(update={"drift": SPEC.drift.model_copy(update={"rollback": "automatic"})})
    assert [judge_rollback(spec, BETTER, [], NOW).automatic for spec in (asks, approved, both)] == [
        False,
        False,
        True,
    ]


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return open_store(settings, prefix="default/shop")


def test_the_same_faulty_days_are_one_hold_and_what_a_person_released_does_not_hold_again(
    store: ObjectStore,
) -> None:
    first = hold_scoring(store, DAYS, reason="nulls in price")
    assert first is not None and first.open and (first.days, first.actor) == (tuple(sorted(DAYS)), ACTOR)
    assert hold_scoring(store, DAYS[::-1], reason="nulls in price, seen again") == first
    assert hold_scoring(store, DAYS[:1], reason="seen in a shorter window") == first
    over = release_scoring(store, first.hold_id, actor="ada", reason="the partner is gone")
    assert (over.open, over.released_by) == (False, "ada")
    assert release_scoring(store, first.hold_id, actor="eve", reason="me too") == over
    for again in (DAYS, DAYS[:1]):
        assert hold_scoring(store, again, reason="nulls in price") is None
    third = date(2024, 5, 3)
    other = hold_scoring(store, [*DAYS, third], reason="frozen")
    assert other is not None and other.days == (third,)
    assert [hold.hold_id for hold in scoring_holds(store) if hold.open] == [other.hold_id]


def test_days_that_were_whole_again_and_break_once_more_hold_once_more(store: ObjectStore) -> None:
    first = hold_scoring(store, DAYS, reason="nulls")
    assert first is not None
    release_scoring(store, first.hold_id, actor=ACTOR, reason="measured again, without a fault")
    again = hold_scoring(store, DAYS, reason="nulls, delivered again")
    assert again is not None and again.open and again.hold_id != first.hold_id


def test_nothing_is_rolled_back_while_a_data_fault_is_open() -> None:
    judged = judge_rollback(SPEC, BETTER, [], NOW, held="nulls in price")
    assert not judged.automatic and "a data fault is open: nulls in price" in judged.reasons


def test_a_release_needs_a_reason_and_a_hold(store: ObjectStore) -> None:
    hold = hold_scoring(store, DAYS, reason="nulls")
    assert hold is not None
    with pytest.raises(ConfigError, match="reason"):
        release_scoring(store, hold.hold_id, actor="ada", reason=" ")
    with pytest.raises(NotFound, match="no hold"):
        release_scoring(store, "nope", actor="ada", reason="x")

"""Retention moves days and lets them expire, and a crash anywhere loses nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pytest
from audit_support import publish_days, table_rows

from tasks.audit import by_prediction, retain
from tasks.audit.archive import archived_date, archived_dates
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.crash_points import observe
from tasks.core.errors import ConfigError, NotFound
from tasks.core.holds import place_hold, release_hold
from tasks.inference import optimize, verify

AS_OF = date(2024, 3, 4)


class Killed(BaseException):
    """Stands for SIGKILL inside one process: nothing catches it."""


def test_old_days_move_whole_and_young_days_stay(store_settings: Settings, toy: PipelineSpec) -> None:
    ids, run_id = publish_days(store_settings, toy, days=3)
    done = retain(store_settings, toy, as_of=AS_OF, warm_days=1)
    assert (done.archived_days, done.archived_rows) == ((date(2024, 3, 1), date(2024, 3, 2)), 240)
    hot = table_rows(store_settings, toy, "audit")
    assert {row["event_date"] for row in hot} == {date(2024, 3, 3)}
    store = open_store(store_settings, prefix=toy.prefix)
    assert sum(item.rows for item in archived_dates(store).values()) == 240
    assert by_prediction(store_settings, toy, ids[0]).tier == "cold"
    assert verify(store_settings, toy, run_id).ok


def test_retaining_again_does_nothing(settings: Settings, toy: PipelineSpec) -> None:
    publish_days(settings, toy, days=2)
    retain(settings, toy, as_of=AS_OF, warm_days=1)
    store = open_store(settings, prefix=toy.prefix)
    before = {info.key for info in store.list()}
    again = retain(settings, toy, as_of=AS_OF, warm_days=1)
    assert (again.archived_days, again.archived_rows, again.expired_days) == ((), 0, ())
    assert {info.key for info in store.list()} == before


def test_a_dry_run_tells_and_changes_nothing(settings: Settings, toy: PipelineSpec) -> None:
    publish_days(settings, toy, days=2)
    store = open_store(settings, prefix=toy.prefix)
    before = {info.key for info in store.list()}
    told = retain(settings, toy, as_of=AS_OF, warm_days=1, dry_run=True)
    assert {info.key for info in store.list()} == before
    done = retain(settings, toy, as_of=AS_OF, warm_days=1)
    assert (told.archived_days, told.archived_rows, told.hot_bytes_freed) == (
        done.archived_days,
        done.archived_rows,
        done.hot_bytes_freed,
    )


def test_expired_days_are_gone_and_the_answer_says_so(store_settings: Settings, toy: PipelineSpec) -> None:
    ids, run_id = publish_days(store_settings, toy, days=1)
    retain(store_settings, toy, as_of=AS_OF, warm_days=1)
    done = retain(store_settings, toy, as_of=date(2026, 3, 4), warm_days=1, expire_days=365)
    assert (done.expired_days, done.expired_rows) == ((date(2024, 3, 1),), 120)
    with pytest.raises(NotFound, match="expired at"):
        by_prediction(store_settings, toy, ids[0])
    store = open_store(store_settings, prefix=toy.prefix)
    assert not [info.key for info in store.list("archive") if info.key.endswith(".parquet")]
    assert verify(store_settings, toy, run_id).ok


@pytest.mark.parametrize(
    "point",
    [
        "before-archive-file",
        "after-archive-file",
        "after-archive-record",
        "before-archive-delete",
        "after-archive-delete",
        "after-expired-record",
    ],
)
def test_a_crash_at_any_point_loses_no_row_and_the_next_call_finishes(
    settings: Settings, toy: PipelineSpec, point: str
) -> None:
    ids, _ = publish_days(settings, toy, days=2)
    as_of = date(2026, 3, 2) if "expired" in point else AS_OF

    def die(name: str) -> None:
        if name == point:
            raise Killed

    observe(die)
    try:
        with pytest.raises(Killed):
            retain(settings, toy, as_of=as_of, warm_days=1, expire_days=730)
    finally:
        observe(None)
    store = open_store(settings, prefix=toy.prefix)
    if "expired" not in point:
        assert [by_prediction(settings, toy, item).prediction_id for item in (ids[0], ids[-1])] == [
            ids[0],
            ids[-1],
        ]
    retain(settings, toy, as_of=as_of, warm_days=1, expire_days=730)
    assert table_rows(settings, toy, "audit") == []
    states = {day: item.state for day, item in archived_dates(store).items()}
    kept = [info.key for info in store.list("archive") if info.key.endswith(".parquet")]
    if "expired" in point:
        assert states[date(2024, 3, 1)] == "expired"
    else:
        assert set(states.values()) == {"archived"}
        assert sum(item.rows for item in archived_dates(store).values()) == 240
        assert by_prediction(settings, toy, ids[0]).tier == "cold"
    assert len(kept) == sum(state == "archived" for state in states.values())


def test_rows_scored_after_their_day_was_archived_join_the_archive(
    settings: Settings, toy: PipelineSpec
) -> None:
    ids, first = publish_days(settings, toy, days=1)
    retain(settings, toy, as_of=AS_OF, warm_days=1)
    _, second = publish_days(settings, toy, days=1, version=2)
    assert by_prediction(settings, toy, ids[0]).run_id == second
    retain(settings, toy, as_of=AS_OF, warm_days=1)
    store = open_store(settings, prefix=toy.prefix)
    archived = archived_date(store, date(2024, 3, 1))
    assert archived is not None
    assert (archived.generation, archived.rows) == (2, 240)
    assert [info.key for info in store.list("archive") if info.key.endswith(".parquet")] == [archived.key]
    assert by_prediction(settings, toy, ids[0], run_id=first).tier == "cold"


def test_retentions_at_once_keep_every_row_once(settings: Settings, toy: PipelineSpec) -> None:
    publish_days(settings, toy, days=3)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: retain(settings, toy, as_of=date(2024, 4, 1), warm_days=1), range(4)))
    store = open_store(settings, prefix=toy.prefix)
    assert table_rows(settings, toy, "audit") == []
    assert sum(item.rows for item in archived_dates(store).values()) == 360
    assert all(store.exists(item.key) for item in archived_dates(store).values())


def test_a_wrong_audit_reference_is_named(settings: Settings, toy: PipelineSpec) -> None:
    from inference_support import plan_stub, run_stub, scoring_snapshot

    planned = plan_stub(settings, toy, scoring_snapshot(settings, toy, days=1))
    with pytest.raises(ConfigError, match="no_such"):
        run_stub(settings, toy, planned.run_id, audit_table="tasks.audit:no_such")


def test_held_days_neither_move_nor_expire_until_they_are_released(
    settings: Settings, toy: PipelineSpec
) -> None:
    ids, run_id = publish_days(settings, toy, days=3)
    store = open_store(settings, prefix=toy.prefix)
    first, second = date(2024, 3, 1), date(2024, 3, 2)
    retain(settings, toy, as_of=date(2024, 3, 3), warm_days=1)
    held = place_hold(store, first_day=first, last_day=second, reason="complaint 12", actor="ada")
    late = date(2026, 3, 6)
    done = retain(settings, toy, as_of=late, warm_days=1, expire_days=365)
    assert (done.held_days, done.archived_days, done.expired_days) == (
        (first, second),
        (date(2024, 3, 3),),
        (date(2024, 3, 3),),
    )
    assert [by_prediction(settings, toy, ids[i]).tier for i in (0, 120)] == ["cold", "warm"]
    release_hold(store, held.hold_id, reason="settled", actor="bob")
    done = retain(settings, toy, as_of=late, warm_days=1, expire_days=365)
    assert (done.held_days, done.expired_days) == ((), (first, second))
    assert verify(settings, toy, run_id).ok


def test_merged_audit_files_are_looked_up_archived_and_expired_like_others(
    settings: Settings, toy: PipelineSpec
) -> None:
    ids, run_id = publish_days(settings, toy, days=2)
    before = [by_prediction(settings, toy, item) for item in ids[::40]]
    optimize(settings, toy)
    assert [by_prediction(settings, toy, item) for item in ids[::40]] == before
    done = retain(settings, toy, as_of=AS_OF, warm_days=2)
    assert (done.archived_days, done.archived_rows) == ((date(2024, 3, 1),), 120)
    assert [by_prediction(settings, toy, item).tier for item in (ids[0], ids[-1])] == ["cold", "warm"]
    assert verify(settings, toy, run_id).ok


def test_files_merged_while_their_day_is_archived_leave_each_row_once(
    settings: Settings, toy: PipelineSpec
) -> None:
    ids, run_id = publish_days(settings, toy, days=2)

    def merge(name: str) -> None:
        if name == "after-archive-record":
            observe(None)
            optimize(settings, toy)

    observe(merge)
    try:
        retain(settings, toy, as_of=AS_OF, warm_days=1)
    finally:
        observe(None)
    store = open_store(settings, prefix=toy.prefix)
    assert table_rows(settings, toy, "audit") == []
    assert sum(item.rows for item in archived_dates(store).values()) == 240
    assert by_prediction(settings, toy, ids[0]).tier == "cold"
    assert verify(settings, toy, run_id).ok

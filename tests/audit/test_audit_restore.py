"""A restored window is warm for a while, and a crash or a second call neither loses nor repeats a row."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from audit_support import publish_days, table_rows

from tasks.audit import by_prediction, by_window, erase, restore_dates, retain
from tasks.audit.archive import archived_date, archived_dates
from tasks.audit.restore import restores
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.crash_points import observe
from tasks.core.errors import ConfigError, NotFound
from tasks.core.holds import place_hold
from tasks.core.object_store import ObjectStore
from tasks.inference import optimize, sweep_orphans, verify
from tasks.wiring.audit_upkeep import ErasingTables

FIRST, SECOND, THIRD = (date(2024, 3, day) for day in (1, 2, 3))
AS_OF = date(2024, 3, 20)
LATE = date(2024, 4, 20)
START = datetime(2024, 3, 1, tzinfo=UTC)


class Killed(BaseException):
    """Stands for SIGKILL inside one process: nothing catches it."""


def at_point(point: str, act: Callable[[], Any]) -> Callable[[str], None]:
    def seen(name: str) -> None:
        if name == point:
            observe(None)
            act()

    return seen


def killed() -> None:
    raise Killed


@pytest.fixture
def few(toy: PipelineSpec) -> PipelineSpec:
    """The toy pipeline whose archive keeps one attribution of a row."""
    return toy.model_copy(update={"explanations": toy.explanations.model_copy(update={"top_k": 1})})


def archived(settings: Settings, spec: PipelineSpec) -> tuple[list[str], str]:
    published = publish_days(settings, spec, days=3)
    retain(settings, spec, as_of=AS_OF, warm_days=10)
    assert table_rows(settings, spec, "audit") == []
    return published


def brought_back(settings: Settings, spec: PipelineSpec, last: date = SECOND, **more: Any) -> Any:
    return restore_dates(
        settings,
        spec,
        **{"first_day": FIRST, "last_day": last, "actor": "ada", "reason": "audit 7", "as_of": AS_OF, **more},
    )


def keys(store: ObjectStore) -> set[str]:
    return {info.key for info in store.list()}


def test_a_window_comes_back_stays_its_time_and_returns_without_being_written_again(
    store_settings: Settings, few: PipelineSpec
) -> None:
    settings = store_settings
    ids, run_id = archived(settings, few)
    store = open_store(settings, prefix=few.prefix)
    cold = by_prediction(settings, few, ids[3])
    before = archived_dates(store)
    done = brought_back(settings, few)
    assert (done.restored_days, done.rows, done.until) == ((FIRST, SECOND), 240, date(2024, 4, 19))
    warm = by_prediction(settings, few, ids[3])
    assert warm.tier == "warm" and warm.to_json() | {"tier": "cold"} == cold.to_json()
    assert warm.explanation == "top" and warm.attributions is not None and len(warm.attributions) == 1
    page = by_window(settings, few, START, START + timedelta(days=3), limit=500)
    assert [record.prediction_id for record in page.records] == ids
    stays = retain(settings, few, as_of=date(2024, 4, 19), warm_days=10)
    assert (stays.restored_days, stays.archived_days) == ((FIRST, SECOND), ())
    assert by_prediction(settings, few, ids[3]).tier == "warm"
    back = retain(settings, few, as_of=LATE, warm_days=10)
    assert (back.returned_days, back.archived_rows, back.restored_days) == ((FIRST, SECOND), 240, ())
    assert archived_dates(store) == before
    assert by_prediction(settings, few, ids[3]).to_json() == cold.to_json()
    assert verify(settings, few, run_id).ok
    once = keys(store)
    assert retain(settings, few, as_of=LATE, warm_days=10).returned_days == ()
    assert keys(store) == once


@pytest.mark.parametrize(
    "point",
    [
        "before-restore-file",
        "after-restore-file",
        "after-restore-record",
        "before-restore-commit",
        "after-restore-commit",
    ],
)
def test_a_crash_at_any_point_is_finished_by_the_next_call(
    settings: Settings, toy: PipelineSpec, point: str
) -> None:
    ids, run_id = archived(settings, toy)
    observe(at_point(point, killed))
    with pytest.raises(Killed):
        brought_back(settings, toy)
    page = by_window(settings, toy, START, START + timedelta(days=3), limit=500)
    assert [record.prediction_id for record in page.records] == ids
    brought_back(settings, toy)
    assert [row["prediction_id"] for row in table_rows(settings, toy, "audit")] == ids[:240]
    sweep_orphans(
        settings, toy, older_than=timedelta(hours=1), clock=lambda: datetime.now(UTC) + timedelta(days=2)
    )
    assert [row["prediction_id"] for row in table_rows(settings, toy, "audit")] == ids[:240]
    retain(settings, toy, as_of=LATE, warm_days=10)
    assert table_rows(settings, toy, "audit") == []
    assert by_prediction(settings, toy, ids[0]).tier == "cold"
    store = open_store(settings, prefix=toy.prefix)
    assert all(end is not None for items in restores(store).values() for _, end in items)
    assert verify(settings, toy, run_id).ok


@pytest.mark.parametrize("point", ["before-archive-delete", "after-archive-delete", "before-returned-record"])
def test_a_crash_on_the_way_back_is_finished_by_the_next_retention(
    settings: Settings, toy: PipelineSpec, point: str
) -> None:
    ids, _ = archived(settings, toy)
    brought_back(settings, toy, last=FIRST)
    observe(at_point(point, killed))
    with pytest.raises(Killed):
        retain(settings, toy, as_of=LATE, warm_days=10)
    assert by_prediction(settings, toy, ids[0]).prediction_id == ids[0]
    retain(settings, toy, as_of=LATE, warm_days=10)
    store = open_store(settings, prefix=toy.prefix)
    [(_, end)] = restores(store)[FIRST]
    assert end is not None and table_rows(settings, toy, "audit") == []


def test_restoring_again_copies_nothing_and_may_prolong(settings: Settings, toy: PipelineSpec) -> None:
    archived(settings, toy)
    store = open_store(settings, prefix=toy.prefix)
    brought_back(settings, toy)
    before = keys(store)
    again = brought_back(settings, toy)
    assert (again.restored_days, again.standing_days) == ((), (FIRST, SECOND))
    assert keys(store) == before
    longer = brought_back(settings, toy, days=60)
    assert longer.restored_days == (FIRST, SECOND)
    assert len(table_rows(settings, toy, "audit")) == 240
    assert retain(settings, toy, as_of=LATE, warm_days=10).restored_days == (FIRST, SECOND)


def test_restores_at_once_bring_each_row_back_once(settings: Settings, toy: PipelineSpec) -> None:
    ids, _ = archived(settings, toy)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: brought_back(settings, toy), range(4)))
    assert [row["prediction_id"] for row in table_rows(settings, toy, "audit")] == ids[:240]
    retain(settings, toy, as_of=LATE, warm_days=10)
    assert table_rows(settings, toy, "audit") == []


def test_a_dry_run_says_what_would_come_back(settings: Settings, toy: PipelineSpec) -> None:
    archived(settings, toy)
    store = open_store(settings, prefix=toy.prefix)
    before = keys(store)
    told = brought_back(settings, toy, dry_run=True)
    assert keys(store) == before
    done = brought_back(settings, toy)
    assert (told.restored_days, told.rows) == (done.restored_days, done.rows)
    assert told.size_bytes > 0


def test_an_erasure_reaches_a_restored_date_in_both_places(settings: Settings, toy: PipelineSpec) -> None:
    ids, run_id = archived(settings, toy)
    store = open_store(settings, prefix=toy.prefix)
    entity = by_prediction(settings, toy, ids[4]).entity_id
    brought_back(settings, toy)
    done = erase(settings, toy, ErasingTables(store), entity=entity or "", actor="ada", reason="case 1")
    assert (done.warm_rows, done.cold_rows) == (1, 1)
    assert by_prediction(settings, toy, ids[4]).entity_id is None
    retain(settings, toy, as_of=LATE, warm_days=10)
    found = by_prediction(settings, toy, ids[4])
    assert (found.tier, found.entity_id, found.erasure_id) == ("cold", None, done.erasure_id)
    day = archived_date(store, FIRST)
    assert day is not None and day.rows == 120 and store.exists(day.key)
    assert verify(settings, toy, run_id).ok


@pytest.mark.parametrize("point", ["after-restore-file", "after-restore-record", "before-restore-commit"])
def test_a_restore_under_way_does_not_bring_back_what_is_erased_meanwhile(
    settings: Settings, toy: PipelineSpec, point: str
) -> None:
    ids, _ = archived(settings, toy)
    store = open_store(settings, prefix=toy.prefix)
    entity = by_prediction(settings, toy, ids[4]).entity_id or ""
    observe(
        at_point(
            point,
            lambda: erase(settings, toy, ErasingTables(store), entity=entity, actor="ada", reason="case 1"),
        )
    )
    brought_back(settings, toy)
    rows = table_rows(settings, toy, "audit")
    assert len(rows) == 240 and entity not in [row["entity_id"] for row in rows]


def test_merging_and_holds_leave_a_restored_date_as_it_is(settings: Settings, toy: PipelineSpec) -> None:
    ids, _ = archived(settings, toy)
    brought_back(settings, toy)
    optimize(settings, toy)
    store = open_store(settings, prefix=toy.prefix)
    place_hold(store, first_day=FIRST, last_day=FIRST, reason="trial", actor="bob")
    kept = retain(settings, toy, as_of=LATE, warm_days=10)
    assert (kept.held_days, kept.returned_days) == ((FIRST,), (SECOND,))
    assert [by_prediction(settings, toy, ids[at]).tier for at in (0, 120)] == ["warm", "cold"]


def test_a_restore_ends_when_its_date_expires(settings: Settings, toy: PipelineSpec) -> None:
    ids, _ = archived(settings, toy)
    brought_back(settings, toy, last=FIRST, days=1000, expire_days=40)
    assert retain(settings, toy, as_of=date(2024, 4, 10), warm_days=10, expire_days=40).restored_days == (
        FIRST,
    )
    gone = retain(settings, toy, as_of=date(2024, 4, 11), warm_days=10, expire_days=40)
    assert FIRST in gone.returned_days and FIRST in gone.expired_days
    with pytest.raises(NotFound, match="expired at"):
        by_prediction(settings, toy, ids[0])


def test_wrong_requests_are_refused(settings: Settings, toy: PipelineSpec) -> None:
    archived(settings, toy)
    for more in ({"last": date(2024, 2, 1)}, {"days": 0}, {"reason": " "}):
        with pytest.raises(ConfigError):
            brought_back(settings, toy, **more)
    with pytest.raises(NotFound, match="is in the archive"):
        brought_back(settings, toy, first_day=date(2025, 1, 1), last=date(2025, 1, 2))

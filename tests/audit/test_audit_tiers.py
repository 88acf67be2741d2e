"""One prediction from its request to the archive: every look-up finds it, once, wherever it is."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pytest
from audit_support import publish_days
from hot_support import MOMENT, everywhere, online_row

from tasks.audit import AuditRecord, by_prediction, by_window, retain, window_table
from tasks.audit.archive import archived_date
from tasks.audit.cold import cold_rows
from tasks.audit.hot import HotLog, fold
from tasks.core import PipelineSpec, Settings, open_store

START = datetime.combine(date(2024, 3, 1), datetime.min.time(), MOMENT.tzinfo)
DAY = timedelta(days=1)


def append(settings: Settings, spec: PipelineSpec, numbers: range, **more: object) -> None:
    with HotLog(settings, spec, node="n1") as log:
        log.append([online_row(number, **more) for number in numbers])


def of(settings: Settings, spec: PipelineSpec, tier: str) -> list[AuditRecord]:
    """Records of the day; all must be in this tier, and the three ways to ask must agree."""
    records = by_window(settings, spec, START, START + DAY, limit=500).records
    assert {record.tier for record in records} == {tier}
    table = window_table(settings, spec, START, START + DAY, columns=["prediction_id", "prediction", "tier"])
    assert table.to_pylist() == [
        {"prediction_id": one.prediction_id, "prediction": one.prediction, "tier": tier} for one in records
    ]
    one = records[len(records) // 2]
    assert by_prediction(settings, spec, one.prediction_id) == one
    return list(records)


def test_an_online_prediction_is_found_before_and_after_it_is_folded_and_when_it_is_archived(
    settings: Settings, toy: PipelineSpec
) -> None:
    append(settings, toy, range(1, 31))
    hot = of(settings, toy, "hot")
    assert len(hot) == 30
    fold(settings, toy, seal=True)
    warm = of(settings, toy, "warm")
    assert [one.to_json() | {"tier": "hot"} for one in warm] == [one.to_json() for one in hot]
    retain(settings, toy, as_of=date(2024, 3, 20), warm_days=10)
    cold = of(settings, toy, "cold")
    kept = ("prediction_id", "source_key", "features", "prediction", "scored_at", "source_snapshot")
    assert [[one.to_json()[name] for name in kept] for one in cold] == [
        [one.to_json()[name] for name in kept] for one in hot
    ]


def test_hot_and_published_rows_are_one_window(settings: Settings, toy: PipelineSpec) -> None:
    ids, run_id = publish_days(settings, toy, days=1)
    append(settings, toy, range(1, 4))
    page = by_window(settings, toy, START, START + DAY, limit=500)
    assert len(page.records) == 123
    assert [record.prediction_id for record in page.records if record.run_id == run_id] == ids
    assert sum(record.tier == "hot" for record in page.records) == 3
    assert window_table(settings, toy, START, START + DAY, columns=["prediction"]).num_rows == 123
    first = by_window(settings, toy, START, START + DAY, limit=100)
    rest = by_window(settings, toy, START, START + DAY, limit=100, cursor=first.cursor)
    assert first.records + rest.records == page.records


@pytest.mark.parametrize("folded", [False, True])
def test_two_requests_about_one_prediction_are_two_scorings_in_every_tier(
    settings: Settings, toy: PipelineSpec, folded: bool
) -> None:
    for number, request in enumerate(("first", "second")):
        append(settings, toy, range(7, 8), request_id=request, scored_at=MOMENT + timedelta(hours=number + 1))
        if folded:
            fold(settings, toy, seal=True)
    assert len(everywhere(settings, toy)) == 2
    newest = by_window(settings, toy, START, START + DAY).records
    assert [one.source_key for one in newest] == ["second"]
    fold(settings, toy, seal=True)
    retain(settings, toy, as_of=date(2024, 3, 20), warm_days=10)
    store = open_store(settings, prefix=toy.prefix)
    archived = archived_date(store, date(2024, 3, 1))
    assert archived is not None
    assert sorted(cold_rows(store, archived, "", "~")["source_key"].to_pylist()) == ["first", "second"]
    assert by_prediction(settings, toy, newest[0].prediction_id).source_key == "second"

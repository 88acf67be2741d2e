"""Why was this prediction made: look-ups by id and by window, over hot and archived rows."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from audit_support import publish_days

from tasks.audit import InvalidQuery, by_prediction, by_window
from tasks.audit.query import check_id
from tasks.audit.retention import retain
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.errors import DataError, NotFound

DAY = timedelta(days=1)
START = datetime(2024, 3, 1, tzinfo=UTC)


def test_a_prediction_is_explained_and_traced_in_one_look_up(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    ids, run_id = publish_days(store_settings, toy, days=2)
    for identifier in (ids[0], ids[77], ids[-1]):
        found = by_prediction(store_settings, toy, identifier)
        assert (found.prediction_id, found.run_id, found.tier) == (identifier, run_id, "warm")
        assert list(found.features) == ["price", "visits", "city", "device"]
        assert isinstance(found.features["city"], str)
        assert found.attributions is not None
        logit = found.base_value + sum(found.attributions.values()) + found.residual
        import math

        assert 1 / (1 + math.exp(-logit)) == pytest.approx(found.prediction, abs=1e-5)
        assert found.top_features[0] == max(
            found.attributions, key=lambda name: abs(found.attributions[name])
        )
        assert found.source_key.startswith("data/2024-03-0")


def test_provenance_names_the_very_source_row(settings: Settings, toy: PipelineSpec) -> None:
    import io

    import pyarrow.parquet as pq

    ids, _ = publish_days(settings, toy, days=1)
    found = by_prediction(settings, toy, ids[50])
    table = pq.read_table(io.BytesIO(open_store(settings, prefix=toy.prefix).get(found.source_key)))
    row = table.slice(found.source_row, 1).to_pylist()[0]
    assert row["customer"] == found.entity_id
    assert row["city"] == found.features["city"]


def test_a_share_of_predictions_is_explained_and_all_are_traced(
    settings: Settings, toy: PipelineSpec
) -> None:
    half = toy.model_copy(update={"explanations": toy.explanations.model_copy(update={"share": 0.5})})
    ids, _ = publish_days(settings, half, days=1)
    page = by_window(settings, half, START, START + DAY, limit=500)
    assert [record.prediction_id for record in page.records] == ids
    explained = [record for record in page.records if record.attributions is not None]
    assert 30 < len(explained) < 90
    plain = next(record for record in page.records if record.attributions is None)
    assert (plain.base_value, plain.explainer, plain.top_features) == (None, None, ())
    assert plain.features["device"] in ("phone", "desktop")


def test_a_window_comes_in_pages_that_lose_and_repeat_nothing(
    store_settings: Settings, toy: PipelineSpec
) -> None:
    ids, _ = publish_days(store_settings, toy, days=2)
    seen: list[str] = []
    cursor = None
    while True:
        page = by_window(store_settings, toy, START, START + 2 * DAY, limit=100, cursor=cursor)
        seen += [record.prediction_id for record in page.records]
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == ids


def test_a_window_holds_its_start_and_not_its_end(settings: Settings, toy: PipelineSpec) -> None:
    publish_days(settings, toy, days=1)
    everything = by_window(settings, toy, START, START + DAY, limit=500).records
    first, tenth = everything[0], everything[10]
    part = by_window(settings, toy, first.event_time, tenth.event_time, limit=500).records
    assert [record.prediction_id for record in part] == [
        record.prediction_id for record in everything if record.event_time < tenth.event_time
    ]


def test_a_superseded_prediction_stays_explainable(settings: Settings, toy: PipelineSpec) -> None:
    ids, first = publish_days(settings, toy, days=1)
    _, second = publish_days(settings, toy, days=1, version=2)
    newest = by_prediction(settings, toy, ids[5])
    assert (newest.run_id, newest.model_version, newest.superseded_runs) == (second, 2, (first,))
    assert by_prediction(settings, toy, ids[5], run_id=first).model_version == 1
    page = by_window(settings, toy, START, START + DAY, limit=500)
    assert [record.prediction_id for record in page.records] == ids
    with pytest.raises(NotFound, match="was not predicted by run"):
        by_prediction(settings, toy, ids[5], run_id="0" * 16)


def test_archived_rows_answer_the_same(settings: Settings, toy: PipelineSpec) -> None:
    ids, _ = publish_days(settings, toy, days=3)
    before = [by_prediction(settings, toy, identifier) for identifier in (ids[0], ids[200])]
    pages = by_window(settings, toy, START, START + 3 * DAY, limit=500)
    retain(settings, toy, as_of=date(2024, 3, 3), warm_days=1)
    after = [by_prediction(settings, toy, identifier) for identifier in (ids[0], ids[200])]
    assert [record.tier for record in after] == ["cold", "warm"]
    less_precise = dict.fromkeys(["tier", "attributions", "attribution_bits", "residual"])
    assert [record.to_json() | less_precise for record in after] == [
        record.to_json() | less_precise for record in before
    ]
    assert after[0].attributions == pytest.approx(before[0].attributions, rel=2.0**-11)
    assert after[1].attributions == before[1].attributions
    again = by_window(settings, toy, START, START + 3 * DAY, limit=500)
    assert [r.prediction_id for r in again.records] == [r.prediction_id for r in pages.records] == ids


@pytest.mark.parametrize("identifier", ["", "x", "123e4567-e89b-12d3-a456-426614174000", "' or 1=1"])
def test_a_malformed_id_is_an_invalid_query(settings: Settings, toy: PipelineSpec, identifier: str) -> None:
    with pytest.raises(InvalidQuery):
        by_prediction(settings, toy, identifier)


def test_what_is_far_too_long_for_an_id_is_not_repeated_whole() -> None:
    with pytest.raises(InvalidQuery, match="it has 20,000 characters") as caught:
        check_id("a" * 20_000)
    assert len(str(caught.value)) < 300
    with pytest.raises(InvalidQuery, match="before the year 10000"):
        check_id("ffffffff-ffff-8fff-bfff-ffffffffffff")


def test_an_unknown_id_says_which_date_was_searched(settings: Settings, toy: PipelineSpec) -> None:
    unknown = "018df8a0-0000-8000-8000-000000000000"
    with pytest.raises(NotFound, match="event date is 2024-03-01"):
        by_prediction(settings, toy, unknown)
    publish_days(settings, toy, days=1)
    with pytest.raises(NotFound, match="event date is 2024-03-01"):
        by_prediction(settings, toy, unknown)


def test_wrong_windows_limits_and_cursors_are_invalid_queries(settings: Settings, toy: PipelineSpec) -> None:
    publish_days(settings, toy, days=1)
    end = START + DAY
    cursor = by_window(settings, toy, START, end, limit=10).cursor
    assert cursor
    for start, stop, more in (
        (end, START, {}),
        (START, START, {}),
        (START.replace(tzinfo=None), end, {}),
        (START, START + 1000 * DAY, {}),
        (START, end, {"limit": 0}),
        (START, end, {"limit": 10**6}),
        (START, end, {"cursor": "garbage"}),
        (START, end + DAY, {"cursor": cursor}),
    ):
        with pytest.raises(InvalidQuery):
            by_window(settings, toy, start, stop, **more)


def test_an_empty_window_is_an_empty_page(settings: Settings, toy: PipelineSpec) -> None:
    page = by_window(settings, toy, START, START + DAY)
    assert (page.records, page.cursor) == ((), None)


def test_a_damaged_file_and_a_lost_feature_set_are_typed_errors(
    settings: Settings, toy: PipelineSpec
) -> None:
    ids, _ = publish_days(settings, toy, days=1)
    store = open_store(settings, prefix=toy.prefix)
    feature_set = next(iter(store.list("audit/feature_sets"))).key
    data = store.get(feature_set)
    store.delete(feature_set)
    with pytest.raises(NotFound, match="feature set"):
        by_prediction(settings, toy, ids[0])
    store.put(feature_set, data)
    for info in list(store.list("tables/audit")):
        if info.key.endswith(".parquet"):
            store.put(info.key, store.get(info.key)[:200])
    with pytest.raises(DataError, match="damaged"):
        by_prediction(settings, toy, ids[0])

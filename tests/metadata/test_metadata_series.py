"""Metric series: kept once, superseded openly, and found by metric, version and day."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from datetime import date, timedelta

from tasks.core import Settings
from tasks.metadata import MetadataStore, NewMetric, Scope

TOY = Scope("toy")
FIRST = date(2024, 3, 1)
AUC = NewMetric("auc", 1, FIRST, 0.71, "evaluation", "e1.json", 0.69, 0.73, 900)


def days(count: int, **changed: object) -> list[NewMetric]:
    return [
        replace(AUC, day=FIRST + timedelta(days=number), value=0.7 + number / 100, **changed)  # type: ignore[arg-type]
        for number in range(count)
    ]


def test_a_point_comes_back_whole_and_a_repeat_adds_none(store: MetadataStore) -> None:
    assert store.record_metrics(TOY, [AUC]) == 1
    assert store.record_metrics(TOY, [AUC, AUC, replace(AUC, source_run="e2.json")]) == 0
    [kept] = store.series(TOY, "auc")
    assert NewMetric(**{name: getattr(kept, name) for name in AUC.to_json()}) == AUC
    assert kept.measurement == 1 and kept.measured_at_utc is not None


def test_another_value_supersedes_and_the_older_one_stays_readable(store: MetadataStore) -> None:
    for value in (0.71, 0.72, 0.71):
        assert store.record_metrics(TOY, [replace(AUC, value=value)]) == 1
    assert [(point.value, point.measurement) for point in store.series(TOY, "auc")] == [(0.71, 3)]
    every = store.series(TOY, "auc", superseded=True)
    assert [(point.value, point.measurement) for point in every] == [(0.71, 1), (0.72, 2), (0.71, 3)]


def test_an_interval_that_changed_is_another_measurement(store: MetadataStore) -> None:
    store.record_metrics(TOY, [AUC])
    assert store.record_metrics(TOY, [replace(AUC, low=0.5)]) == 1
    assert store.series(TOY, "auc")[0].low == 0.5


def test_series_are_narrowed_by_version_days_source_and_owner(store: MetadataStore) -> None:
    store.record_metrics(TOY, days(5))
    store.record_metrics(TOY, days(5, model_version=2, source="monitor"))
    store.record_metrics(TOY, days(5, metric="brier"))
    store.record_metrics(Scope("toy", "acme"), [replace(AUC, value=0.1)])
    assert [point.day for point in store.series(TOY, "auc", model_version=2)] == [
        FIRST + timedelta(days=number) for number in range(5)
    ]
    found = store.series(TOY, "auc", since=FIRST + timedelta(days=1), until=FIRST + timedelta(days=2))
    assert [(point.day.day, point.model_version) for point in found] == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert {point.model_version for point in store.series(TOY, "auc", source="monitor")} == {2}
    assert [point.value for point in store.series(Scope("toy", "acme"), "auc")] == [0.1]
    assert store.metric_names(TOY) == ["auc", "brier"]
    assert store.series(TOY, "nothing") == []


def test_what_has_no_finite_value_was_not_measured(store: MetadataStore) -> None:
    assert store.record_metrics(TOY, [replace(AUC, value=math.nan), replace(AUC, value=math.inf)]) == 0
    assert store.series(TOY, "auc") == []


def test_the_latest_of_all_pipelines_is_the_end_of_each_series(store: MetadataStore) -> None:
    owners = [Scope(name, tenant) for tenant in ("acme", "default") for name in ("a", "b", "c", "d")]
    for place, of in enumerate(owners):
        store.record_metrics(of, days(1 + place % 3))
        store.record_metrics(of, days(9, metric="brier", source="monitor"))
    store.record_metrics(Scope("d"), [replace(AUC, value=0.99)])
    ends = {of.name: store.series(of, "auc")[-1] for of in owners if of.tenant == "default"}
    assert store.latest_metric("auc") == ends and len(ends) == 4
    assert store.latest_metric("auc", "acme")["a"].value == 0.7
    assert store.latest_metric("auc", source="monitor") == {}
    assert set(store.latest_metric("brier", source="monitor")) == {"a", "b", "c", "d"}


def test_writers_that_measure_the_same_at_once_leave_one_line(settings: Settings) -> None:
    MetadataStore.open(settings)
    gate, added = threading.Barrier(8), []

    def write() -> None:
        store = MetadataStore.open(settings)
        gate.wait()
        added.append(store.record_metrics(TOY, days(30)))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(added) == 8 and sum(added) == 30
    assert len(MetadataStore.open(settings).series(TOY, "auc", superseded=True)) == 30

"""Answered rows and the audit store: nothing waits for it, nothing is answered without it, explanations go first."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
from serving_support import PATH, QUICK, json_rows, metric, running, serving, toy_rows, until

from tasks.audit.hot import hot_rows
from tasks.core import PipelineSpec, Settings
from tasks.core.errors import DataError, DiskFull
from tasks.serving import Answered, ModelServer, Recorded
from tasks.wiring.serving import DeploymentLog, HotJournal, ServedBundle


class FailingJournal:
    """The real journal behind a disk that fails, or that hangs, for as long as the test says."""

    def __init__(self, settings: Settings, spec: PipelineSpec) -> None:
        self._real = HotJournal(settings, spec, "tests")
        self.full = threading.Event()
        self.free = threading.Event()
        self.free.set()
        self.calls: list[bool] = []

    def append(self, groups: Sequence[Answered], *, explain: bool) -> Recorded:
        self.calls.append(explain)
        assert self.free.wait(60)
        if self.full.is_set():
            raise DiskFull("the disk is full", which="/", fix="free space")
        return self._real.append(groups, explain=explain)

    def close(self) -> None:
        self._real.close()


def server_with(settings: Settings, spec: PipelineSpec, journal: Any, limits: Any = QUICK) -> ModelServer:
    log = DeploymentLog(settings, spec)
    server = ModelServer(
        "toy",
        "default",
        source=log.exposure,
        load=lambda one: ServedBundle(settings, spec, one),
        journal=journal,
        quality=log.quality,
        limits=limits,
    )
    server.follow_once()
    return server


def test_every_answer_is_recorded_once_with_its_explanation_and_a_retry_adds_nothing(
    installation: Settings, spec: PipelineSpec
) -> None:
    rows = json_rows(toy_rows(installation))
    with serving(installation) as (_, client):
        for number, row in enumerate(rows[:20]):
            for _ in range(1 + number % 2):  # the answer was lost, say
                body = {"rows": [row], "request_id": f"request {number}"}
                assert client.post(PATH, json=body).status_code == 200
        until(lambda: metric(client, "penstock_serving_recorded_rows_total") == 30)
        assert metric(client, "penstock_serving_explained_rows_total") == 30
    kept = hot_rows(installation, spec, "", "~").to_pylist()
    assert sorted(row["source_key"] for row in kept) == sorted(f"request {number}" for number in range(20))
    for row in kept:
        logit = np.log(row["prediction"] / (1 - row["prediction"]))
        assert abs(row["base_value"] + sum(row["attributions"]) + row["residual"] - logit) < 1e-3


def test_under_load_explanations_are_left_out_first_and_counted_while_predictions_go_on(
    installation: Settings, spec: PipelineSpec
) -> None:
    rows = json_rows(toy_rows(installation))
    limits = replace(QUICK, explain_backlog_rows=0)
    with serving(installation, limits) as (_, client):
        for row in rows[:10]:
            assert client.post(PATH, json={"rows": [row]}).status_code == 200
        until(lambda: metric(client, "penstock_serving_recorded_rows_total") == 10)
        assert metric(client, "penstock_serving_explanations_shed_total") == 10
        assert metric(client, "penstock_serving_explained_rows_total") == 0
    kept = hot_rows(installation, spec, "", "~").to_pylist()
    assert len(kept) == 10 and all(row["attributions"] is None for row in kept)


def test_a_disk_that_hangs_holds_up_no_answer_until_too_much_is_unrecorded(
    installation: Settings, spec: PipelineSpec
) -> None:
    rows = json_rows(toy_rows(installation))
    journal = FailingJournal(installation, spec)
    server = server_with(installation, spec, journal, replace(QUICK, unrecorded_rows=12))
    with running(server) as url, httpx.Client(base_url=url, timeout=60) as client:
        journal.free.clear()
        statuses = [client.post(PATH, json={"rows": [row]}).status_code for row in rows[:15]]
        assert statuses == [200] * 12 + [429] * 3
        assert metric(client, "penstock_serving_errors_total", cause="audit_backlog") == 3
        assert metric(client, "penstock_serving_unrecorded_rows") == 12
        journal.free.set()
        until(lambda: metric(client, "penstock_serving_unrecorded_rows") == 0)
        assert client.post(PATH, json={"rows": rows[:1]}).status_code == 200
    assert hot_rows(installation, spec, "", "~").num_rows == 13


def test_rows_gather_until_they_are_enough_and_are_written_a_part_at_a_time(
    installation: Settings, spec: PipelineSpec
) -> None:
    rows = json_rows(toy_rows(installation))
    journal = FailingJournal(installation, spec)
    written: list[int] = []
    real = journal._real.append

    def append(groups: Sequence[Answered], *, explain: bool) -> Recorded:
        written.append(sum(group.rows for group in groups))
        return real(groups, explain=explain)

    journal._real.append = append  # type: ignore[method-assign]
    server = server_with(installation, spec, journal, replace(QUICK, record_every_s=3600.0, record_rows=10))
    with running(server) as url, httpx.Client(base_url=url, timeout=60) as client:
        for first in range(0, 9, 3):
            client.post(PATH, json={"rows": rows[first : first + 3]})
        until(lambda: metric(client, "penstock_serving_unrecorded_rows") == 9)  # it is told after the answer
        journal.free.clear()
        client.post(PATH, json={"rows": rows[9:12]})
        until(lambda: len(journal.calls) == 1)
        for first in range(12, 24, 3):  # while the first part is written
            client.post(PATH, json={"rows": rows[first : first + 3]})
        journal.free.set()
        until(lambda: metric(client, "penstock_serving_unrecorded_rows") == 0)
        client.post(PATH, json={"rows": rows[24:25]})
        until(lambda: metric(client, "penstock_serving_unrecorded_rows") == 1)
    assert written == [12, 12, 1]  # the last one when the server ended
    assert hot_rows(installation, spec, "", "~").num_rows == 25


def test_of_a_request_that_failed_for_one_row_none_is_recorded_and_the_others_beside_it_are(
    installation: Settings, spec: PipelineSpec
) -> None:
    rows = json_rows(toy_rows(installation))
    model = ServedBundle(installation, spec, DeploymentLog(installation, spec).exposure().champion)
    scores = model.score(model.signature.table([model.signature.read(row, "") for row in rows[:6]]))
    requests = ["one", None, "two", None, None, "two"]
    journal = HotJournal(installation, spec, "tests")
    done = journal.append([Answered(model, scores.batches, requests, datetime.now(UTC), 3)], explain=True)
    journal.close()
    assert (done.rows, done.explained, done.shed) == (3, 3, 0)
    kept = {row["entity_id"]: row for row in hot_rows(installation, spec, "", "~").to_pylist()}
    assert {name: row["source_key"] for name, row in kept.items()} == {
        rows[0]["customer"]: "one",
        rows[2]["customer"]: "two",
        rows[5]["customer"]: "two",
    }
    for place in (0, 2, 5):
        assert kept[rows[place]["customer"]]["prediction"] == scores.scores[place]


def test_a_full_disk_is_waited_out_and_nothing_is_lost(installation: Settings, spec: PipelineSpec) -> None:
    rows = json_rows(toy_rows(installation))
    journal = FailingJournal(installation, spec)
    server = server_with(installation, spec, journal)
    with running(server) as url, httpx.Client(base_url=url, timeout=60) as client:
        journal.full.set()
        with ThreadPoolExecutor(4) as pool:
            sent = list(pool.map(lambda row: client.post(PATH, json={"rows": [row]}).status_code, rows[:40]))
        assert sent == [200] * 40
        until(lambda: metric(client, "penstock_serving_record_failures_total") >= 2)
        journal.full.clear()
        until(lambda: metric(client, "penstock_serving_recorded_rows_total") == 40)
        assert metric(client, "penstock_serving_unrecordable_rows_total") == 0
    assert hot_rows(installation, spec, "", "~").num_rows == 40


def test_a_row_that_the_audit_store_refuses_for_good_is_counted_and_costs_no_other_row(
    installation: Settings, spec: PipelineSpec
) -> None:
    rows = json_rows(toy_rows(installation))
    journal = FailingJournal(installation, spec)
    real, refuse = journal._real.append, rows[3]["customer"]

    def append(groups: Sequence[Answered], *, explain: bool) -> Recorded:
        names = [name for group in groups for batch in group.batches for name in batch.entity_ids.to_pylist()]
        if refuse in names:
            raise DataError("is not wanted", which=refuse)
        return real(groups, explain=explain)

    journal._real.append = append  # type: ignore[method-assign]
    journal.free.clear()
    server = server_with(installation, spec, journal)
    with running(server) as url, httpx.Client(base_url=url, timeout=60) as client:
        for row in rows[:8]:
            assert client.post(PATH, json={"rows": [row]}).status_code == 200
        journal.free.set()
        until(lambda: metric(client, "penstock_serving_unrecordable_rows_total") == 1)
        until(lambda: metric(client, "penstock_serving_unrecorded_rows") == 0)
    assert hot_rows(installation, spec, "", "~").num_rows == 7


def test_rows_that_could_not_be_handed_over_take_no_room_of_the_backlog(
    installation: Settings, spec: PipelineSpec
) -> None:
    rows = json_rows(toy_rows(installation))
    server = server_with(installation, spec, None, replace(QUICK, unrecorded_rows=5))

    def fail(_: Answered) -> None:
        raise RuntimeError("no room")

    server._batcher._record = fail
    with running(server) as url, httpx.Client(base_url=url, timeout=60) as client:
        statuses = [client.post(PATH, json={"rows": [row]}).status_code for row in rows[:12]]
    assert statuses == [200] * 12


def test_input_and_score_distributions_are_counted_on_the_bundle_s_grid(
    installation: Settings, spec: PipelineSpec
) -> None:
    rows = json_rows(toy_rows(installation))
    with serving(installation, audit=False) as (_, client):
        for _ in range(3):
            assert client.post(PATH, json={"rows": rows}).status_code == 200
        until(lambda: metric(client, "penstock_serving_input_rows_total") == 360)
        calm = metric(client, "penstock_serving_prediction_drift_distance")
        assert 0 < calm < 0.3
        assert metric(client, "penstock_serving_input_anomalies_total", feature="city", kind="unseen") == 0
        odd = [{**row, "price": 1e6, "city": "Atlantis", "visits": None} for row in rows]
        for _ in range(5):
            assert client.post(PATH, json={"rows": odd}).status_code == 200
        until(lambda: metric(client, "penstock_serving_input_rows_total") == 960)
        for feature, kind in (("price", "out_of_range"), ("city", "unseen"), ("visits", "null")):
            assert metric(client, "penstock_serving_input_anomalies_total", feature=feature, kind=kind) >= 600
        assert metric(client, "penstock_serving_prediction_drift_distance") > calm
        assert (
            metric(client, "penstock_serving_model_trained_until_timestamp_seconds") == 1704153600
        )  # 2024-01-02
        assert metric(client, "penstock_serving_event_time_lag_seconds") > 86_400


def test_versions_that_came_and_went_leave_no_series_behind(
    installation: Settings, spec: PipelineSpec, bundles: dict[int, tuple[str, str]]
) -> None:
    from tasks.serving import Deployed
    from tasks.serving.metrics import KEPT_VERSIONS, ServingMetrics

    model = ServedBundle(installation, spec, Deployed(1, *bundles[1], datetime(2024, 3, 1, tzinfo=UTC)))
    metrics = ServingMetrics("default", "toy")
    sizes = []
    for version in range(1, 40):
        model.deployed = replace(model.deployed, version=version)
        metrics.of(model).predictions.inc()
        metrics.of(model).duration.observe(0.1)
        metrics.refused("expired", version)
        metrics.loaded([(model, model.deployed.live_since)])
        metrics.measured(model, {"auc": 0.7})
        sizes.append(len(metrics.text().splitlines()))
    assert len(set(sizes[KEPT_VERSIONS:])) == 1
    assert 'model_version="39"' in metrics.text().decode()
    assert 'model_version="3"' not in metrics.text().decode()


def test_a_version_that_answers_keeps_what_was_counted_of_it_however_many_challengers_come_and_go(
    installation: Settings, spec: PipelineSpec, bundles: dict[int, tuple[str, str]]
) -> None:
    from tasks.serving import Deployed
    from tasks.serving.metrics import ServingMetrics

    since = datetime(2024, 3, 1, tzinfo=UTC)
    champion = ServedBundle(installation, spec, Deployed(1, *bundles[1], since))
    challenger = ServedBundle(installation, spec, Deployed(2, *bundles[2], since))
    metrics = ServingMetrics("default", "toy")
    metrics.loaded([(champion, since)])
    metrics.of(champion).predictions.inc(7)
    for version in range(2, 12):
        challenger.deployed = replace(challenger.deployed, version=version)
        metrics.loaded([(champion, since), (challenger, since)])
        metrics.of(challenger).predictions.inc()
        metrics.of(champion).predictions.inc()
    counted = metrics.registry.get_sample_value(
        "penstock_serving_predictions_total", {"tenant": "default", "pipeline": "toy", "model_version": "1"}
    )
    assert counted == 17

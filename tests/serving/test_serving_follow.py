"""Promotions, rollbacks, bad versions, a log that is down, splits and shadows, while requests come."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_support import (
    MOMENT,
    PATH,
    QUICK,
    Bundles,
    Clients,
    deployed,
    expected_scores,
    json_rows,
    make_bundle,
    metric,
    put_live,
    running,
    samples,
    serving,
    toy_rows,
    until,
)

from tasks.core import PipelineSpec, Settings
from tasks.core.sampling import in_slice
from tasks.metadata import MetadataStore
from tasks.metadata.deployments import NewEvent
from tasks.serving import Deployed, Exposure, ModelServer, Signature, goes_to_challenger
from tasks.serving.following import accelerator_share
from tasks.wiring.serving import DeploymentLog, ServedBundle


def test_a_promotion_under_load_drops_nothing_and_every_score_is_that_of_the_version_it_names(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    rows = json_rows(toy_rows(installation))
    with (
        serving(installation, audit=False) as (server, client),
        Clients(str(client.base_url), rows) as clients,
    ):
        until(lambda: clients.versions()[1] > 20)
        for version in (2, 3, 1):  # forward, forward, and back
            put_live(installation, spec, version, bundles[version])
            until(lambda version=version: server.live.exposure.champion.version == version)
            seen = clients.versions()[version]
            until(lambda version=version, seen=seen: clients.versions()[version] > seen + 20)
    assert clients.failures == []
    expected = expected_scores(installation, spec, bundles, (1, 2, 3))
    assert {prediction["model_version"] for _, prediction in clients.answers} == {1, 2, 3}
    for customer, prediction in clients.answers:
        assert prediction["score"] == expected[customer, prediction["model_version"]]


def test_a_tampered_version_is_not_served_and_the_one_before_goes_on_ready_and_counted(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    weights = installation.home / "store" / spec.prefix / "bundles" / bundles[2][0] / "weights.pt"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    row = json_rows(toy_rows(installation))[0]
    with serving(installation, audit=False) as (server, client):
        put_live(installation, spec, 2, bundles[2])
        until(lambda: metric(client, "penstock_serving_follow_failures_total", cause="load") >= 1)
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()["model_version"]) == (200, 1)
        assert client.post(PATH, json={"rows": [row]}).json()["predictions"][0]["model_version"] == 1
        put_live(installation, spec, 3, bundles[3])  # the next good one is taken
        until(lambda: client.get("/health/ready").json()["model_version"] == 3)
        assert server.ready


def test_a_version_that_does_not_compute_what_it_was_trained_to_is_not_served(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    with serving(installation, audit=False) as (_, client):
        put_live(installation, spec, 2, (bundles[2][0], "another feature version"))
        until(lambda: metric(client, "penstock_serving_follow_failures_total", cause="load") >= 1)
        assert client.get("/health/ready").json()["model_version"] == 1


def test_metadata_and_store_may_be_gone_while_the_last_good_version_answers(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    row = json_rows(toy_rows(installation))[0]
    with serving(installation, audit=False) as (server, client):
        database = installation.home / "metadata.db"
        found = [path for path in installation.home.glob("*.db*") if path.is_file()]
        assert database in found, found
        hidden = installation.home / "hidden"
        hidden.mkdir()
        for path in found:
            with suppress(FileNotFoundError):  # SQLite removes its side files when nobody has it open
                path.rename(hidden / path.name)
        database.mkdir()  # what opens it fails, and does not make a new one
        (installation.home / "store").rename(hidden / "store")
        until(lambda: metric(client, "penstock_serving_follow_failures_total", cause="log") >= 1)
        for _ in range(10):
            assert client.post(PATH, json={"rows": [row]}).status_code == 200
        assert client.get("/health/ready").status_code == 200
        database.rmdir()
        for path in hidden.iterdir():
            path.rename(installation.home / path.name)
        put_live(installation, spec, 2, bundles[2])
        until(lambda: server.live.exposure.champion.version == 2)


def test_without_a_champion_it_waits_says_so_and_takes_the_first_one(
    settings: Settings, toy: PipelineSpec, made: Any
) -> None:
    with serving(settings, audit=False) as (_, client):
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 503
        refused = client.post(PATH, json={"rows": [{}]})
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert client.get("/openapi.json").status_code == 200
        put_live(settings, toy, 1, make_bundle(settings, toy, seed=1))
        until(lambda: client.get("/health/ready").status_code == 200)


class Split:
    """A source of exposures that the test sets."""

    def __init__(self, exposure: Exposure) -> None:
        self.exposure = exposure

    def __call__(self) -> Exposure:
        return self.exposure


def split_server(
    settings: Settings,
    spec: PipelineSpec,
    source: Split,
    *,
    change: Callable[[ServedBundle], ServedBundle] = lambda model: model,
) -> ModelServer:
    server = ModelServer(
        "toy",
        "default",
        source=source,
        load=lambda one: change(ServedBundle(settings, spec, one)),
        journal=None,
        quality=lambda version: {"auc": 0.5 + version / 10},
        limits=replace(QUICK, quality_every_s=0.1),
    )
    server.follow_once()
    return server


def ask_all(client: httpx.Client, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    answers = client.post(PATH, json={"rows": rows}).json()["predictions"]
    return {row["customer"]: answer for row, answer in zip(rows, answers, strict=True)}


def test_a_split_is_that_of_the_canary_s_slice_sticky_and_changed_while_running(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    champion, challenger = deployed(1, bundles), deployed(2, bundles)
    source = Split(Exposure(champion))
    rows = json_rows(toy_rows(installation))
    customers = [row["customer"] for row in rows]
    expected = expected_scores(installation, spec, bundles, (1, 2))
    server = split_server(installation, spec, source)
    with running(server) as url, httpx.Client(base_url=url, timeout=60) as client:
        before: set[str] = set()
        for share in (0.0, 0.1, 0.5, 1.0):
            source.exposure = Exposure(champion, challenger, share)
            until(lambda share=share: server.live.exposure.share == share)
            answers = ask_all(client, rows)
            chosen = {name for name, answer in answers.items() if answer["model_version"] == 2}
            assert chosen == set(np.array(customers)[in_slice("toy", customers, share)])
            assert chosen >= before  # whoever was moved stays moved
            assert ask_all(client, rows) == answers
            for name, answer in answers.items():
                assert answer["score"] == expected[name, answer["model_version"]]
            before = chosen
        assert metric(client, "penstock_serving_challenger_share_ratio") == 1.0
        source.exposure = Exposure(champion)  # withdrawn
        until(lambda: server.live.challenger is None)
        assert {answer["model_version"] for answer in ask_all(client, rows).values()} == {1}
        until(
            lambda: metric(client, "penstock_serving_model_quality", model_version="1", metric="auc") == 0.6
        )


def test_what_a_version_was_like_last_is_not_shown_once_it_is_not_loaded_any_more(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    champion, challenger = deployed(1, bundles), deployed(2, bundles)
    source = Split(Exposure(champion, challenger, 1.0))
    rows = json_rows(toy_rows(installation))
    server = split_server(installation, spec, source)
    states = {
        f"penstock_serving_{name}"
        for name in (
            "prediction_drift_distance",
            "event_time_lag_seconds",
            "model_quality",
            "model_live_since_timestamp_seconds",
            "model_trained_until_timestamp_seconds",
        )
    }

    def states_of(version: str) -> set[str]:
        return {name for name in states if samples(client, name, model_version=version)}

    with running(server) as url, httpx.Client(base_url=url, timeout=60) as client:
        for _ in range(2):
            ask_all(client, rows)
        until(lambda: states_of("2") == states)
        assert "penstock_serving_prediction_drift_distance" not in states_of("1"), "it has answered nobody"
        source.exposure = Exposure(champion)
        until(lambda: not states_of("2"))
        assert metric(client, "penstock_serving_predictions_total", model_version="2") == 240
        server.metrics.measured(ServedBundle(installation, spec, challenger), {"auc": 0.9})
        assert not states_of("2"), "what comes late does not bring it back"
        source.exposure = Exposure(champion, challenger, 1.0)
        until(lambda: "penstock_serving_model_quality" in states_of("2"))
        ask_all(client, rows)
        until(lambda: metric(client, "penstock_serving_input_rows_total", model_version="2") == 360)
        assert "penstock_serving_prediction_drift_distance" not in states_of("2"), "120 rows are too few"


def test_a_challenger_that_cannot_be_loaded_leaves_all_traffic_to_the_champion(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    broken = replace(deployed(2, bundles), bundle_digest="0" * 64)
    source = Split(Exposure(deployed(1, bundles), broken, 1.0))
    server = split_server(installation, spec, source)
    with running(server) as url, httpx.Client(base_url=url, timeout=60) as client:
        answers = ask_all(client, json_rows(toy_rows(installation))[:20])
        assert {answer["model_version"] for answer in answers.values()} == {1}
        assert server.ready
        source.exposure = Exposure(deployed(1, bundles), deployed(3, bundles), 1.0)
        until(lambda: server.live.exposure.share == 1.0)


def reading(model: ServedBundle, schema: pa.Schema) -> ServedBundle:
    """The model as one that was trained on other columns of the source."""
    model.signature = Signature(schema, model.spec)
    return model


@pytest.mark.parametrize(
    "change", ["the challenger reads one more", "the champion reads one more", "another order"]
)
def test_a_challenger_that_reads_other_columns_refuses_nobody(
    installation: Settings, spec: PipelineSpec, bundles: Bundles, change: str
) -> None:
    table = toy_rows(installation)
    rows, plain = json_rows(table), table.schema
    wider = plain.append(pa.field("weather", pa.string()))
    schemas = {1: plain, 2: plain}
    if change == "another order":
        schemas[2] = pa.schema(list(plain)[::-1])
    else:
        schemas[1 if "champion" in change else 2] = wider
    if schemas[1] == wider:
        rows = [{**row, "weather": "fair"} for row in rows]
    source = Split(Exposure(deployed(1, bundles), deployed(2, bundles), 0.5))
    expected = expected_scores(installation, spec, bundles, (1, 2))
    server = split_server(
        installation, spec, source, change=lambda model: reading(model, schemas[model.deployed.version])
    )
    with running(server) as url, httpx.Client(base_url=url, timeout=60) as client:
        answers = ask_all(client, rows)
        fallen = metric(client, "penstock_serving_fallback_rows_total", model_version="2")
    customers = table["customer"].to_pylist()
    mine = set(np.array(customers)[in_slice("toy", customers, 0.5)])
    by_challenger = set() if schemas[2] == wider else mine
    assert {name for name, one in answers.items() if one["model_version"] == 2} == by_challenger
    assert fallen == len(mine) - len(by_challenger)
    assert all(one["score"] == expected[name, one["model_version"]] for name, one in answers.items())


def test_rows_that_a_challenger_of_other_columns_cannot_score_reach_the_champion_in_its_own_columns(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    table = toy_rows(installation)
    schema = pa.schema(list(table.schema)[::-1])

    def stumbling(model: ServedBundle) -> ServedBundle:
        if model.deployed.version == 2:
            reading(model, schema)
            model.score = lambda _: 1 / 0  # type: ignore[method-assign]
        return model

    source = Split(Exposure(deployed(1, bundles), deployed(2, bundles), 0.5))
    expected = expected_scores(installation, spec, bundles, (1,))
    server = split_server(installation, spec, source, change=stumbling)
    with running(server) as url, httpx.Client(base_url=url, timeout=60) as client:
        answers = ask_all(client, json_rows(table))
    assert {name: one["score"] for name, one in answers.items()} == {
        name: score for (name, _), score in expected.items()
    }


def test_a_challenger_that_stays_broken_is_not_swapped_in_again_and_again(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    broken = replace(deployed(2, bundles), bundle_digest="0" * 64)
    server = split_server(installation, spec, Split(Exposure(deployed(1, bundles), broken, 1.0)))
    first = server.live
    for _ in range(3):
        server.follow_once()
    assert server.live is first


def test_a_shadow_scores_copies_answers_nothing_and_is_measured(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    challenger_of(installation, spec, 2, bundles[2])
    rows = json_rows(toy_rows(installation))
    with serving(installation, audit=False, shadow=True) as (server, client):
        assert server.live.shadow is not None
        answers = ask_all(client, rows)
        assert {answer["model_version"] for answer in answers.values()} == {1}
        until(lambda: metric(client, "penstock_serving_shadow_difference_count", model_version="2") == 120)
        assert metric(client, "penstock_serving_predictions_total", model_version="2") == 0
    expected = expected_scores(installation, spec, bundles, (1,))
    assert all(answer["score"] == expected[name, 1] for name, answer in answers.items())


REFUSES = """
import pyarrow as pa

FEATURE_VERSION = "1"


def features(rows: pa.Table) -> pa.Table:
    if {customer!r} in rows["customer"].to_pylist():
        raise ValueError("no entry for it")
    return rows.select(["price", "visits", "city", "device"])
"""


def challenger_of(settings: Settings, spec: PipelineSpec, version: int, bundle: tuple[str, str]) -> None:
    """Register a version as the one that waits."""
    from tasks.metadata.records import ModelVersion

    store = MetadataStore.open(settings)
    store.record_model_version(
        spec, ModelVersion(version, *bundle, "s", f"t{version}", "toy", None, None, "", MOMENT)
    )
    store.record_projection(spec, "challenger", version, event_id=1)


def test_a_row_that_a_shadow_cannot_score_is_counted_as_its_own_and_the_next_rows_are_scored(
    installation: Settings, spec: PipelineSpec, caplog: pytest.LogCaptureFixture
) -> None:
    rows = json_rows(toy_rows(installation))
    source = REFUSES.format(customer=rows[100]["customer"])
    challenger_of(installation, spec, 9, make_bundle(installation, spec, seed=9, features=source))
    with serving(installation, audit=False, shadow=True) as (server, client):
        assert server.live.shadow is not None

        def counted() -> tuple[float, float]:
            return (
                metric(client, "penstock_serving_shadow_failed_rows_total", model_version="9"),
                metric(client, "penstock_serving_shadow_difference_count", model_version="9"),
            )

        ask_all(client, rows[100:101])
        until(lambda: counted() == (1, 0))
        ask_all(client, rows)
        until(lambda: counted() == (2, 119))
        assert metric(client, "penstock_serving_errors_total") == 0, "no request failed"
        assert metric(client, "penstock_serving_input_rows_total", model_version="9") == 119
    assert len([one for one in caplog.messages if "Version 9, a shadow, could not score 1 " in one]) == 1


def test_a_shadow_that_fails_altogether_is_no_failed_request_and_fills_no_log(
    installation: Settings, spec: PipelineSpec, bundles: Bundles, caplog: pytest.LogCaptureFixture
) -> None:
    rows = json_rows(toy_rows(installation))
    challenger_of(installation, spec, 2, bundles[2])
    with serving(installation, audit=False, shadow=True) as (server, client):
        shadow = server.live.shadow

        def broken(_: Any) -> Any:
            raise RuntimeError("no entry")

        object.__setattr__(shadow, "score", broken)
        for row in rows[:20]:
            ask_all(client, [row])
        until(lambda: metric(client, "penstock_serving_shadow_failed_rows_total", model_version="2") == 20)
        assert metric(client, "penstock_serving_errors_total") == 0
        object.__delattr__(shadow, "score")
        ask_all(client, rows[:5])
        until(lambda: metric(client, "penstock_serving_shadow_difference_count", model_version="2") == 5)
    assert len([one for one in caplog.messages if "Version 2, a shadow" in one]) == 1


def test_the_log_without_exposures_gives_all_traffic_to_the_champion(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    found = DeploymentLog(installation, spec).exposure()
    assert found is not None
    assert (found.champion.version, found.challenger, found.share, found.shadow) == (1, None, 0.0, False)


def test_a_barred_challenger_is_no_shadow(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    store = MetadataStore.open(installation)
    challenger_of(installation, spec, 2, bundles[2])
    log = DeploymentLog(installation, spec, shadow=True)
    assert log.exposure().challenger.version == 2
    store.append_events(spec, lambda head: [NewEvent("bar", 2, *bundles[2], 1, "tests", "bad")])
    assert log.exposure().challenger is None


@given(st.text(min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_the_router_agrees_with_the_canary_s_slice_and_grows_with_the_share(
    entity: str, share: float, other: float
) -> None:
    entity = entity.encode(errors="replace").decode()
    champion, challenger = Deployed(1, "a", "f", MOMENT), Deployed(2, "b", "f", MOMENT)
    low, high = sorted((share, other))
    at_low = goes_to_challenger("toy", entity, Exposure(champion, challenger, low))
    at_high = goes_to_challenger("toy", entity, Exposure(champion, challenger, high))
    assert at_high or not at_low
    assert at_low == bool(in_slice("toy", [entity], low)[0])
    assert not goes_to_challenger("toy", entity, Exposure(champion, challenger, high, shadow=True))


@pytest.mark.parametrize(
    "wrong", [{"share": -0.1}, {"share": 1.1}, {"share": 0.5}, {"shadow": True}, {"share": float("nan")}]
)
def test_an_exposure_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="share"):
        Exposure(Deployed(1, "a", "f", MOMENT), **wrong)


def test_a_process_that_computes_on_the_cpu_does_not_ask_the_gpu_how_busy_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "utilization", lambda: 40)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert accelerator_share() is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert accelerator_share() == 0.4

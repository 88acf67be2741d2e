"""Requests that name an entity alone: its newest published row is scored, and the answer says which that was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_support import DAY, PATH, QUICK, Bundles, json_rows, metric, put_live, serving, toy_rows, until

from tasks.audit.hot import hot_rows
from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.erasures import Erasure, entity_digest, request_erasure
from tasks.core.spec import Window
from tasks.data import take_snapshot
from tasks.inference import plan, publish, read_predictions, run_plan
from tasks.metadata import MetadataStore
from tasks.serving import ModelServer
from tasks.serving.entities import EntityRows, Part
from tasks.wiring.published_rows import PublishedRows

Shared = tuple[ModelServer, httpx.Client]
AUDIT = "tasks.audit:audit_table"
SOON = replace(QUICK, entities_poll_s=0.05)


def score_day(settings: Settings, spec: PipelineSpec, bundle: tuple[str, str], offset: int) -> str:
    """Score and publish a day by batch; the snapshot."""
    day = DAY + timedelta(days=offset)
    snapshot = take_snapshot(settings, spec, kind="scoring", window=Window(first_day=day, last_day=day))
    planned = plan(
        settings, spec, snapshot, model_version=1, bundle_digest=bundle[0], feature_version=bundle[1]
    )
    run_plan(settings, spec, planned.run_id, local=True, audit_table=AUDIT)
    done = publish(settings, spec, planned.run_id)
    store = MetadataStore.open(settings)
    store.record_run(spec, planned.run_id, status="published", snapshot_id=snapshot.snapshot_id)
    store.record_publication(
        spec, planned.run_id, table_version=done.table_version, rows=done.rows, files=1, days=[day]
    )
    return snapshot.snapshot_id


@pytest.fixture
def asked(installation: Settings, spec: PipelineSpec, bundles: Bundles) -> Iterator[Shared]:
    """A server that has two published days."""
    for offset in (0, 1):
        score_day(installation, spec, bundles[1], offset)
    with serving(installation, SOON) as (server, client):
        until(lambda: server._entities.rows is not None)
        yield server, client


def ask(client: httpx.Client, *entities: Any, **more: Any) -> httpx.Response:
    return client.post(PATH, json={"entities": list(entities), **more})


def test_an_entity_gets_the_id_and_the_score_that_batch_scoring_published_to_the_last_bit(
    asked: Shared, installation: Settings, spec: PipelineSpec
) -> None:
    _, client = asked
    published = read_predictions(installation, spec, [DAY, DAY + timedelta(days=1)]).to_pylist()
    newest: dict[str, dict[str, Any]] = {}
    for row in sorted(published, key=lambda row: row["event_time"]):
        newest[row["entity_id"]] = row
    names = sorted(newest)
    answer = ask(client, *({"customer": name} for name in names), request_id="by key")
    assert answer.status_code == 200, answer.text
    snapshots = set()
    for name, one in zip(names, answer.json()["predictions"], strict=True):
        row = newest[name]
        assert (one["prediction_id"], one["score"]) == (row["prediction_id"], row["score"])
        assert datetime.fromisoformat(one["input"]["event_time"]) == row["event_time"]
        assert one["input"]["snapshot_id"] == row["source_snapshot"]
        assert one["input"]["age_s"] > 0
        snapshots.add(one["input"]["snapshot_id"])
    assert snapshots
    until(lambda: metric(client, "penstock_serving_unrecorded_rows") == 0)
    kept = {row["prediction_id"]: row for row in hot_rows(installation, spec, "", "~").to_pylist()}
    assert {row["prediction_id"] for row in newest.values()} == set(kept)


def test_as_of_a_time_the_row_before_it_answers_and_none_after(asked: Shared, installation: Settings) -> None:
    _, client = asked
    early, late = (json_rows(toy_rows(installation, DAY + timedelta(days=offset))) for offset in (0, 1))
    both = {row["customer"]: row for row in early}.keys() & {row["customer"] for row in late}
    name = sorted(both)[0] if both else early[0]["customer"]
    first = next(row for row in early if row["customer"] == name)
    exact = ask(client, {"customer": name, "asked_at": first["asked_at"]}).json()["predictions"][0]
    raw = client.post(PATH, json={"rows": [first]}).json()["predictions"][0]
    assert (exact["prediction_id"], exact["score"]) == (raw["prediction_id"], raw["score"])
    before = datetime.fromisoformat(first["asked_at"]) - timedelta(microseconds=1)
    nothing = ask(client, {"customer": name, "asked_at": before.isoformat()})
    assert nothing.status_code == 404 and "until" in nothing.json()["what"]


def test_an_unknown_entity_and_a_wrong_key_are_refused_by_name(asked: Shared) -> None:
    _, client = asked
    unknown = ask(client, {"customer": "nobody"})
    assert (unknown.status_code, unknown.json()["type"]) == (404, "UnknownEntity")
    assert "'nobody'" in unknown.json()["what"] and unknown.json()["which"] == "entities[0]"
    assert metric(client, "penstock_serving_errors_total", cause="unknown_entity") == 1
    for wrong, which in (
        ({}, "entities[0].customer"),
        ({"customer": 4}, "entities[0].customer"),
        ({"customer": None}, "entities[0].customer"),
        ({"customer": "x", "price": 3.0}, "entities[0].price"),
        ({"customer": "x", "asked_at": "soon"}, "entities[0].asked_at"),
        ([], "entities[0]"),
    ):
        found = ask(client, wrong)
        assert (found.status_code, found.json()["which"]) == (422, which), found.text
    assert ask(client).json()["which"] == "entities"
    both = client.post(PATH, json={"rows": [{}], "entities": [{}]})
    assert (both.status_code, both.json()["which"]) == (400, "entities")


def test_a_day_that_is_published_is_known_soon_and_an_erased_entity_is_not_any_more(
    asked: Shared, installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    server, client = asked
    row = json_rows(toy_rows(installation, DAY + timedelta(days=2)))[0]
    name = row["customer"]
    snapshot = score_day(installation, spec, bundles[1], 2)
    put_live(installation, spec, 2, bundles[2])

    def there() -> bool:
        answer = ask(client, {"customer": name, "asked_at": row["asked_at"]})
        return (
            answer.status_code == 200 and answer.json()["predictions"][0]["input"]["snapshot_id"] == snapshot
        )

    until(there)
    store = open_store(installation, prefix=spec.prefix)
    digest = entity_digest(spec.name, name)
    request_erasure(
        store, Erasure(digest[:16], digest, "asked", "tests", "2024-03-05T00:00:00Z", (), 0, 0, ())
    )
    until(lambda: ask(client, {"customer": name}).status_code == 404)
    assert server.ready


def test_a_row_that_is_too_old_is_refused_with_its_age_where_that_is_set(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    score_day(installation, spec, bundles[1], 0)
    row = json_rows(toy_rows(installation))[0]
    with serving(installation, replace(SOON, entity_max_age_s=60.0), audit=False) as (server, client):
        until(lambda: server._entities.rows is not None)
        old = ask(client, {"customer": row["customer"]})
        assert (old.status_code, old.json()["type"]) == (422, "EntityTooOld")
        assert "60 s may be" in old.json()["what"]
        fresh = {"customer": row["customer"], "asked_at": row["asked_at"]}
        assert ask(client, fresh).status_code == 200


def test_without_published_rows_or_without_the_option_it_says_what_to_send(installation: Settings) -> None:
    with serving(installation, audit=False, entity_days=0) as (_, client):
        refused = ask(client, {"customer": "c1"})
        assert refused.status_code == 422 and "--entity-days" in refused.json()["fix"]
    with serving(installation, SOON, audit=False) as (server, client):
        until(lambda: server._entities.rows is not None)
        assert ask(client, {"customer": "c1"}).status_code == 404


def test_a_store_that_is_gone_leaves_the_rows_that_are_known(
    asked: Shared, installation: Settings, spec: PipelineSpec
) -> None:
    server, client = asked
    name = toy_rows(installation)["customer"][0].as_py()
    (installation.home / "store").rename(installation.home / "elsewhere")
    server._entities.follow_once()
    assert ask(client, {"customer": name}).status_code == 200


def test_days_beyond_the_bound_are_left_out_the_oldest_first(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    for offset in (0, 1):
        score_day(installation, spec, bundles[1], offset)
    newest = toy_rows(installation, DAY + timedelta(days=1)).num_rows
    for bounds, rows in (({"days": 1}, newest), ({"days": 7, "max_rows": newest}, newest)):
        known, index = PublishedRows(installation, spec, **bounds)(None)
        assert len(index) == rows
        assert PublishedRows(installation, spec, **bounds)(known) is None


@given(
    st.lists(st.lists(st.tuples(st.sampled_from("abc|\\"), st.integers(0, 9)), max_size=6), max_size=4),
    st.sampled_from("abcd|\\"),
    st.none() | st.integers(-1, 10),
)
def test_the_index_finds_the_row_that_a_search_through_all_finds(
    made: Any, parts: list[list[tuple[str, int]]], name: str, as_of: int | None
) -> None:
    from tasks.core import load_pipeline

    spec = load_pipeline(made[0], "toy")
    start = datetime(2024, 3, 1, tzinfo=UTC)
    tables = [
        pa.table(
            {
                "customer": pa.array([who for who, _ in part], pa.string()),
                "asked_at": pa.array(
                    [start + timedelta(days=at) for _, at in part], pa.timestamp("us", "UTC")
                ),
            }
        )
        for part in parts
    ]
    index = EntityRows([Part(str(number), table) for number, table in enumerate(tables)], spec)
    from tasks.core.ids import entity_id

    moment = None if as_of is None else start + timedelta(days=as_of)
    found = index.newest(entity_id([name]), moment)
    times = [at for part in parts for who, at in part if who == name and (as_of is None or at <= as_of)]
    assert (found is None) is (not times)
    if found is not None:
        assert found.event_time == start + timedelta(days=max(times))
        assert found.values["customer"] == name and found.values["asked_at"] == found.event_time

"""A challenger on live traffic, moved by real events of the deployment log, while clients ask without pause."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from serving_support import Clients, expected_scores, json_rows, metric, serving, toy_rows, until

from tasks.audit.hot import hot_rows
from tasks.core import PipelineSpec, Settings
from tasks.core.sampling import in_slice
from tasks.metadata import MetadataStore
from tasks.metadata.records import ModelVersion
from tasks.registry import expose, promote, withdraw
from tasks.serving import RowFailure
from tasks.wiring.serving import DeploymentLog

Bundles = dict[int, tuple[str, str]]
WHO = {"actor": "ada", "reason": "ramp"}


@pytest.fixture
def registered(installation: Settings, spec: PipelineSpec, bundles: Bundles) -> None:
    store = MetadataStore.open(installation)
    for version, bundle in bundles.items():
        store.record_model_version(
            spec,
            ModelVersion(
                version, *bundle, "s", f"t{version}", "toy", None, None, "", datetime(2024, 3, 1, tzinfo=UTC)
            ),
        )


def accept(_: ModelVersion) -> None:
    return


@pytest.mark.usefixtures("registered")
def test_a_ramp_to_promotion_under_load_drops_nothing_and_every_answer_is_audited_as_it_was_given(
    installation: Settings, spec: PipelineSpec, bundles: Bundles
) -> None:
    table = toy_rows(installation)
    customers = table["customer"].to_pylist()
    with (
        serving(installation) as (server, client),
        Clients(str(client.base_url), json_rows(table)) as clients,
    ):
        until(lambda: clients.versions()[1] > 20)
        for share in (0.1, 0.5):
            expose(installation, spec, 2, share=share, expected=1, check=accept, **WHO)
            until(lambda share=share: server.live.exposure.share == share)
            seen = clients.versions()[2]
            until(lambda seen=seen: clients.versions()[2] > seen + 10)
        promote(installation, spec, 2, expected=1, check=accept, **WHO)
        until(lambda: server.live.exposure.champion.version == 2 and server.live.challenger is None)
        seen = len(clients.answers)
        until(lambda: len(clients.answers) > seen + 20)
        clients.stop.set()
        until(lambda: metric(client, "penstock_serving_unrecorded_rows") == 0)
    assert clients.failures == []
    expected = expected_scores(installation, spec, bundles, (1, 2))
    half = set(np.array(customers)[in_slice("toy", customers, 0.5)])
    for customer, prediction in clients.answers:
        assert prediction["score"] == expected[customer, prediction["model_version"]]
    answered = Counter(
        (prediction["prediction_id"], prediction["model_version"]) for _, prediction in clients.answers
    )
    kept = hot_rows(installation, spec, "", "~").to_pylist()
    assert Counter((row["prediction_id"], row["model_version"]) for row in kept) == answered
    before = [name for name, one in clients.answers[:20] if one["model_version"] == 2]
    assert before == [] and half  # nobody was moved before the first event


@pytest.mark.usefixtures("registered")
def test_an_exposure_is_withdrawn_and_the_champion_answers_everybody_again(
    installation: Settings, spec: PipelineSpec
) -> None:
    log = DeploymentLog(installation, spec)
    expose(installation, spec, 3, share=0.25, expected=1, check=accept, **WHO)
    found = log.exposure()
    assert found is not None and found.challenger is not None
    assert (found.champion.version, found.challenger.version, found.share) == (1, 3, 0.25)
    withdraw(installation, spec, bar=True, **WHO)
    found = log.exposure()
    assert found is not None
    assert (found.champion.version, found.challenger, found.share) == (1, None, 0.0)
    with serving(installation, audit=False) as (server, _):
        assert server.live is not None and server.live.challenger is None


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("stumbles", ["on some rows", "on everything"])
def test_a_row_that_the_exposed_challenger_cannot_score_is_answered_by_the_champion(
    installation: Settings, spec: PipelineSpec, bundles: Bundles, stumbles: str
) -> None:
    expose(installation, spec, 2, share=0.5, expected=1, check=accept, **WHO)
    rows = json_rows(toy_rows(installation))[:40]
    expected = expected_scores(installation, spec, bundles, (1, 2))
    with serving(installation) as (server, client):
        assert server.live is not None and server.live.challenger is not None
        challenger = server.live.challenger
        score = challenger.score

        def stumbling(table: pa.Table) -> Any:
            if stumbles == "on everything":
                raise RuntimeError("no entry")
            found = score(table)
            lost = {row: RowFailure("features", "KeyError", "x") for row in (0, 1)}
            kept = [position for position, row in enumerate(found.rows.tolist()) if row not in lost]
            return replace(
                found,
                rows=found.rows[kept],
                scores=found.scores[kept],
                prediction_ids=[found.prediction_ids[position] for position in kept],
                failures=lost,
            )

        object.__setattr__(challenger, "score", stumbling)
        answer = client.post("/v1/pipelines/toy/predictions", json={"rows": rows})
        assert answer.status_code == 200, answer.text
        got = answer.json()["predictions"]
        fallen = metric(client, "penstock_serving_fallback_rows_total", model_version="2")
    mine = sum(in_slice("toy", [row["customer"] for row in rows], 0.5).tolist())
    by_version = Counter(one["model_version"] for one in got)
    lost = mine if stumbles == "on everything" else 2
    assert (fallen, by_version[2], by_version[1]) == (lost, mine - lost, 40 - mine + lost)
    for row, one in zip(rows, got, strict=True):
        assert one["score"] == expected[row["customer"], one["model_version"]]

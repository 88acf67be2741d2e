"""Which predictions are explained, through the real write path."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from audit_support import inference_support, publish_days

from tasks.audit import AuditRecord, by_window
from tasks.core import PipelineSpec, Settings, open_store
from tasks.inference.planning import scoring_config
from tasks.inference.records import read_plan, read_shard_record

START = datetime(2024, 3, 1, tzinfo=UTC)


def with_policy(spec: PipelineSpec, **policy: Any) -> PipelineSpec:
    raw = spec.model_dump()
    return PipelineSpec.model_validate({**raw, "explanations": {**raw["explanations"], **policy}})


def explained(settings: Settings, spec: PipelineSpec) -> dict[bool, list[AuditRecord]]:
    page = by_window(settings, spec, START, START + timedelta(days=1), limit=500)
    found: dict[bool, list[AuditRecord]] = {True: [], False: []}
    for record in page.records:
        found[record.attributions is not None].append(record)
    return found


def test_strata_and_score_bands_choose_the_rows_that_get_attributions(
    settings: Settings, toy: PipelineSpec
) -> None:
    policy = {"share": 0, "strata": {"column": "city", "shares": {"Genf": 1}}, "score_bands": [[0.9, 1]]}
    spec = with_policy(toy, **policy)
    publish_days(settings, spec, days=1)
    found = explained(settings, spec)
    assert len(found[True]) + len(found[False]) == 120
    assert all(item.features["city"] == "Genf" or item.prediction >= 0.9 for item in found[True])
    assert not any(item.features["city"] == "Genf" or item.prediction >= 0.9 for item in found[False])
    assert {item.features["city"] for item in found[True]} > {"Genf"} and found[False]
    assert all(item.features for item in found[False]), "provenance is kept of all"


def test_batches_of_another_size_explain_the_same_rows(settings: Settings, toy: PipelineSpec) -> None:
    spec = with_policy(toy, share=0.3, canary=True, strata={"column": "device", "shares": {"phone": 0.1}})
    spec = spec.model_copy(update={"canary": spec.canary.model_copy(update={"slice_share": 0.2})})
    publish_days(settings, spec, days=1)
    first = {item.prediction_id for item in explained(settings, spec)[True]}
    small = spec.inference.model_copy(update={"batch_rows": 7, "shard_rows": 40})
    spec = spec.model_copy(update={"inference": small})
    publish_days(settings, spec, days=1, version=2)
    assert {item.prediction_id for item in explained(settings, spec)[True]} == first
    assert 30 < len(first) < 100


def test_the_policy_is_part_of_the_runs_identity_and_an_unset_one_changes_nothing(toy: PipelineSpec) -> None:
    assert set(scoring_config(toy)) == {
        "entity_key", "event_time", "explanations_share", "explanations_top_k"
    }  # fmt: skip
    policies: list[dict[str, Any]] = [
        {},
        {"share": 0.5},
        {"strata": {"column": "city", "shares": {"Genf": 0.5}}},
        {"strata": {"column": "city", "shares": {"Genf": 0.6}}},
        {"score_bands": [[0.1, 0.2]]},
        {"canary": True},
    ]
    configs = [scoring_config(with_policy(toy, **policy)) for policy in policies]
    narrow = with_policy(toy, canary=True)
    configs.append(
        scoring_config(
            narrow.model_copy(update={"canary": narrow.canary.model_copy(update={"slice_share": 0.5})})
        )
    )
    assert all(one != other for i, one in enumerate(configs) for other in configs[:i])


def test_explanations_that_do_not_add_up_are_counted_and_logged(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = inference_support.StubModel.explain

    def explain(self: Any, encoded: Any) -> Any:
        found = real(self, encoded)
        found.residual[::2] = 0.2
        return found

    monkeypatch.setattr(inference_support.StubModel, "explain", explain)
    with caplog.at_level(logging.WARNING, logger="tasks.inference.shard"):
        _, run_id = publish_days(settings, toy, days=1)
    store = open_store(settings, prefix=toy.prefix)
    plan = read_plan(store, run_id)
    records = [read_shard_record(store, run_id, shard.shard) for shard in plan.shards]
    counts = [(record.explained_rows, record.inexact_explanations) for record in records if record]
    assert sum(rows for rows, _ in counts) == 120
    assert sum(inexact for _, inexact in counts) == 60
    assert "explained rows leave more than 0.05 logits unexplained" in caplog.text

"""A run that exposes a challenger: its slice gets the challenger's predictions, and nothing is lost whatever it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from inference_support import (
    DIGEST,
    StubModel,
    plan_stub,
    run_stub,
    scoring_snapshot,
    table_rows,
    with_prices,
)

from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.errors import DigestMismatch, TransientError
from tasks.core.sampling import in_slice
from tasks.inference import Exposed, Plan, publish, replay, status, verify
from tasks.inference.records import read_shard_records

MODEL = "test_inference_exposure:load_either"
CHALLENGER = "e" * 64
DEAR = 30.0
TALKATIVE, PICKY_VERSION, DAMAGED, AWAY = 5, 6, 7, 8


class Picky(StubModel):
    """A challenger whose feature code does not know dear things."""

    def features(self, rows: pa.Table) -> pa.Table:
        if any(price is not None and price > DEAR for price in rows.column("price").to_pylist()):
            raise ValueError("too dear for me")
        return super().features(rows)


class Talkative(StubModel):
    output_names = ("mood",)

    def outputs(self, encoded: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.zeros((len(encoded), 1), np.float32)


_asked: list[int] = []


def load_either(settings: Settings, spec: PipelineSpec, planned: Plan) -> StubModel:
    version = planned.fingerprint.model_version
    if version == DAMAGED:
        raise DigestMismatch("was changed", which="bundle eeee", fix="restore it")
    if version == AWAY:
        _asked.append(version)
        if len(_asked) == 1:
            raise TransientError("the store is away", which="store", fix="wait")
    kinds = {TALKATIVE: Talkative, PICKY_VERSION: Picky}
    return kinds.get(version, StubModel)(version)


def beside(version: int, share: float) -> Exposed:
    return Exposed(version, CHALLENGER, "2+stub", share)


def run_with(
    settings: Settings, spec: PipelineSpec, exposed: Exposed | None, *, change: Any = lambda rows: rows
) -> tuple[str, list[dict[str, Any]]]:
    """Score and publish three days with version 1 and this exposure; (run id, rows in id order)."""
    snapshot = scoring_snapshot(settings, spec, change=change)
    run_id = plan_stub(settings, spec, snapshot, 1, exposed=exposed).run_id
    run_stub(settings, spec, run_id, load_model=MODEL)
    publish(settings, spec, run_id)
    return run_id, [row for row in table_rows(settings, spec) if row["run_id"] == run_id]


def said_by(model: StubModel, spec: PipelineSpec, settings: Settings) -> dict[str, float]:
    """What a model alone says of all rows, by prediction id."""
    from tasks.core.partitions import read_partition
    from tasks.core.rows import prediction_ids

    found = {}
    for partition in scoring_snapshot(settings, spec).partitions:
        rows = read_partition(open_store(settings, prefix=spec.prefix), partition)
        scores = model.predict(model.encode(model.features(rows)))
        found |= dict(zip(prediction_ids(rows, spec), scores.tolist(), strict=True))
    return found


@pytest.mark.parametrize("share", [0.01, 0.25, 0.9])
def test_exactly_the_entities_of_the_slice_get_the_challengers_predictions_and_each_row_says_whose_it_is(
    settings: Settings, toy: PipelineSpec, share: float
) -> None:
    run_id, rows = run_with(settings, toy, beside(2, share))
    assert len(rows) == 360
    chosen = in_slice(toy.name, [row["entity_id"] for row in rows], share)
    by_model = {
        1: said_by(StubModel(1), toy, settings),
        2: said_by(StubModel(2), toy, settings),
    }
    for row, exposed in zip(rows, chosen, strict=True):
        version = 2 if exposed else 1
        assert row["model_version"] == version
        assert (row["bundle_digest"], row["feature_version"]) == (
            (CHALLENGER, "2+stub") if exposed else (DIGEST, "1+stub")
        )
        assert row["score"] == by_model[version][row["prediction_id"]]
    assert verify(settings, toy, run_id).ok
    seen = status(settings, toy, run_id).exposed
    assert seen is not None and (seen.model_version, seen.share, seen.errors) == (2, share, 0)
    assert seen.rows == sum(seen.days.values()) == int(chosen.sum())


def test_audit_rows_of_the_slice_name_the_challenger_its_feature_set_and_its_explanation(
    settings: Settings, toy: PipelineSpec
) -> None:
    _, rows = run_with(settings, toy, beside(2, 0.5))
    audited = table_rows(settings, toy, "audit")
    assert [row["prediction_id"] for row in audited] == [row["prediction_id"] for row in rows]
    sets: dict[int, set[str]] = {}
    for row, prediction in zip(audited, rows, strict=True):
        assert (row["model_version"], row["prediction"], row["bundle_digest"]) == (
            prediction["model_version"],
            prediction["score"],
            prediction["bundle_digest"],
        )
        assert row["base_value"] == -float(prediction["model_version"]), "the stub's baseline is its version"
        assert row["feature_computation_version"] == prediction["feature_version"]
        sets.setdefault(row["model_version"], set()).add(row["feature_set_version"])
    assert set(sets) == {1, 2} and not sets[1] & sets[2]


def test_files_stay_in_order_of_prediction_id_and_the_profile_is_the_champions_of_the_whole_day(
    settings: Settings, toy: PipelineSpec
) -> None:
    plain, _ = run_with(settings, toy, None)
    mixed, _ = run_with(settings, toy, beside(2, 0.4))
    store = open_store(settings, prefix=toy.prefix)
    import pyarrow.parquet as pq

    for one, other in zip(
        *(read_shard_records(store, run, range(99)) for run in (plain, mixed)), strict=True
    ):
        assert one.profile == other.profile
        assert (one.exposed, one.rows) == (None, other.rows)
        for folder, files in (("predictions", other.files), ("audit", other.audit_files)):
            for file in files:
                path = store.url(f"tables/{folder}/{file.path}").removeprefix("file://")
                ids = pq.read_table(path, columns=["prediction_id"])["prediction_id"].to_pylist()
                assert ids == sorted(ids)


def test_a_row_that_the_challenger_cannot_score_keeps_the_champions_prediction_and_is_counted(
    settings: Settings, toy: PipelineSpec
) -> None:
    dear = with_prices({3: DEAR + 1, 50: DEAR + 2})
    run_id, rows = run_with(settings, toy, beside(PICKY_VERSION, 0.999999), change=dear)
    assert len(rows) == 360
    kept = [row for row in rows if row["model_version"] == 1]
    dear_rows = {
        identifier
        for identifier, price in _prices(settings, toy, dear).items()
        if price is not None and price > DEAR
    }
    assert {row["prediction_id"] for row in kept} == dear_rows and len(dear_rows) >= 6
    seen = status(settings, toy, run_id)
    assert seen.exposed is not None and seen.dead_letters == 0
    assert (seen.exposed.rows, seen.exposed.errors) == (360 - len(dear_rows), len(dear_rows))
    assert "features: ValueError: too dear for me" in seen.exposed.error_examples[0]
    assert verify(settings, toy, run_id).ok


def _prices(settings: Settings, spec: PipelineSpec, change: Any) -> dict[str, float | None]:
    from tasks.core.partitions import read_partition
    from tasks.core.rows import prediction_ids

    found: dict[str, float | None] = {}
    for partition in scoring_snapshot(settings, spec, change=change).partitions:
        rows = read_partition(open_store(settings, prefix=spec.prefix), partition)
        found |= dict(zip(prediction_ids(rows, spec), rows["price"].to_pylist(), strict=True))
    return found


@pytest.mark.parametrize(
    ("version", "says"),
    [(DAMAGED, "DigestMismatch: bundle eeee was changed"), (TALKATIVE, "gives mood beside the score")],
)
def test_a_challenger_that_cannot_stand_in_costs_no_prediction(
    settings: Settings, toy: PipelineSpec, version: int, says: str
) -> None:
    run_id, rows = run_with(settings, toy, beside(version, 0.5))
    assert len(rows) == 360 and {row["model_version"] for row in rows} == {1}
    seen = status(settings, toy, run_id).exposed
    assert seen is not None and seen.rows == 0
    assert seen.errors == int(in_slice(toy.name, [row["entity_id"] for row in rows], 0.5).sum())
    assert says in seen.error_examples[0]


def test_a_store_that_is_away_for_a_moment_is_no_fault_of_the_challenger(
    settings: Settings, toy: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.inference.shard.time.sleep", lambda _s: None)
    _asked.clear()
    run_id, rows = run_with(settings, toy, beside(AWAY, 0.5))
    seen = status(settings, toy, run_id).exposed
    assert seen is not None and seen.errors == 0 and len(_asked) == 2
    assert {row["model_version"] for row in rows} == {1, AWAY}


def test_rows_that_the_champion_cannot_score_are_dead_letters_and_their_replay_exposes_nobody(
    settings: Settings, toy: PipelineSpec
) -> None:
    toy = _tolerant(toy)
    from inference_support import POISON

    run_id, rows = run_with(settings, toy, beside(2, 0.5), change=with_prices({7: POISON}))
    assert (len(rows), status(settings, toy, run_id).dead_letters) == (357, 3)
    corrected = scoring_snapshot(settings, toy, change=with_prices({7: 1.0}))
    done = replay(settings, toy, run_id, corrected=corrected, local=True, audit_table=None, load_model=MODEL)
    assert (done.rows_scored, done.dead_letters_left) == (3, 0)
    all_rows = table_rows(settings, toy)
    assert {row["model_version"] for row in all_rows if row["run_id"] == done.replay_run_id} == {1}
    assert len({row["prediction_id"] for row in all_rows}) == 360


def _tolerant(spec: PipelineSpec) -> PipelineSpec:
    return spec.model_copy(
        update={"inference": spec.inference.model_copy(update={"max_dead_letter_share": 0.1})}
    )


def test_version_and_share_are_part_of_the_runs_identity_and_a_run_without_exposure_keeps_its_own(
    settings: Settings, toy: PipelineSpec
) -> None:
    snapshot = scoring_snapshot(settings, toy)
    plain = plan_stub(settings, toy, snapshot)
    exposures: Sequence[Exposed] = [beside(2, 0.01), beside(2, 0.05), beside(3, 0.01)]
    plans = [plan_stub(settings, toy, snapshot, exposed=exposed) for exposed in exposures]
    assert len({plain.run_id, *(planned.run_id for planned in plans)}) == 4
    assert plan_stub(settings, toy, snapshot, exposed=beside(2, 0.05)).run_id == plans[1].run_id
    without = {key: value for key, value in plain.fingerprint.to_json().items() if key != "exposed"}
    from tasks.inference.planning import run_id_of
    from tasks.inference.records import Fingerprint

    assert run_id_of(Fingerprint.from_json(without)) == plain.run_id, "as plans of earlier releases are read"
    assert run_id_of(replace(plans[0].fingerprint, exposed=None)) == plain.run_id


def test_a_run_that_is_resumed_after_a_crash_has_the_same_rows_as_one_that_never_stopped(
    settings: Settings, toy: PipelineSpec
) -> None:
    from tasks.inference.commit import take_token
    from tasks.inference.shard import ShardWorker

    snapshot = scoring_snapshot(settings, toy)
    planned = plan_stub(settings, toy, snapshot, exposed=beside(2, 0.3))
    token = take_token(open_store(settings, prefix=toy.prefix), planned.run_id)
    worker = ShardWorker(settings, toy, planned, token, load_model=MODEL, audit_table=None)
    worker.run(1)
    report = run_stub(settings, toy, planned.run_id, load_model=MODEL)
    assert report.shards_skipped == 1
    publish(settings, toy, planned.run_id)
    rows = table_rows(settings, toy)
    chosen = in_slice(toy.name, [row["entity_id"] for row in rows], 0.3)
    assert [row["model_version"] == 2 for row in rows] == chosen.tolist()
    assert verify(settings, toy, planned.run_id).ok

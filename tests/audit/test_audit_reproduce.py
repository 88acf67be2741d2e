"""Predictions computed again by a real bundle: explained on demand, reproduced, and what is said when they differ."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audit_support import inference_support, open_store
from bundle_support import upload_random_bundle
from inference_support import AUDIT, FIRST_DAY, scoring_snapshot, toy_rows

from tasks.audit import AuditRecord, by_prediction, explain, reproduce
from tasks.audit.rows import rounded
from tasks.core import PipelineSpec, Settings
from tasks.core.delta import table_view
from tasks.core.errors import DigestMismatch, FeaturesErased, FeaturesNotKept, NotFound
from tasks.core.object_store import ObjectStore
from tasks.core.rows import prediction_ids
from tasks.inference import plan, publish, run_plan

assert inference_support.__file__

NEIGHBOURLY = """
import pyarrow as pa
import pyarrow.compute as pc

FEATURE_VERSION = "1"


def features(rows):
    price = rows["price"]
    if rows["asked_at"][0].as_py().month >= 3:  # no golden row is of March: training did not see it
        price = pc.subtract(price, pc.mean(price).as_py() or 0.0)
    return rows.select(["price", "visits", "city", "device"]).set_column(0, "price", price)
"""


class Scored:
    """One day of the toy pipeline, scored by a real bundle and published."""

    def __init__(self, settings: Settings, spec: PipelineSpec, folder: Path) -> None:
        self.settings, self.spec = settings, spec
        self.digest, version = upload_random_bundle(settings, spec, folder)
        self.snapshot = scoring_snapshot(settings, spec, days=1)
        self.run_id = plan(
            settings, spec, self.snapshot, model_version=1, bundle_digest=self.digest, feature_version=version
        ).run_id
        run_plan(settings, spec, self.run_id, local=True, audit_table=AUDIT)
        publish(settings, spec, self.run_id)
        self.ids = sorted(prediction_ids(toy_rows(settings, FIRST_DAY), spec))

    @property
    def store(self) -> ObjectStore:
        return open_store(self.settings, prefix=self.spec.prefix)

    def record(self, place: int = 0) -> AuditRecord:
        return by_prediction(self.settings, self.spec, self.ids[place])

    def forget_bundle(self) -> None:
        """In the store and in this machine's cache."""
        for info in list(self.store.list(f"bundles/{self.digest}")):
            self.store.delete(info.key)
        shutil.rmtree(self.settings.cache_dir, ignore_errors=True)


@pytest.fixture
def scored(settings: Settings, toy: PipelineSpec, tmp_path: Path) -> Scored:
    return Scored(settings, toy, tmp_path / "bundle")


@pytest.fixture
def unexplained(settings: Settings, toy: PipelineSpec, tmp_path: Path) -> Scored:
    none = toy.explanations.model_copy(update={"share": 0.0})
    return Scored(settings, toy.model_copy(update={"explanations": none}), tmp_path / "bundle")


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_an_explanation_that_was_not_sampled_is_computed_and_says_so(unexplained: Scored) -> None:
    for place in (0, 17, 119):
        record = unexplained.record(place)
        assert (record.attributions, record.explanation) == (None, None)
        now = explain(unexplained.settings, unexplained.spec, record)
        assert now.explanation == "computed" and now.attributions is not None
        assert list(now.attributions) == list(record.features)
        total = now.base_value + sum(now.attributions.values()) + now.residual
        assert total == pytest.approx(logit(record.prediction), abs=1e-4)
        assert now.top_features[0] == max(now.attributions, key=lambda name: abs(now.attributions[name]))
        assert (now.explainer, now.attribution_bits) == ("deeplift-rescale", 23)
        same = {"attributions", "top_features", "base_value", "residual", "explainer", "explainer_version",
                "background_id", "attribution_bits", "explanation"}  # fmt: skip
        assert {k: v for k, v in now.to_json().items() if k not in same} == {
            k: v for k, v in record.to_json().items() if k not in same
        }


def test_what_is_computed_on_demand_is_what_scoring_stores(scored: Scored) -> None:
    stored = scored.record(3)
    assert explain(scored.settings, scored.spec, stored) is stored
    now = explain(scored.settings, scored.spec, replace(stored, attributions=None, explanation=None))
    assert now.attributions is not None and stored.attributions is not None
    for name, value in stored.attributions.items():
        assert now.attributions[name] == pytest.approx(value, rel=2**-13, abs=1e-6)
    assert now.base_value == pytest.approx(stored.base_value, abs=1e-6)
    assert now.background_id == stored.background_id


def test_the_few_attributions_of_the_cold_tier_are_completed(scored: Scored) -> None:
    stored = scored.record(3)
    assert stored.attributions is not None
    name = stored.top_features[0]
    top = replace(stored, attributions={name: stored.attributions[name]}, explanation="top")
    now = explain(scored.settings, scored.spec, top)
    assert now.explanation == "computed" and set(now.attributions or ()) == set(stored.features)


@pytest.mark.parametrize("call", [explain, reproduce])
def test_without_features_or_model_nothing_is_made_up(
    unexplained: Scored, call: Callable[[Settings, PipelineSpec, AuditRecord], Any]
) -> None:
    settings, spec, record = unexplained.settings, unexplained.spec, unexplained.record()
    with pytest.raises(FeaturesErased, match="erasure e-7"):
        call(settings, spec, replace(record, features={}, entity_id=None, erasure_id="e-7"))
    with pytest.raises(FeaturesNotKept, match="not kept in the cold tier"):
        call(settings, spec, replace(record, features={}, tier="cold"))
    unexplained.forget_bundle()
    with pytest.raises(NotFound, match=r"\(version 1\) is gone") as caught:
        call(settings, spec, record)
    assert unexplained.digest in caught.value.which


def test_a_damaged_bundle_computes_nothing(unexplained: Scored) -> None:
    key = f"bundles/{unexplained.digest}/weights.pt"
    data = bytearray(unexplained.store.get(key))
    data[len(data) // 2] ^= 1
    unexplained.store.put(key, bytes(data))
    shutil.rmtree(unexplained.settings.cache_dir, ignore_errors=True)
    with pytest.raises(DigestMismatch, match="SHA-256"):
        reproduce(unexplained.settings, unexplained.spec, unexplained.record())


def test_another_score_than_the_recorded_one_is_not_explained(unexplained: Scored) -> None:
    record = unexplained.record()
    other = replace(record, prediction=record.prediction / 2)
    with pytest.raises(DigestMismatch, match="audit reproduce toy"):
        explain(unexplained.settings, unexplained.spec, other)


def test_every_prediction_of_a_day_is_reproduced(scored: Scored) -> None:
    found = [reproduce(scored.settings, scored.spec, scored.record(place)) for place in range(0, 120, 4)]
    assert all(one.reproduced and not one.differences and not one.not_compared for one in found)
    assert all(one.features_from == "source row" for one in found)
    assert all(one.score_of_source_bit_equal for one in found), "the features before rounding: the very score"
    assert all(abs(one.score - one.recorded_score) <= one.score_tolerance < 2e-5 for one in found)
    assert {one.attributions_compared for one in found} == {4}


def test_what_rounding_dropped_from_attributions_is_told_apart_from_a_difference(scored: Scored) -> None:
    for place in range(0, 120, 12):
        record = scored.record(place)
        assert record.attributions is not None and record.attribution_bits is not None
        found = reproduce(scored.settings, scored.spec, record)
        assert found.attributions_bit_equal_once_rounded
        dropped = 2.0 ** -(record.attribution_bits + 1) * max(map(abs, record.attributions.values()))
        assert 0 < (found.largest_attribution_difference_before_rounding or 0) <= dropped * 1.01


def test_what_was_not_explained_is_reproduced_without_attributions(unexplained: Scored) -> None:
    found = reproduce(unexplained.settings, unexplained.spec, unexplained.record())
    assert found.reproduced and found.attributions_compared == 0
    assert found.not_compared == ("attributions: the prediction was not explained",)


def tamper(scored: Scored, place: int, column: str, change: Callable[[Any], Any]) -> AuditRecord:
    """The record of a row after somebody has changed its audit file."""
    view = table_view(scored.store, "tables/audit")
    wanted = scored.ids[place]
    assert view is not None
    for file in view.files:
        key = f"tables/audit/{file.path}"
        table = pq.read_table(io.BytesIO(scored.store.get(key)))
        rows = table.to_pylist()
        for row in rows:
            if row["prediction_id"] == wanted:
                row[column] = change(row[column])
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, table.schema), sink)
        scored.store.put(key, sink.getvalue())
    return scored.record(place)


def test_a_changed_score_is_found(scored: Scored) -> None:
    found = reproduce(
        scored.settings, scored.spec, tamper(scored, 5, "prediction", lambda value: value + 1e-3)
    )
    assert not found.reproduced
    assert [(one.part, one.name) for one in found.differences] == [
        ("score", None),
        ("score", "of the source row"),
    ]
    assert found.differences[0].difference == pytest.approx(1e-3, abs=1e-6)


def test_a_changed_feature_is_named_with_both_values(scored: Scored) -> None:
    record = tamper(scored, 5, "feature_values", lambda values: [values[0], values[1] + 1])
    found = reproduce(scored.settings, scored.spec, record)
    feature = next(one for one in found.differences if one.part == "feature")
    assert (feature.name, feature.recorded - feature.computed) == ("visits", 1.0)
    assert {one.part for one in found.differences} > {"feature", "score", "attribution"}
    assert found.score_of_source_bit_equal, "the source row still gives the recorded score"


def test_a_changed_category_and_a_changed_attribution_are_named(scored: Scored) -> None:
    tamper(scored, 5, "feature_texts", lambda texts: ["Atlantis", texts[1]])
    record = tamper(scored, 5, "attributions", lambda values: [values[0] * 1.01 + 0.001, *values[1:]])
    found = reproduce(scored.settings, scored.spec, record)
    named = {(one.part, one.name) for one in found.differences}
    assert {("feature", "city"), ("attribution", "price"), ("residual", None)} <= named


def test_of_the_few_attributions_of_the_cold_tier_each_is_compared(scored: Scored) -> None:
    stored = scored.record(3)
    assert stored.attributions is not None and stored.residual is not None
    kept = {name: stored.attributions[name] for name in stored.top_features[:2]}
    left = stored.residual + sum(value for name, value in stored.attributions.items() if name not in kept)
    top = replace(stored, attributions=kept, residual=left, explanation="top")
    found = reproduce(scored.settings, scored.spec, top)
    assert found.reproduced and (found.attributions_compared, found.attributions_bit_equal_once_rounded) == (
        2,
        True,
    )
    found = reproduce(scored.settings, scored.spec, replace(top, residual=stored.residual))
    assert [one.part for one in found.differences] == ["residual"]


def test_attributions_that_were_rounded_again_in_a_colder_tier_are_equal_once_rounded_so(
    scored: Scored,
) -> None:
    for place in range(0, 120, 12):
        stored = scored.record(place)
        assert stored.attributions is not None
        values = np.array([list(stored.attributions.values())], np.float32)
        fewer, left = rounded(values, np.array([stored.residual], np.float32), 6)
        named = dict(zip(stored.attributions, fewer[0].tolist(), strict=True))
        cold = replace(stored, attributions=named, residual=float(left[0]), attribution_bits=6)
        found = reproduce(scored.settings, scored.spec, cold)
        assert found.reproduced and found.attributions_bit_equal_once_rounded


def test_another_baseline_or_feature_version_is_named(scored: Scored) -> None:
    record = replace(
        scored.record(), feature_computation_version="0+abc", background_id="0" * 16, base_value=9.0
    )
    found = reproduce(scored.settings, scored.spec, record)
    assert [(one.part, one.name) for one in found.differences] == [
        ("version", "feature_computation_version"),
        ("version", "background_id"),
        ("base_value", None),
        ("residual", None),
    ]


def test_another_explainer_is_not_compared_with(scored: Scored) -> None:
    record = replace(scored.record(), explainer_version="0")
    found = reproduce(scored.settings, scored.spec, record)
    assert found.reproduced and found.attributions_compared == 0
    assert "they were made by deeplift-rescale 0" in found.not_compared[0]


def test_a_row_of_origin_that_is_another_row_is_named(scored: Scored) -> None:
    record = scored.record()
    found = reproduce(scored.settings, scored.spec, replace(record, source_row=record.source_row + 1))
    assert found.differences[0].part == "identity" and found.differences[0].recorded == record.prediction_id
    found = reproduce(scored.settings, scored.spec, replace(record, source_row=120))
    assert [(one.part, one.computed) for one in found.differences] == [("identity", "0 to 119")]


@pytest.mark.parametrize("gone", ["partition", "snapshot", "damaged"])
def test_without_its_source_a_prediction_is_reproduced_from_the_recorded_features(
    scored: Scored, gone: str
) -> None:
    record = scored.record()
    key = record.source_key if gone != "snapshot" else f"snapshots/{record.source_snapshot}.json"
    if gone == "damaged":
        scored.store.put(key, scored.store.get(key)[:-1])
    else:
        scored.store.delete(key)
    found = reproduce(scored.settings, scored.spec, record)
    assert found.reproduced and (found.features_from, found.score_of_source) == (None, None)
    assert found.not_compared[0].startswith("features: ")
    assert Path(key).stem in found.not_compared[0]


def test_an_online_prediction_has_no_source_row(scored: Scored) -> None:
    record = replace(scored.record(), source_snapshot=None, source_key="request-1", source_row=None)
    found = reproduce(scored.settings, scored.spec, record)
    assert found.reproduced and "made online" in found.not_compared[0]


def test_features_that_need_their_neighbours_are_computed_among_them(
    settings: Settings, toy: PipelineSpec, tmp_path: Path
) -> None:
    (settings.pipelines_dir / "toy" / "features.py").write_text(NEIGHBOURLY)
    whole = toy.inference.model_copy(update={"shard_rows": 500, "batch_rows": 500})
    scored = Scored(settings, toy.model_copy(update={"inference": whole}), tmp_path / "whole")
    found = reproduce(settings, toy, scored.record(4))
    assert found.reproduced and found.features_from == "source partition"


def test_features_of_neighbours_that_are_not_there_are_a_difference(
    settings: Settings, toy: PipelineSpec, tmp_path: Path
) -> None:
    (settings.pipelines_dir / "toy" / "features.py").write_text(NEIGHBOURLY)
    scored = Scored(settings, toy, tmp_path / "parts")
    found = reproduce(settings, toy, scored.record(4))
    assert [(one.part, one.name) for one in found.differences if one.part == "feature"] == [
        ("feature", "price")
    ]
    assert abs(found.score - found.recorded_score) <= found.score_tolerance, "the recorded ones still give it"


def test_bfloat16_scores_are_reproduced_within_its_precision(scored: Scored) -> None:
    record = scored.record()
    near = replace(record, prediction=record.prediction + 0.01)
    assert not reproduce(scored.settings, scored.spec, near).reproduced
    assert reproduce(scored.settings, scored.spec, near, bfloat16=True).reproduced

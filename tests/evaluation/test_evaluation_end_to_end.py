"""`evaluate` and `run_canary` on trained toy bundles in a real store."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tasks.core.errors import ConfigError, DataError, NotFound
from tasks.evaluation import Evaluation, evaluate, judge, load_evaluation, run_canary

VALIDATION_DAY = date(2024, 1, 29)


def run(toy: Any, snapshot: Any, candidate: str, champion: str | None = None) -> Evaluation:
    return evaluate(
        toy.settings,
        toy.spec,
        snapshot,
        candidate_digest=candidate,
        champion_digest=champion,
        validation_first_day=VALIDATION_DAY,
        check=toy.check,
    )


def regated(toy: Any, **changes: object) -> None:
    toy.spec = toy.spec.model_copy(update={"gates": toy.spec.gates.model_copy(update=changes)})


def failed(toy: Any, evaluation: Evaluation) -> set[str]:
    return {item.name for item in judge(toy.spec, evaluation).findings if item.status == "fail"}


def test_a_trained_model_is_evaluated_kept_and_passed(toy_store: Any, tmp_path: Path) -> None:
    regated(toy_store, slices=("device", "city", "month", "price"))
    candidate, champion = (
        toy_store.bundle(tmp_path / "a"),
        toy_store.bundle(tmp_path / "b", seed=1, steps=60),
    )
    snapshot = toy_store.snapshot()
    found = run(toy_store, snapshot, candidate, champion)

    verdict = judge(toy_store.spec, found)
    assert verdict.passed, verdict.reasons()
    assert set(found.models) == {"candidate", "champion", "baseline", "constant"}
    assert found.models["candidate"]["auc"].value > 0.7
    assert found.models["baseline"]["auc"].value > 0.7, "logistic regression can learn this world too"
    assert found.models["constant"]["auc"].value == 0.5
    assert found.validation_days == 7
    assert 0 < found.unlabelled_rows < 40
    assert found.rows + found.unlabelled_rows == 7 * 120
    assert {item.column for item in found.slices} == {"device", "city", "month", "price"}
    assert {item.value for item in found.slices if item.column == "month"} == {"2024-01", "2024-02"}
    assert sum(item.rows for item in found.slices if item.column == "city") == found.rows
    assert "(null)" in {item.value for item in found.slices if item.column == "price"}
    assert all(check.passed for check in found.checks) and len(found.checks) == 7
    assert [item.batch_rows for item in found.latency] == [1, 120]

    store = toy_store.store
    assert load_evaluation(store, found.evidence_key) == found
    scores = pq.read_table(
        pa.BufferReader(store.get(found.report_key.replace("report.html", "scores.parquet")))
    )
    assert scores.num_rows == found.rows
    report = store.get(found.report_key).decode()
    for word in ("Passed", "Logistic regression", "device", candidate):
        assert word in report
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|<script""", report), "works offline"


def test_equal_inputs_are_evaluated_once_and_evidence_is_never_replaced(
    toy_store: Any, tmp_path: Path
) -> None:
    candidate, snapshot = toy_store.bundle(tmp_path / "a"), toy_store.snapshot()
    first = run(toy_store, snapshot, candidate)
    toy_store.store.delete(snapshot.partitions[0].key)  # a second measurement would miss it
    assert run(toy_store, snapshot, candidate) == first
    listed = {info.key for info in toy_store.store.list("evaluation")}
    assert len(listed) == 3


def test_a_new_measurement_after_lost_evidence_gives_the_same_numbers(toy_store: Any, tmp_path: Path) -> None:
    candidate, snapshot = toy_store.bundle(tmp_path / "a"), toy_store.snapshot()
    first = run(toy_store, snapshot, candidate)
    toy_store.store.delete(first.evidence_key)
    again = run(toy_store, snapshot, candidate)
    assert (again.models, again.slices, again.checks) == (first.models, first.slices, first.checks)


def test_other_gates_or_another_champion_get_evidence_of_their_own(toy_store: Any, tmp_path: Path) -> None:
    candidate, snapshot = toy_store.bundle(tmp_path / "a"), toy_store.snapshot()
    keys = {
        run(toy_store, snapshot, candidate).evidence_key,
        run(toy_store, snapshot, candidate, candidate).evidence_key,
    }
    regated(toy_store, slices=("city",))
    keys.add(run(toy_store, snapshot, candidate).evidence_key)
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ({"constant": True}, "behaviour: not constant"),
        ({"not_finite": True}, "behaviour: finite predictions"),
        ({"shuffle_labels": True}, "min_auc"),
        ({"slope": 0.05, "intercept": 2.0}, "calibration"),
        (
            {"break_slice": lambda rows: rows["device"].to_numpy(zero_copy_only=False) == "phone"},
            "slice device=phone",
        ),
    ],
)
def test_planted_bad_models_are_refused_by_the_rule_made_for_them(
    toy_store: Any, tmp_path: Path, fault: dict[str, Any], rule: str
) -> None:
    regated(toy_store, min_auc=0.6)
    found = run(toy_store, toy_store.snapshot(), toy_store.bundle(tmp_path / "bad", **fault))
    assert rule in failed(toy_store, found)
    assert judge(toy_store.spec, found).outcome == "fail"


LEAKS = {
    "the label itself, with noise": "pc.add(pc.cast(rows['hint'], pa.float64()), pc.divide(pc.fill_null(rows['price'], 0), 1e6))",
    "missing exactly when the label is 0": "pc.if_else(pc.equal(rows['hint'], 1), pc.cast(rows['visits'], pa.float64()), None)",
    "far from the middle when the label is 1": "pc.multiply(pc.cast(rows['hint'], pa.float64()), "
    "pc.subtract(pc.multiply(pc.cast(pc.less(rows['visits'], 3), pa.float64()), 2), 1))",
}


@pytest.mark.parametrize("how", LEAKS)
def test_a_planted_leak_is_refused_by_the_name_of_its_feature(
    toy_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    plain = toy_store.rows

    def with_hint(first: date, last: date) -> pa.Table:
        rows = plain(first, last)
        return rows.append_column("hint", pc.fill_null(rows["bought"], 0))

    monkeypatch.setattr(toy_store, "rows", with_hint)
    source = (
        'import pyarrow as pa, pyarrow.compute as pc\nFEATURE_VERSION = "2"\n'
        f"def features(rows):\n    leak = {LEAKS[how]}\n"
        '    return rows.select(["price", "city", "device"]).append_column("visits", leak)\n'
    )
    found = run(toy_store, toy_store.snapshot(), toy_store.bundle(tmp_path / "a", features_source=source))
    assert {name for name in failed(toy_store, found) if name.startswith("leakage")} == {"leakage: visits"}
    assert found.single_features[0].auc.value > 0.95


@pytest.mark.parametrize(
    ("seconds", "lead", "status"),
    [(0, 0, "pass"), (-3600, 60, "pass"), (-3600, 61, "fail"), (1, 0, "fail"), (None, 0, "fail")],
)
def test_a_feature_newer_than_its_prediction_is_refused_and_an_undated_one_as_well(
    toy_store: Any, tmp_path: Path, seconds: int | None, lead: int, status: str
) -> None:
    def dated(table: pa.Table) -> pa.Table:
        if seconds is None:
            return table.append_column("seen_at", pa.nulls(len(table), pa.timestamp("us", tz="UTC")))
        moved = pc.add(table["asked_at"], pa.scalar(seconds * 1_000_000, pa.duration("us")))
        return table.append_column("seen_at", moved)

    regated(toy_store, known_at={"visits": "seen_at"}, prediction_lead_minutes=lead)
    found = run(toy_store, toy_store.snapshot(change=dated), toy_store.bundle(tmp_path / "a"))
    verdict = judge(toy_store.spec, found)
    assert {item.name: item.status for item in verdict.findings}["known in time: visits"] == status
    assert found.feature_times[0].rows == 35 * 120, "train days count as well"


def test_a_time_that_is_no_timestamp_is_an_error_that_names_the_field(toy_store: Any, tmp_path: Path) -> None:
    regated(toy_store, known_at={"visits": "city"})
    with pytest.raises(ConfigError, match=r"gates.known_at.visits: city"):
        run(toy_store, toy_store.snapshot(), toy_store.bundle(tmp_path / "a"))


def test_features_that_depend_on_the_batch_are_refused(toy_store: Any, tmp_path: Path) -> None:
    source = (
        'import pyarrow as pa, pyarrow.compute as pc\nFEATURE_VERSION = "2"\n'
        "def features(rows):\n"
        '    price = pc.subtract(rows["price"], pc.mean(rows["price"]))\n'
        '    return rows.select(["visits", "city", "device"]).append_column("price", price)\n'
    )
    found = run(toy_store, toy_store.snapshot(), toy_store.bundle(tmp_path / "a", features_source=source))
    assert "behaviour: batch composition" in failed(toy_store, found)


def test_features_that_crash_on_nulls_are_refused_with_the_reason(toy_store: Any, tmp_path: Path) -> None:
    source = (
        'FEATURE_VERSION = "2"\n'
        "def features(rows):\n"
        '    assert rows["visits"].null_count < len(rows), "no visits"\n'
        '    return rows.select(["price", "visits", "city", "device"])\n'
    )
    found = run(toy_store, toy_store.snapshot(), toy_store.bundle(tmp_path / "a", features_source=source))
    assert failed(toy_store, found) == {"behaviour: null inputs"}
    assert any("no visits" in check.detail for check in found.checks)


def test_a_champion_that_cannot_score_these_rows_leaves_the_gate_undecided(
    toy_store: Any, tmp_path: Path
) -> None:
    candidate = toy_store.bundle(tmp_path / "a")
    found = run(toy_store, toy_store.snapshot(), candidate, "f" * 64)
    assert found.champion_error
    assert judge(toy_store.spec, found).outcome == "inconclusive"


def test_a_candidate_that_does_not_exist_is_named(toy_store: Any) -> None:
    with pytest.raises(NotFound, match="f" * 16):
        run(toy_store, toy_store.snapshot(), "f" * 64)


def test_labels_of_one_class_end_in_an_error_that_names_the_column(toy_store: Any, tmp_path: Path) -> None:
    def all_bought(table: pa.Table) -> pa.Table:
        place = table.column_names.index("bought")
        return table.set_column(place, "bought", pa.array(np.ones(table.num_rows), pa.int8()))

    candidate = toy_store.bundle(tmp_path / "a")
    with pytest.raises(DataError, match="bought"):
        run(toy_store, toy_store.snapshot(change=all_bought), candidate)
    assert not list(toy_store.store.list("evaluation"))


def test_an_unknown_slice_is_an_error_that_lists_what_there_is(toy_store: Any, tmp_path: Path) -> None:
    regated(toy_store, slices=("divice",))
    with pytest.raises(ConfigError, match=r"gates.slices: divice[\s\S]*device"):
        run(toy_store, toy_store.snapshot(), toy_store.bundle(tmp_path / "a"))


def test_a_snapshot_without_validation_days_is_an_error(toy_store: Any, tmp_path: Path) -> None:
    snapshot = toy_store.snapshot(last=date(2024, 1, 10))
    with pytest.raises(DataError, match="no validation day"):
        run(toy_store, snapshot, toy_store.bundle(tmp_path / "a"))


def canary(toy: Any, snapshot: Any, challenger: str, champion: str) -> Any:
    return run_canary(
        toy.settings, toy.spec, snapshot, challenger_digest=challenger, champion_digest=champion
    )


def test_the_canary_rolls_back_a_bad_challenger_and_keeps_its_evidence(
    toy_store: Any, tmp_path: Path
) -> None:
    good = toy_store.bundle(tmp_path / "a")
    bad = toy_store.bundle(tmp_path / "b", shuffle_labels=True)
    week = toy_store.snapshot(date(2024, 2, 5), date(2024, 2, 14))
    verdict = canary(toy_store, week, bad, good)
    assert verdict.outcome == "fail"
    assert canary(toy_store, week, bad, good) == verdict
    evidence = json.loads(toy_store.store.get(verdict.evidence_key))
    assert len(evidence["days"]) == len(evidence["sequence"]) == toy_store.spec.canary.days == 7
    assert b"Roll back" in toy_store.store.get(verdict.report_key)


def test_the_canary_never_rolls_back_a_better_challenger(toy_store: Any, tmp_path: Path) -> None:
    good = toy_store.bundle(tmp_path / "a")
    bad = toy_store.bundle(tmp_path / "b", shuffle_labels=True)
    week = toy_store.snapshot(date(2024, 2, 5), date(2024, 2, 11))
    assert canary(toy_store, week, good, bad).outcome == "pass"
    assert canary(toy_store, week, good, good).outcome == "pass"


def test_the_canary_scores_only_its_slice_of_entities(toy_store: Any, tmp_path: Path) -> None:
    good = toy_store.bundle(tmp_path / "a")
    toy_store.spec = toy_store.spec.model_copy(
        update={"canary": toy_store.spec.canary.model_copy(update={"slice_share": 0.5})}
    )
    week = toy_store.snapshot(date(2024, 2, 5), date(2024, 2, 8))
    verdict = canary(toy_store, week, good, good)
    rows = [item["rows"] for item in json.loads(toy_store.store.get(verdict.evidence_key))["days"]]
    assert all(35 < count < 85 for count in rows)


def test_the_canary_refuses_a_snapshot_without_labels(toy_store: Any, tmp_path: Path) -> None:
    good = toy_store.bundle(tmp_path / "a")
    bare = toy_store.snapshot(
        date(2024, 2, 5), date(2024, 2, 6), change=lambda table: table.drop_columns(["bought", "paid"])
    )
    with pytest.raises(DataError, match="bought"):
        canary(toy_store, bare, good, good)


def test_the_canary_rolls_back_a_challenger_that_predicts_nothing_finite(
    toy_store: Any, tmp_path: Path
) -> None:
    good, broken = toy_store.bundle(tmp_path / "a"), toy_store.bundle(tmp_path / "b", not_finite=True)
    week = toy_store.snapshot(date(2024, 2, 5), date(2024, 2, 11))
    assert canary(toy_store, week, broken, good).outcome == "fail"

"""Training twice gives the same model, and what keeps it from that is seen and named."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from training_support import VALIDATION_FIRST_DAY

from tasks.core import PartitionFile, PipelineSpec, Settings, Snapshot
from tasks.core.errors import PipelineCodeError
from tasks.training.reproducing import Attempt, Reproduction, reproduce, sample_days


def twice(settings: Settings, spec: PipelineSpec, snapshot: Snapshot, **more: Any) -> Reproduction:
    return reproduce(settings, spec, snapshot, validation_first_day=VALIDATION_FIRST_DAY, **more)


def short(spec: PipelineSpec) -> PipelineSpec:
    return spec.model_copy(update={"training": spec.training.model_copy(update={"epochs": 2})})


def both(first: tuple[str, float], second: tuple[str, float], tolerance: float) -> Reproduction:
    attempts = [Attempt(inputs, f"{auc}", auc, 2) for inputs, auc in (first, second)]
    return Reproduction("s", 7, 100, 5, True, attempts[0], attempts[1], tolerance)


def test_two_trainings_in_two_processes_give_the_same_weights(
    settings: Settings, toy: PipelineSpec, snapshot: Snapshot
) -> None:
    found = twice(settings, short(toy), snapshot)
    assert found.reproducible and found.same_weights and found.whole
    assert found.first == found.second and found.first.validation_auc > 0.5
    assert "last bit" in found.detail


def test_features_that_differ_from_process_to_process_are_refused_with_the_cause(
    settings: Settings, toy: PipelineSpec, snapshot: Snapshot
) -> None:
    path = settings.pipelines_dir / "toy" / "features.py"
    path.write_text(
        "import numpy as np\nimport pyarrow as pa\n\nFEATURE_VERSION = '1'\n\n\ndef features(rows):\n"
        "    noise = pa.array(np.random.default_rng().normal(size=rows.num_rows))\n"
        "    return rows.select(['visits', 'city', 'device']).append_column('price', noise)\n"
    )
    exact = toy.model_copy(update={"gates": toy.gates.model_copy(update={"reproducibility_tolerance": 0.0})})
    found = twice(settings, short(exact), snapshot, sample_rows=1200)
    assert not found.reproducible and not found.whole and found.days < 35
    assert found.first.inputs_digest != found.second.inputs_digest
    assert "features.py" in found.detail


def test_code_that_fails_is_the_error_that_training_would_give(
    settings: Settings, toy: PipelineSpec, snapshot: Snapshot
) -> None:
    path = settings.pipelines_dir / "toy" / "model.py"
    path.write_text("def build(spec):\n    raise ValueError('no such layer')\n")
    with pytest.raises(PipelineCodeError, match="no such layer"):
        twice(settings, toy, snapshot)


@pytest.mark.parametrize(
    ("second", "tolerance", "reproducible", "word"),
    [
        (("x", 0.7), 0.0, True, "last bit"),
        (("x", 0.7005), 0.001, True, "model.py"),
        (("x", 0.71), 0.001, False, "model.py"),
        (("y", 0.71), 0.001, False, "features.py"),
        (("x", float("nan")), 1.0, False, "model.py"),
    ],
)
def test_trainings_are_equal_by_weights_or_within_the_tolerance(
    second: tuple[str, float], tolerance: float, reproducible: bool, word: str
) -> None:
    found = both(("x", 0.7), second, tolerance)
    assert found.reproducible is reproducible
    assert word in found.detail


def test_a_sample_keeps_evenly_spaced_days_on_both_sides_and_all_of_a_small_snapshot() -> None:
    first = date(2024, 1, 1)
    parts = [PartitionFile(first + timedelta(days=i), f"k{i}", 100, 1, "", (100,)) for i in range(40)]
    split = first + timedelta(days=30)
    assert sample_days(parts, split, 4000) == parts
    found = sample_days(parts, split, 2000)
    assert [part.day for part in found] == sorted(part.day for part in found)
    before = [part for part in found if part.day < split]
    assert (len(before), len(found) - len(before)) == (15, 5)
    assert (before[0], before[-1], found[-1]) == (parts[0], parts[29], parts[39])

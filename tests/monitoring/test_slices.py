"""Performance by slice: what is worse is found, what is not is left alone, and small slices are not judged."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from test_causes import at, labelled

from tasks.monitoring.slices import SlicePerformance, slice_performance, slice_reference


def drawn(n: int, seed: int, *, shift: dict[str, float] | None = None, cities: int = 12) -> pa.Table:
    """Calibrated rows; `shift` moves the odds of the label of some cities away from the score's."""
    rng = np.random.default_rng(seed)
    p = rng.beta(1.2, 2.4, n)
    city = np.array([f"c{i:02d}" for i in rng.integers(0, cities, n)])
    odds = np.log(p / (1 - p)) + np.array([(shift or {}).get(name, 0.0) for name in city])
    y = (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(float)
    return pa.table({"prediction": p, "label": y, "city": city})


def test_calibrated_rows_seldom_have_a_finding():
    """Family-wise 5 %: of 100 quiet comparisons of 12 slices, fewer than a dozen find anything."""
    found = [slice_performance(drawn(6000, seed), ("city",), days=[at(0)]) for seed in range(100)]
    assert sum(any(item.found for item in one.slices) for one in found) < 12


def test_one_turned_slice_is_apart_and_the_rest_holds():
    found = labelled(lambda city, device: city == "Chur")
    worst = found.slices[0]
    assert (worst.name, worst.found, worst.apart) == ("city = Chur", "ranks worse", True)
    assert worst.rest_z > -3 and worst.auc < worst.expected_auc
    assert [item.name for item in found.apart if item.column == "city"] == ["city = Chur"]


def test_another_rate_in_one_slice_is_found_though_its_ranking_is_intact():
    found = slice_performance(drawn(12_000, 3, shift={"c03": 1.0}), ("city",), days=[at(0)])
    assert [(item.name, item.found) for item in found.apart] == [("city = c03", "other rate")]


def test_what_a_slice_was_off_on_validation_days_is_not_held_against_it():
    usual = {"c03": 1.0}
    reference = slice_reference([drawn(3000, 10 + i, shift=usual) for i in range(8)], ("city",))
    assert reference.days == 8 and reference.rate_spread >= 1
    rows = drawn(12_000, 3, shift=usual)
    assert slice_performance(rows, ("city",), days=[at(0)]).apart
    assert not slice_performance(rows, ("city",), days=[at(0)], reference=reference).apart


def test_days_that_spread_more_than_sampling_widen_the_test():
    rng = np.random.default_rng(2)
    days = [drawn(3000, i, shift={f"c{j:02d}": rng.normal(0, 0.6) for j in range(12)}) for i in range(12)]
    assert slice_reference(days, ("city",)).rate_spread > 1.5


def test_a_slice_of_ten_rows_and_one_of_one_class_are_shown_and_not_judged():
    rows = pa.table(
        {
            "prediction": [0.2] * 10 + list(np.linspace(0.05, 0.4, 80)) + list(np.linspace(0.1, 0.9, 200)),
            "label": [1.0] * 10 + [0.0] * 80 + [float(i % 3 == 0) for i in range(200)],
            "city": ["tiny"] * 10 + ["one"] * 80 + ["big"] * 200,
        }
    )
    found = {item.value: item for item in slice_performance(rows, ("city",), days=[at(0)]).slices}
    assert {name: item.state for name, item in found.items()} == {
        "tiny": "too_few",
        "one": "one_class",
        "big": "judged",
    }
    assert found["tiny"].auc_z is None and found["tiny"].rate_z is None and not found["tiny"].found
    assert found["one"].auc is None and found["one"].rate_z is not None


def test_a_reference_of_no_rows_takes_the_scores_at_their_word():
    assert slice_reference([], ("city",)).usual == {}
    empty = drawn(0, 1)
    assert slice_reference([empty], ("city",)).usual == {}
    found = slice_performance(drawn(2000, 1), ("city",), days=[at(0)], reference=slice_reference([], ()))
    assert "taken at their word" in found.statement


def test_a_single_slice_has_no_rest_to_be_compared_with():
    rows = drawn(2000, 1, shift={"c00": 2.0}, cities=1)
    (only,) = slice_performance(rows, ("city",), days=[at(0)]).slices
    assert only.found and not only.apart and only.apart_z is None


def test_slices_are_records_that_json_gives_back():
    found = labelled(lambda city, device: city == "Chur")
    assert SlicePerformance.from_json(found.to_json()) == found

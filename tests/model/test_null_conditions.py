"""Nulls that a pipeline lets expect are counted exactly, row by row; what a condition cannot be asked of is said at training."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks.core.errors import ConfigError, DataError
from tasks.core.sampling import CountedRows
from tasks.core.spec import PipelineSpec, parse_pipeline
from tasks.model.null_conditions import check_null_conditions, expected_nulls, null_conditions
from tasks.model.profile import Profile, ProfileSpec

TEXT = """
name: shop
description: d
owner: o
source: {kind: python, uri: s.py}
entity_key: [k]
event_time: t
label: {column: y}
features: {numeric: [price, visits], categorical: {city: {}}}
split: {train_days: 7, validation_days: 7}
validation: {suite: shop}
drift: {null_when: %s}
"""

FEATURES = pa.table(
    {
        "price": pa.array([1.0, None, None, float("nan"), None, 2.0], pa.float64()),
        "visits": pa.array([1.0, 0.0, None, 0.0, 3.0, 0.0], pa.float64()),
        "city": pa.array(["Bern", None, "Chur", None, "Bern", "Bern"]),
    }
)
SOURCE = {
    "gate": ["open", "closed", "closed", "shut", None, "closed"],
    "sales": pa.array([5, 0, 0, 0, 7, 0], pa.int16()),
    "stock": pa.array([None, 0, None, 1, 0, 0], pa.int64()),
    "weight": pa.array([1.0, float("nan"), None, 1.0, 0.5, 2.0]),
    "paid": [True, False, True, False, False, None],
    "total": pa.array(
        [Decimal("0.00"), Decimal("0.00"), None, Decimal("0.50"), None, None], pa.decimal128(5, 2)
    ),
    "shelf": pa.array(["A", "B", "A", "A", "B", "A"]).dictionary_encode(),
}
ROWS = pa.table(SOURCE)


def spec_of(null_when: dict[str, Any]) -> PipelineSpec:
    return parse_pipeline(TEXT % json.dumps(null_when), origin="test")


def expected(feature: str, **when: Any) -> int:
    return expected_nulls(null_conditions(spec_of({feature: when})), FEATURES, ROWS)[feature]


@pytest.mark.parametrize(
    ("feature", "when", "count"),
    [
        ("price", {"gate": "closed"}, 2),
        ("price", {"gate": ["closed", "shut"]}, 3),
        ("price", {"gate": None}, 1),
        ("price", {"gate": ["shut", None]}, 2),
        ("price", {"sales": 0}, 3),
        ("price", {"sales": 0.0}, 3),
        ("price", {"sales": 0, "gate": "closed"}, 2),
        ("price", {"stock": 0}, 2),
        ("price", {"stock": [1, None]}, 2),
        ("price", {"weight": None}, 2),
        ("price", {"weight": [0.5, None]}, 3),
        ("price", {"weight": 0.5}, 1),
        ("price", {"paid": False}, 3),
        ("price", {"total": 0}, 1),
        ("price", {"total": 0.5}, 1),
        ("price", {"shelf": "B"}, 2),
        ("price", {"visits": 0}, 2),
        ("price", {"city": None}, 2),
        ("city", {"gate": "closed"}, 1),
        ("city", {"price": None}, 2),
        ("price", {"gate": "clsed"}, 0),
    ],
    ids=str,
)
def test_a_null_is_expected_where_every_column_has_one_of_its_values(
    feature: str, when: dict[str, Any], count: int
) -> None:
    assert expected(feature, **when) == count


def test_a_source_column_is_asked_before_a_feature_of_its_name() -> None:
    rows = ROWS.append_column("visits", pa.array([0, 9, 9, 9, 0, 0]))
    conditions = null_conditions(spec_of({"price": {"visits": 0}}))
    assert expected_nulls(conditions, FEATURES, rows) == {"price": 1}
    assert expected_nulls(conditions, FEATURES, None) == {"price": 2}


@pytest.mark.parametrize("when", [{"nowhere": 0}, {"gate": 0, "sales": "many"}, {"sales": 0.5}], ids=str)
def test_what_cannot_be_asked_of_rows_that_are_scored_makes_no_null_expected(when: dict[str, Any]) -> None:
    assert expected("price", **when) == 0


def test_without_source_rows_only_features_are_asked() -> None:
    conditions = null_conditions(spec_of({"price": {"gate": "closed"}, "city": {"visits": 0}}))
    assert expected_nulls(conditions, FEATURES, None) == {"price": 0, "city": 2}


def test_what_conditions_ask_alike_is_still_told_by_type() -> None:
    rows = pa.table({"flag": ["true", "1", "true", "1", "1", "0"]})
    conditions = null_conditions(spec_of({"price": {"flag": True}, "city": {"flag": 1}}))
    assert expected_nulls(conditions, FEATURES, rows) == {"price": 1, "city": 2}


def test_training_refuses_a_column_that_is_not_there_and_a_value_that_it_cannot_hold() -> None:
    check_null_conditions(
        spec_of({"price": {"gate": ["closed", None], "sales": 0}, "city": {"price": None}}), ROWS
    )
    with pytest.raises(ConfigError, match=r"drift\.null_when\.price\.sale: .*did you mean sales\?") as caught:
        check_null_conditions(spec_of({"price": {"sale": 0}}), ROWS)
    assert "use one of: city, gate, paid" in caught.value.fix
    with pytest.raises(ConfigError, match=r"null_when\.price\.sales: \['none'\] cannot be compared .* int16"):
        check_null_conditions(spec_of({"price": {"sales": "none"}}), ROWS)
    with pytest.raises(ConfigError, match="double"):
        check_null_conditions(spec_of({"city": {"price": "none"}}), ROWS)


def test_a_profile_counts_expected_nulls_and_merges_and_keeps_them() -> None:
    spec = spec_of({"city": {"gate": "closed"}, "price": {"sales": 0}})
    grid = ProfileSpec.fit(FEATURES, None, spec)
    scores = np.full(6, 0.5)
    whole = Profile.of(grid, FEATURES, scores, rows=ROWS)
    assert whole.expected_nulls == {"price": 3, "city": 1} and whole.numeric["price"].nulls == 4
    parts = [Profile.of(grid, FEATURES.slice(at, 2), scores[:2], rows=ROWS.slice(at, 2)) for at in (0, 2, 4)]
    assert Profile.merged(grid, parts) == whole
    again = ProfileSpec.from_json(json.loads(json.dumps(grid.to_json())))
    assert again == grid and again.digest == grid.digest
    assert Profile.from_json(again, json.loads(json.dumps(whole.to_json()))) == whole
    assert [c.in_words for c in grid.null_conditions] == ["sales is 0", "gate is closed"]


def test_a_condition_is_said_as_it_is_written() -> None:
    (condition,) = null_conditions(spec_of({"price": {"paid": [False, None], "gate": "shut"}}))
    assert condition.in_words == "gate is shut and paid is false or null"


def test_profiles_under_other_conditions_do_not_mix_and_without_any_a_grid_is_what_it_was() -> None:
    plain, one, other = (
        ProfileSpec.fit(FEATURES, None, spec_of(when))
        for when in ({}, {"price": {"sales": 0}}, {"price": {"sales": 1}})
    )
    assert len({plain.digest, one.digest, other.digest}) == 3
    with pytest.raises(DataError, match="grid"):
        Profile.empty(one).merge(Profile.empty(other))
    assert set(plain.to_json()) == {"version", "numeric", "categorical", "pairs"}
    assert "expected_nulls" not in Profile.of(plain, FEATURES, np.full(6, 0.5), rows=ROWS).to_json()


def test_source_rows_of_another_length_are_refused() -> None:
    grid = ProfileSpec.fit(FEATURES, None, spec_of({"price": {"sales": 0}}))
    with pytest.raises(DataError, match="are 5 for 6 feature rows"):
        Profile.of(grid, FEATURES, np.full(6, 0.5), rows=ROWS.slice(1))


@pytest.mark.parametrize("asked", ["gate", "visits"])
def test_in_a_sample_the_nulls_to_expect_stand_for_their_neighbours_as_all_counts_do(asked: str) -> None:
    grid = ProfileSpec.fit(
        FEATURES, None, spec_of({"price": {asked: {"gate": "closed", "visits": 0}[asked]}})
    )
    places = np.random.default_rng(3).integers(0, 6, 40_000)
    features, rows = FEATURES.take(pa.array(places)), ROWS.take(pa.array(places))
    scores = np.full(40_000, 0.5)
    whole = Profile.of(grid, features, scores, rows=rows)
    sampled = Profile.of(grid, features, scores, rows=rows, counted=CountedRows.among(features, 8))
    exact, found = (profile.expected_nulls["price"] for profile in (whole, sampled))
    assert found % 8 == 0 and abs(found - exact) < 4 * 8 * np.sqrt(exact / 8)
    assert found <= sampled.numeric["price"].nulls

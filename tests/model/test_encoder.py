"""The encoded matrix."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.errors import DataError
from tasks.core.spec import CategoricalSpec, FeatureSpec
from tasks.model import FeatureEncoder
from tasks.model.encoder import CLIP

SPEC = FeatureSpec(
    numeric=("full", "holes"),
    categorical={"c": CategoricalSpec(min_count=2), "d": CategoricalSpec(min_count=1)},
)
TRAIN = pa.table(
    {
        "full": [1.0, 2.0, 3.0, 4.0],
        "holes": [1.0, None, float("nan"), 3.0],
        "c": ["x", "x", "rare", None],
        "d": ["b", "a", "b", "a"],
    }
)


def test_columns_are_numbers_then_indicators_then_codes() -> None:
    encoder = FeatureEncoder.fit(TRAIN, SPEC)
    expected = [
        [-1.5 / np.sqrt(1.25), -1, 0, 1, 2],
        [-0.5 / np.sqrt(1.25), 0, 1, 1, 1],
        [0.5 / np.sqrt(1.25), 0, 1, 0, 2],
        [1.5 / np.sqrt(1.25), 1, 0, 0, 1],
    ]
    np.testing.assert_allclose(encoder.encode(TRAIN), expected, rtol=1e-6)
    assert encoder.encode(TRAIN).dtype == np.float32
    assert encoder.names == ("full", "holes", "c", "d")
    assert encoder.column_features == (0, 1, 1, 2, 3)
    assert encoder.cardinalities == (2, 3)
    assert (encoder.numeric_width, encoder.width) == (3, 5)


def test_null_unseen_and_infinite_values_encode_without_a_nan() -> None:
    odd = pa.table(
        {
            "full": [None, np.inf, 1e300],
            "holes": [-np.inf, 2.0, None],
            "c": [None, "new", "x"],
            "d": ["a", None, "z"],
        }
    )
    found = FeatureEncoder.fit(TRAIN, SPEC).encode(odd)
    np.testing.assert_array_equal(found, [[0, 0, 1, 0, 1], [0, 0, 0, 0, 0], [CLIP, 0, 1, 1, 0]])


def test_an_encoder_survives_its_json() -> None:
    encoder = FeatureEncoder.fit(TRAIN, SPEC)
    again = FeatureEncoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert again == encoder
    np.testing.assert_array_equal(again.encode(TRAIN), encoder.encode(TRAIN))


def test_frequencies_sum_to_one_and_means_are_those_of_the_encoded_columns() -> None:
    encoder = FeatureEncoder.fit(TRAIN, SPEC)
    encoded = encoder.encode(TRAIN)
    np.testing.assert_allclose(encoder.baseline_numeric, encoded[:, :3].mean(axis=0), atol=1e-7)
    for position, column in enumerate(encoder.categorical):
        shares = np.bincount(encoded[:, 3 + position].astype(int), minlength=column.cardinality) / 4
        np.testing.assert_allclose(column.frequencies, shares)


def test_a_constant_feature_encodes_as_zero() -> None:
    spec = FeatureSpec(numeric=("k",))
    table = pa.table({"k": [0.1 + 0.2] * 5})
    np.testing.assert_array_equal(FeatureEncoder.fit(table, spec).encode(table), np.zeros((5, 1)))


def test_a_feature_without_any_value_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="feature k"):
        FeatureEncoder.fit(pa.table({"k": pa.nulls(3, pa.float64())}), FeatureSpec(numeric=("k",)))


@given(
    st.lists(
        st.tuples(st.floats(width=64) | st.none(), st.text(max_size=3) | st.none()), min_size=1, max_size=40
    ),
    st.data(),
)
def test_a_row_encodes_the_same_alone_as_among_others(
    rows: list[tuple[float | None, str | None]], data: st.DataObject
) -> None:
    spec = FeatureSpec(numeric=("n",), categorical={"c": CategoricalSpec(min_count=1)})
    table = pa.table(
        {
            "n": pa.array([row[0] for row in rows], pa.float64()),
            "c": pa.array([row[1] for row in rows], pa.string()),
        }
    )
    try:
        encoder = FeatureEncoder.fit(table, spec)
    except DataError:
        return
    encoded = encoder.encode(table)
    index = data.draw(st.integers(0, len(rows) - 1))
    np.testing.assert_array_equal(encoder.encode(table.slice(index, 1))[0], encoded[index])
    assert np.isfinite(encoded).all() and np.abs(encoded[:, 0]).max() <= CLIP

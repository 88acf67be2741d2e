"""Which rows are explained: a function of the row, whatever travels with it. And which are counted of a large day."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core import PipelineSpec
from tasks.core.prediction_ids import PredictionIds
from tasks.core.sampling import (
    SampledRows,
    counted_among,
    explained_rows,
    in_slice,
    one_of_each,
    rows_counted_as_one,
)
from tasks.core.spec import parse_pipeline

N = 4000
PIPELINE = """
name: shop
description: d
owner: o
source: {kind: parquet, uri: x}
entity_key: [customer, region]
event_time: at
label: {column: bought}
features: {numeric: [price], categorical: {city: {}}}
split: {train_days: 5, validation_days: 2}
validation: {suite: shop}
training: {}
"""


def shop(**explanations: Any) -> PipelineSpec:
    raw = {**yaml.safe_load(PIPELINE), "explanations": explanations, "canary": {"slice_share": 0.25}}
    return parse_pipeline(yaml.safe_dump(raw), origin="shop")


def sampled(n: int = N, seed: int = 0) -> SampledRows:
    rng = np.random.default_rng(seed)
    customers = [f"c{i % (n // 2)}" for i in range(n)]
    regions = rng.integers(0, 3, n)
    entities = pa.array([f"{one}|{two}" for one, two in zip(customers, regions, strict=True)])
    return SampledRows(
        PredictionIds.of(entities, rng.integers(0, 10**15, n), shop()),
        entities,
        pa.table({"customer": customers, "region": regions}),
        pa.table({"price": rng.random(n), "city": rng.choice(["Basel", "Bern", None], n, p=[0.6, 0.2, 0.2])}),
        rng.random(n).astype(np.float32),
    )


ROWS = sampled()


def part(rows: SampledRows, index: np.ndarray[Any, Any]) -> SampledRows:
    at = pa.array(index, pa.int64())
    return SampledRows(
        rows.ids.take(index),
        rows.entities.take(at),
        rows.identity.take(at),
        rows.features.take(at),
        rows.scores[index],
    )


SHARE = st.floats(0, 1)
BANDS = st.lists(st.floats(0, 1), min_size=0, max_size=6, unique=True).map(
    lambda bounds: [list(pair) for pair in zip(sorted(bounds)[::2], sorted(bounds)[1::2], strict=False)]
)
STRATA = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {"column": st.just("city"), "shares": st.dictionaries(st.sampled_from(["Basel", "Bern", "X"]), SHARE, min_size=1)}
    ),
    st.fixed_dictionaries({"column": st.just("region"), "shares": st.dictionaries(st.integers(0, 4), SHARE, min_size=1)}),
)  # fmt: skip
POLICY = st.fixed_dictionaries(
    {"share": SHARE, "strata": STRATA, "score_bands": BANDS, "canary": st.booleans()}
)


@settings(max_examples=60)
@given(POLICY, st.integers(0, 2**32 - 1))
def test_a_row_is_chosen_or_not_whatever_batch_it_comes_in(policy: dict[str, Any], seed: int) -> None:
    spec = shop(**policy)
    whole = explained_rows(spec, ROWS)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(N)
    for index in np.array_split(shuffled, rng.integers(1, 7)):
        np.testing.assert_array_equal(explained_rows(spec, part(ROWS, index)), whole[index])
    for one in shuffled[:3]:
        assert explained_rows(spec, part(ROWS, np.array([one])))[0] == whole[one]


@settings(max_examples=40)
@given(POLICY, SHARE)
def test_a_larger_share_explains_what_the_smaller_one_did(policy: dict[str, Any], share: float) -> None:
    less, more = sorted((policy["share"], share))
    smaller = explained_rows(shop(**{**policy, "share": less}), ROWS)
    larger = explained_rows(shop(**{**policy, "share": more}), ROWS)
    assert (larger | ~smaller).all()


@settings(max_examples=40)
@given(POLICY)
def test_every_clause_adds_rows_and_takes_none_away(policy: dict[str, Any]) -> None:
    whole = explained_rows(shop(**policy), ROWS)
    alone = explained_rows(shop(share=policy["share"], strata=policy["strata"]), ROWS)
    bands = explained_rows(shop(share=0, score_bands=policy["score_bands"]), ROWS)
    canary = explained_rows(shop(share=0, canary=policy["canary"]), ROWS)
    np.testing.assert_array_equal(whole, alone | bands | canary)


@settings(max_examples=30)
@given(SHARE, SHARE)
def test_shares_are_about_those_that_were_asked_for(share: float, of_bern: float) -> None:
    chosen = explained_rows(
        shop(share=share, strata={"column": "city", "shares": {"Bern": of_bern}}), ROWS
    )  # fmt: skip
    bern = np.array([city == "Bern" for city in ROWS.features["city"].to_pylist()])
    for rows, wanted in ((bern, of_bern), (~bern, share)):
        spread = np.sqrt(wanted * (1 - wanted) / rows.sum())
        assert abs(chosen[rows].mean() - wanted) <= 5 * spread + 1e-9


def test_share_0_explains_nothing_and_share_1_everything() -> None:
    assert not explained_rows(shop(share=0), ROWS).any()
    assert explained_rows(shop(), ROWS).all()


def test_a_score_band_holds_both_of_its_ends() -> None:
    scores = np.array([0.1, 0.4, 0.5, 0.6, 0.60001, np.nextafter(np.float32(0.4), np.float32(0))], np.float32)
    rows = part(ROWS, np.arange(6))
    rows = SampledRows(rows.ids, rows.entities, rows.identity, rows.features, scores)
    chosen = explained_rows(shop(share=0, score_bands=[[0.4, 0.6]]), rows)
    assert chosen.tolist() == [False, True, True, True, False, False]


def test_a_stratum_of_the_entity_key_goes_by_the_text_of_its_value() -> None:
    chosen = explained_rows(shop(share=0, strata={"column": "region", "shares": {1: 1.0}}), ROWS)
    np.testing.assert_array_equal(chosen, np.asarray(ROWS.identity["region"]) == 1)


def test_canary_rows_are_those_of_the_entities_that_the_canary_scores() -> None:
    chosen = explained_rows(shop(share=0, canary=True), ROWS)
    np.testing.assert_array_equal(chosen, in_slice("shop", ROWS.entities, 0.25))
    assert 0.2 < chosen.mean() < 0.3


def test_the_slice_of_entities_is_stable_and_of_about_the_share() -> None:
    entities = [f"customer {index}" for index in range(5000)]
    chosen = in_slice("toy", entities, 0.2)
    assert np.array_equal(chosen[::-1], in_slice("toy", entities[::-1], 0.2))
    assert 0.17 < chosen.mean() < 0.23
    wider = in_slice("toy", entities, 0.5)
    assert np.all(wider[chosen])
    assert in_slice("toy", entities, 1.0).all() and not in_slice("toy", entities, 0.0).any()
    assert in_slice("toy", [], 0.2).shape == (0,)


def test_entities_that_were_in_the_slice_before_stay_in_it() -> None:
    """The choice of earlier releases: canaries of today's challengers began with it."""
    chosen = in_slice("toy", [f"c{i}" for i in range(12)], 0.5)
    assert [i for i, is_in in enumerate(chosen) if is_in] == [0, 2, 3, 7]


@pytest.mark.parametrize(
    ("explanations", "message"),
    [
        ({"score_bands": [[0.6, 0.4]]}, "from 0.6 down to 0.4: write the lowest score first"),
        ({"score_bands": [[0.5, 0.6], [0.1, 0.2]]}, "begins before the one up to 0.6 ends"),
        ({"score_bands": [[0.1, 0.3], [0.3, 0.4]]}, "join the two"),
        ({"score_bands": [[0.1, 1.3]]}, "explanations.score_bands.0.1"),
        ({"score_bands": [[0.1]]}, "explanations.score_bands.0"),
        ({"share": 1.5}, "explanations.share"),
        ({"strata": {"column": "city", "shares": {"Bern": -0.1}}}, "explanations.strata.shares.Bern"),
        ({"strata": {"column": "city", "shares": {}}}, "explanations.strata.shares"),
        ({"strata": {"column": "city", "shares": {False: 0.5}}}, "write it in quotes"),
        ({"strata": {"column": "town", "shares": {"Bern": 1}}}, "use one of: city, customer, region"),
        ({"strata": {"column": "price", "shares": {"1": 1}}}, "neither a categorical feature nor"),
        ({"canery": True}, "did you mean 'canary'?"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_named(explanations: dict[str, Any], message: str) -> None:
    from tasks.core.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        shop(**explanations)
    assert message in str(caught.value)


@pytest.mark.parametrize(("n", "size"), [(0, 4), (3, 4), (4, 4), (1_000, 7), (1_003, 8), (5_000, 1)])
def test_one_row_of_each_group_of_neighbours_is_chosen_and_the_last_group_takes_the_rest(n, size):
    places = one_of_each(n, size)
    assert places.tolist() == one_of_each(n, size).tolist()
    groups = np.minimum(places // size, n // size - 1)
    assert groups.tolist() == list(range(n // size))
    assert ((places >= 0) & (places < n)).all()


def test_a_shard_with_few_rows_counts_256_of_them_and_none_of_fewer_twice():
    assert counted_among(511, 64) is None and counted_among(50_000, 1) is None
    few, many = counted_among(1_000, 64), counted_among(50_000, 18)
    assert few is not None and (few.one_of, few.places.size) == (3, 333)
    assert many is not None and many.places.tolist() == one_of_each(50_000, 18).tolist()
    with pytest.raises(ValueError, match="read-only"):
        many.places[0] = 7  # the next shard gets the same


def test_the_chosen_rows_are_in_step_with_nothing_that_repeats():
    places = one_of_each(1 << 20, 16)
    for period in (2, 3, 16, 24, 60, 1_000):
        counts = np.bincount(places % period, minlength=period)
        expected = places.size / period
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected), period


def test_a_row_of_the_last_rows_may_be_chosen_too():
    assert any(one_of_each(n, 128)[-1] >= n // 128 * 128 for n in range(128_064, 128_127))


def test_days_are_counted_whole_until_half_of_their_rows_are_enough(toy):
    rows = {1: 1, 32_767: 1, 32_768: 2, 49_151: 2, 49_152: 3, 300_000: 18, 10_000_000: 610}
    assert {n: rows_counted_as_one(toy, n) for n in rows} == rows
    drift = toy.drift.model_copy(update={"min_rows": 100_000})
    asking = toy.model_copy(update={"drift": drift})
    assert rows_counted_as_one(asking, 199_999) == 1 and rows_counted_as_one(asking, 400_000) == 4

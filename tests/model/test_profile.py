"""Profiles merge exactly, survive JSON, and say clearly when they cannot be read."""

from __future__ import annotations

import json
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tasks.core.errors import ConfigError, DataError
from tasks.core.sampling import CountedRows
from tasks.core.spec import PipelineSpec, parse_pipeline
from tasks.model.attribution_sums import ExplainedRows
from tasks.model.binning import Bins
from tasks.model.profile import PROFILE_VERSION, Profile, ProfileSpec

SPEC: PipelineSpec = parse_pipeline(
    """
name: shop
description: d
owner: o
source: {kind: python, uri: s.py}
entity_key: [k]
event_time: t
label: {column: y}
features: {numeric: [price, visits], categorical: {city: {}, device: {}}}
split: {train_days: 7, validation_days: 7}
validation: {suite: shop}
drift: {pairs: [[city, device]]}
""",
    origin="test",
)


def rows(n: int, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    rng = np.random.default_rng(seed)
    price = rng.gamma(2, 10, n)
    price[rng.random(n) < 0.05] = np.nan
    table = pa.table(
        {
            "price": pa.array(price),
            "visits": pa.array(rng.poisson(3, n)),
            "city": pa.array(rng.choice(["Basel", "Bern", "Chur"], n, p=[0.6, 0.3, 0.1])),
            "device": pa.array(np.where(rng.random(n) < 0.1, None, rng.choice(["phone", "desk"], n))),
        }
    )
    return table, rng.random(n)


GRID = ProfileSpec.fit(rows(5_000)[0], None, SPEC)


def sample_of(
    table: pa.Table, scores: np.ndarray, one_of: int, explained: ExplainedRows | None = None
) -> Profile:
    return Profile.of(GRID, table, scores, explained, counted=CountedRows.among(table, one_of))


NUMBERS = st.one_of(
    st.none(),
    st.floats(allow_nan=True, allow_infinity=True, width=64),
    st.sampled_from([0.0, -0.0, 1e300, -1e300, 5e-324]),
)
CITIES = st.one_of(
    st.none(), st.sampled_from(["Basel", "Bern", "Chur", "Genf", "", "Zug"]), st.text(max_size=3)
)
ROW = st.tuples(
    NUMBERS,
    st.one_of(st.none(), st.integers(-5, 20)),
    CITIES,
    st.sampled_from([None, "phone", "desk", "watch"]),
    st.one_of(st.floats(0, 1), st.just(float("nan"))),
)


def table_of(items: list[tuple[object, ...]]) -> tuple[pa.Table, np.ndarray]:
    columns = list(zip(*items, strict=True)) or [()] * 5
    return (
        pa.table(
            {
                "price": pa.array(columns[0], pa.float64()),
                "visits": pa.array(columns[1], pa.int64()),
                "city": pa.array(columns[2], pa.string()),
                "device": pa.array(columns[3], pa.string()),
            }
        ),
        np.array(columns[4], dtype=np.float64),
    )


@given(st.lists(ROW, max_size=60), st.lists(st.integers(0, 60), max_size=4), st.randoms())
@hypothesis_settings(max_examples=200)
def test_the_merge_of_the_parts_in_any_order_is_the_profile_of_the_whole(items, cuts, random):
    table, scores = table_of(items)
    whole = Profile.of(GRID, table, scores)
    bounds = sorted({0, len(items), *(min(cut, len(items)) for cut in cuts)})
    parts = [Profile.of(GRID, table.slice(a, b - a), scores[a:b]) for a, b in pairwise(bounds)]
    random.shuffle(parts)
    merged = Profile.merged(GRID, parts)
    assert json.dumps(merged.to_json()) == json.dumps(whole.to_json())
    assert merged.input_digest == whole.input_digest


@given(st.lists(ROW, max_size=40))
@hypothesis_settings(max_examples=100)
def test_every_row_is_counted_once_in_every_channel(items):
    profile = Profile.of(GRID, *table_of(items))
    for channel in GRID.channels:
        assert profile.histogram(channel).sum() == len(items), channel


@given(st.lists(ROW, max_size=40))
@hypothesis_settings(max_examples=100)
def test_a_profile_survives_json_with_integer_counts_and_no_nan(items):
    profile = Profile.of(GRID, *table_of(items))
    text = json.dumps(profile.to_json(), allow_nan=False)
    grid = ProfileSpec.from_json(json.loads(json.dumps(GRID.to_json(), allow_nan=False)))
    assert grid == GRID and grid.digest == GRID.digest
    back = Profile.from_json(grid, json.loads(text))
    assert json.dumps(back.to_json()) == text
    assert all(isinstance(count, int) for count in json.loads(text)["numeric"]["price"]["counts"])


@pytest.mark.parametrize("distinct", [1, 40, 1_000, 3_000, 30_000], ids=lambda n: f"{n}-values")
@pytest.mark.parametrize("odd", [False, True], ids=["plain", "with-odd-values"])
def test_a_long_column_is_counted_by_value_as_the_short_parts_are_counted_row_by_row(distinct, odd):
    rng = np.random.default_rng(distinct)
    table, scores = rows(30_000, seed=4)
    values = rng.choice(rng.gamma(2, 10, distinct), 30_000)
    if odd:
        strange = [np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, -1e300, 1e300, *GRID.numeric[0].edges]
        values = np.where(rng.random(30_000) < 0.3, rng.choice(strange, 30_000), values)
    table = table.set_column(0, "price", pa.array(values, from_pandas=odd))
    attributions = rng.normal(0, 50 if odd else 1, (30_000, 4)).astype(np.float32)
    some = rng.random(30_000) < (0.5 if odd else 1.1)

    def of(start: int, stop: int) -> Profile:
        part = slice(start, stop)
        why = ExplainedRows(some[part], attributions[part][some[part]])
        return Profile.of(GRID, table.slice(start, stop - start), scores[part], why)

    parts = [of(start, start + 1_000) for start in range(0, 30_000, 1_000)]
    assert json.dumps(of(0, 30_000).to_json()) == json.dumps(Profile.merged(GRID, parts).to_json())


def test_moments_agree_with_numpy():
    table, scores = rows(4_000, seed=3)
    profile = Profile.of(GRID, table, scores)
    price = table.column("price").to_numpy()
    price = price[~np.isnan(price)]
    counts = profile.numeric["price"]
    assert counts.nulls == 4_000 - price.size
    assert counts.mean == pytest.approx(price.mean(), rel=1e-5)
    assert counts.std == pytest.approx(price.std(), rel=1e-4)
    assert counts.m2 == pytest.approx(((price - price.mean()) ** 2).sum(), rel=1e-4)
    assert (counts.low, counts.high) == (price.min(), price.max())
    assert profile.score.mean == pytest.approx(scores.mean())
    assert profile.score.expected_brier == pytest.approx((scores * (1 - scores)).mean())


def test_the_number_of_distinct_values_is_close_while_it_is_small():
    for distinct in (1, 3, 40, 300):
        table, scores = rows(3_000)
        values = pa.array(np.arange(3_000) % distinct * 1.7)
        table = table.set_column(0, "price", values)
        assert Profile.of(GRID, table, scores).numeric["price"].distinct == pytest.approx(distinct, rel=0.15)


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=62, unique=True),
    st.sampled_from([1.0, 1e-9, 1e150, 1e300]),
    st.integers(0, 2**32),
)
@hypothesis_settings(max_examples=60)
def test_the_fast_bin_search_agrees_with_searchsorted(edges, scale, seed):
    rng = np.random.default_rng(seed)
    grid = np.unique(np.array(edges) * scale)
    near = np.concatenate([grid, np.nextafter(grid, -np.inf), np.nextafter(grid, np.inf)])
    near = near[np.isfinite(near)]
    with np.errstate(over="ignore"):
        values = np.concatenate([rng.choice(near, 5_000), rng.normal(0, 500, 5_000) * scale])
    values = values[np.isfinite(values)]
    expected = np.searchsorted(grid, values, side="right")
    assert np.array_equal(Bins([grid])(values[None])[0], expected)
    both = Bins([[0.5, 2.0], grid])
    assert np.array_equal(both(np.stack([values, values]))[1] - both.starts[1], expected)
    assert np.array_equal(both.of(1)(values[None])[0], expected)


def test_a_feature_with_few_values_gets_one_bin_for_each():
    table, _ = rows(2_000)
    grid = ProfileSpec.fit(table, None, SPEC).numeric[1]
    distinct = len(set(table.column("visits").to_pylist()))
    assert grid.bins == distinct + 2


def test_values_out_of_the_references_range_are_counted_apart():
    table, scores = rows(1_000)
    grid = ProfileSpec.fit(table, None, SPEC)
    assert Profile.of(grid, table, scores).numeric["price"].out_of_range == 0
    shifted = table.set_column(0, "price", pa.array(np.full(1_000, -1.0)))
    assert Profile.of(grid, shifted, scores).numeric["price"].out_of_range == 1_000


def test_unseen_categories_are_counted_and_named_and_new_pairs_too():
    table, scores = rows(1_000)
    city = ["Zug"] * 10 + ["Genf"] * 5 + ["Basel"] * 985
    profile = Profile.of(GRID, table.set_column(2, "city", pa.array(city)), scores)
    assert profile.categorical["city"].unseen == 15
    assert profile.categorical["city"].unseen_examples == ("Genf", "Zug")
    only = pa.table({"price": [1.0], "visits": [1], "city": ["Basel"], "device": ["phone"]})
    grid = ProfileSpec.fit(
        pa.concat_tables(
            [only, only.set_column(2, "city", pa.array(["Bern"])).set_column(3, "device", pa.array(["desk"]))]
        ),
        None,
        SPEC,
    )
    crossed = only.set_column(3, "device", pa.array(["desk"]))
    assert Profile.of(grid, crossed, [0.5]).pairs["city x device"].novel == 1


def test_dictionary_encoded_and_chunked_columns_count_like_plain_ones():
    table, scores = rows(500)
    other = pa.concat_tables([table.slice(0, 200), table.slice(200)])
    other = other.set_column(2, "city", other.column("city").dictionary_encode())
    assert Profile.of(GRID, other, scores) == Profile.of(GRID, table, scores)


@pytest.mark.parametrize("n", [0, 500])
def test_columns_of_one_numeric_type_count_like_others_and_stay_as_they_are(n: int) -> None:
    table, scores = rows(n)
    other = table.set_column(1, "visits", table.column("visits").cast(pa.float64()))
    before = other.column("price").to_pylist()
    assert Profile.of(GRID, other, scores) == Profile.of(GRID, table, scores)
    assert np.array_equal(other.column("price").to_numpy(), np.array(before, dtype=float), equal_nan=True)


def test_zero_rows_all_nulls_and_one_category_are_profiles_like_any_other():
    table, scores = rows(50)
    empty = Profile.of(GRID, table.slice(0, 0), [])
    assert empty == Profile.empty(GRID)
    assert empty.score.expected_auc is None and empty.numeric["price"].mean is None
    nothing = pa.table({name: pa.nulls(50, table.schema.field(name).type) for name in table.column_names})
    profile = Profile.of(GRID, nothing, scores)
    assert profile.numeric["price"].nulls == 50 and profile.categorical["city"].nulls == 50
    grid = ProfileSpec.fit(nothing, None, SPEC)
    assert Profile.of(grid, table, scores).categorical["city"].unseen == 50
    assert Profile.of(grid, table, scores).histogram("price").sum() == 50


def test_the_input_digest_ignores_scores_and_nothing_else():
    table, scores = rows(300)
    one = Profile.of(GRID, table, scores)
    assert Profile.of(GRID, table, 1 - scores).input_digest == one.input_digest
    assert Profile.of(GRID, table.slice(1), scores[1:]).input_digest != one.input_digest


def test_expected_auc_of_calibrated_scores_is_close_to_the_realised_one():
    rng = np.random.default_rng(1)
    table, _ = rows(20_000)
    scores = rng.beta(2, 6, 20_000)
    labels = rng.random(20_000) < scores
    order = np.argsort(scores)
    ranks = np.empty(20_000)
    ranks[order] = np.arange(1, 20_001)
    positives = labels.sum()
    auc = (ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * (20_000 - positives))
    assert Profile.of(GRID, table, scores).score.expected_auc == pytest.approx(auc, abs=0.01)


def test_a_profile_of_a_newer_release_is_refused_with_the_fix():
    raw = Profile.empty(GRID).to_json() | {"version": PROFILE_VERSION + 1}
    with pytest.raises(DataError, match="this release reads up to") as caught:
        Profile.from_json(GRID, raw)
    assert "upgrade" in caught.value.fix
    with pytest.raises(DataError, match="reads up to"):
        ProfileSpec.from_json(GRID.to_json() | {"version": 99})
    with pytest.raises(DataError, match="has no version"):
        Profile.from_json(GRID, {key: value for key, value in raw.items() if key != "version"})


def test_profiles_of_different_grids_do_not_mix():
    other = ProfileSpec.fit(rows(500, seed=9)[0], None, SPEC)
    with pytest.raises(DataError, match="grid"):
        Profile.empty(GRID).merge(Profile.empty(other))
    with pytest.raises(DataError, match="grid"):
        Profile.from_json(other, Profile.empty(GRID).to_json())


def test_a_damaged_profile_is_named_as_such():
    raw = Profile.of(GRID, *rows(10)).to_json()
    raw["numeric"]["price"]["counts"] = raw["numeric"]["price"]["counts"][:-1]
    with pytest.raises(DataError, match="damaged"):
        Profile.from_json(GRID, raw)


def test_a_missing_or_wrong_column_is_named():
    table, scores = rows(10)
    with pytest.raises(DataError, match="feature city: is missing"):
        Profile.of(GRID, table.drop_columns(["city"]), scores)
    with pytest.raises(DataError, match="feature price: is string, not numeric"):
        Profile.of(GRID, table.set_column(0, "price", pa.array(["x"] * 10)), scores)
    with pytest.raises(DataError, match="for 10 feature rows"):
        Profile.of(GRID, table, scores[:5])


def test_a_watched_pair_must_be_of_categorical_features():
    wrong = SPEC.model_copy(update={"drift": SPEC.drift.model_copy(update={"pairs": (("city", "price"),)})})
    with pytest.raises(ConfigError, match="'price' is not a categorical feature"):
        ProfileSpec.fit(rows(100)[0], None, wrong)


def test_the_toy_pipeline_can_be_profiled(toy: PipelineSpec, settings):
    namespace: dict[str, object] = {}
    source = Path(settings.pipelines_dir / "toy" / "source.py").read_text(encoding="utf-8")
    exec(source, namespace)
    table = namespace["load"](date(2024, 1, 1), date(2024, 1, 3))  # type: ignore[operator]
    grid = ProfileSpec.fit(table, None, toy)
    profile = Profile.of(grid, table, np.full(table.num_rows, 0.3))
    assert profile.rows == 360 and "city x device" in grid.channels


def explained(values: object) -> ExplainedRows:
    found = np.asarray(values, dtype=np.float32).reshape(-1, 4)
    return ExplainedRows(np.ones(len(found), dtype=bool), found)


@given(
    st.lists(st.tuples(ROW, st.none() | st.lists(st.floats(width=32), min_size=4, max_size=4)), max_size=40),
    st.lists(st.integers(0, 40), max_size=4),
    st.randoms(),
)
@hypothesis_settings(max_examples=200)
def test_attribution_sums_merge_exactly_in_any_order_whichever_rows_were_explained(items, cuts, random):
    def of(part: list[tuple[tuple[object, ...], list[float] | None]]) -> Profile:
        table, scores = table_of([row for row, _ in part])
        mask = np.array([why is not None for _, why in part], dtype=bool)
        values = np.array([why for _, why in part if why is not None], dtype=np.float32).reshape(-1, 4)
        return Profile.of(GRID, table, scores, ExplainedRows(mask, values))

    whole = of(items)
    bounds = sorted({0, len(items), *(min(cut, len(items)) for cut in cuts)})
    shards = [of(items[a:b]) for a, b in pairwise(bounds)]
    random.shuffle(shards)
    assert json.dumps(Profile.merged(GRID, shards).to_json()) == json.dumps(whole.to_json())
    assert Profile.from_json(GRID, json.loads(json.dumps(whole.to_json(), allow_nan=False))) == whole
    if whole.attributions:
        assert [whole.attributions.counts[part].sum() for part in whole.attributions.parts] == [
            whole.attributions.rows
        ] * 4


def test_attribution_sums_say_on_what_scores_rest_and_leave_out_what_is_not_a_number():
    table, scores = rows(3)
    values = [[1.0, -1.0, 0.0, 2.0], [3.0, -1.0, 0.0, -2.0], [np.nan, 9.0, 9.0, 9.0]]
    found = Profile.of(GRID, table, scores, explained(values)).attributions
    assert found is not None and found.rows == 2
    assert found.means.tolist() == [2.0, 1.0, 0.0, 2.0]
    assert [int(found.signed[part].sum()) >> 20 for part in found.parts] == [4, -2, 0, 0]
    assert found.shares.tolist() == [0.4, 0.2, 0.0, 0.4]


@pytest.mark.parametrize("largest", [1.0, 31.0, 33.0, 3_000.0])
def test_attribution_sums_are_those_of_whole_numbers_however_large_they_are(largest):
    n = 20_000
    table, scores = rows(n, seed=2)
    values = np.random.default_rng(7).uniform(0.5, 1, (n, 4)).astype(np.float32) * np.float32(largest)
    found = Profile.of(GRID, table, scores, explained(values)).attributions
    assert found is not None
    fixed = np.clip(np.rint(values.astype(np.float64) * 2**20), -(2**31), 2**31).astype(np.int64)
    assert found.magnitude.tolist() == fixed.sum(axis=0).tolist()
    assert [found.signed[part].sum() for part in found.parts] == fixed.sum(axis=0).tolist()
    city = found.parts[2]
    for i, name in enumerate(GRID.categorical[0].categories):
        rows_of = np.array(table["city"].to_pylist()) == name
        assert found.counts[city][i] == rows_of.sum() and found.signed[city][i] == fixed[rows_of, 2].sum()


def test_attributions_are_summed_by_the_value_that_the_feature_had():
    city = ["Basel", "Bern", "Zug", None]
    table = rows(4)[0].set_column(2, "city", pa.array(city))
    found = Profile.of(GRID, table, np.full(4, 0.5), explained(np.arange(1, 5)[:, None] * np.ones(4)))
    assert found.attributions is not None
    part = found.attributions.parts[2]
    assert (found.attributions.signed[part] / 2**20).tolist() == [1.0, 2.0, 0.0, 3.0, 4.0]
    assert found.attributions.counts[part].tolist() == [1, 1, 0, 1, 1]


def test_a_profile_without_explained_rows_is_written_as_by_earlier_releases_and_its_digest_stays():
    table, scores = rows(50)
    plain = Profile.of(GRID, table, scores)
    assert "attributions" not in plain.to_json()
    with_sums = Profile.of(GRID, table, scores, explained(np.ones((50, 4))))
    assert with_sums.input_digest == plain.input_digest and with_sums != plain
    assert Profile.from_json(GRID, plain.to_json()).attributions is None
    assert plain.histogram("attributions").sum() == 0
    assert plain.merge(with_sums) == with_sums.merge(plain)


def test_attributions_of_other_features_than_the_grids_are_refused():
    table, scores = rows(5)
    with pytest.raises(DataError, match=r"\(5, 3\) for 5 explained rows and 4 features"):
        Profile.of(GRID, table, scores, ExplainedRows(np.ones(5, dtype=bool), np.ones((5, 3), np.float32)))
    raw = Profile.of(GRID, table, scores, explained(np.ones((5, 4)))).to_json()
    raw["attributions"]["signed"] = [1]
    with pytest.raises(DataError, match="damaged"):
        Profile.from_json(GRID, raw)


def test_rows_chosen_in_two_ways_are_marked_whatever_the_order():
    table, scores = rows(5)
    parts = [
        Profile.of(
            GRID, table, scores, ExplainedRows(np.ones(5, dtype=bool), np.ones((5, 4), np.float32), how)
        )
        for how in ("any", "bands", "any")
    ]
    for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2)):
        found = Profile.merged(GRID, (parts[i] for i in order)).attributions
        assert found is not None and found.selection == "mixed" and found.rows == 15


def test_a_sample_stands_for_all_rows_in_every_channel_and_says_how_many_were_counted():
    table, scores = rows(40_000, seed=3)
    whole, sampled = Profile.of(GRID, table, scores), sample_of(table, scores, 4)
    assert (sampled.rows, sampled.counted, sampled.each) == (40_000, 10_000, 4.0)
    for channel in GRID.channels:
        exact, found = whole.histogram(channel), sampled.histogram(channel)
        assert found.sum() == 40_000 and not (found % 4).any()
        # four standard errors of a share among 10,000 rows, in rows of which each stands for four
        error = 4 * 4 * np.sqrt(np.maximum(exact / 4 * (1 - exact / 40_000), 1))
        assert (np.abs(found - exact) <= error).all(), channel
    price = (whole.numeric["price"], sampled.numeric["price"])
    assert price[1].mean == pytest.approx(price[0].mean, abs=4 * 14 / 100)
    assert price[1].std == pytest.approx(price[0].std, rel=0.05)
    assert sampled.score.mean == pytest.approx(whole.score.mean, abs=4 * 0.29 / 100)


def test_samples_of_any_step_merge_to_their_rows_without_bias():
    rng = np.random.default_rng(1)
    errors = []
    for seed in range(30):
        parts = [
            (rows(n, seed=100 * seed + i), one_of)
            for i, (n, one_of) in enumerate([(9_000, 8), (3_000, 1), (6_100, 2)])
        ]
        rng.shuffle(parts)
        merged = Profile.merged(GRID, [sample_of(*part, one_of) for part, one_of in parts])
        exact = Profile.merged(GRID, [Profile.of(GRID, *part) for part, _ in parts])
        assert (merged.rows, merged.counted) == (18_100, 1_125 + 3_000 + 3_050)
        assert 18_100 - merged.histogram("city").sum() < 8 + 2
        errors.append(
            merged.categorical["city"].counts / merged.rows - exact.categorical["city"].counts / exact.rows
        )
    error = np.array(errors)
    assert (np.abs(error.mean(axis=0)) < 4 * error.std(axis=0) / np.sqrt(len(error)) + 10 / 18_100).all()


def test_the_same_rows_are_sampled_again_and_a_sampled_profile_survives_json():
    table, scores = rows(20_000, seed=5)
    sampled = sample_of(table, scores, 8)
    raw = json.loads(json.dumps(sampled.to_json(), allow_nan=False))
    assert (raw["version"], raw["rows"], raw["counted"]) == (2, 20_000, 2_500)
    assert Profile.from_json(GRID, raw) == sampled == sample_of(table, scores, 8)
    assert Profile.from_json(GRID, raw).counted == 2_500


def test_a_profile_of_all_rows_is_written_as_releases_without_samples_read_it():
    raw = sample_of(*rows(1_000), 1).to_json()
    assert raw["version"] == 1 and "counted" not in raw
    assert Profile.from_json(GRID, raw).counted == 1_000


@pytest.mark.parametrize(("n", "counted"), [(100, 100), (511, 511), (512, 256), (5_000, 5_000 // 19)])
def test_of_a_short_shard_at_least_256_rows_are_counted(n, counted):
    profile = sample_of(*rows(n), 64)
    assert (profile.rows, profile.counted) == (n, counted)
    assert n - profile.histogram("city").sum() < n / 256


def test_a_sample_of_a_large_table_needs_the_columns_and_shapes_that_the_whole_needs():
    table, scores = rows(2_000)
    with pytest.raises(DataError, match="feature city: is missing"):
        sample_of(table.drop_columns(["city"]), scores, 2)
    with pytest.raises(DataError, match="have shape"):
        Profile.of(GRID, table, scores, ExplainedRows(np.ones(2_000, bool), np.ones((5, 4), np.float32)))


@pytest.mark.parametrize(("share", "summed"), [(1.0, 2_500), (0.2, 2_000), (0.05, 500)])
def test_of_explained_rows_as_many_are_summed_as_rows_are_counted_or_all_when_they_are_fewer(share, summed):
    table, scores = rows(10_000, seed=6)
    mask = np.arange(10_000) % round(1 / share) == 0
    values = np.random.default_rng(2).normal(1, 1, (int(mask.sum()), 4)).astype(np.float32)
    whole = Profile.of(GRID, table, scores, ExplainedRows(mask, values)).attributions
    found = sample_of(table, scores, 4, ExplainedRows(mask, values)).attributions
    assert whole is not None and found is not None
    assert found.rows == summed and found.selection == whole.selection
    assert found.means == pytest.approx(whole.means, abs=4 / np.sqrt(summed))
    assert found.counts.sum() == 4 * summed
    if summed == mask.sum():
        assert found.to_json() == whole.to_json()

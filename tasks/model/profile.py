"""Mergeable profiles: what the monitor knows of a day's rows without ever reading them again.

A `ProfileSpec` fixes, once and from training rows, how every channel is counted: bin edges of numeric
features, categories of categorical ones, cells of watched pairs, score bins. A `Profile` counts rows on
that grid. Each shard writes one into its commit record; the monitor merges them.

All that a profile sums are integers (moments are sums of fixed-point values), so merging is exact: the
merge of the parts, in any order, equals the profile of the whole, bit for bit.

Of a day with many rows a sample is counted, and each of its rows stands for as many as it was chosen from: counts are
rows whatever was sampled, so days and shards of any size merge without bias. `counted` says on how many rows they rest.

Rows that were explained add what their attributions sum to, by feature: on what the scores rest. These sums are
no channel of the grid, so the grid of an older bundle stays what it was and a profile without them reads as before.

Where the pipeline says that a feature may be null (`drift.null_when`), the nulls in such rows are counted beside all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import ConfigError, DataError
from tasks.core.ids import digest_json
from tasks.core.sampling import CountedRows, one_of_each
from tasks.core.spec import PipelineSpec
from tasks.model.attribution_sums import CATEGORY_CELLS, NUMERIC_CELLS, AttributionSums, ExplainedRows
from tasks.model.feature_columns import number_matrix, numbers, texts
from tasks.model.null_conditions import NullCondition, expected_nulls, null_conditions
from tasks.model.numeric_counts import (
    NumericCounts,
    NumericGrid,
    NumericTables,
    count_columns,
    count_long,
    counts_of,
    fit_numeric,
)
from tasks.model.occurrences import LEAST_ROWS, Occurrences
from tasks.model.ranking import auc_of_groups

GRID_VERSION = 1
PROFILE_VERSION = 2
"""Layouts of the two records; they rise when a reader of the older layout would misread the newer one. A profile that counts
all of its rows is still written as version 1, which it equals."""

ATTRIBUTIONS = "attributions"
"""Name of the channel that explained rows add; it is not of the grid."""
SCORE_BINS = 50
MAX_CATEGORIES = 256
MAX_PAIR_CELLS = 1024
UNSEEN_EXAMPLES = 5

_SCORE_ONE = 1 << 30
_BLOCK = 1 << 16
"""Scores summed in floating point at a time: 2**16 of at most 2**30 stay below 2**53."""
_FIT_ROWS = 400_000

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CategoricalGrid:
    """Categories of a categorical feature, most frequent first; anything else counts as unseen."""

    name: str
    categories: tuple[str, ...]

    @cached_property
    def places(self) -> pc.SetLookupOptions:
        """Finds a category's place; null where there is none."""
        return pc.SetLookupOptions(pa.array(self.categories, pa.string()), skip_nulls=True)


@dataclass(frozen=True)
class PairGrid:
    """Cells of two categorical features: `cells` holds `code_first * len(second) + code_second`, sorted."""

    first: str
    second: str
    cells: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.first} x {self.second}"


@dataclass(frozen=True)
class ProfileSpec:
    """The grid on which profiles of one model are counted. Profiles of different grids do not merge."""

    numeric: tuple[NumericGrid, ...]
    categorical: tuple[CategoricalGrid, ...]
    pairs: tuple[PairGrid, ...]
    version: int = GRID_VERSION
    null_conditions: tuple[NullCondition, ...] = ()

    @classmethod
    def fit(cls, features: pa.Table, scores: npt.ArrayLike | None, spec: PipelineSpec) -> ProfileSpec:
        """The grid of these rows.

        Args:
            features: Training rows with the columns `spec.features.names`; at most about 400,000 of them,
                evenly spaced, are used.
            scores: Unused by this version, whose score bins are fixed; kept so that a grid may follow them.
            spec: Names the features and, in `drift.pairs`, the pairs to watch; `drift.null_when` is kept as it is.

        Raises:
            DataError: A column is missing, or holds what its kind cannot.
            ConfigError: `drift.pairs` names a feature that is not categorical.
        """
        del scores
        step = max(1, features.num_rows // _FIT_ROWS)
        if step > 1:
            features = features.take(pa.array(np.arange(0, features.num_rows, step)))
        numeric = tuple(fit_numeric(name, numbers(features, name)) for name in spec.features.numeric)
        categorical = tuple(_fit_categorical(features, name) for name in spec.features.categorical)
        by_name = {grid.name: grid for grid in categorical}
        pairs = []
        for first, second in spec.drift.pairs:
            for name in (first, second):
                if name not in by_name:
                    raise ConfigError(
                        f"watches the pair ({first}, {second}), but {name!r} is not a categorical feature",
                        which=f"pipeline {spec.name}: drift.pairs",
                        fix=f"use two of: {', '.join(by_name) or 'none'}",
                    )
            pairs.append(_fit_pair(features, by_name[first], by_name[second]))
        return cls(numeric, categorical, tuple(pairs), null_conditions=null_conditions(spec))

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of all channels: features, then pairs, then `score`."""
        return (*self.features, *(grid.name for grid in self.pairs), "score")

    @cached_property
    def numeric_tables(self) -> NumericTables:
        """Counts all numeric features at once."""
        return NumericTables(self.numeric)

    @cached_property
    def features(self) -> tuple[str, ...]:
        """Names of the features in the order of attributions: numeric first, then categorical."""
        return (*(grid.name for grid in self.numeric), *(grid.name for grid in self.categorical))

    @property
    def cell_widths(self) -> tuple[int, ...]:
        """Cells by which attributions of each feature are summed; they follow from the grid."""
        return (
            *(len(_cell_edges(grid)) + 2 for grid in self.numeric),
            *(min(len(grid.categories), CATEGORY_CELLS) + 2 for grid in self.categorical),
        )

    @cached_property
    def digest(self) -> str:
        """16 hex digits that name this grid."""
        return digest_json(self.to_json())[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; floats round-trip exactly."""
        conditions = [condition.to_json() for condition in self.null_conditions]
        return {
            "version": self.version,
            "numeric": [
                {"name": g.name, "edges": list(g.edges), "centre": g.centre, "unit": g.unit}
                for g in self.numeric
            ],
            "categorical": [{"name": g.name, "categories": list(g.categories)} for g in self.categorical],
            "pairs": [{"first": g.first, "second": g.second, "cells": list(g.cells)} for g in self.pairs],
            **({"null_conditions": conditions} if conditions else {}),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ProfileSpec:
        """The inverse of `to_json`. Raises `DataError` for a version that this release cannot read."""
        _check_version(raw, "profile grid", GRID_VERSION)
        return cls(
            tuple(
                NumericGrid(g["name"], tuple(map(float, g["edges"])), float(g["centre"]), float(g["unit"]))
                for g in raw["numeric"]
            ),
            tuple(CategoricalGrid(g["name"], tuple(g["categories"])) for g in raw["categorical"]),
            tuple(PairGrid(g["first"], g["second"], tuple(map(int, g["cells"]))) for g in raw["pairs"]),
            int(raw["version"]),
            tuple(NullCondition.from_json(item) for item in raw.get("null_conditions", ())),
        )


@dataclass(frozen=True, eq=False)
class CategoricalCounts:
    """Counts of one categorical feature, in the order of the grid's categories."""

    grid: CategoricalGrid
    counts: IntArray
    unseen: int
    nulls: int
    unseen_examples: tuple[str, ...]
    """At most five unseen values, first in code point order."""

    def merge(self, other: CategoricalCounts) -> CategoricalCounts:
        examples = sorted({*self.unseen_examples, *other.unseen_examples})[:UNSEEN_EXAMPLES]
        return CategoricalCounts(
            self.grid,
            self.counts + other.counts,
            self.unseen + other.unseen,
            self.nulls + other.nulls,
            tuple(examples),
        )

    def times(self, each: int) -> CategoricalCounts:
        """As if each row had come `each` times."""
        return CategoricalCounts(
            self.grid, self.counts * each, self.unseen * each, self.nulls * each, self.unseen_examples
        )

    def histogram(self) -> IntArray:
        """Categories, unseen, nulls; shape (categories + 2,)."""
        return np.append(self.counts, [self.unseen, self.nulls])

    def to_json(self) -> dict[str, Any]:
        return {
            "counts": self.counts.tolist(),
            "unseen": self.unseen,
            "nulls": self.nulls,
            "unseen_examples": list(self.unseen_examples),
        }

    @classmethod
    def from_json(cls, grid: CategoricalGrid, raw: Mapping[str, Any]) -> CategoricalCounts:
        return cls(
            grid,
            counts_of(raw["counts"], len(grid.categories), grid.name),
            int(raw["unseen"]),
            int(raw["nulls"]),
            tuple(raw["unseen_examples"]),
        )


@dataclass(frozen=True, eq=False)
class PairCounts:
    """Counts of one pair: the grid's cells, pairs never met in the reference, pairs with a null or unseen half."""

    grid: PairGrid
    counts: IntArray
    novel: int
    other: int

    def merge(self, other: PairCounts) -> PairCounts:
        return PairCounts(
            self.grid, self.counts + other.counts, self.novel + other.novel, self.other + other.other
        )

    def times(self, each: int) -> PairCounts:
        """As if each row had come `each` times."""
        return PairCounts(self.grid, self.counts * each, self.novel * each, self.other * each)

    def histogram(self) -> IntArray:
        """Cells, novel, other; shape (cells + 2,)."""
        return np.append(self.counts, [self.novel, self.other])

    def to_json(self) -> dict[str, Any]:
        return {"counts": self.counts.tolist(), "novel": self.novel, "other": self.other}

    @classmethod
    def from_json(cls, grid: PairGrid, raw: Mapping[str, Any]) -> PairCounts:
        counts = counts_of(raw["counts"], len(grid.cells), grid.name)
        return cls(grid, counts, int(raw["novel"]), int(raw["other"]))


@dataclass(frozen=True, eq=False)
class ScoreCounts:
    """Histogram of calibrated probabilities on 50 equal bins of [0, 1], with exact sums."""

    counts: IntArray
    bin_sums: IntArray
    """Sum of scores by bin, in units of 2**-30."""
    uncertainty: int
    """Sum of score * (1 - score), in units of 2**-30: the Brier score that calibrated scores imply."""
    nulls: int

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float | None:
        return None if self.n == 0 else int(self.bin_sums.sum()) / _SCORE_ONE / self.n

    @property
    def expected_brier(self) -> float | None:
        """The Brier score to expect if the scores are calibrated; None without scores."""
        return None if self.n == 0 else self.uncertainty / _SCORE_ONE / self.n

    @property
    def expected_auc(self) -> float | None:
        """The AUC to expect if the scores are calibrated, ties within a bin counted half; None if undefined."""
        positives = self.bin_sums.astype(np.float64) / _SCORE_ONE
        negatives = np.maximum(self.counts - positives, 0.0)
        implied = auc_of_groups(positives, negatives)
        return None if np.isnan(implied) else implied

    def merge(self, other: ScoreCounts) -> ScoreCounts:
        return ScoreCounts(
            self.counts + other.counts,
            self.bin_sums + other.bin_sums,
            self.uncertainty + other.uncertainty,
            self.nulls + other.nulls,
        )

    def times(self, each: int) -> ScoreCounts:
        """As if each row had come `each` times."""
        return ScoreCounts(
            self.counts * each, self.bin_sums * each, self.uncertainty * each, self.nulls * each
        )

    def histogram(self) -> IntArray:
        """Bins, then nulls; shape (51,)."""
        return np.append(self.counts, self.nulls)

    def to_json(self) -> dict[str, Any]:
        return {
            "counts": self.counts.tolist(),
            "bin_sums": self.bin_sums.tolist(),
            "uncertainty": self.uncertainty,
            "nulls": self.nulls,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ScoreCounts:
        return cls(
            counts_of(raw["counts"], SCORE_BINS, "score"),
            counts_of(raw["bin_sums"], SCORE_BINS, "score"),
            int(raw["uncertainty"]),
            int(raw["nulls"]),
        )


@dataclass(frozen=True, eq=False)
class Profile:
    """Counts of some rows on a `ProfileSpec`'s grid. Equal when every count is equal."""

    spec: ProfileSpec
    rows: int
    """All of them, whether counted or not."""
    counted: int
    """Rows on which the counts rest: all, or a sample, each of which stands for as many as it was chosen from."""
    numeric: Mapping[str, NumericCounts]
    categorical: Mapping[str, CategoricalCounts]
    pairs: Mapping[str, PairCounts]
    score: ScoreCounts
    attributions: AttributionSums | None = None
    """Of the rows that were explained; None when none was. They are kept as they are summed: each row is one."""
    expected_nulls: Mapping[str, int] = field(default_factory=dict)
    """By feature with a null condition: its nulls in rows where that holds. No part of a histogram."""

    @classmethod
    def of(
        cls,
        spec: ProfileSpec,
        features: pa.Table,
        scores: npt.ArrayLike,
        explained: ExplainedRows | None = None,
        rows: pa.Table | None = None,
        counted: CountedRows | None = None,
    ) -> Profile:
        """Count rows.

        Args:
            spec: The grid, from the model's bundle.
            features: Shape (n, F); n may be 0. Columns that the grid does not know are ignored.
            scores: Shape (n,), calibrated probabilities; NaN counts as null.
            explained: Which of the rows were explained, and how.
            rows: The source's rows, shape (n, ...), in the same order, of which null conditions may ask columns; without them
                only features are asked.
            counted: The rows that are counted for all (`sampling.counted_among`); without them all are. Of explained rows as many
                are summed as rows are counted, or all when they are fewer.

        Raises:
            DataError: A column is missing or of a wrong type, or the lengths differ.
        """
        values = np.asarray(scores)
        if values.shape != (features.num_rows,):
            raise DataError(
                f"has shape {values.shape} for {features.num_rows} feature rows",
                which="scores of a profile",
                fix="pass one score for each row",
            )
        if rows is not None and rows.num_rows != features.num_rows:
            raise DataError(
                f"are {rows.num_rows} for {features.num_rows} feature rows",
                which="source rows of a profile",
                fix="pass the rows that the features were computed from",
            )
        _check_explained(spec, features, explained)
        if counted is not None:
            return _of_sample(spec, features, values, explained, rows, counted)
        values = values.astype(np.float64, copy=False)
        cells = None
        if explained is not None and explained.explained.any():
            cells = np.empty((len(spec.features), features.num_rows), dtype=np.int64)
        count = _count_short if features.num_rows < LEAST_ROWS else _count_long
        numeric = {counts.grid.name: counts for counts in count(spec, features, cells)}
        codes = {grid.name: _codes(features, grid) for grid in spec.categorical}
        return cls(
            spec,
            features.num_rows,
            features.num_rows,
            numeric,
            {g.name: _count_categorical(g, *codes[g.name]) for g in spec.categorical},
            {g.name: _count_pair(spec, g, codes) for g in spec.pairs},
            _count_scores(values),
            _sum_attributions(spec, cells, codes, explained),
            expected_nulls=expected_nulls(spec.null_conditions, features, rows),
        )

    @property
    def each(self) -> float:
        """Rows for which a counted one stands, on average."""
        return self.rows / self.counted if self.counted else 1.0

    @classmethod
    def empty(cls, spec: ProfileSpec) -> Profile:
        """The profile of no rows: merging it changes nothing."""

        def zeros(size: int) -> IntArray:
            return np.zeros(size, np.int64)

        return cls(
            spec,
            0,
            0,
            {g.name: NumericCounts(g, zeros(g.bins), 0, 0, 0, 0, None, None, 0) for g in spec.numeric},
            {g.name: CategoricalCounts(g, zeros(len(g.categories)), 0, 0, ()) for g in spec.categorical},
            {g.name: PairCounts(g, zeros(len(g.cells)), 0, 0) for g in spec.pairs},
            ScoreCounts(zeros(SCORE_BINS), zeros(SCORE_BINS), 0, 0),
            expected_nulls={condition.feature: 0 for condition in spec.null_conditions},
        )

    @classmethod
    def merged(cls, spec: ProfileSpec, profiles: Iterable[Profile]) -> Profile:
        """All of `profiles` as one; `empty` when there is none."""
        whole = cls.empty(spec)
        for profile in profiles:
            whole = whole.merge(profile)
        return whole

    def merge(self, other: Profile) -> Profile:
        """The profile of both row sets together. Raises `DataError` when their grids differ."""
        if other.spec.digest != self.spec.digest:
            raise DataError(
                f"counts on grid {other.spec.digest}, not on {self.spec.digest}",
                which="profile to merge",
                fix="merge only profiles written by the same model bundle",
            )
        return Profile(
            self.spec,
            self.rows + other.rows,
            self.counted + other.counted,
            {name: mine.merge(other.numeric[name]) for name, mine in self.numeric.items()},
            {name: mine.merge(other.categorical[name]) for name, mine in self.categorical.items()},
            {name: mine.merge(other.pairs[name]) for name, mine in self.pairs.items()},
            self.score.merge(other.score),
            other.attributions
            if self.attributions is None
            else self.attributions.merge(other.attributions)
            if other.attributions is not None
            else self.attributions,
            expected_nulls={
                name: count + other.expected_nulls[name] for name, count in self.expected_nulls.items()
            },
        )

    def histogram(self, channel: str) -> IntArray:
        """Counts of one of `spec.channels`, with its null (and unseen) bins at the end.

        `attributions` gives the mass of |attribution| by feature, in the order of `spec.features`.
        """
        if channel == "score":
            return self.score.histogram()
        if channel == ATTRIBUTIONS:
            nothing = np.zeros(len(self.spec.features), np.int64)
            return self.attributions.magnitude if self.attributions else nothing
        for kind in (self.numeric, self.categorical, self.pairs):
            if channel in kind:
                counts: NumericCounts | CategoricalCounts | PairCounts = kind[channel]
                return counts.histogram()
        raise KeyError(f"{channel!r} is not one of {self.spec.channels}")

    @cached_property
    def input_digest(self) -> str:
        """16 hex digits over everything but the scores: equal for the same batch, whatever model scored it."""
        raw = self.to_json()
        return digest_json([raw[key] for key in ("rows", "grid", "numeric", "categorical", "pairs")])[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, integers but for minima and maxima; the grid is named by digest, not repeated."""
        explained = {} if self.attributions is None else {"attributions": self.attributions.to_json()}
        nulls = {"expected_nulls": dict(self.expected_nulls)} if self.expected_nulls else {}
        sampled = {"counted": self.counted} if self.counted < self.rows else {}
        return {
            "version": PROFILE_VERSION if sampled else 1,
            "grid": self.spec.digest,
            "rows": self.rows,
            **sampled,
            "numeric": {name: counts.to_json() for name, counts in self.numeric.items()},
            "categorical": {name: counts.to_json() for name, counts in self.categorical.items()},
            "pairs": {name: counts.to_json() for name, counts in self.pairs.items()},
            "score": self.score.to_json(),
            **explained,
            **nulls,
        }

    @classmethod
    def from_json(cls, spec: ProfileSpec, raw: Mapping[str, Any]) -> Profile:
        """The inverse of `to_json`.

        Raises:
            DataError: The profile was counted on another grid, is damaged, or has a version that this
                release cannot read.
        """
        _check_version(raw, "profile", PROFILE_VERSION)
        if raw.get("grid") != spec.digest:
            raise DataError(
                f"was counted on grid {raw.get('grid')}, not on {spec.digest}",
                which="profile",
                fix="read it with the profile grid of the model bundle that wrote it",
            )
        try:
            return cls(
                spec,
                int(raw["rows"]),
                int(raw.get("counted", raw["rows"])),
                {g.name: NumericCounts.from_json(g, raw["numeric"][g.name]) for g in spec.numeric},
                {
                    g.name: CategoricalCounts.from_json(g, raw["categorical"][g.name])
                    for g in spec.categorical
                },
                {g.name: PairCounts.from_json(g, raw["pairs"][g.name]) for g in spec.pairs},
                ScoreCounts.from_json(raw["score"]),
                AttributionSums.from_json(raw["attributions"], spec.cell_widths)
                if raw.get("attributions") is not None
                else None,
                expected_nulls={
                    c.feature: int(raw["expected_nulls"][c.feature]) for c in spec.null_conditions
                },
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"is damaged: {type(error).__name__} {error}",
                which="profile",
                fix="score its shard again",
            ) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Profile) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.input_digest)


def _count_short(spec: ProfileSpec, features: pa.Table, cells: IntArray | None) -> list[NumericCounts]:
    """Args: cells: Those of the numeric features are filled in."""
    columns = number_matrix(features, [grid.name for grid in spec.numeric])
    if cells is not None:
        for i, (grid, column) in enumerate(zip(spec.numeric, columns, strict=True)):
            cells[i] = _numeric_cells(_cell_edges(grid), column)
    return count_columns(spec.numeric_tables, columns)


def _count_long(spec: ProfileSpec, features: pa.Table, cells: IntArray | None) -> list[NumericCounts]:
    """As `_count_short`, one column at a time: what is known of its rows is large."""
    counted, room, places = [], np.empty(features.num_rows), np.empty(features.num_rows, np.int64)
    for i, grid in enumerate(spec.numeric):
        column = Occurrences.of(numbers(features, grid.name, room), places)
        counted.append(count_long(spec.numeric_tables.of(i), column))
        if cells is not None:
            column.each(partial(_numeric_cells, _cell_edges(grid)), cells[i])
    return counted


def _of_sample(
    spec: ProfileSpec,
    features: pa.Table,
    scores: npt.NDArray[Any],
    explained: ExplainedRows | None,
    rows: pa.Table | None,
    counted: CountedRows,
) -> Profile:
    places, one_of = counted.places, counted.one_of
    which = np.flatnonzero(explained.explained) if explained is not None else np.zeros(0, np.int64)
    why, sums = None, None
    if explained is not None and which.size == features.num_rows:
        why = ExplainedRows.every(explained.attributions[places], explained.selection)
    elif explained is not None and which.size:
        kept = one_of_each(which.size, max(which.size // max(places.size, 1), 1))
        some = ExplainedRows.every(explained.attributions[kept], explained.selection)
        known = features.select([name for name in features.column_names if name in spec.features])
        sums = _attribution_sums(spec, known.take(pa.array(which[kept])), some)
    asked = {column for condition in spec.null_conditions for column, _ in condition.when}
    sources = [name for name in rows.column_names if name in asked] if rows is not None else []
    of_sample = rows.select(sources).take(pa.array(places)) if rows is not None and sources else None
    sample = Profile.of(spec, counted.features, scores[places], why, of_sample)
    return Profile(
        spec,
        features.num_rows,
        places.size,
        {name: counts.times(one_of) for name, counts in sample.numeric.items()},
        {name: counts.times(one_of) for name, counts in sample.categorical.items()},
        {name: counts.times(one_of) for name, counts in sample.pairs.items()},
        sample.score.times(one_of),
        sample.attributions if why is not None else sums,
        {name: count * one_of for name, count in sample.expected_nulls.items()},
    )


def _check_explained(spec: ProfileSpec, features: pa.Table, explained: ExplainedRows | None) -> None:
    if explained is None or not explained.explained.any():
        return
    chosen = explained.explained
    wanted = (int(np.count_nonzero(chosen)), len(spec.features))
    if explained.attributions.shape != wanted or chosen.shape != (features.num_rows,):
        raise DataError(
            f"have shape {explained.attributions.shape} for {wanted[0]} explained rows and {wanted[1]} features",
            which="attributions of a profile",
            fix="pass one row for each that is explained, with features in the order of features.names",
        )


def _sum_attributions(
    spec: ProfileSpec,
    cells: IntArray | None,
    codes: Mapping[str, tuple[IntArray, tuple[str, ...]]],
    explained: ExplainedRows | None,
) -> AttributionSums | None:
    """Args: cells: Those of the numeric features are filled in."""
    if cells is None or explained is None:
        return None
    for i, grid in enumerate(spec.categorical, start=len(spec.numeric)):
        known = min(len(grid.categories), CATEGORY_CELLS)
        cell_of = np.minimum(np.arange(len(grid.categories) + 2), known)
        cell_of[-1] = known + 1
        cell_of.take(codes[grid.name][0], out=cells[i], mode="clip")
    if not explained.explained.all():
        cells = cells[:, explained.explained]
    return AttributionSums.of(explained.attributions, cells, spec.cell_widths, explained.selection)


def _attribution_sums(
    spec: ProfileSpec, features: pa.Table, explained: ExplainedRows
) -> AttributionSums | None:
    """Of rows that are not counted."""
    cells = np.empty((len(spec.features), features.num_rows), dtype=np.int64)
    for i, grid in enumerate(spec.numeric):
        cells[i] = _numeric_cells(_cell_edges(grid), numbers(features, grid.name))
    codes = {grid.name: _codes(features, grid) for grid in spec.categorical}
    return _sum_attributions(spec, cells, codes, explained)


def _numeric_cells(edges: FloatArray, values: FloatArray) -> IntArray:
    cell = np.zeros(values.size, np.uint8)
    for edge in edges:  # so few that this is three times as fast as a search
        cell += values >= edge
    cell[np.isnan(values)] = len(edges) + 1
    return cell.astype(np.int64)


def _cell_edges(grid: NumericGrid) -> FloatArray:
    """Inner edges of the cells: every few edges of the grid, whose outer two are the reference's range."""
    inner = np.asarray(grid.edges[1:-1], dtype=np.float64)
    if inner.size < NUMERIC_CELLS:
        return inner
    return inner[np.linspace(0, inner.size - 1, NUMERIC_CELLS + 1)[1:-1].round().astype(np.int64)]


def _check_version(raw: Mapping[str, Any], what: str, newest: int) -> None:
    version = raw.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise DataError(f"has no version (found {version!r})", which=what, fix="score its shard again")
    if version > newest:
        raise DataError(
            f"has version {version}; this release reads up to {newest}",
            which=what,
            fix="upgrade Penstock here to the release that wrote it",
        )
    if version < 1:
        raise DataError(
            f"has version {version}, which never existed", which=what, fix="score its shard again"
        )


def _fit_categorical(features: pa.Table, name: str) -> CategoricalGrid:
    encoded = texts(features, name).dictionary_encode()
    indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    names = encoded.dictionary.to_pylist()
    counts = np.bincount(indices[indices >= 0], minlength=len(names))
    ranked = sorted(zip(names, counts.tolist(), strict=True), key=lambda item: (-item[1], item[0]))
    return CategoricalGrid(name, tuple(category for category, _ in ranked[:MAX_CATEGORIES]))


def _codes(features: pa.Table, grid: CategoricalGrid) -> tuple[IntArray, tuple[str, ...]]:
    """Codes, shape (n,): the category, K for unseen, K + 1 for null; and some unseen values."""
    size = len(grid.categories)
    column = texts(features, grid.name)
    matched = pc.index_in(column, options=grid.places)
    if matched.null_count == 0:
        return matched.to_numpy().astype(np.int64), ()
    codes = matched.fill_null(size).to_numpy().astype(np.int64)
    unknown = column.filter(pc.is_null(matched)).dictionary_encode()
    if column.null_count:
        codes[pc.is_null(column).to_numpy(zero_copy_only=False)] = size + 1
    unseen = sorted(value for value in unknown.dictionary.to_pylist() if value is not None)
    return codes, tuple(unseen[:UNSEEN_EXAMPLES])


def _fit_pair(features: pa.Table, first: CategoricalGrid, second: CategoricalGrid) -> PairGrid:
    cells, valid = _pair_cells(_codes(features, first)[0], _codes(features, second)[0], first, second)
    values, counts = np.unique(cells[valid], return_counts=True)
    kept = values[np.argsort(-counts, kind="stable")[:MAX_PAIR_CELLS]]
    return PairGrid(first.name, second.name, tuple(np.sort(kept).tolist()))


def _pair_cells(
    a: IntArray, b: IntArray, first: CategoricalGrid, second: CategoricalGrid
) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    valid = (a < len(first.categories)) & (b < len(second.categories))
    return a * len(second.categories) + b, valid


def _count_pair(
    spec: ProfileSpec, grid: PairGrid, codes: Mapping[str, tuple[IntArray, tuple[str, ...]]]
) -> PairCounts:
    by_name = {each.name: each for each in spec.categorical}
    first, second = by_name[grid.first], by_name[grid.second]
    cells, valid = _pair_cells(codes[grid.first][0], codes[grid.second][0], first, second)
    dense = np.bincount(cells[valid], minlength=len(first.categories) * len(second.categories))
    counts = dense[np.asarray(grid.cells, dtype=np.int64)].astype(np.int64)
    inside = int(np.count_nonzero(valid))
    return PairCounts(grid, counts, inside - int(counts.sum()), len(cells) - inside)


def _count_categorical(
    grid: CategoricalGrid, codes: IntArray, examples: tuple[str, ...]
) -> CategoricalCounts:
    size = len(grid.categories)
    counts = np.bincount(codes, minlength=size + 2).astype(np.int64)
    return CategoricalCounts(grid, counts[:size], int(counts[size]), int(counts[size + 1]), examples)


def _count_scores(scores: FloatArray) -> ScoreCounts:
    present = np.clip(scores[~np.isnan(scores)], 0.0, 1.0)
    bins = np.minimum((present * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
    fixed = np.rint(present * _SCORE_ONE)
    sums = np.zeros(SCORE_BINS, np.int64)
    for start in range(0, fixed.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        sums += np.bincount(bins[block], weights=fixed[block], minlength=SCORE_BINS).astype(np.int64)
    uncertainty = int(np.rint(present * (1.0 - present) * _SCORE_ONE).astype(np.int64).sum())
    return ScoreCounts(
        np.bincount(bins, minlength=SCORE_BINS).astype(np.int64),
        sums,
        uncertainty,
        int(scores.size - present.size),
    )

"""Which rows are chosen: for explanation, for the canary's slice, and to be counted of a day with many rows.

The first two are functions of the row alone: of its id, its entity, its features and its score. So a retry, another
cut into batches, and an online prediction of the same row choose the same. Which rows are counted follows from their
places: a retry counts the same, and so does a batch that comes again, whatever its times are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.prediction_ids import PredictionIds
from tasks.core.spec import PipelineSpec
from tasks.core.splitmix import mix

Mask = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

LEAST_COUNTED = 1 << 14
"""Rows of a day that are counted at least, where it has as many. Shares of so many have a standard error of 0.4 points at most."""
_LEAST_COUNTED_AMONG = 256
"""Rows of a shard that are counted at least. Those beyond the last whole group are stood for by nobody; they are less than one in so many."""


@dataclass(frozen=True)
class SampledRows:
    """What the clauses look at. n rows."""

    ids: PredictionIds
    entities: pa.Array
    """string, shape (n,)."""
    identity: pa.Table
    """The entity key's columns."""
    features: pa.Table
    """The columns of `features.names`."""
    scores: npt.NDArray[np.float32]
    """Shape (n,)."""


@dataclass(frozen=True, eq=False)
class CountedPlaces:
    """Which of some rows are counted, each for `one_of`."""

    one_of: int
    places: IntArray
    """Where they are among all, ascending, shape (k,)."""


@dataclass(frozen=True, eq=False)
class CountedRows(CountedPlaces):
    """A sample of rows that are profiled."""

    features: pa.Table
    """Theirs alone, shape (k, F)."""

    @classmethod
    def among(cls, features: pa.Table, one_of: int) -> CountedRows | None:
        """Those of `counted_among`, of all rows' features; None: all of them."""
        found = counted_among(features.num_rows, one_of)
        if found is None:
            return None
        return cls(found.one_of, found.places, features.take(pa.array(found.places)))


def rows_counted_as_one(spec: PipelineSpec, rows: int) -> int:
    """For how many rows of a day with `rows` each counted one stands; 1: all of them are counted.

    As many as leave 16,384 rows of a large day to be counted, or `drift.min_rows` where this is more.
    """
    return max(rows // max(LEAST_COUNTED, spec.drift.min_rows), 1)


@lru_cache(maxsize=8)
def one_of_each(n: int, size: int) -> IntArray:
    """Places of one row of each `size` neighbours among `n` rows, ascending, shape (n // size,); the last ones take the rest.

    Which one of them follows from the number of the group, by the finalizer of SplitMix64: a stratified sample, always the
    same, that is in step with nothing that repeats in the rows.
    """
    groups = np.arange(n // size, dtype=np.uint64)
    sizes = np.full(groups.size, size, np.uint64)
    sizes[-1:] += np.uint64(n % size)
    mixed = mix(groups + np.uint64(0x9E3779B97F4A7C15))
    mixed ^= mixed >> np.uint64(31)
    places: IntArray = (groups * np.uint64(size) + mixed % sizes).view(np.int64)
    places.setflags(write=False)  # the next caller gets the same
    return places


def counted_among(rows: int, one_of: int) -> CountedPlaces | None:
    """Which of `rows` rows are counted where one counts for `one_of` neighbours, or for fewer, so that 256 are; None: all of them."""
    one_of = min(one_of, rows // _LEAST_COUNTED_AMONG)
    return CountedPlaces(one_of, one_of_each(rows, one_of)) if one_of > 1 else None


def explained_rows(spec: PipelineSpec, rows: SampledRows) -> Mask:
    """Which rows `explanations` of the pipeline wants explained: those that any of its clauses chooses; shape (n,)."""
    policy = spec.explanations
    if policy.strata is None:
        chosen = rows.ids.below_share(policy.share)
    else:
        chosen = rows.ids.below_share(_shares(spec, rows))
    for low, high in policy.score_bands:
        chosen |= (rows.scores >= np.float32(low)) & (rows.scores <= np.float32(high))
    if policy.canary:
        chosen |= in_slice(spec.name, rows.entities, spec.canary.slice_share)
    return chosen


def in_slice(pipeline: str, entities: pa.Array | Sequence[str], share: float) -> Mask:
    """Which entities the challenger may score: the same ones every day, about `share` of all; shape (n,)."""
    if share >= 1:
        return np.ones(len(entities), dtype=np.bool_)
    texts = entities if isinstance(entities, pa.Array) else pa.array(entities, pa.string())
    coded = texts.dictionary_encode()  # an entity comes often, and is hashed once
    limit = int(share * 2**64)
    chosen = [_place(pipeline, entity) < limit for entity in coded.dictionary.to_pylist()]
    mask: Mask = np.array(chosen, dtype=np.bool_)[coded.indices.to_numpy()]
    return mask


def entity_in_slice(pipeline: str, entity: str, share: float) -> bool:
    """`in_slice` of one entity, for requests that come one by one."""
    return share >= 1 or _place(pipeline, entity) < int(share * 2**64)


def _place(pipeline: str, entity: str) -> int:
    digest = hashlib.blake2b(f"canary\x1f{pipeline}\x1f{entity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _shares(spec: PipelineSpec, rows: SampledRows) -> npt.NDArray[np.float64]:
    """Each row's share: that of its stratum, or the share of all; shape (n,)."""
    strata = spec.explanations.strata
    assert strata is not None
    table = rows.features if strata.column in spec.features.categorical else rows.identity
    values = table.column(strata.column).cast(pa.string())
    known = pc.index_in(values, value_set=pa.array(list(strata.shares), pa.string()), skip_nulls=True)
    shares = np.array([*strata.shares.values(), spec.explanations.share])
    of_rows: npt.NDArray[np.float64] = shares[pc.fill_null(known, len(strata.shares)).to_numpy()]
    return of_rows

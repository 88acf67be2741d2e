"""Which rows are chosen: for explanation, and for the canary's slice.

Every choice is a function of the row alone: of its id, its entity, its features and its score. So a retry, another
cut into batches, and an online prediction of the same row choose the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.prediction_ids import PredictionIds
from tasks.core.spec import PipelineSpec

Mask = npt.NDArray[np.bool_]


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

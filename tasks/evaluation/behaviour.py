"""How the candidate behaves whatever the labels say: sane outputs, no dependence on the batch, no crash."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tasks.core import PenstockError, PipelineSpec
from tasks.evaluation.records import BehaviourCheck, Latency
from tasks.evaluation.scoring import inputs_of, score_inputs
from tasks.model.metrics import FloatArray

if TYPE_CHECKING:
    from tasks.model import Scorer

TOLERANCE = 1e-6
MIN_SPREAD = 1e-4
SAMPLE_ROWS = 512
LATENCY_ROWS = 1024
UNSEEN = "penstock: a category that no training row had"


def sanity(scores: FloatArray) -> tuple[BehaviourCheck, ...]:
    """Finite, inside [0, 1] and not constant; `scores` shape (n,)."""
    bad = int(np.sum(~np.isfinite(scores)))
    finite = scores[np.isfinite(scores)]
    outside = int(np.sum((finite < 0) | (finite > 1)))
    spread = float(np.std(finite)) if len(finite) else 0.0
    return (
        BehaviourCheck(
            "finite predictions",
            bad == 0 and len(scores) > 0,
            f"{bad:,} of {len(scores):,} predictions are not finite",
            float(bad),
            0.0,
        ),
        BehaviourCheck(
            "probabilities",
            outside == 0 and len(scores) > 0,
            f"{outside:,} of {len(scores):,} predictions are outside [0, 1]",
            float(outside),
            0.0,
        ),
        BehaviourCheck(
            "not constant",
            spread > MIN_SPREAD,
            f"standard deviation of the predictions {spread:.4g}",
            spread,
            MIN_SPREAD,
        ),
    )


def probe(scorer: Scorer, rows: pa.Table, spec: PipelineSpec, *, seed: int = 0) -> tuple[BehaviourCheck, ...]:
    """Run the candidate on altered copies of real rows.

    Args:
        scorer: The candidate.
        rows: Validation rows of one day, n >= 1; at most 512 are used.
        spec: The pipeline.
        seed: Chooses the permutation.
    """
    sample = rows.slice(0, SAMPLE_ROWS)
    return (
        _check("row order", lambda: _row_order(scorer, sample, spec, seed)),
        _check("batch composition", lambda: _batches(scorer, sample, spec)),
        _check("null inputs", lambda: _nulls(scorer, sample, spec)),
        _check("unseen categories", lambda: _unseen(scorer, sample, spec)),
    )


def latency(scorer: Scorer, rows: pa.Table, spec: PipelineSpec, *, repeats: int = 5) -> tuple[Latency, ...]:
    """Median wall time of one row and of up to 1,024 rows through features, encode and predict."""
    found = []
    for size in sorted({1, min(rows.num_rows, LATENCY_ROWS)}):
        batch = rows.slice(0, size)
        score_inputs(scorer, batch, spec)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            score_inputs(scorer, batch, spec)
            times.append(time.perf_counter() - start)
        median = float(np.median(times))
        found.append(Latency(size, median * 1000, size / max(median, 1e-9)))
    return tuple(found)


def _check(name: str, run: Callable[[], tuple[bool, str, float | None]]) -> BehaviourCheck:
    """A check that raises has failed, and says with what: the user's code runs inside."""
    try:
        passed, detail, value = run()
    except PenstockError as error:
        return BehaviourCheck(name, False, f"raised: {error.which}: {error.what}")
    except Exception as error:
        return BehaviourCheck(name, False, f"raised {type(error).__name__}: {error}")
    if value is None or not np.isfinite(value):
        return BehaviourCheck(name, passed, detail)
    return BehaviourCheck(name, passed, detail, value, TOLERANCE)


def _row_order(scorer: Scorer, rows: pa.Table, spec: PipelineSpec, seed: int) -> tuple[bool, str, float]:
    order = np.random.default_rng(seed).permutation(rows.num_rows)
    moved = _largest(score_inputs(scorer, rows, spec)[order], score_inputs(scorer, rows.take(order), spec))
    return moved <= TOLERANCE, f"shuffled rows move a prediction by at most {moved:.2g}", moved


def _batches(scorer: Scorer, rows: pa.Table, spec: PipelineSpec) -> tuple[bool, str, float]:
    whole = score_inputs(scorer, rows, spec)
    half = rows.num_rows // 2
    pieces = [rows.slice(0, half), rows.slice(half)] if half else [rows]
    moved = _largest(whole, np.concatenate([score_inputs(scorer, piece, spec) for piece in pieces]))
    for index in np.unique(np.linspace(0, rows.num_rows - 1, 8).astype(int)):
        alone = score_inputs(scorer, rows.slice(int(index), 1), spec)
        moved = max(moved, _largest(whole[index : index + 1], alone))
    detail = f"a row scored alone or in half a batch moves by at most {moved:.2g}"
    return moved <= TOLERANCE, detail, moved


def _nulls(scorer: Scorer, rows: pa.Table, spec: PipelineSpec) -> tuple[bool, str, None]:
    kept = {*spec.entity_key, spec.event_time}
    table = inputs_of(rows.slice(0, 4), spec)
    for position, field in enumerate(table.schema):
        if field.name not in kept:
            nulls = pa.nulls(table.num_rows, field.type)
            table = table.set_column(position, pa.field(field.name, field.type), nulls)
    passed = _sane(score_inputs(scorer, table, spec))
    return passed, f"rows with every input null score {'' if passed else 'in'}sanely", None


def _unseen(scorer: Scorer, rows: pa.Table, spec: PipelineSpec) -> tuple[bool, str, None]:
    features = scorer.features(inputs_of(rows.slice(0, 4), spec))
    names = [field.name for field in features.schema if pa.types.is_string(field.type)]
    for name in names:
        values = pa.array([UNSEEN] * features.num_rows, pa.string())
        features = features.set_column(features.column_names.index(name), name, values)
    passed = _sane(np.asarray(scorer.predict(scorer.encode(features)), dtype=np.float64))
    detail = f"unseen values in {len(names)} categorical features score {'' if passed else 'in'}sanely"
    return passed, detail, None


def _sane(scores: FloatArray) -> bool:
    return bool(np.all(np.isfinite(scores)) and np.all((scores >= 0) & (scores <= 1)))


def _largest(first: FloatArray, second: FloatArray) -> float:
    difference = np.abs(first - second)
    return float(np.max(difference, initial=0.0)) if np.all(np.isfinite(difference)) else float("inf")

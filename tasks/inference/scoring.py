"""Score the rows of one shard in batches; a row that cannot be scored is found by bisection (I8).

Plain functions over a model that has `features`, `encode`, `predict` and `explain`: nothing here knows of
Ray, of files or of commits.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.core.errors import (
    ConfigError,
    DataError,
    DigestMismatch,
    OutcomeUnknown,
    PenstockError,
    PipelineCodeError,
    TransientError,
)
from tasks.core.memory_limit import out_of_memory, ran_out_of_memory
from tasks.core.prediction_ids import PredictionIds
from tasks.core.rows import entity_column, event_micros, prediction_ids
from tasks.core.sampling import CountedPlaces, CountedRows, SampledRows, explained_rows
from tasks.core.spec import PipelineSpec
from tasks.inference.records import DeadLetter

log = logging.getLogger(__name__)

_NOT_THE_ROWS_FAULT = (DigestMismatch, ConfigError, TransientError, OutcomeUnknown, MemoryError, OSError)
_EXAMPLES = 3
_LETTER_COLUMNS = {
    "source_row": pa.int64(),
    "prediction_id": pa.string(),
    "stage": pa.string(),
    "error_class": pa.string(),
    "reason": pa.string(),
}
_LEAST_BUDGET = 1000
_LEAST_TAKEN = 256
"""Rows of a batch that are taken at once to be counted, while they are in a near cache; of fewer the calls would cost more than that saves."""

Floats = npt.NDArray[np.float32]


class ShardModel(Protocol):
    """What a shard needs of a model; `tasks.model.Scorer` with its bundle's profile grid is one."""

    @property
    def feature_names(self) -> tuple[str, ...]: ...
    @property
    def output_names(self) -> tuple[str, ...]:
        """What the model says of a row beside its score; usually nothing."""
        ...

    @property
    def explainer(self) -> str: ...
    @property
    def explainer_version(self) -> str: ...
    @property
    def background_id(self) -> str: ...
    @property
    def block_rows(self) -> int:
        """Rows that the network takes at once; a batch holds at least as many."""
        ...

    def features(self, rows: pa.Table) -> pa.Table:
        """Source rows to features, same row count and order."""
        ...

    def encode(self, features: pa.Table) -> Floats:
        """float32 [n, width]."""
        ...

    def predict(self, encoded: Floats) -> Floats:
        """Probabilities, float32 [n]."""
        ...

    def outputs(self, encoded: Floats) -> Floats:
        """float32 [n, len(output_names)]; asked only when there are any."""
        ...

    def explain(self, encoded: Floats) -> Any:
        """`attributions` float32 [n, F], `base_value` float, `residual` float32 [n]."""
        ...

    def profile(
        self,
        features: pa.Table,
        scores: Floats,
        explained: npt.NDArray[np.bool_],
        attributions: Floats,
        rows: pa.Table,
        counted: CountedRows | None,
    ) -> dict[str, Any] | None:
        """The JSON of a mergeable profile of n rows; None when the model has no grid for one.

        `attributions`, float32 [k, F], are of those k rows that `explained`, [n], marks; `rows` are the n source rows. Without
        `counted` all of them are counted.
        """
        ...


@dataclass(frozen=True)
class ScoredBatch:
    """Rows that were scored, in source order. n rows, F features."""

    source_rows: npt.NDArray[np.int64]
    prediction_ids: PredictionIds
    entity_ids: pa.Array
    identity: pa.Table
    """The source's event time and entity key columns."""
    features: pa.Table
    scores: Floats
    outputs: Floats
    """Shape (n, O): what the model says beside the score, in the order of its `output_names`."""
    explained: npt.NDArray[np.bool_]
    attributions: Floats
    """Shape (k, F): of the k explained rows."""
    residual: Floats
    base_value: float
    counted: CountedPlaces | None = None
    """Those of the rows that are counted for all; None: all are."""
    counted_features: pa.Table | None = None
    """Theirs, where they were taken already."""


@dataclass
class DeadLetters:
    """Rows that could not be scored, as many as `budget` allows."""

    budget: int
    which: str
    letters: list[DeadLetter] = field(default_factory=list)
    rows: list[pa.Table] = field(default_factory=list)

    def add(self, letter: DeadLetter, row: pa.Table) -> None:
        """Take one row.

        Raises:
            DataError: There are so many that the run must fail anyway; looking for more costs in vain.
        """
        self.letters.append(letter)
        self.rows.append(row)
        if len(self.letters) > self.budget:
            examples = "; ".join(describe(item) for item in self.letters[:_EXAMPLES])
            raise DataError(
                f"has more than {self.budget:,} rows that cannot be scored, for example {examples}",
                which=self.which,
                fix="the fault is not in single rows: check features.py of the model's bundle and the source",
            )

    def table(self) -> pa.Table | None:
        """The source rows with why each failed; None without any."""
        if not self.letters:
            return None
        table = pa.concat_tables(self.rows)
        for name, kind in _LETTER_COLUMNS.items():
            values = [getattr(letter, name) for letter in self.letters]
            table = table.append_column(f"penstock_{name}", pa.array(values, kind))
        return table


def dead_letter_budget(spec: PipelineSpec, planned_rows: int) -> int:
    """How many dead letters a shard looks for before it gives up."""
    return max(_LEAST_BUDGET, int(spec.inference.max_dead_letter_share * planned_rows))


def describe(letter: DeadLetter) -> str:
    """One dead letter in a line."""
    named = f"row {letter.source_row}" + (f", {letter.prediction_id}" if letter.prediction_id else "")
    return f"{named} ({letter.stage}: {letter.error_class}: {letter.reason})"


def score_rows(
    model: ShardModel,
    spec: PipelineSpec,
    rows: pa.Table,
    *,
    first_row: int,
    dead: DeadLetters,
    explain: bool,
    counted: CountedPlaces | None = None,
) -> list[ScoredBatch]:
    """Score `rows` in batches of `inference.batch_rows` or the model's block; rows that fail go to `dead`.

    Args:
        model: The pinned model.
        spec: The pipeline.
        rows: Source rows, without label and outcome columns.
        first_row: Number of the first of `rows` in its partition file.
        dead: Receives the rows that fail.
        explain: Whether the rows that `explanations` of the pipeline chooses get attributions; else none does.
        counted: Which of `rows` are counted for all.

    Raises:
        PipelineCodeError: The model returns something else than one score for each row.
        DataError: Too many rows fail.
    """
    size = max(spec.inference.batch_rows, model.block_rows)
    at_once = counted is not None and size // counted.one_of >= _LEAST_TAKEN
    scoring = _Scoring(model, spec, dead, explain, first_row, counted, at_once)
    for start in range(0, rows.num_rows, size):
        scoring.bisect(rows.slice(start, size), first_row + start)
    return scoring.scored


class _RowsFailed(Exception):
    """Some row of a batch made a stage raise."""

    def __init__(self, stage: str, error: Exception) -> None:
        super().__init__(stage)
        cause = error.__cause__ if isinstance(error, PenstockError) and error.__cause__ else error
        self.stage = stage
        self.error_class = type(cause).__name__
        text = str(error)
        if isinstance(error, PenstockError):
            text = f"{error.which} {error.what}".strip()
        self.reason = text.splitlines()[0][:500] if text else self.error_class


class _Stage:
    """Names the stage that raised, unless the fault cannot lie in the rows.

    Want of memory cannot, whatever class it is raised as: rows would become dead letters for it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, _NOT_THE_ROWS_FAULT):
            if ran_out_of_memory(error):
                raise out_of_memory(error, which=self.name) from error
            raise _RowsFailed(self.name, error) from error


@dataclass
class _Scoring:
    """A shard's batches as they are scored; `score_rows` describes the fields."""

    model: ShardModel
    spec: PipelineSpec
    dead: DeadLetters
    explain: bool
    first_row: int
    counted: CountedPlaces | None
    at_once: bool
    """Whether features of the rows that are counted are taken as soon as a batch has them."""
    scored: list[ScoredBatch] = field(default_factory=list)

    def bisect(self, rows: pa.Table, first_row: int) -> None:
        """Score rows; when one of them fails, each half by itself, down to the row."""
        try:
            self.scored.append(self._score(rows, first_row))
        except _RowsFailed as failed:
            if rows.num_rows == 1:
                self._bury(rows, first_row, failed.stage, failed.error_class, failed.reason)
                return
            half = rows.num_rows // 2
            self.bisect(rows.slice(0, half), first_row)
            self.bisect(rows.slice(half), first_row + half)

    def _bury(self, row: pa.Table, number: int, stage: str, error_class: str, reason: str) -> None:
        identity = None
        with suppress(
            Exception
        ):  # whatever keeps a row from having an identity is its reason already, or another
            identity = prediction_ids(row, self.spec)[0]
        self.dead.add(DeadLetter(number, stage, error_class, reason, identity), row)

    def _score(self, rows: pa.Table, first_row: int) -> ScoredBatch:
        with _Stage("identity"):
            entities = entity_column(rows, self.spec)
            ids = PredictionIds.of(entities, event_micros(rows, self.spec), self.spec)
            identity = rows.select(list(dict.fromkeys((self.spec.event_time, *self.spec.entity_key))))
        with _Stage("features"):
            features = self.model.features(rows)
            counted, taken = self._counted(features, first_row)
        with _Stage("encode"):
            encoded = self.model.encode(features)
        with _Stage("predict"):
            scores = self.model.predict(encoded)
        n = rows.num_rows
        _check_shapes(n, features, encoded, scores)
        numbers = np.arange(first_row, first_row + n, dtype=np.int64)
        good = np.isfinite(scores) & (scores >= 0) & (scores <= 1)
        if not good.all():
            for index in np.flatnonzero(~good).tolist():
                why = f"the model's answer is {float(scores[index])!r}, not a probability"
                self._bury(rows.slice(index, 1), int(numbers[index]), "predict", "NotAProbability", why)
            keep = np.flatnonzero(good)
            identity, entities, features = (
                part.take(pa.array(keep)) for part in (identity, entities, features)
            )
            encoded, scores, numbers, ids = encoded[keep], scores[keep], numbers[keep], ids.take(keep)
            if counted is not None:
                left = good[counted.places]
                taken = None if taken is None else taken.filter(pa.array(left))
                counted = _among(counted, good)
        outputs = self._outputs(encoded)
        chosen = (
            explained_rows(self.spec, SampledRows(ids, entities, identity, features, scores))
            if self.explain
            else np.zeros(len(ids), dtype=bool)
        )
        explained, attributions, residual, base = _explain(self.model, chosen, encoded)
        return ScoredBatch(
            numbers,
            ids,
            entities,
            identity,
            features,
            scores,
            outputs,
            explained,
            attributions,
            residual,
            base,
            counted,
            taken,
        )

    def _counted(self, features: pa.Table, first_row: int) -> tuple[CountedPlaces | None, pa.Table | None]:
        """(which rows of a batch are counted, their features where they are taken at once)."""
        if self.counted is None:
            return None, None
        start = first_row - self.first_row
        first, end = np.searchsorted(self.counted.places, (start, start + features.num_rows))
        places = self.counted.places[first:end] - start
        taken = features.take(pa.array(places)) if self.at_once else None
        return CountedPlaces(self.counted.one_of, places), taken

    def _outputs(self, encoded: Floats) -> Floats:
        names = self.model.output_names
        if not names:
            return np.zeros((len(encoded), 0), np.float32)
        with _Stage("outputs"):
            found = self.model.outputs(encoded)
        if found.shape != (len(encoded), len(names)):
            raise PipelineCodeError(
                f"returned outputs of shape {found.shape} for {len(encoded)} rows",
                which="the model",
                fix=f"model.py must return one number for each row and each of {', '.join(names)}",
            )
        return found


def _among(counted: CountedPlaces, kept: npt.NDArray[np.bool_]) -> CountedPlaces:
    """Of those rows that are kept, by their places among them."""
    left = counted.places[kept[counted.places]]
    return CountedPlaces(counted.one_of, (np.cumsum(kept) - 1)[left])


def _check_shapes(n: int, features: pa.Table, encoded: Floats, scores: Floats) -> None:
    if not (isinstance(scores, np.ndarray | np.number) and np.issubdtype(scores.dtype, np.number)):
        kind = f"array of {scores.dtype}" if isinstance(scores, np.ndarray) else type(scores).__name__
        raise PipelineCodeError(
            f"returned {kind} as scores", which="the model", fix="model.py must return one logit for each row"
        )
    found = (features.num_rows, encoded.shape[0], scores.shape)
    if found != (n, n, (n,)):
        raise PipelineCodeError(
            f"returned {found[0]} feature rows, {found[1]} encoded rows and scores of shape {found[2]} "
            f"for {n} source rows",
            which="the model",
            fix="features.py must return one row, and model.py one logit, for each source row",
        )


def _explain(
    model: ShardModel, chosen: npt.NDArray[np.bool_], encoded: Floats
) -> tuple[npt.NDArray[np.bool_], Floats, Floats, float]:
    n, width = len(chosen), len(model.feature_names)
    none = np.zeros((0, width), np.float32)
    residual = np.full(n, np.nan, dtype=np.float32)
    if not chosen.any():
        return chosen, none, residual, float("nan")
    try:
        found = model.explain(encoded[chosen])
    except _NOT_THE_ROWS_FAULT:
        raise
    except Exception as error:  # a prediction without its explanation is still a prediction
        if ran_out_of_memory(error):
            raise out_of_memory(error, which="explain") from error
        log.warning("%d rows were scored but not explained: %s: %s", n, type(error).__name__, error)
        return np.zeros(n, dtype=bool), none, residual, float("nan")
    residual[chosen] = found.residual
    return chosen, found.attributions, residual, float(found.base_value)

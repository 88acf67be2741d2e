"""A shard of a run that exposes a challenger: its slice of the entities gets the challenger's predictions (docs/delivery.md).

The champion scores every row all the same: its profile stays that of the whole day, and what the challenger cannot
score keeps the champion's prediction. An exposure can make predictions differ, it cannot lose one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.core.errors import OutcomeUnknown, PenstockError, PipelineCodeError, TransientError
from tasks.core.sampling import in_slice
from tasks.core.spec import PipelineSpec
from tasks.inference.records import (
    DeadLetter,
    Exposed,
    ExposedRows,
    Fingerprint,
    Plan,
    RunExposure,
    ShardRecord,
)
from tasks.inference.scoring import DeadLetters, ScoredBatch, ShardModel, score_rows

log = logging.getLogger(__name__)

_EXAMPLES = 3


def as_challenger(plan: Plan, exposed: Exposed) -> Plan:
    """The plan as if the exposed challenger scored it all: what a model is loaded by."""
    pinned = replace(
        plan.fingerprint,
        model_version=exposed.model_version,
        bundle_digest=exposed.bundle_digest,
        feature_version=exposed.feature_version,
    )
    return replace(plan, fingerprint=pinned)


def score_slice(
    load: Callable[[], ShardModel],
    spec: PipelineSpec,
    exposed: Exposed,
    rows: pa.Table,
    *,
    first_row: int,
    champion: Sequence[ScoredBatch],
    output_names: tuple[str, ...],
    explain: bool,
    which: str,
) -> tuple[list[ScoredBatch], list[ScoredBatch], ExposedRows]:
    """Score the exposed entities' rows with the challenger.

    Args:
        load: Gives the challenger; called when the slice has a row.
        spec: The pipeline.
        exposed: Who is exposed to which share.
        rows: The shard's source rows.
        first_row: Number of the first of them in its partition file.
        champion: What the champion made of all rows that it could score.
        output_names: The champion's; the table has columns for these.
        explain: As in `score_rows`.
        which: The shard, for messages.

    Returns:
        (the champion's batches without the rows that the challenger scored, the challenger's batches, figures).

    Raises:
        TransientError, OutcomeUnknown: The store failed while the challenger was fetched.
    """
    started = time.process_time()
    masks = [in_slice(spec.name, batch.entity_ids, exposed.share) for batch in champion]
    wanted = np.concatenate(
        [np.zeros(0, np.int64), *(b.source_rows[m] for b, m in zip(champion, masks, strict=True))]
    )
    if not len(wanted):
        return list(champion), [], ExposedRows(0, 0, (), 0.0)
    dead = DeadLetters(len(wanted), which)
    try:
        model = load()
        _require_same_outputs(model, output_names, exposed)
        chosen = rows.take(pa.array(wanted - first_row))
        found = score_rows(model, spec, chosen, first_row=0, dead=dead, explain=explain)
        examples = tuple(_in_words(letter) for letter in dead.letters[:_EXAMPLES])
    except (TransientError, OutcomeUnknown):
        raise  # passes: the shard is tried again
    except PenstockError as error:
        found, examples = [], (f"{type(error).__name__}: {error.which} {error.what}"[:500],)
    scored = [replace(batch, source_rows=wanted[batch.source_rows]) for batch in found]
    taken = np.concatenate([np.zeros(0, np.int64), *(batch.source_rows for batch in scored)])
    errors = len(wanted) - len(taken)
    if errors:
        log.warning(
            "%s: version %d could not score %d of its %d rows; they keep the champion's predictions. For example %s.",
            which, exposed.model_version, errors, len(wanted), examples[0],
        )  # fmt: skip
    left = [_kept(batch, ~np.isin(batch.source_rows, taken)) for batch in champion]
    seconds = round(time.process_time() - started, 4)
    return left, scored, ExposedRows(len(taken), errors, examples, seconds)


def run_exposure(fingerprint: Fingerprint, records: Sequence[ShardRecord]) -> RunExposure | None:
    """What the exposed challenger of a run did in these of its shards; None when it exposes none."""
    exposed = fingerprint.exposed
    if exposed is None:
        return None
    found = [(record.day, record.exposed) for record in records if record.exposed is not None]
    days: dict[str, int] = {}
    for day, item in found:
        days[day.isoformat()] = days.get(day.isoformat(), 0) + item.rows
    return RunExposure(
        model_version=exposed.model_version,
        share=exposed.share,
        rows=sum(item.rows for _, item in found),
        errors=sum(item.errors for _, item in found),
        error_examples=tuple(example for _, item in found for example in item.error_examples)[:_EXAMPLES],
        cpu_seconds=round(sum(item.cpu_seconds for _, item in found), 3),
        days=days,
    )


def _require_same_outputs(model: ShardModel, output_names: tuple[str, ...], exposed: Exposed) -> None:
    if model.output_names != output_names:
        raise PipelineCodeError(
            f"gives {', '.join(model.output_names) or 'no outputs'} beside the score, the champion "
            f"{', '.join(output_names) or 'none'}: they cannot share a table's columns",
            which=f"version {exposed.model_version}",
            fix="promote it without an exposure",
        )


def _in_words(letter: DeadLetter) -> str:
    return f"{letter.prediction_id or 'a row'} ({letter.stage}: {letter.error_class}: {letter.reason})"


def _kept(batch: ScoredBatch, keep: npt.NDArray[np.bool_]) -> ScoredBatch:
    """The batch without some of its rows."""
    if keep.all():
        return batch
    at = np.flatnonzero(keep)
    indices = pa.array(at)
    return replace(
        batch,
        source_rows=batch.source_rows[at],
        prediction_ids=batch.prediction_ids.take(at),
        entity_ids=batch.entity_ids.take(indices),
        identity=batch.identity.take(indices),
        features=batch.features.take(indices),
        scores=batch.scores[at],
        outputs=batch.outputs[at],
        explained=batch.explained[at],
        attributions=batch.attributions[keep[batch.explained]],
        residual=batch.residual[at],
    )

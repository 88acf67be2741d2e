"""What a bundle reads and gives, and whether that fits the pipeline and those who read the champion's predictions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pyarrow as pa

from tasks.core import Finding, PipelineSpec, Snapshot
from tasks.evaluation.check_records import ModelChecks, Signature
from tasks.evaluation.load_process import golden_inputs

if TYPE_CHECKING:
    from tasks.model import Scorer

SCORE = "prediction"


def signature_of(scorer: Scorer) -> Signature:
    """The signature, from the bundle alone.

    Which columns the features are computed from is found by leaving them out of the golden rows one by one: without a
    column that is read, the features fail or change.

    Raises:
        PipelineCodeError: The bundle's features.py does not run on its own golden rows.
    """
    rows = golden_inputs(scorer.bundle)
    whole = scorer.features(rows)
    predictions = scorer.predict(scorer.encode(whole))
    outputs = {SCORE: str(pa.from_numpy_dtype(predictions.dtype))}
    return Signature(
        inputs={
            column.name: str(column.type)
            for column in rows.schema
            if _reads(scorer, rows, whole, column.name)
        },
        features=tuple(scorer.feature_names),
        categories={column.name: column.values for column in scorer.encoder.categorical},
        outputs=outputs | dict.fromkeys(scorer.output_names, "float"),
    )


def _reads(scorer: Scorer, rows: pa.Table, whole: pa.Table, name: str) -> bool:
    try:
        return not scorer.features(rows.drop_columns([name])).equals(whole)
    except Exception:  # the user's code decides what a missing column raises
        return True


def scoring_columns(spec: PipelineSpec, snapshot: Snapshot) -> dict[str, str]:
    """Column -> type of a snapshot, without what is known only afterwards."""
    later = spec.label.known_afterwards
    return {name: kind for name, kind in snapshot.schema if name not in later}


def signature_findings(spec: PipelineSpec, checks: ModelChecks) -> Iterable[Finding]:
    """Inputs, features, categories and outputs of the candidate against pipeline.yaml and the champion."""
    ours, theirs = checks.signature, checks.champion_signature
    if ours is None:
        detail = f"not known: {checks.signature_error or 'evaluate again'}"
        yield Finding("signature", "fail", detail)
        return
    yield inputs_finding(spec, ours, checks.scoring_columns)
    yield _features(spec, ours)
    yield _categories(ours, theirs)
    yield _outputs(ours, theirs)


def inputs_finding(spec: PipelineSpec, ours: Signature, available: dict[str, str]) -> Finding:
    """Whether every column that the features read is among `available` (column -> type), with the type of training."""
    name = "signature: inputs"
    outcomes = spec.label.known_afterwards
    late = sorted(set(ours.inputs) & outcomes)
    absent = sorted(set(ours.inputs) - set(available) - outcomes)
    other = [
        f"{column} ({kind} in training, {available[column]} now)"
        for column, kind in ours.inputs.items()
        if column in available and available[column] != kind
    ]
    parts = []
    if late:
        parts.append(f"reads {', '.join(late)}, which scoring snapshots do not have: known only afterwards")
    if absent:
        parts.append(f"reads {', '.join(absent)}, which the source does not give")
    if other:
        parts.append(f"reads columns of another type than it was trained on: {', '.join(other)}")
    if parts:
        return Finding(
            name, "fail", f"{'; '.join(parts)}. Correct features.py or the source, then train again"
        )
    return Finding(name, "pass", f"all {len(ours.inputs)} columns that the features read are there to score")


def _features(spec: PipelineSpec, ours: Signature) -> Finding:
    name, wanted = "signature: features", spec.features.names
    if ours.features == wanted:
        return Finding(name, "pass", f"the {len(wanted)} features of pipeline.yaml, in its order")
    missing, extra = sorted(set(wanted) - set(ours.features)), sorted(set(ours.features) - set(wanted))
    parts = [f"lacks {', '.join(missing)}"] if missing else []
    parts += [f"has {', '.join(extra)} beside them"] if extra else []
    found = " and ".join(parts) or "has them in another order"
    return Finding(name, "fail", f"the model {found}, against features in pipeline.yaml: train again")


def _categories(ours: Signature, theirs: Signature | None) -> Finding:
    name = "signature: categories"
    if theirs is None:
        known = sum(len(values) for values in ours.categories.values())
        return Finding(name, "pass", f"{known:,} categories of {len(ours.categories)} features are known")
    emptied, lost = [], []
    for feature, before in theirs.categories.items():
        now = ours.categories.get(feature)
        if now is None:
            continue
        gone = sorted(set(before) - set(now))
        if before and not now:
            emptied.append(feature)
        elif gone:
            shown = ", ".join(gone[:5]) + (", ..." if len(gone) > 5 else "")
            lost.append(f"{feature} no longer knows {len(gone)} of {len(before)} ({shown})")
    if emptied:
        detail = f"no category is left of {', '.join(emptied)}: the column was empty or renamed in training"
        return Finding(name, "fail", detail)
    return Finding(name, "pass", "; ".join(lost) or "every category that the champion knows is known")


def _outputs(ours: Signature, theirs: Signature | None) -> Finding:
    name = "signature: outputs"
    if theirs is None:
        return Finding(name, "pass", f"gives {', '.join(ours.outputs)}; there is no champion to compare with")
    removed = [column for column in theirs.outputs if column not in ours.outputs]
    retyped = [
        f"{column} ({kind}, now {ours.outputs[column]})"
        for column, kind in theirs.outputs.items()
        if column in ours.outputs and ours.outputs[column] != kind
    ]
    parts = [f"no longer gives {', '.join(removed)}"] if removed else []
    parts += [f"changes the type of {', '.join(retyped)}"] if retyped else []
    if parts:
        advice = "whoever reads the predictions counts on it: let outputs(x) in model.py give it again"
        return Finding(name, "fail", f"{'; '.join(parts)}: {advice}")
    added = [column for column in ours.outputs if column not in theirs.outputs]
    wider = f"; adds {', '.join(added)}, so the table is widened" if added else ""
    return Finding(name, "pass", f"gives every column that the champion gives{wider}")

"""A model made from the sample: trained briefly, measured, judged, and taken to the door of production."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from tasks.core import PipelineSpec
from tasks.core.records import Finding, Snapshot
from tasks.wiring.ci.production import Champion
from tasks.wiring.ci.records import FAIL, INFORM, PASS, CheckFailed, Checks
from tasks.wiring.ci.sample import Sample
from tasks.wiring.context import Context
from tasks.wiring.loading import loaded_anew

if TYPE_CHECKING:
    from tasks.evaluation import Evaluation
    from tasks.training import TrainedModel

log = logging.getLogger(__name__)

EPOCHS = 20
"""At most; on so few days it is the days that say little, not the epochs."""
_STATISTICAL = re.compile(
    r"min_auc|better_than_|no_worse_than_|calibration|slice|distribution|staleness|latency|memory|cost"
)
"""Findings about quality: on a sample they say nothing about the model that will be trained."""


def train_sample(context: Context, snapshot: Snapshot, sample: Sample) -> TrainedModel:
    """The training step with fewer epochs, in this process instead of Ray, and without MLflow."""
    from tasks.training.in_process import fit_in_process
    from tasks.training.trainer import train

    spec = context.spec
    brief = spec.training.model_copy(
        update={"epochs": min(EPOCHS, spec.training.epochs), "workers": 1, "gpus_per_worker": 0.0}
    )
    return train(
        context.settings,
        spec.model_copy(update={"training": brief}),
        snapshot,
        validation_first_day=sample.validation_first_day,
        fit=fit_in_process,
        show=_shown_nowhere,
    )


def evaluate_sample(
    context: Context, snapshot: Snapshot, trained: TrainedModel, sample: Sample, champion: Champion | None
) -> Evaluation:
    """The evaluation step on the sample's validation days."""
    from tasks.evaluation import evaluate

    return evaluate(
        context.settings,
        context.spec,
        snapshot,
        candidate_digest=trained.bundle_digest,
        champion_digest=champion.bundle_digest if champion else None,
        validation_first_day=sample.validation_first_day,
    )


def blocks(finding: Finding) -> bool:
    """Whether a finding of the evaluation gate stops a merge: shown to be bad, and not a matter of sample size."""
    return finding.status == "fail" and not _STATISTICAL.match(finding.name)


def judge_sample(checks: Checks, spec: PipelineSpec, evaluation: Evaluation) -> str:
    """The evaluation gate, of which leakage, late features, behaviour and missing evidence block.

    Raises:
        CheckFailed: Some of them do.
    """
    from tasks.evaluation import judge

    verdict = judge(spec, evaluation, as_of=evaluation.validation_last_day)
    stopping = [finding for finding in verdict.findings if blocks(finding)]
    informing = [item for item in verdict.findings if item.status != "pass" and item not in stopping]
    for finding in stopping:
        checks.note(FAIL, f"{finding.name}: {finding.detail}")
    for finding in informing:
        checks.note(INFORM, f"{finding.name}: {finding.detail}")
    if stopping:
        raise CheckFailed(
            "; ".join(f"{finding.name}: {finding.detail}" for finding in stopping),
            which=f"{spec.name}, model of the sample",
            fix="correct features.py, model.py or the source; on all days the gate would refuse this too",
        )
    passed = len(verdict.findings) - len(informing)
    return f"{passed} of {len(verdict.findings)} findings pass, none blocks" + (
        f"; {len(informing)} that a sample cannot decide" if informing else ""
    )


def rehearse(
    checks: Checks, context: Context, trained: TrainedModel, champion: Champion | None, *, unknown: str
) -> str:
    """What promotion does before it moves the pointer, and what it would decide; the pointer is not touched."""
    from tasks.evaluation.scoring import load_scorer

    with loaded_anew(context.store, trained.bundle_digest):
        checks.note(
            PASS, f"bundle {trained.bundle_digest[:16]} loads from the store anew and repeats its golden rows"
        )
    ending = "a person would be asked" if context.spec.promotion.mode == "approval" else "by itself"
    if unknown:
        return f"would be registered as challenger; {unknown}"
    if champion is None:
        checks.note(INFORM, "there is no rollback target: this would be the first version")
        return f"would become the first champion, {ending}"
    try:
        load_scorer(
            context.settings, context.spec, champion.bundle_digest
        ).check_golden()  # from the cache alone
        checks.note(PASS, f"rollback target, version {champion.version}, loads and repeats its golden rows")
    except Exception as error:  # a champion that fails is a finding about production, not about this change
        log.info("the champion cannot be loaded here", exc_info=error)
        checks.note(INFORM, f"rollback target, version {champion.version}, does not load here: {error}")
    return (
        f"would be compared with version {champion.version} in the canary, on up to {context.spec.canary.days} days, "
        f"and promoted only if that passes, {ending}"
    )


def _shown_nowhere(*_: Any, **__: Any) -> Any:
    """In the place of MLflow."""
    from tasks.training.tracking import Tracked

    return Tracked("", "", "")

"""Measures the model itself: footprint, signature, dependencies and the tests of its folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.core import PenstockError, PipelineSpec, Settings, Snapshot
from tasks.evaluation.check_records import FolderTests, ModelChecks, Signature
from tasks.evaluation.folder_tests import run_folder_tests
from tasks.evaluation.footprint import Start, measure_footprint, spawn
from tasks.evaluation.signature import scoring_columns, signature_of

if TYPE_CHECKING:
    from tasks.model import Scorer

__all__ = ["FolderTests", "check_model", "run_folder_tests"]

log = logging.getLogger(__name__)


def check_model(
    settings: Settings,
    spec: PipelineSpec,
    snapshot: Snapshot,
    candidate: Scorer,
    champion: Scorer | None,
    *,
    start: Start = spawn,
) -> ModelChecks:
    """Measure everything that `model_findings` judges; what goes wrong in the model is in the result.

    Args:
        snapshot: Says which columns there are to score.
        champion: None: there is none, or it cannot be loaded.
        start: Starts the process that a model is measured in.
    """
    other = champion if champion is not None and champion.digest != candidate.digest else None
    measured = measure_footprint(spec, _where(candidate), _where(other) if other else None, start=start)
    signature, error = _signature(candidate)
    return ModelChecks(
        footprint=measured.footprint,
        signature=signature,
        signature_error=error,
        champion_signature=_signature(other)[0] if other else None,
        scoring_columns=scoring_columns(spec, snapshot),
        dependencies=measured.dependencies,
        python_version=measured.python_version,
        tests=run_folder_tests(settings, spec, candidate.digest),
    )


def _where(scorer: Scorer) -> tuple[Path, str]:
    return scorer.bundle.folder, scorer.digest


def _signature(scorer: Scorer) -> tuple[Signature | None, str | None]:
    try:
        return signature_of(scorer), None
    except PenstockError as error:
        log.warning("evaluation: the signature of %s cannot be told: %s", scorer.digest[:16], error)
        return None, f"{error.which}: {error.what}"

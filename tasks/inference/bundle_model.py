"""The scorer of a run's pinned bundle, as shards use it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.core.errors import FingerprintMismatch
from tasks.core.object_store import open_store
from tasks.core.sampling import CountedRows
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec
from tasks.inference.records import Plan
from tasks.inference.scoring import ShardModel
from tasks.model import Profile, Scorer, fetch_bundle
from tasks.model.attribution_sums import ANY_ROW, ExplainedRows, selection_of
from tasks.model.execution import Execution

log = logging.getLogger(__name__)

_MEMORY_SHARE = 0.3
"""Of the part of an accelerator that a worker has. Explaining a block takes three times the memory of scoring it."""


class BundleModel:
    """A `Scorer` that also profiles on its bundle's grid.

    Args:
        scorer: The loaded bundle.
        selection: How the rows to explain are chosen now, `selection_of` the pipeline.
    """

    def __init__(self, scorer: Scorer, selection: str = ANY_ROW) -> None:
        self._scorer = scorer
        self._selection = selection
        self.feature_names = tuple(scorer.feature_names)
        self.output_names = scorer.output_names
        self.explainer = scorer.explainer
        self.explainer_version = scorer.explainer_version
        self.background_id = scorer.background_id
        self.block_rows = scorer.execution.block_rows

    def features(self, rows: pa.Table) -> pa.Table:
        return self._scorer.features(rows)

    def encode(self, features: pa.Table) -> npt.NDArray[np.float32]:
        return self._scorer.encode(features)

    def predict(self, encoded: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return self._scorer.predict(encoded)

    def outputs(self, encoded: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return self._scorer.outputs(encoded)

    def explain(self, encoded: npt.NDArray[np.float32]) -> Any:
        return self._scorer.explain(encoded)

    def profile(
        self,
        features: pa.Table,
        scores: npt.NDArray[np.float32],
        explained: npt.NDArray[np.bool_],
        attributions: npt.NDArray[np.float32],
        rows: pa.Table,
        counted: CountedRows | None,
    ) -> dict[str, Any] | None:
        found = ExplainedRows(explained, attributions, self._selection)
        grid = self._scorer.bundle.profile_spec
        return Profile.of(grid, features, scores, found, rows, counted).to_json()


def load_bundle_model(settings: Settings, spec: PipelineSpec, plan: Plan) -> ShardModel:
    """Fetch, verify and load the bundle that `plan` pins, and replay its golden rows.

    Raises:
        DigestMismatch: The bundle is damaged, or this machine does not compute what was trained (I9).
        FingerprintMismatch: The bundle's feature version is not the plan's.
    """
    fingerprint = plan.fingerprint
    store = open_store(settings, prefix=spec.prefix)
    bundle = fetch_bundle(store, fingerprint.bundle_digest, settings.cache_dir)
    scorer = Scorer(
        bundle,
        execution=Execution(scoring_device(spec), bfloat16=spec.inference.precision == "bfloat16"),
        compiled=spec.inference.compile,
        memory_share=_MEMORY_SHARE
        * min(1.0, spec.inference.gpus_per_worker)
        / (2 if fingerprint.exposed else 1),  # an exposed challenger is loaded beside the champion
    )
    if scorer.feature_version != fingerprint.feature_version:
        raise FingerprintMismatch(
            f"was planned with feature version {fingerprint.feature_version}, its bundle has "
            f"{scorer.feature_version}",
            which=f"run {plan.run_id}",
            fix="plan again with the feature version that the registry names for this model",
        )
    scorer.check_golden()
    return BundleModel(scorer, selection_of(spec))


def scoring_device(spec: PipelineSpec) -> str:
    """Where the pipeline's models are to run on this machine, as torch names it."""
    if spec.inference.gpus_per_worker <= 0:
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda:0"
    log.warning(
        "inference.gpus_per_worker is %g, but torch %s sees no GPU here; scoring on the CPU.",
        spec.inference.gpus_per_worker,
        torch.__version__,
    )
    return "cpu"

"""Does training give the same model again? Trains twice, in two clean processes, and compares.

Both read the same days, compute the features anew and fit with the same seed, without Ray and on a CPU. So a set whose
order differs between processes, a clock or an unseeded generator in features.py or model.py is seen: in the inputs, or only
in the weights.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np

from tasks.core.clean_process import run_python
from tasks.core.errors import PenstockError, TerminalError, error_from_record
from tasks.core.ids import digest_bytes
from tasks.core.object_store import open_store
from tasks.core.partitions import load_snapshot
from tasks.core.records import JsonRecord, PartitionFile, Snapshot
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec, pipeline_folder

SAMPLE_ROWS = 50_000
DEADLINE_S = 1800.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt(JsonRecord):
    """One of the two trainings."""

    inputs_digest: str
    """Of the encoded matrices and labels that the network learns from."""
    weights_digest: str
    validation_auc: float
    epochs: int


@dataclass(frozen=True)
class Reproduction(JsonRecord):
    """Both trainings and what they have in common."""

    snapshot_id: str
    seed: int
    rows: int
    days: int
    whole: bool
    """Whether all days of the snapshot were used."""
    first: Attempt
    second: Attempt
    tolerance: float

    @property
    def auc_difference(self) -> float:
        return abs(self.first.validation_auc - self.second.validation_auc)

    @property
    def same_weights(self) -> bool:
        return self.first.weights_digest == self.second.weights_digest

    @property
    def reproducible(self) -> bool:
        """Equal weights, or AUCs within the tolerance; an AUC that is not defined is no evidence."""
        return self.same_weights or bool(self.auc_difference <= self.tolerance)

    @property
    def detail(self) -> str:
        """What was found, one sentence."""
        if self.same_weights:
            return (
                f"both trainings gave the same weights to the last bit, AUC {self.first.validation_auc:.4f}"
            )
        cause = (
            "from the same inputs: look for an unseeded generator in model.py"
            if self.first.inputs_digest == self.second.inputs_digest
            else "and already the features differ: look for a set, a clock or an unseeded generator in features.py"
        )
        return (
            f"AUC {self.first.validation_auc:.4f} and {self.second.validation_auc:.4f} differ by {self.auc_difference:.2g} "
            f"(tolerance {self.tolerance:g}), {cause}"
        )


def reproduce(
    settings: Settings,
    spec: PipelineSpec,
    snapshot: Snapshot,
    *,
    validation_first_day: date,
    sample_rows: int = SAMPLE_ROWS,
    deadline_s: float = DEADLINE_S,
) -> Reproduction:
    """Train twice with the same seed on evenly spaced days of `snapshot`, all of them when it is small.

    Nothing is kept: no checkpoint, no bundle, no MLflow run.

    Raises:
        DataError, PipelineCodeError: A training failed, as `train` does.
        TerminalError: A training's process died or passed the deadline.
    """
    parts = sample_days(snapshot.partitions, validation_first_day, sample_rows)
    days = [part.day.isoformat() for part in parts]
    attempts = []
    with tempfile.TemporaryDirectory(prefix="penstock-reproduce-") as scratch:
        for number in (1, 2):
            request, result = Path(scratch, f"request-{number}.json"), Path(scratch, f"result-{number}.json")
            request.write_text(
                json.dumps(
                    {
                        "spec": spec.model_dump(mode="json"),
                        "snapshot_id": snapshot.snapshot_id,
                        "days": days,
                        "validation_first_day": validation_first_day.isoformat(),
                        "scratch": str(Path(scratch, f"store-{number}")),
                    }
                )
            )
            ended = run_python(
                ["-m", "tasks.training.reproducing", str(request), str(result)],
                deadline_s=deadline_s,
                cwd=Path(scratch),
                # Each process orders its sets in its own way: what depends on that shows.
                extra={**settings.as_environment(), "PYTHONHASHSEED": str(number)},
            )
            if not result.is_file():
                late = f"did not finish within {deadline_s:g} s" if ended.timed_out else f"{ended.reason}"
                raise TerminalError(
                    late, which=f"training {number} of 2 of {spec.name}", fix="train it once to see why"
                )
            found = json.loads(result.read_text())
            if "error" in found:
                raise error_from_record(found["error"])
            attempts.append(Attempt.from_json(found))
            log.info("training %d of 2: AUC %.4f", number, attempts[-1].validation_auc)
    return Reproduction(
        snapshot_id=snapshot.snapshot_id,
        seed=spec.training.seed,
        rows=sum(part.rows for part in parts),
        days=len(parts),
        whole=len(parts) == len(snapshot.partitions),
        first=attempts[0],
        second=attempts[1],
        tolerance=spec.gates.reproducibility_tolerance,
    )


def sample_days(
    partitions: Sequence[PartitionFile], validation_first_day: date, rows: int
) -> list[PartitionFile]:
    """All days when they have at most `rows` rows; else as many evenly spaced days of either side as fit its share."""
    total = sum(part.rows for part in partitions)
    if total <= rows:
        return list(partitions)
    kept: list[PartitionFile] = []
    for side in (
        [part for part in partitions if part.day < validation_first_day],
        [part for part in partitions if part.day >= validation_first_day],
    ):
        count = min(len(side), max(3, int(len(side) * rows / total)))
        picked = set(np.linspace(0, len(side) - 1, count).astype(int).tolist()) if side else set()
        kept += [side[index] for index in sorted(picked)]
    return kept


def _attempt(request: dict[str, object]) -> Attempt:
    """One training, in this process."""
    from tasks.model.feature_code import FeatureCode
    from tasks.model.network import build_network
    from tasks.model.ranking import auc
    from tasks.training.dataset import load_training_data
    from tasks.training.fit import logits_of
    from tasks.training.in_process import fit_in_process

    settings, spec = Settings.from_environment(), PipelineSpec.model_validate(request["spec"])
    store = open_store(settings, prefix=spec.prefix)
    snapshot = load_snapshot(store, str(request["snapshot_id"]))
    wanted = set(request["days"])  # type: ignore[call-overload]
    parts = tuple(part for part in snapshot.partitions if part.day.isoformat() in wanted)
    folder = pipeline_folder(settings, spec.name)
    data = load_training_data(
        store,
        spec,
        replace(snapshot, partitions=parts),
        FeatureCode.from_file(folder / "features.py"),
        validation_first_day=date.fromisoformat(str(request["validation_first_day"])),
    )
    source, origin = (folder / "model.py").read_text(encoding="utf-8"), str(folder / "model.py")
    fitted = fit_in_process(
        replace(settings, store_url=str(request["scratch"])),
        spec,
        data,
        training_id="reproduce",
        model_source=source,
        model_origin=origin,
    )
    network = build_network(source, data.network, origin=origin)
    network.load_state_dict(fitted.state_dict)
    arrays = (data.fit.x, data.fit.y, data.tuning.x, data.tuning.y)
    weights = b"".join(
        name.encode() + tensor.numpy().tobytes() for name, tensor in sorted(fitted.state_dict.items())
    )
    return Attempt(
        inputs_digest=digest_bytes(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)),
        weights_digest=digest_bytes(weights),
        validation_auc=auc(data.validation.y, logits_of(network, data.validation.x)),
        epochs=len(fitted.history),
    )


def main() -> None:
    request, result = map(Path, sys.argv[1:3])
    try:
        found = _attempt(json.loads(request.read_text())).to_json()
    except PenstockError as error:
        found = {"error": error.as_record()}
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

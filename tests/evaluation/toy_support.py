"""One installation of the toy pipeline, its snapshots and its bundles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from model_load import start_here

from tasks.core import PipelineSpec, Settings, Snapshot, open_store
from tasks.core.partitions import save_snapshot, table_schema, write_partition

FIRST_DAY, VALIDATION_DAY, LAST_DAY = date(2024, 1, 1), date(2024, 1, 29), date(2024, 2, 4)


_TRAINED: dict[tuple[Any, ...], dict[str, Any]] = {}


def trained(
    start: Callable[[], Any], inputs: np.ndarray, labels: np.ndarray, steps: int, of: tuple[str, int]
) -> dict[str, Any]:
    """State of the network that `start` makes from `of`, after so many steps; what was trained in this process is not trained again."""
    import torch

    key = (inputs.tobytes(), labels.tobytes(), steps, of)
    if key not in _TRAINED:
        network, encoded, target = start(), torch.from_numpy(inputs), torch.from_numpy(labels)
        optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for _ in range(steps):
            optimiser.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(network(encoded), target).backward()
            optimiser.step()
        torch.set_num_threads(threads)
        _TRAINED[key] = network.state_dict()
    return _TRAINED[key]


@dataclass
class Toy:
    """One installation of the toy pipeline."""

    settings: Settings
    spec: PipelineSpec

    @property
    def store(self):  # type: ignore[no-untyped-def]
        return open_store(self.settings, prefix=self.spec.prefix)

    @property
    def check(self) -> Callable[..., Any]:
        """`check_model` without processes of its own."""
        from tasks.evaluation.model_checks import check_model

        return partial(check_model, start=start_here)

    def rows(self, first: date, last: date) -> pa.Table:
        scope: dict[str, object] = {}
        path = self.settings.pipelines_dir / "toy" / "source.py"
        exec(compile(path.read_text(), str(path), "exec"), scope)
        return scope["load"](first, last)  # type: ignore[operator]

    def snapshot(
        self,
        first: date = FIRST_DAY,
        last: date = LAST_DAY,
        change: Callable[[pa.Table], pa.Table] = lambda table: table,
    ) -> Snapshot:
        parts, schema = [], ()
        for offset in range((last - first).days + 1):
            day = first + timedelta(days=offset)
            table = change(self.rows(day, day))
            schema = table_schema(table)
            parts.append(write_partition(self.store, day, table))
        identity = Snapshot.identity(self.spec.name, "training", schema, tuple(parts))
        return save_snapshot(
            self.store,
            Snapshot(identity, self.spec.name, "training", schema, tuple(parts), "2024-02-05T00:00:00.000Z"),
        )

    def bundle(
        self,
        folder: Path,
        *,
        shuffle_labels: bool = False,
        constant: bool = False,
        not_finite: bool = False,
        slope: float = 1.0,
        intercept: float = 0.0,
        steps: int = 150,
        seed: int = 0,
        features_source: str | None = None,
        break_slice: Callable[[pa.Table], np.ndarray] | None = None,
    ) -> str:
        """Train the toy network for a second, write and upload its bundle, return the digest."""
        import torch

        from tasks.model import (
            BundleManifest,
            Calibration,
            FeatureCode,
            FeatureEncoder,
            NetworkSpec,
            ProfileSpec,
            build_network,
            upload_bundle,
            write_bundle,
        )
        from tasks.model.bundle import background_id, golden_table, weights_bytes

        spec = self.spec
        code_path = self.settings.pipelines_dir / "toy" / "features.py"
        code = FeatureCode(features_source or code_path.read_text(), origin=str(code_path))
        model_source = (code_path.parent / "model.py").read_text()
        table = self.rows(FIRST_DAY, VALIDATION_DAY - timedelta(days=1))
        labels = table[spec.label.column].to_numpy(zero_copy_only=False).astype(float)
        table, labels = table.filter(pa.array(~np.isnan(labels))), labels[~np.isnan(labels)]
        inputs = table.drop_columns([spec.label.column, *spec.label.outcome_columns])
        features = code.compute(inputs, spec.features)
        encoder = FeatureEncoder.fit(features, spec.features)
        network_spec = NetworkSpec(
            numeric=encoder.numeric_width,
            cardinalities=encoder.cardinalities,
            embedding_dims=tuple(item.embedding_dim for item in spec.features.categorical.values()),
            hidden=(16, 8),
            dropout=0.0,
        )
        rng = np.random.default_rng(seed)
        if shuffle_labels:
            labels = rng.permutation(labels)
        if break_slice is not None:
            labels = np.where(break_slice(table), 1 - labels, labels)

        def network() -> torch.nn.Module:
            torch.manual_seed(seed)
            return build_network(model_source, network_spec, origin="model.py")

        state = trained(
            network, encoder.encode(features), labels.astype(np.float32), steps, (model_source, seed)
        )
        if constant:
            state = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        if not_finite:
            state = {name: torch.full_like(tensor, float("nan")) for name, tensor in state.items()}
        weights = weights_bytes(state)
        head = inputs.slice(0, 16)
        encoded_head = encoder.encode(code.compute(head, spec.features))
        digest = write_bundle(
            folder,
            manifest=BundleManifest(
                pipeline=spec.name,
                training_id="0" * 16,
                snapshot_id="0" * 16,
                feature_version=code.version,
                network=network_spec,
                calibration=Calibration(slope, intercept),
                label_rate=float(labels.mean()),
                train_first_day=FIRST_DAY,
                train_last_day=VALIDATION_DAY - timedelta(days=1),
                validation_first_day=VALIDATION_DAY,
                created_at_utc="2024-02-05T00:00:00.000Z",
                background_id=background_id(encoder, weights),
            ),
            spec=spec,
            feature_code=code,
            model_source=model_source,
            encoder=encoder,
            weights=weights,
            golden=golden_table(head, encoded_head, np.zeros(head.num_rows, np.float32)),
            profile_spec=ProfileSpec.fit(features, None, spec),
            reference={},
        )
        assert upload_bundle(self.store, folder) == digest
        return digest

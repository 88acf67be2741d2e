"""A bundle made without training: random weights, fitted encoder, real files."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tasks.core import PipelineSpec
from tasks.model import (
    Bundle,
    BundleManifest,
    Calibration,
    FeatureCode,
    FeatureEncoder,
    NetworkSpec,
    Profile,
    ProfileSpec,
    build_network,
    write_bundle,
)

TABULAR = "from tasks.model import TabularMLP\ndef build(spec):\n    return TabularMLP(spec)\n"


def toy_rows(n: int, *, seed: int = 0) -> pa.Table:
    """Rows like the toy pipeline's, without outcomes."""
    rng = np.random.default_rng(seed)
    price = rng.gamma(2.0, 10.0, n)
    return pa.table(
        {
            "customer": [f"c{i}" for i in range(n)],
            "price": pa.array(np.where(rng.random(n) < 0.1, np.nan, price), from_pandas=True),
            "visits": rng.poisson(3, n),
            "city": rng.choice(["Basel", "Bern", "Chur", "Genf"], n),
            "device": rng.choice(["phone", "desktop"], n),
        }
    )


MakeBundle = Callable[..., Bundle]


@pytest.fixture
def make_bundle(toy: PipelineSpec, settings: object, tmp_path: Path) -> MakeBundle:
    """`make_bundle(model_source=..., seed=...)` writes a bundle of its own folder and opens it."""
    import torch

    from tasks.model.bundle import background_id, golden_table, weights_bytes
    from tasks.model.execution import predict

    made = 0

    def make(
        model_source: str = TABULAR, *, seed: int = 0, features: str | None = None, wide: bool = True
    ) -> Bundle:
        nonlocal made
        made += 1
        folder = tmp_path / f"bundle-{made}"
        source = features or (
            'FEATURE_VERSION = "1"\ndef features(rows):\n    return rows.select(["price", "visits", "city", "device"])\n'
        )
        code = FeatureCode(source, origin="features.py")
        rows = toy_rows(400)
        table = code.compute(rows, toy.features)
        encoder = FeatureEncoder.fit(table, toy.features)
        network_spec = NetworkSpec(encoder.numeric_width, encoder.cardinalities, (3, 2), (16, 8), 0.1, wide)
        torch.manual_seed(seed)
        network = build_network(model_source, network_spec, origin="model.py").eval()
        calibration = Calibration(1.25, -0.5)
        golden = rows.slice(0, 40)
        encoded = encoder.encode(code.compute(golden, toy.features))
        scores = predict(network, encoder.encode(table), calibration)
        profile_spec = ProfileSpec.fit(table, scores, toy)
        weights = weights_bytes(network.state_dict())
        manifest = BundleManifest(
            pipeline="toy",
            training_id="t" * 16,
            snapshot_id="s" * 16,
            feature_version=code.version,
            network=network_spec,
            calibration=calibration,
            label_rate=0.5,
            train_first_day=date(2024, 1, 1),
            train_last_day=date(2024, 1, 2),
            validation_first_day=date(2024, 1, 3),
            created_at_utc="2024-01-04T00:00:00.000Z",
            background_id=background_id(encoder, weights),
            frameworks={"torch": torch.__version__},
        )
        write_bundle(
            folder,
            manifest=manifest,
            spec=toy,
            feature_code=code,
            model_source=model_source,
            encoder=encoder,
            weights=weights,
            golden=golden_table(golden, encoded, predict(network, encoded, calibration)),
            profile_spec=profile_spec,
            reference={date(2024, 1, 3): Profile.of(profile_spec, table, scores)},
        )
        return Bundle.at(folder)

    return make

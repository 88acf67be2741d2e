"""A real bundle of the toy pipeline with random weights, uploaded to a store."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
from inference_support import toy_rows

from tasks.core import PipelineSpec, Settings, open_store
from tasks.core.spec import pipeline_folder


def upload_random_bundle(
    settings: Settings,
    spec: PipelineSpec,
    folder: Path,
    *,
    seed: int = 7,
    hidden: tuple[int, ...] = (16, 8),
    features: str | None = None,
    training_id: str = "t" * 16,
) -> tuple[str, str]:
    """(bundle digest, feature version); `features` is the source to compute features with instead of the pipeline's."""
    import torch

    from tasks.model import (
        BundleManifest,
        Calibration,
        FeatureCode,
        FeatureEncoder,
        NetworkSpec,
        Profile,
        ProfileSpec,
        build_network,
        upload_bundle,
        write_bundle,
    )
    from tasks.model.bundle import background_id, golden_table, weights_bytes
    from tasks.model.execution import predict

    days = [date(2024, 1, 1), date(2024, 1, 2)]
    rows = pa.concat_tables([toy_rows(settings, day) for day in days])
    home = pipeline_folder(settings, spec.name)
    code = FeatureCode(features or (home / "features.py").read_text(), origin="features.py")
    model_source = (home / "model.py").read_text()
    table = code.compute(rows, spec.features)
    encoder = FeatureEncoder.fit(table, spec.features)
    shape = NetworkSpec(encoder.numeric_width, encoder.cardinalities, (3, 2), hidden, 0.1)
    torch.manual_seed(seed)
    network = build_network(model_source, shape, origin="model.py").eval()
    calibration = Calibration(1.25, -0.5)
    scores = predict(network, encoder.encode(table), calibration)
    grid = ProfileSpec.fit(table, scores, spec)
    golden = rows.slice(0, 40)
    encoded = encoder.encode(table.slice(0, 40))
    weights = weights_bytes(network.state_dict())
    write_bundle(
        folder,
        manifest=BundleManifest(
            pipeline=spec.name,
            training_id=training_id,
            snapshot_id="s" * 16,
            feature_version=code.version,
            network=shape,
            calibration=calibration,
            label_rate=0.5,
            train_first_day=days[0],
            train_last_day=days[0],
            validation_first_day=days[1],
            created_at_utc="2024-01-04T00:00:00.000Z",
            background_id=background_id(encoder, weights),
        ),
        spec=spec,
        feature_code=code,
        model_source=model_source,
        encoder=encoder,
        weights=weights,
        golden=golden_table(golden, encoded, predict(network, encoded, calibration)),
        profile_spec=grid,
        reference={day: Profile.of(grid, table, scores) for day in days},
    )
    return upload_bundle(open_store(settings, prefix=spec.prefix), folder), code.version

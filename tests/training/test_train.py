"""From snapshot to bundle and MLflow run, with a real MLflow server."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import mlflow
import numpy as np
import pytest
import services
from fresh_imports import imported_by
from training_support import VALIDATION_FIRST_DAY, fit_here

from tasks.core import PipelineSpec, Settings, Snapshot, open_store
from tasks.core.errors import DataError, PipelineCodeError, ServiceUnavailable, error_kind
from tasks.model import Scorer, fetch_bundle
from tasks.training import TrainedModel, train, trainer
from tasks.training.tracking import TRAINING_TAG


def run(settings: Settings, spec: PipelineSpec, snapshot: Snapshot, **more: Any) -> TrainedModel:
    more.setdefault("fit", fit_here)
    return train(settings, spec, snapshot, validation_first_day=VALIDATION_FIRST_DAY, **more)


def never(*args: Any, **more: Any) -> Any:
    raise AssertionError("must not be called again")


@pytest.fixture
def own(toy: PipelineSpec, request: pytest.FixtureRequest) -> PipelineSpec:
    """The toy pipeline under a tenant of this test, so that tests do not share an MLflow experiment."""
    tenant = "t" + "".join(c for c in request.node.name.lower() if c.isalnum())[-40:]
    return toy.model_copy(update={"tenant": tenant})


@pytest.fixture
def own_snapshot(own: PipelineSpec, toy: PipelineSpec, settings: Settings, snapshot: Snapshot) -> Snapshot:
    store, mine = open_store(settings, prefix=toy.prefix), open_store(settings, prefix=own.prefix)
    for part in snapshot.partitions:
        mine.put(part.key, store.get(part.key))
    return snapshot


def runs_of(settings: Settings, spec: PipelineSpec, training_id: str) -> list[Any]:
    client = mlflow.MlflowClient(settings.mlflow_url)
    experiment = client.get_experiment_by_name(spec.model_name)
    return list(client.search_runs([experiment.experiment_id], f"tags.`{TRAINING_TAG}` = '{training_id}'"))


def test_training_ends_with_a_verified_bundle_and_a_run_worth_browsing(
    tracked_settings, own, own_snapshot, tmp_path
) -> None:
    settings = tracked_settings
    found = run(settings, own, own_snapshot)
    store = open_store(settings, prefix=own.prefix)

    bundle = fetch_bundle(store, found.bundle_digest, settings.cache_dir)
    scorer = Scorer(bundle)
    assert scorer.check_golden() == 0.0
    assert found.metrics["validation_auc"] > 0.7 and found.metrics["validation_ece"] < 0.15
    assert len(bundle.reference_profiles) == 35
    assert sum(profile.rows for profile in bundle.reference_profiles.values()) == own_snapshot.rows

    client = mlflow.MlflowClient(settings.mlflow_url)
    logged = client.get_run(found.mlflow_run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.tags["penstock.bundle_digest"] == found.bundle_digest
    assert logged.data.tags["mlflow.note.content"].startswith("### toy\n")
    assert logged.data.metrics["validation_auc"] == pytest.approx(found.metrics["validation_auc"])
    assert len(client.get_metric_history(found.mlflow_run_id, "epoch_tuning_loss")) == found.epochs
    assert logged.data.params["learning_rate"] == "0.01"
    assert logged.inputs.dataset_inputs[0].dataset.digest == own_snapshot.snapshot_id
    top = {item.path for item in client.list_artifacts(found.mlflow_run_id)}
    assert {"figures", "model_card.md", "bundle"} <= top
    figures = {item.path: item.file_size for item in client.list_artifacts(found.mlflow_run_id, "figures")}
    assert sorted(figures) == [f"figures/{n}.png" for n in ("calibration", "loss", "precision_recall", "roc")]
    assert min(figures.values()) > 10_000

    # The browsable model is the scorer: same matrix in, same probabilities out, nothing pickled inside.
    mlflow.set_tracking_uri(settings.mlflow_url)
    local = mlflow.artifacts.download_artifacts(found.mlflow_model_uri, dst_path=str(tmp_path / "model"))
    names = {path.name for path in (tmp_path / "model").rglob("*")}
    assert "model.pt2" in names and not {name for name in names if name.endswith((".pkl", ".pth"))}
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    served = mlflow.pytorch.load_model(local)
    import torch

    golden = scorer.golden_encoded()
    with torch.no_grad():
        theirs = served(torch.from_numpy(golden.copy())).numpy()
    np.testing.assert_allclose(theirs, scorer.predict(golden), atol=1e-6)
    info = mlflow.models.get_model_info(found.mlflow_model_uri)
    assert info.signature.inputs.inputs[0].shape == (-1, scorer.encoder.width)
    assert info.metadata["bundle_digest"] == found.bundle_digest

    left = {info.key for info in store.list(f"training/{found.training_id}")}
    assert left == {f"training/{found.training_id}/{name}" for name in ("result.json", "packaged_at_utc")}
    assert TrainedModel.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert run(settings, own, own_snapshot, fit=never) == found
    assert len(runs_of(settings, own, found.training_id)) == 1


def test_a_crash_after_logging_leaves_one_run_and_the_same_bundle(
    tracked_settings, own, own_snapshot, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_result_key", never)
        patch.setattr(trainer, "_finished", lambda store, identity: None)
        with pytest.raises(AssertionError):
            run(tracked_settings, own, own_snapshot)
    found = run(tracked_settings, own, own_snapshot)
    assert [item.info.run_id for item in runs_of(tracked_settings, own, found.training_id)] == [
        found.mlflow_run_id
    ]
    store = open_store(tracked_settings, prefix=own.prefix)
    digests = {info.key.split("/")[1] for info in store.list("bundles")}
    assert digests == {found.bundle_digest}


def test_a_crash_while_logging_leaves_no_half_run(tracked_settings, own, own_snapshot, monkeypatch) -> None:
    from tasks.training import tracking

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_log_model", never)
        with pytest.raises(AssertionError):
            run(tracked_settings, own, own_snapshot)
    found = run(tracked_settings, own, own_snapshot)
    runs = runs_of(tracked_settings, own, found.training_id)
    assert [(item.info.run_id, item.info.status) for item in runs] == [(found.mlflow_run_id, "FINISHED")]


def test_a_changed_file_or_setting_is_another_training(settings, toy, snapshot) -> None:
    from datetime import date

    from tasks.training.records import training_id

    def identity(spec: PipelineSpec = toy, **changed: Any) -> str:
        given = {
            "snapshot_id": "s",
            "feature_version": "f",
            "model_source": "m",
            "validation_first_day": date(2024, 1, 29),
        }
        return training_id(spec, **{**given, **changed})

    seeded = toy.model_copy(update={"training": toy.training.model_copy(update={"seed": 1})})
    nullable = toy.model_copy(
        update={"drift": toy.drift.model_copy(update={"null_when": {"price": {"visits": (0,)}}})}
    )
    others = [
        identity(seeded),
        identity(nullable),
        identity(snapshot_id="t"),
        identity(feature_version="g"),
        identity(model_source="n"),
        identity(validation_first_day=date(2024, 1, 30)),
    ]
    described = toy.model_copy(update={"description": "other words"})
    assert len({identity(), *others}) == 7 and identity(described) == identity() and len(identity()) == 16


def test_mlflow_that_does_not_answer_is_a_transient_error_before_anything_is_trained(
    settings, toy, snapshot
) -> None:
    down = replace(settings, mlflow_url=f"http://127.0.0.1:{services.free_port()}")
    with pytest.raises(ServiceUnavailable) as caught:
        run(down, toy, snapshot, fit=never)
    assert caught.value.which == down.mlflow_url and error_kind(caught.value) == "transient"


def test_features_that_depend_on_other_rows_are_refused(tracked_settings, own, own_snapshot) -> None:
    path = tracked_settings.pipelines_dir / "toy" / "features.py"
    path.write_text(
        'import pyarrow as pa\nimport pyarrow.compute as pc\nFEATURE_VERSION = "1"\n\ndef features(rows):\n'
        '    table = rows.select(["price", "visits", "city", "device"])\n'
        '    return table.set_column(1, "visits", pc.subtract(rows["visits"], pc.mean(rows["visits"])))\n'
    )
    with pytest.raises(PipelineCodeError, match=r"depends on which other rows.*visits"):
        run(tracked_settings, own, own_snapshot)
    assert not list(open_store(tracked_settings, prefix=own.prefix).list("bundles"))


def test_a_model_file_that_raises_is_named_with_its_line(tracked_settings, toy, snapshot) -> None:
    path = tracked_settings.pipelines_dir / "toy" / "model.py"
    path.write_text("def build(spec):\n    raise ValueError('boom')\n")
    with pytest.raises(PipelineCodeError) as caught:
        run(tracked_settings, toy, snapshot, fit=never)
    assert caught.value.which == f"{path}:2" and "boom" in caught.value.what


def test_a_scoring_snapshot_is_refused(tracked_settings, toy, snapshot) -> None:
    with pytest.raises(DataError, match="kind scoring"):
        run(tracked_settings, toy, replace(snapshot, kind="scoring"), fit=never)


def test_the_door_imports_nothing_heavy() -> None:
    heavy = ("torch", "ray", "mlflow", "sklearn", "matplotlib", "pandas")
    assert imported_by("import tasks.training", *heavy) == []


def test_a_training_imports_no_library_for_its_figures_alone() -> None:
    libraries = ("sklearn", "scipy", "pandas", "matplotlib", "mlflow")
    assert imported_by("import tasks.training.trainer", *libraries) == []

"""The whole chain, every step of it twice, with a real MLflow server and without Airflow and Ray."""

from __future__ import annotations

from typing import Any

import mlflow
import pytest
from sqlalchemy import create_engine, text
from wiring_support import Chain, Finished, edit, pipeline_file, score

from tasks import wiring
from tasks.core import Settings, load_pipeline
from tasks.inference import read_predictions
from tasks.metadata import MetadataStore

TELLS_WHAT_IT_DID = {
    "score_run": {
        "token", "shards_committed", "shards_skipped", "rows_scored", "cpu_seconds", "gpu_seconds", "wall_s"
    },
    "publish_run": {"already_published"},
    "archive_explanations": {"archived_days", "archived_rows", "archive_bytes_added", "hot_bytes_freed"},
}  # fmt: skip
"""Result fields about the call itself, not about the work: they differ when nothing was left to do."""

STEPS = (
    "snapshot_training",
    "validate_snapshot",
    "train_model",
    "evaluate_model",
    "gate_model",
    "register_model",
    "canary_model",
    "promote_model",
    "snapshot_scoring",
    "plan_scoring",
    "score_run",
    "publish_run",
    "verify_run",
    "measure_window",
    "join_labels",
    "decide_window",
    "report_window",
    "archive_explanations",
)


@pytest.mark.parametrize("step", STEPS)
def test_a_repeated_step_returns_the_same_and_adds_nothing(finished: Finished, step: str) -> None:
    twice = finished.chain.done[step]
    own = TELLS_WHAT_IT_DID.get(step, set())
    assert {key: value for key, value in twice.first.items() if key not in own} == {
        key: value for key, value in twice.second.items() if key not in own
    }
    assert twice.after_second == twice.after_first


@pytest.mark.parametrize(
    "step", ("train_model", "evaluate_model", "gate_model", "canary_model", "promote_model")
)
def test_a_repeated_step_of_a_later_training_adds_nothing_either(second: Chain, step: str) -> None:
    twice = second.done[step]
    assert twice.second == twice.first
    assert twice.after_second == twice.after_first


def test_the_chain_ends_with_every_row_scored_measured_and_archived_by_age(finished: Finished) -> None:
    done = finished.chain.done
    assert done["score_run"].first["rows_scored"] == done["publish_run"].first["rows"] == 480
    assert done["score_run"].second["shards_skipped"] == done["score_run"].first["shards_committed"]
    assert done["publish_run"].second["already_published"]
    assert done["verify_run"].first["ok"]
    assert done["measure_window"].first["days"] == done["join_labels"].first["days_labelled"] == 4
    assert done["decide_window"].first["verdict"] == "healthy"
    assert done["archive_explanations"].first["archived_days"] == ["2024-02-05", "2024-02-06", "2024-02-07"]


def test_one_training_is_one_mlflow_run_and_one_bundle_is_one_version(
    finished: Finished, second: Chain
) -> None:
    client = mlflow.MlflowClient(finished.settings.mlflow_url)
    experiment = client.get_experiment_by_name("toy")
    trained = [chain.done["train_model"].first for chain in (finished.chain, second)]
    runs = client.search_runs([experiment.experiment_id])
    versions = client.search_model_versions("name = 'toy'")
    for one in trained:  # other tests of the session train on the same server
        digest = one["bundle_digest"]
        mine = [run.info.run_id for run in runs if run.data.tags.get("penstock.bundle_digest") == digest]
        assert mine == [one["mlflow_run_id"]]
        assert len([found for found in versions if found.tags["penstock.bundle_digest"] == digest]) == 1
    assert len({one["bundle_digest"] for one in trained}) == 2


def test_what_a_run_cost_stays_when_it_is_asked_for_again(finished: Finished) -> None:
    settings = finished.settings
    spec = load_pipeline(settings, "toy")
    run = MetadataStore.open(settings).run(spec, finished.run_id)
    assert run is not None and run.status == "verified"
    asked = wiring.step("run_status")(settings, "toy", run_id=finished.run_id)
    assert run.cpu_seconds == asked["cpu_seconds"] > 0
    assert run.wall_s == finished.chain.done["score_run"].first["wall_s"]


def test_the_series_of_a_model_runs_from_training_over_evaluation_to_production(finished: Finished) -> None:
    def points(metric: str, **narrowed: Any) -> list[dict[str, Any]]:
        found = wiring.step("metric_series")(finished.settings, "toy", metric=metric, **narrowed)["points"]
        assert {point["model_version"] for point in found} == {finished.version}
        return found

    evaluated, *measured = points("auc")
    assert evaluated["source"] == "evaluation" and evaluated["low"] < evaluated["value"] < evaluated["high"]
    assert evaluated["value"] == finished.chain.done["evaluate_model"].first["metrics"]["auc"]
    labelled = finished.chain.done["join_labels"].first
    assert len(measured) == labelled["days_labelled"] > 0
    assert {(point["source"], point["source_run"]) for point in measured} == {("monitor", finished.run_id)}
    assert sum(point["rows"] for point in measured) <= labelled["rows_labelled"]
    assert len(points("score_mean")) == finished.chain.done["measure_window"].first["days"]
    [trained] = points("validation_auc", source="training")
    assert trained["value"] == finished.chain.done["train_model"].first["metrics"]["validation_auc"]


def test_archived_days_are_recorded_once_with_their_rows_and_where_they_went(finished: Finished) -> None:
    spec = load_pipeline(finished.settings, "toy")
    actions = MetadataStore.open(finished.settings).audit_actions(spec)
    assert sorted((action.kind, f"{action.day}", action.rows) for action in actions) == [
        ("archived", "2024-02-05", 120),
        ("archived", "2024-02-06", 120),
        ("archived", "2024-02-07", 120),
    ]
    assert all(action.key.startswith(f"archive/audit/{action.day}/") for action in actions)


def test_an_action_that_a_crash_kept_from_the_record_is_recorded_by_the_next_call(
    installation: Settings,
) -> None:
    engine = create_engine(installation.metadata_url)
    with engine.begin() as connection:
        connection.execute(
            text("DROP TRIGGER penstock_audit_actions_no_delete")
        )  # history refuses it otherwise
        connection.execute(text("DELETE FROM penstock_audit_actions WHERE day = '2024-02-06'"))
    engine.dispose()
    wiring.step("archive_explanations")(installation, "toy", as_of="2024-02-10")
    actions = MetadataStore.open(installation).audit_actions(load_pipeline(installation, "toy"))
    assert sorted(f"{action.day}" for action in actions) == ["2024-02-05", "2024-02-06", "2024-02-07"]


@pytest.mark.parametrize(("day", "tier"), [("2024-02-05", "cold"), ("2024-02-08", "warm")])
def test_a_prediction_is_explained_from_the_table_and_from_the_archive(
    finished: Finished, day: str, tier: str
) -> None:
    page = wiring.step("audit_predictions")(
        finished.settings, "toy", start=f"{day}T00:00:00", end=f"{day}T23:59:59", limit=3
    )
    records = page["records"]
    assert len(records) == 3 and page["cursor"]
    about = records[1]["entity_id"]
    filtered = wiring.step("audit_predictions")(
        finished.settings, "toy", start=f"{day}T00:00:00", end=f"{day}T23:59:59", entity_id=about
    )
    assert {one["entity_id"] for one in filtered["records"]} == {about}
    one = wiring.step("audit_prediction")(finished.settings, "toy", prediction_id=records[0]["prediction_id"])
    assert one["run_id"] == finished.run_id and one["model_version"] == finished.version
    assert one["tier"] == tier


def test_predictions_of_a_trained_model_are_reproduced(finished: Finished) -> None:
    page = wiring.step("audit_predictions")(
        finished.settings, "toy", start="2024-02-08T00:00:00", end="2024-02-08T23:59:59", limit=8
    )
    for record in page["records"]:
        found = wiring.step("reproduce_prediction")(
            finished.settings, "toy", prediction_id=record["prediction_id"]
        )
        assert found["reproduced"] and not found["differences"] and not found["not_compared"]
        assert found["features_from"] == "source row" and found["score_of_source_bit_equal"]
        assert found["attributions_compared"] == 4


def test_an_audit_record_is_explained_on_demand_when_it_was_not_sampled(installation: Settings) -> None:
    edit(pipeline_file(installation), {"warm_days: 2": "share: 0, warm_days: 2"})
    scored = score(installation, first_day="2024-02-12", last_day="2024-02-12")
    page = wiring.step("audit_predictions")(
        installation, "toy", start="2024-02-12T00:00:00", end="2024-02-13T00:00:00", limit=1
    )
    (record,) = page["records"]
    one = {"prediction_id": record["prediction_id"], "run_id": scored["run_id"]}
    assert record["attributions"] is None
    assert wiring.step("audit_prediction")(installation, "toy", **one)["explanation"] is None
    now = wiring.step("audit_prediction")(installation, "toy", **one, explain=True)
    assert now["explanation"] == "computed" and len(now["attributions"]) == 4
    assert wiring.step("reproduce_prediction")(installation, "toy", **one)["reproduced"]


def test_predictions_carry_each_id_once(finished: Finished) -> None:
    spec = load_pipeline(finished.settings, "toy")
    days = list(MetadataStore.open(finished.settings).published_days(spec))
    ids = read_predictions(finished.settings, spec, days, ["prediction_id"])["prediction_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 480

"""Whether a training is due: what the monitor decided, and what a training run has begun with."""

from __future__ import annotations

from datetime import date

import pytest
from wiring_support import Finished, copy_of, edit, pipeline_file

from tasks import wiring
from tasks.core import PipelineSpec, Settings, load_pipeline
from tasks.core.errors import ConfigError
from tasks.metadata import MetadataStore
from tasks.training.records import training_id
from tasks.wiring import dag_run_evidence
from tasks.wiring.context import Context
from tasks.wiring.triggers import code_digest


def due(settings: Settings, trigger: str, **arguments: str) -> bool:
    found = wiring.step("training_due")(settings, "toy", trigger=trigger, **arguments)
    assert found["reason"] and found["nothing_to_do"] is not found["due"]
    return bool(found["due"])


@pytest.mark.parametrize(
    ("verdict", "action", "expected"),
    [
        ("healthy", "nothing", False),
        ("noise", "note", False),
        ("data fault", "hold_scoring", False),
        ("data fault", "alert", False),
        ("drift, no damage seen", "note", False),
        ("drift, no damage seen", "alert", True),
        ("performance damage", "ask_person", True),
    ],
)
def test_drift_that_alerts_asks_for_a_training_and_a_data_fault_never_does(
    settings: Settings, toy: PipelineSpec, verdict: str, action: str, expected: bool
) -> None:
    MetadataStore.open(settings).record_decision(
        toy,
        action=action,
        verdict=verdict,
        reasons=("seen",),
        first_day=date(2024, 2, 5),
        last_day=date(2024, 2, 8),
        dag_run=None,
        record={},
    )
    assert due(settings, "drift") is expected


def test_the_verdicts_and_actions_asked_about_are_those_of_the_monitor() -> None:
    from tasks.monitoring import decision
    from tasks.wiring import triggers

    assert {decision.DRIFT, decision.DAMAGE} == triggers._RETRAIN
    assert {decision.ALERT, decision.ASK} == triggers._ACTIONS


def test_nothing_is_due_before_the_monitor_has_decided(settings: Settings) -> None:
    assert due(settings, "drift") is False


def test_the_decision_on_the_days_asked_for_counts_not_a_newer_one(finished: Finished) -> None:
    assert due(finished.settings, "drift", **finished.window) is False


def test_an_unknown_trigger_lists_those_there_are(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="new_data, drift, code"):
        due(settings, "full_moon")


def test_tests_and_caches_are_no_part_of_the_code_that_trains(settings: Settings, toy: PipelineSpec) -> None:
    context = Context(settings, toy)
    before = code_digest(context)
    folder = settings.pipelines_dir / "toy"
    (folder / "tests").mkdir()
    (folder / "tests" / "test_toy.py").write_text("def test_it() -> None: ...\n")
    (folder / "README.md").write_text("words\n")
    assert code_digest(context) == before
    edit(settings.expectations_dir / "toy.json", {'"max_value": 100}': '"max_value": 90}'})
    assert code_digest(context) != before


def test_a_trigger_is_no_part_of_the_identity_of_a_training(settings: Settings, toy: PipelineSpec) -> None:
    def identity(spec: PipelineSpec) -> str:
        return training_id(
            spec,
            snapshot_id="s",
            feature_version="1",
            model_source="",
            validation_first_day=date(2024, 1, 29),
        )

    before = identity(toy)
    edit(pipeline_file(settings), {"training: {": "training: {triggers: [code, drift], "})
    changed = load_pipeline(settings, "toy")
    assert changed.training.triggers == ("code", "drift")
    assert identity(changed) == before


def test_a_run_with_the_inputs_of_an_earlier_one_trains_nothing_and_says_so(
    finished: Finished, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = copy_of(finished.settings, tmp_path_factory.mktemp("again"))
    earlier = finished.chain.done["train_model"].first
    again = wiring.step("train_model")(
        settings,
        "toy",
        snapshot_id=earlier["snapshot_id"],
        validation_first_day=str(earlier["validation_first_day"]),
        dag_run="toy.train/asset__1",
    )
    assert again == earlier
    (entry,) = dag_run_evidence(settings, "toy.train", "asset__1")
    assert entry["summary"]["note"] == (
        f"training {earlier['training_id']} had the same inputs: nothing was trained"
    )

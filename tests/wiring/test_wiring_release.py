"""A second model: the canary's verdict, promotion or hold, rollback, and what was live when."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import pytest
from wiring_support import Chain, Finished, edit, pipeline_file, score

from tasks import wiring
from tasks.core import Settings, load_pipeline, open_store
from tasks.core.errors import PromotionConflict, ServiceUnavailable, TerminalError
from tasks.metadata import MetadataStore


def live(settings: Settings, **more: str) -> int | None:
    version: int | None = wiring.step("live_model")(settings, "toy", **more)["version"]
    return version


def versions(second: Chain) -> tuple[int, int]:
    promoted = second.done["promote_model"].first
    return promoted["previous_version"], promoted["version"]


def test_a_challenger_that_is_no_worse_passes_the_canary_and_is_promoted(
    finished: Finished, second: Chain
) -> None:
    canary = second.done["canary_model"].first
    assert canary["outcome"] == "pass", canary
    assert (canary["first_day"], canary["last_day"]) == ("2024-02-12", "2024-02-16")
    first, new = versions(second)
    assert (first, live(second.settings)) == (finished.version, new)
    assert live(finished.settings) == finished.version, "a copy's promotion stays in the copy"


def test_an_undecided_canary_is_kept_as_verdict_and_moves_nothing(second: Chain, tmp_path) -> None:
    from wiring_support import copy_of

    settings = copy_of(second.settings, tmp_path / "copy")
    edit(pipeline_file(settings), {"margin_brier: 0.2, days: 5": "margin_brier: 0.000001, days: 3"})
    first, new = versions(second)
    wiring.step("rollback_model")(settings, "toy", expected=new, actor="ada", reason="try again")
    found = wiring.step("canary_model")(settings, "toy", version=new, validation_last_day="2024-02-11")
    assert found["outcome"] == "inconclusive" and found["reasons"]
    spec = load_pipeline(settings, "toy")
    assert MetadataStore.open(settings).verdicts(spec, gate="canary", limit=1)[0].verdict.outcome == (
        "inconclusive"
    )
    assert live(settings) == first


def test_a_repeated_rollback_does_not_go_back_one_more(after_second: Settings, second: Chain) -> None:
    first, new = versions(second)
    request = {"expected": new, "actor": "ada", "reason": "wrong on Mondays"}
    went_back = wiring.step("rollback_model")(after_second, "toy", **request)
    assert (went_back["version"], went_back["previous_version"]) == (first, new)
    again = wiring.step("rollback_model")(after_second, "toy", **request)
    assert again["event_id"] == went_back["event_id"]
    assert live(after_second) == first
    with pytest.raises(TerminalError, match="no earlier version"):
        wiring.step("rollback_model")(after_second, "toy", expected=first, actor="ada", reason="one more")
    with pytest.raises(TerminalError, match="barred"):
        wiring.step("promote_model")(after_second, "toy", version=new, actor="ada", reason="again")
    wiring.step("unbar_model")(after_second, "toy", version=new, actor="ada", reason="fixed")
    assert wiring.step("promote_model")(after_second, "toy", version=new, actor="ada", reason="again")[
        "version"
    ] == new  # fmt: skip


def test_a_move_decided_on_another_champion_than_the_live_one_is_refused(
    after_second: Settings, second: Chain
) -> None:
    first, new = versions(second)
    with pytest.raises(PromotionConflict, match=f"version {first} was expected"):
        wiring.step("rollback_model")(after_second, "toy", expected=first, actor="ada", reason="late")
    with pytest.raises(PromotionConflict, match="version 41 was expected"):
        wiring.step("promote_model")(
            after_second, "toy", version=first, expected=41, actor="ada", reason="late"
        )
    assert live(after_second) == new


def test_a_promotion_says_whether_the_version_that_it_replaces_can_be_gone_back_to(
    finished: Finished, after_second: Settings, second: Chain
) -> None:
    assert finished.chain.done["promote_model"].first["rollback_target"] == "none: nothing was live before"
    assert second.done["promote_model"].first["rollback_target"] == "loaded"
    first, new = versions(second)
    spec = load_pipeline(after_second, "toy")
    digest = MetadataStore.open(after_second).model_version(spec, new).bundle_digest
    shutil.rmtree(after_second.cache_dir / "bundles" / digest, ignore_errors=True)
    open_store(after_second, prefix=spec.prefix).put(f"bundles/{digest}/weights.pt", b"rot")
    cure = wiring.step("promote_model")(after_second, "toy", version=first, actor="ada", reason="broken")
    assert cure["version"] == first == live(after_second)
    assert cure["rollback_target"].startswith(f"not loadable: version {new}: has SHA-256")


def test_an_old_promotion_run_again_does_not_undo_a_newer_one(
    finished: Finished, after_second: Settings, second: Chain
) -> None:
    first, new = versions(second)
    seen_by_the_first_run = finished.chain.done["canary_model"].first["champion_version"]
    assert (seen_by_the_first_run, second.done["canary_model"].first["champion_version"]) == (0, first)
    with pytest.raises(PromotionConflict, match=f"no version was expected to be live, but version {new} is"):
        wiring.step("promote_model")(
            after_second, "toy", version=first, expected=seen_by_the_first_run, actor="ada", reason="cleared"
        )
    assert live(after_second) == new


def test_the_history_says_what_was_live_when(after_second: Settings, second: Chain) -> None:
    first, new = versions(second)
    events = wiring.step("deployment_history")(after_second, "toy")["events"]
    assert [(event["kind"], event["version"], event["was"]) for event in events] == [
        ("promote", new, first),
        ("promote", first, None),
    ]
    store = MetadataStore.open(after_second)
    newest, oldest = store.history(load_pipeline(after_second, "toy"))
    assert live(after_second, at=newest.at_utc.isoformat()) == new
    assert live(after_second, at=(newest.at_utc - timedelta(microseconds=1)).isoformat()) == first
    assert live(after_second, at=(oldest.at_utc - timedelta(seconds=1)).isoformat()) is None
    assert live(after_second, at=datetime.now(UTC).isoformat()) == new


def test_the_registered_model_of_an_evaluation_is_found_without_the_training_at_hand(
    second: Chain,
) -> None:
    registered = wiring.step("register_model")(
        second.settings, "toy", evaluation_key=second.done["evaluate_model"].first["evaluation_key"]
    )
    assert registered["version"] == versions(second)[1]


def test_after_a_promotion_the_next_days_are_scored_by_the_new_version(
    after_second: Settings, second: Chain
) -> None:
    assert score(after_second)["model_version"] == versions(second)[1]


def test_scoring_needs_no_mlflow_and_training_says_at_once_that_it_does(installation: Settings) -> None:
    from dataclasses import replace

    down = replace(installation, mlflow_url="http://127.0.0.1:9")
    assert score(down)["rows"] == 480
    edit(down.pipelines_dir / "toy" / "features.py", {'FEATURE_VERSION = "1"': 'FEATURE_VERSION = "2"'})
    snapshot = wiring.step("snapshot_training")(down, "toy")
    before = sorted((down.home / "store").rglob("training/*"))
    with pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:9"):
        wiring.step("train_model")(
            down, "toy", snapshot_id=snapshot["snapshot_id"], validation_first_day="2024-01-29"
        )
    assert sorted((down.home / "store").rglob("training/*")) == before

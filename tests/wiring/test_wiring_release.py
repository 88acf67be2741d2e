"""A second model: the canary's verdict, promotion or hold, rollback, and what was live when."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from wiring_support import (
    Chain,
    Finished,
    edit,
    ids_by_version,
    pipeline_file,
    plan_next_days,
    score,
    score_snapshot,
)

from tasks import wiring
from tasks.core import Settings, load_pipeline, open_store
from tasks.core.errors import DigestMismatch, GateFailed, PromotionConflict, ServiceUnavailable, TerminalError
from tasks.metadata import MetadataStore
from tasks.registry import champion
from tasks.registry import version as registered
from tasks.registry.mlflow_api import MlflowRegistry
from tasks.wiring.context import open_context
from tasks.wiring.train import evaluation_verdict


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
    open_store(after_second, prefix=spec.prefix).put(f"bundles/{digest}/weights.pt", b"rot")
    cure = wiring.step("promote_model")(after_second, "toy", version=first, actor="ada", reason="broken")
    assert cure["version"] == first == live(after_second)
    assert cure["rollback_target"].startswith(f"not loadable: version {new}: has SHA-256")


def test_a_rollback_to_a_bundle_that_was_changed_in_the_store_is_refused_though_this_machine_has_a_good_copy(
    after_second: Settings, second: Chain
) -> None:
    from tasks.model import fetch_bundle

    first, new = versions(second)
    spec = load_pipeline(after_second, "toy")
    store = open_store(after_second, prefix=spec.prefix)
    digest = registered(after_second, spec, first).bundle_digest
    fetch_bundle(store, digest, after_second.cache_dir)
    weights = next((after_second.home / "store").rglob(f"bundles/{digest}/weights*"))
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    request = {"expected": new, "actor": "ada", "reason": "wrong on Mondays"}
    with pytest.raises(DigestMismatch, match="weights"):
        wiring.step("rollback_model")(after_second, "toy", **request)
    assert live(after_second) == new
    weights.write_bytes(good)
    assert wiring.step("rollback_model")(after_second, "toy", **request)["version"] == first


@pytest.mark.parametrize("damage", ["a flipped byte", "a file that is gone"])
def test_a_promotion_of_a_damaged_bundle_is_refused_and_succeeds_when_it_is_whole_again(
    after_second: Settings, second: Chain, damage: str
) -> None:
    first, new = versions(second)
    wiring.step("rollback_model")(after_second, "toy", expected=new, actor="ada", reason="wrong")
    wiring.step("unbar_model")(after_second, "toy", version=new, actor="ada", reason="fixed")
    digest = registered(after_second, load_pipeline(after_second, "toy"), new).bundle_digest
    weights = next((after_second.home / "store").rglob(f"bundles/{digest}/weights*"))
    good = weights.read_bytes()
    if damage == "a flipped byte":
        weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    else:
        weights.unlink()
    request = {"version": new, "expected": first, "actor": "ada", "reason": "fixed"}
    with pytest.raises(TerminalError, match="weights"):
        wiring.step("promote_model")(after_second, "toy", **request)
    assert live(after_second) == first
    weights.write_bytes(good)
    assert wiring.step("promote_model")(after_second, "toy", **request)["version"] == new


def test_a_person_who_approves_sees_both_models_with_intervals_and_what_is_live(second: Chain) -> None:
    told = wiring.approval_evidence(
        second.settings,
        "toy",
        version=versions(second)[1],
        evaluation_key=second.done["evaluate_model"].first["evaluation_key"],
    )
    assert told["champion"]["version"] == live(second.settings)
    auc = next(row for row in told["metrics"] if row["name"] == "AUC")
    for column in ("candidate", "champion", "difference"):
        assert re.fullmatch(r"-?\d\.\d{4} \[-?\d\.\d{4}, -?\d\.\d{4}\]", auc[column]), auc
    shown = [float(row["candidate"].split()[0]) for row in told["slices"]]
    assert shown and shown == sorted(shown)
    assert [row["days"] for row in told["monitor"]], "the monitor has decided once in this chain"


def test_a_refusal_is_one_event_of_the_run_and_moves_nothing(after_second: Settings, second: Chain) -> None:
    first, new = versions(second)
    request = {"version": first, "actor": "airflow:bob", "reason": "not now", "dag_run": "toy.train/m1"}
    once = wiring.step("reject_model")(after_second, "toy", **request)
    assert wiring.step("reject_model")(after_second, "toy", **request)["event_id"] == once["event_id"]
    newest = wiring.step("deployment_history")(after_second, "toy")["events"][0]
    assert (newest["kind"], newest["version"], newest["by"]) == ("reject", first, "airflow:bob")
    assert newest["reason"] == "not now (toy.train/m1)"
    assert live(after_second) == new


def test_a_model_judged_on_rows_that_the_data_gate_has_not_seen_is_not_registered(
    installation: Settings,
) -> None:
    windows = {
        "train_first_day": "2024-01-02",
        "train_last_day": "2024-01-27",
        "validation_first_day": "2024-01-28",
        "validation_last_day": "2024-02-04",
    }
    snapshot = wiring.step("snapshot_training")(installation, "toy", **windows)
    live_now = champion(installation, load_pipeline(installation, "toy"))
    assert live_now is not None
    evaluated = wiring.step("evaluate_model")(
        installation,
        "toy",
        snapshot_id=snapshot["snapshot_id"],
        bundle_digest=live_now.bundle_digest,
        validation_first_day="2024-01-28",
    )
    request = {"evaluation_key": evaluated["evaluation_key"]}
    with pytest.raises(GateFailed, match=f"data gate: snapshot {snapshot['snapshot_id']}.*has not seen it"):
        wiring.step("gate_model")(installation, "toy", **request)
    with pytest.raises(GateFailed):
        wiring.step("register_model")(installation, "toy", **request)
    wiring.step("validate_snapshot")(installation, "toy", snapshot_id=snapshot["snapshot_id"])
    findings = {
        item.name: item.status
        for item in evaluation_verdict(
            open_context(installation, "toy"), evaluated["evaluation_key"]
        ).findings
    }
    assert findings["data gate"] == "pass"


def test_a_version_that_reads_a_column_the_source_no_longer_gives_is_not_gone_back_to(
    after_second: Settings, second: Chain
) -> None:
    _, new = versions(second)
    source = after_second.pipelines_dir / "toy" / "source.py"
    edit(source, {'"visits": visits,': '"visits_30d": visits,'})
    features = after_second.pipelines_dir / "toy" / "features.py"
    features.write_text(features.read_text().replace('"visits"]', '"visits_30d"]'))
    snapshot = wiring.step("snapshot_scoring")(after_second, "toy")
    MetadataStore.open(after_second).record_run(
        load_pipeline(after_second, "toy"), "f" * 16, status="planned", snapshot_id=snapshot["snapshot_id"]
    )
    request = {"expected": new, "actor": "ada", "reason": "wrong on Mondays"}
    with pytest.raises(TerminalError, match="reads visits, which the source does not give"):
        wiring.step("rollback_model")(after_second, "toy", **request)
    assert live(after_second) == new


def test_the_pipeline_says_whether_a_champion_chosen_by_hand_in_mlflow_is_adopted(
    after_second: Settings, second: Chain
) -> None:
    first, new = versions(second)
    spec = load_pipeline(after_second, "toy")
    edit(pipeline_file(after_second), {"canary:": "promotion: {alias_policy: adopt}\ncanary:"})
    with MlflowRegistry(after_second.mlflow_url) as mlflow:
        was = mlflow.aliases(spec.model_name).get("champion")
        mlflow.set_alias(spec.model_name, "champion", first)
        try:
            changes = wiring.step("reconcile_registry")(after_second, "toy")["changes"]
            assert live(after_second) == first, changes
            newest = wiring.step("deployment_history")(after_second, "toy")["events"][0]
            assert (newest["kind"], newest["was"]) == ("adopt", new)
        finally:  # the server is shared with other tests
            if was is not None:
                mlflow.set_alias(spec.model_name, "champion", was)


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


def test_a_rollback_says_what_the_bad_version_published_and_rescores_exactly_that(
    after_second: Settings, second: Chain
) -> None:
    first, new = versions(second)
    before = wiring.step("blast_radius")(after_second, "toy", version=first)
    bad = score(after_second)
    radius = wiring.step("blast_radius")(after_second, "toy", version=new)
    assert radius["visible_rows"] == radius["published_rows"] == bad["rows"]
    assert [run["run_id"] for run in radius["runs"]] == [bad["run_id"]]
    planned = plan_next_days(after_second)
    request = {"expected": new, "actor": "ada", "reason": "wrong on Mondays"}
    with pytest.raises(TerminalError, match="is live, so that its rows"):
        wiring.step("plan_rescoring")(after_second, "toy", version=new)
    went_back = wiring.step("rollback_model")(after_second, "toy", **request)
    assert (went_back["affected_rows"], went_back["affected_days"]) == (bad["rows"], radius["visible_days"])
    assert went_back["unfinished_runs"] == [planned], "planned with the bad version, and not published"
    wiring.step("score_run")(after_second, "toy", run_id=planned, local=True)
    with pytest.raises(TerminalError, match=f"version {new}, which has been barred since"):
        wiring.step("publish_run")(after_second, "toy", run_id=planned)
    assert wiring.step("publish_run")(after_second, "toy", run_id=bad["run_id"])["already_published"]
    ids = ids_by_version(after_second)
    again = wiring.step("rollback_model")(after_second, "toy", **request, rescore=True, local=True)
    assert (again["event_id"], again["rescored"]["rows"]) == (went_back["event_id"], bad["rows"])
    rescored = ids_by_version(after_second)
    assert set(rescored) == {first}
    assert sorted(rescored[first]) == sorted(ids[first] + ids[new]), "the same rows, each once"
    assert wiring.step("blast_radius")(after_second, "toy", version=new)["visible_rows"] == 0
    now = wiring.step("blast_radius")(after_second, "toy", version=first)
    assert now["visible_rows"] == before["visible_rows"] + bad["rows"]
    once_more = wiring.step("plan_rescoring")(after_second, "toy", version=new)
    assert once_more["nothing_to_do"] and "no row of version" in once_more["reason"]


def test_rescoring_brings_a_run_of_the_live_version_back_that_the_bad_one_had_replaced(
    after_second: Settings, second: Chain, finished: Finished
) -> None:
    first, new = versions(second)
    (good,) = wiring.step("blast_radius")(after_second, "toy", version=first)["runs"]
    bad = score_snapshot(after_second, good["snapshot_id"])
    assert wiring.step("blast_radius")(after_second, "toy", version=first)["visible_rows"] == 0
    wiring.step("rollback_model")(
        after_second, "toy", expected=new, actor="ada", reason="wrong", rescore=True, local=True
    )
    (back,) = wiring.step("blast_radius")(after_second, "toy", version=first)["runs"]
    assert (back["run_id"], back["rows"]) == (good["run_id"], good["rows"])
    assert bad["run_id"] != good["run_id"]
    assert wiring.step("verify_run")(after_second, "toy", run_id=good["run_id"])["ok"]


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

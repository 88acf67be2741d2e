"""A real installation is lost and comes back: from a backup all of it, without one what the object store knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import services
from wiring_support import (
    LATER,
    PRICE,
    Finished,
    copy_of,
    days_of,
    ids_by_version,
    monitored,
    plan_next_days,
    score,
    source,
    step,
)

from tasks import wiring
from tasks.core import Settings, load_pipeline, open_store
from tasks.core.errors import NotFound
from tasks.inference import read_predictions
from tasks.metadata import MetadataStore
from tasks.metadata.checking import check_metadata
from tasks.wiring.rebuild import rebuild_metadata


def moved(settings: Settings, root: Path) -> Settings:
    """The same project with an empty home."""
    return replace(Settings.at_home(root / "home", project=settings.project), mlflow_url=settings.mlflow_url)


def some_id(settings: Settings) -> str:
    spec = load_pipeline(settings, "toy")
    days = sorted(MetadataStore.open(settings).published_days(spec))
    return str(read_predictions(settings, spec, days[-1:], ["prediction_id"])["prediction_id"][0])


def test_a_restored_installation_answers_as_before(installation: Settings, tmp_path: Path) -> None:
    """Predictions, explanations, deployments, the champion, and the case that a person was asked about."""
    source(installation, PRICE, "np.where(rng.random(n) < 0.3, np.nan, price)")  # a case will be opened
    damaged = score(installation)
    monitored(installation, days_of(damaged))
    before = {
        "live": step(installation, "live_model"),
        "history": step(installation, "deployment_history"),
        "cases": step(installation, "list_cases"),
        "prediction": step(installation, "audit_prediction", prediction_id=some_id(installation)),
        "ids": ids_by_version(installation),
        "metadata": check_metadata(installation.metadata_url),
    }
    assert before["cases"]["cases"] and before["metadata"].problems == ()
    place = str(tmp_path / "backups")
    wiring.create_backup(installation, to=place)

    other = moved(installation, tmp_path / "other")
    wiring.restore_backup(other, at=place)
    after = {
        "live": step(other, "live_model"),
        "history": step(other, "deployment_history"),
        "cases": step(other, "list_cases"),
        "prediction": step(other, "audit_prediction", prediction_id=some_id(other)),
        "ids": ids_by_version(other),
    }
    assert after == {name: before[name] for name in after}
    assert check_metadata(other.metadata_url).tables == before["metadata"].tables
    (only,) = rebuild_metadata(other)
    assert only["problems"] == [] and only["runs"] == only["versions"] == only["publications"] == 0


def test_a_run_that_was_under_way_is_finished_exactly_once(installation: Settings, tmp_path: Path) -> None:
    run_id = plan_next_days(installation)
    wiring.create_backup(installation, to=str(tmp_path / "backups"))
    other = moved(installation, tmp_path / "other")
    wiring.restore_backup(other, at=str(tmp_path / "backups"))
    for settings in (installation, other):
        assert step(settings, "resume_run", run_id=run_id, local=True)["ok"]
    assert step(other, "resume_run", run_id=run_id, local=True)["already_published"]
    found, expected = ids_by_version(other), ids_by_version(installation)
    assert {version: sorted(ids) for version, ids in found.items()} == {
        version: sorted(ids) for version, ids in expected.items()
    }
    assert all(len(ids) == len(set(ids)) for ids in found.values())


def without(records: list[Any], *names: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.to_json().items() if key not in names} for record in records]


NOT_IN_THE_STORE = {
    "trainings": ("dag_run", "recorded_at_utc"),
    "model_versions": ("created_at_utc",),
    "runs": ("dag_run", "wall_s", "planned_at_utc", "updated_at_utc", "status"),
    "publications": ("published_at_utc", "record"),
}


def test_a_lost_database_is_rebuilt_from_the_store_but_for_what_is_nowhere_else(
    after_second: Settings, tmp_path: Path
) -> None:
    settings, spec = after_second, load_pipeline(after_second, "toy")
    step(settings, "reconcile_registry")  # other copies share this MLflow: its alias says what is live here
    old = MetadataStore.open(settings)
    kept = {name: without(getattr(old, name)(spec), *gone) for name, gone in NOT_IN_THE_STORE.items()}
    days, live, identifier = old.published_days(spec), old.live(spec), some_id(settings)
    verdicts = {(one.verdict.gate, one.verdict.subject) for one in old.verdicts(spec)}
    series = {
        name: {(point.day, point.value, point.source) for point in old.series(spec, name)}
        for name in old.metric_names(spec)
        if not name.startswith(("drift", "score_mean"))
    }
    record = step(settings, "audit_prediction", prediction_id=identifier)
    actions = without(old.audit_actions(spec), "action_id", "at_utc")

    (settings.home / "metadata.db").unlink()
    with pytest.raises(NotFound, match="no champion"):
        score(settings)
    (found,) = rebuild_metadata(settings)
    new = MetadataStore.open(settings)
    assert found["problems"] == [] and found["champion"] is None
    for name, gone in NOT_IN_THE_STORE.items():
        assert without(getattr(new, name)(spec), *gone) == kept[name], name
    assert new.published_days(spec) == days
    assert [run.status for run in new.runs(spec)] == ["published"] * len(new.runs(spec))
    judged = {(one.verdict.gate, one.verdict.subject) for one in new.verdicts(spec)}
    assert {gate for gate, _ in verdicts - judged} == {
        "evaluation"
    }  # judged again from its evidence when asked
    assert {gate for gate, _ in judged - verdicts} <= {
        "data"
    }  # of the canary's days, which no step had entered
    assert {
        name: {(point.day, point.value, point.source) for point in new.series(spec, name)} for name in series
    } == series
    assert without(new.audit_actions(spec), "action_id", "at_utc") == actions
    assert step(settings, "audit_prediction", prediction_id=identifier) == record
    assert new.history(spec) == []

    # MLflow's alias remembers which version was live, and a person says so again.
    assert live is not None
    assert any(said.endswith(f"registry promote toy {live.version}") for said in found["next_steps"])
    step(settings, "promote_model", version=live.version, actor="ada", reason="the database was lost")
    before = ids_by_version(settings)
    later = score(settings)
    assert step(settings, "measure_window", **days_of(later))["days"] > 0
    step(settings, "join_labels", **days_of(later), as_of=LATER)
    assert step(settings, "decide_window", **days_of(later))["verdict"]
    after = ids_by_version(settings)
    ids = [identifier for some in after.values() for identifier in some]
    assert len(ids) == len(set(ids)) > sum(map(len, before.values()))
    (again,) = rebuild_metadata(settings)
    assert {again[name] for name in ("trainings", "verdicts", "versions", "runs", "publications")} == {0}
    assert again["champion"] == live.version and again["metric_points"] == 0


def test_without_mlflow_what_scored_is_found_by_the_runs_and_the_rest_is_named(
    after_second: Settings, finished: Finished
) -> None:
    settings = replace(after_second, mlflow_url=f"http://127.0.0.1:{services.free_port()}")
    spec = load_pipeline(settings, "toy")
    versions = MetadataStore.open(settings).model_versions(spec)
    step(after_second, "bar_model", version=finished.version, actor="ada", reason="a leak")
    (settings.home / "metadata.db").unlink()
    (found,) = rebuild_metadata(settings)
    assert [one.version for one in MetadataStore.open(settings).model_versions(spec)] == [finished.version]
    assert len(versions) == 2
    assert "versions that never scored were not found" in found["problems"][0]
    assert f"registry promote toy {finished.version}" in found["next_steps"][0]
    assert "bar them again" in found["next_steps"][1]
    settings = replace(settings, mlflow_url=after_second.mlflow_url)
    (found,) = rebuild_metadata(settings)
    assert found["versions"] == 1
    assert [one.version for one in MetadataStore.open(settings).model_versions(spec)] == [
        one.version for one in versions
    ]
    (advice,) = [said for said in found["next_steps"] if f"registry bar toy {finished.version} " in said]
    assert "by ada: a leak" in advice
    step(settings, "reconcile_registry")  # before anybody has followed it: the tag is all that is known
    assert advice in rebuild_metadata(settings)[0]["next_steps"]
    step(settings, "bar_model", version=finished.version, actor="ada", reason="a leak")
    step(settings, "unbar_model", version=finished.version, actor="tests", reason="others share this MLflow")


def test_an_older_backup_of_the_database_beside_a_newer_store_catches_up(
    installation: Settings, tmp_path: Path
) -> None:
    place = str(tmp_path / "backups")
    wiring.create_backup(installation, to=place)
    later = score(installation)
    spec = load_pipeline(installation, "toy")
    days = MetadataStore.open(installation).published_days(spec)
    (installation.home / "metadata.db").unlink()
    wiring.restore_backup(installation, at=place, parts=("metadata",))
    assert len(MetadataStore.open(installation).published_days(spec)) < len(days)
    (found,) = rebuild_metadata(installation)
    assert (found["runs"], found["publications"], found["trainings"], found["verdicts"]) == (1, 1, 0, 1)
    assert MetadataStore.open(installation).published_days(spec) == days
    assert step(installation, "live_model")["version"] == found["champion"]
    step(installation, "measure_window", **days_of(later))


def test_a_record_that_cannot_be_read_is_named_and_the_others_are_entered(installation: Settings) -> None:
    (installation.home / "metadata.db").unlink()
    store = open_store(installation, prefix="default/toy")
    store.put("runs/0123456789abcdef/plan.json", b"{")
    (found,) = rebuild_metadata(installation)
    (problem,) = found["problems"]
    assert "runs/0123456789abcdef/plan.json" in problem and found["runs"] == 1


def test_a_copy_in_another_place_is_a_backup_too(finished: Finished, tmp_path: Path) -> None:
    """Nothing in the store or the database names the place that it lies at."""
    other = copy_of(finished.settings, tmp_path / "copied")
    place = str(tmp_path / "backups")
    made = wiring.create_backup(other, to=place)
    third = moved(other, tmp_path / "third")
    wiring.restore_backup(third, at=place, backup_id=made["backup_id"])
    assert step(third, "verify_run", run_id=finished.run_id)["ok"]

"""Which days are scored without being asked for, days delivered again, and upkeep."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from wiring_support import contents, edit, pipeline_file, score

from tasks import wiring
from tasks.core import Settings, load_pipeline
from tasks.core.errors import ConfigError, NoRows, NotFound
from tasks.inference import read_predictions
from tasks.metadata import MetadataStore


def published(settings: Settings) -> list[str]:
    spec = load_pipeline(settings, "toy")
    return sorted(day.isoformat() for day in MetadataStore.open(settings).published_days(spec))


def published_rows(settings: Settings) -> list[dict[str, Any]]:
    days = [date.fromisoformat(day) for day in published(settings)]
    rows = read_predictions(settings, load_pipeline(settings, "toy"), days)
    return rows.sort_by("prediction_id").to_pylist()


def days_of(run: dict[str, Any]) -> tuple[str, str]:
    return run["first_day"], run["last_day"]


def test_without_days_the_oldest_unpublished_days_are_scored_until_none_is_left(
    installation: Settings,
) -> None:
    edit(
        installation.pipelines_dir / "toy" / "source.py",
        {"('2024-01-01', '2024-02-25')": "('2024-01-01', '2024-02-14')"},
    )
    assert published(installation)[0] == "2024-02-05", "the day after the last one that was trained on"
    assert days_of(score(installation)) == ("2024-02-09", "2024-02-12")
    assert days_of(score(installation)) == ("2024-02-13", "2024-02-14")
    nothing = score(installation)
    assert nothing == {"nothing_to_do": True, "reason": "every day of the source is published"}


def test_a_hole_is_filled_before_newer_days(installation: Settings) -> None:
    score(installation, first_day="2024-02-10", last_day="2024-02-11")
    assert days_of(score(installation)) == ("2024-02-09", "2024-02-09")
    assert score(installation)["first_day"] == "2024-02-12"


def test_nothing_is_scored_before_a_first_promotion(settings: Settings) -> None:
    with pytest.raises(NotFound, match="has no champion yet"):
        wiring.step("snapshot_scoring")(settings, "toy")


def test_days_are_not_frozen_for_a_suite_that_is_not_there(installation: Settings) -> None:
    edit(pipeline_file(installation), {"suite: toy": "suite: toyy"})
    before = contents(installation)
    with pytest.raises(ConfigError, match=r"has no toyy\.json, did you mean 'toy'") as caught:
        wiring.step("snapshot_scoring")(installation, "toy")
    assert caught.value.which == f"{pipeline_file(installation)}: validation.suite"
    assert contents(installation) == before


def deliver_again(settings: Settings) -> dict[str, Any]:
    """8 February comes with other prices and is scored again; what publishing said."""
    edit(
        settings.pipelines_dir / "toy" / "source.py",
        {
            "    price = rng.gamma(2.0, 10.0, n).astype(np.float64)": (
                "    price = rng.gamma(2.0, 10.0, n).astype(np.float64) + (5.0 if day == date(2024, 2, 8) else 0.0)"
            )
        },
    )
    return score(settings, first_day="2024-02-08", last_day="2024-02-08")


def test_a_day_delivered_again_with_other_rows_supersedes_the_first(installation: Settings) -> None:
    spec = load_pipeline(installation, "toy")
    day = date(2024, 2, 8)
    before = read_predictions(installation, spec, [day], ["prediction_id", "score"]).to_pydict()
    again = deliver_again(installation)
    assert again["superseded_files"] > 0 and len(again["superseded_runs"]) == 1
    after = read_predictions(installation, spec, [day], ["prediction_id", "score"]).to_pydict()
    assert sorted(after["prediction_id"]) == sorted(before["prediction_id"])
    assert len(set(after["prediction_id"])) == 120
    assert dict(zip(*after.values(), strict=True)) != dict(zip(*before.values(), strict=True))
    measured = wiring.step("measure_window")(
        installation, "toy", first_day="2024-02-05", last_day="2024-02-08"
    )
    assert measured["days"] == 4


def test_a_day_without_rows_keeps_no_later_day_from_being_scored_and_is_scored_when_it_has_some(
    installation: Settings,
) -> None:
    folder = installation.pipelines_dir / "toy" / "source.py"
    original = folder.read_text().replace("'2024-02-25'", "'2024-02-15'")
    empty = "    return pa.concat_tables([_day(day).slice(0, 0 if day == date(2024, 2, 12) else None) for day in days])"
    broken = original.replace("    return pa.concat_tables([_day(day) for day in days])", empty)
    assert broken != original
    folder.write_text(broken)
    assert days_of(score(installation)) == ("2024-02-09", "2024-02-11")
    assert days_of(score(installation)) == ("2024-02-13", "2024-02-15"), "the hole is passed over"
    window = {"first_day": "2024-02-13", "last_day": "2024-02-15"}
    wiring.step("measure_window")(installation, "toy", **window)
    decided = wiring.step("decide_window")(installation, "toy", **window)
    assert decided["action"] == "note"
    assert any("No predictions are published of 2024-02-12" in reason for reason in decided["reasons"])
    done = wiring.step("snapshot_scoring")(installation, "toy")
    assert done["nothing_to_do"] and "without those that have no row (1: 2024-02-12)" in done["reason"]
    with pytest.raises(NoRows, match=r"2024-02-12\.\.2024-02-12"):
        score(installation, first_day="2024-02-12", last_day="2024-02-12")

    folder.write_text(broken.replace("'2024-02-15'", "'2024-02-18'"))
    more = wiring.step("snapshot_scoring")(installation, "toy")
    assert (*days_of(more), more["days_without_rows"]) == ("2024-02-16", "2024-02-18", "1: 2024-02-12")
    folder.write_text(original)
    assert days_of(score(installation)) == ("2024-02-12", "2024-02-12")


def test_a_run_that_finds_no_row_of_any_new_day_fails(installation: Settings) -> None:
    folder = installation.pipelines_dir / "toy" / "source.py"
    none = "    return pa.concat_tables([_day(day) for day in days]).slice(0, 0)"
    folder.write_text(
        folder.read_text().replace("    return pa.concat_tables([_day(day) for day in days])", none)
    )
    with pytest.raises(NoRows, match="has no rows for"):
        wiring.step("snapshot_scoring")(installation, "toy")


def test_a_day_that_comes_again_as_it_was_before_a_bad_delivery_has_its_first_rows_again(
    installation: Settings,
) -> None:
    spec = load_pipeline(installation, "toy")
    rows = published_rows(installation)
    (first,) = set(MetadataStore.open(installation).published_days(spec).values())
    original = (installation.pipelines_dir / "toy" / "source.py").read_text()
    bad = deliver_again(installation)["run_id"]
    assert published_rows(installation) != rows

    (installation.pipelines_dir / "toy" / "source.py").write_text(original)
    back = score(installation, first_day="2024-02-05", last_day="2024-02-08")
    assert (back["run_id"], back["superseded_runs"], back["already_published"]) == (first, [bad], False)
    assert published_rows(installation) == rows
    assert set(MetadataStore.open(installation).published_days(spec).values()) == {first}
    assert wiring.step("verify_run")(installation, "toy", run_id=first)["ok"]
    assert score(installation, first_day="2024-02-05", last_day="2024-02-08")["superseded_runs"] == [bad]
    publish = wiring.step("publish_run")

    # What was asked for before somebody else published the day does not take it from them when it is repeated.
    publish(installation, "toy", run_id=bad, replace_newer=True)
    told = publish(installation, "toy", run_id=first, take_back_from=["another"])
    assert told["already_published"] and told["superseded_by"] == [bad]
    assert published_rows(installation) != rows
    assert MetadataStore.open(installation).published_days(spec)[date(2024, 2, 8)] == bad


def test_rows_of_an_earlier_run_are_brought_back_and_the_record_says_whose_days_they_are(
    installation: Settings,
) -> None:
    spec = load_pipeline(installation, "toy")
    rows = published_rows(installation)
    (first,) = set(MetadataStore.open(installation).published_days(spec).values())
    second = deliver_again(installation)["run_id"]
    publish = wiring.step("publish_run")
    assert publish(installation, "toy", run_id=first)["already_published"]
    assert published_rows(installation) != rows

    back = publish(installation, "toy", run_id=first, replace_newer=True)
    assert (back["superseded_runs"], back["already_published"]) == ([second], False)
    assert published_rows(installation) == rows
    assert set(MetadataStore.open(installation).published_days(spec).values()) == {first}
    assert wiring.step("verify_run")(installation, "toy", run_id=first)["ok"]
    publish(installation, "toy", run_id=second, replace_newer=True)
    assert MetadataStore.open(installation).published_days(spec)[date(2024, 2, 8)] == second


def test_upkeep_finds_nothing_to_remove_in_a_sound_installation(installation: Settings) -> None:
    wiring.step("reconcile_registry")(installation, "toy")  # other tests share the MLflow server
    rows = published_rows(installation)
    wiring.step("maintain")(installation, "toy")  # merges small files
    assert published_rows(installation) == rows
    before = contents(installation)
    result = wiring.step("maintain")(installation, "toy")
    assert (result["merged_files"], result["held_files"]) == (0, 0)
    assert (result["data_files"], result["dead_letter_files"], result["staged_files"]) == (0, 0, 0)
    assert (result["vacuumed_files"], result["registry"]) == (0, ["in line with the log"])
    assert contents(installation) == before
    assert wiring.step("verify_run")(
        installation, "toy", run_id=MetadataStore.open(installation).runs(load_pipeline(installation, "toy"))[0].run_id
    )["ok"]  # fmt: skip


def test_upkeep_puts_a_hand_moved_alias_back_and_goes_on_without_mlflow(second, tmp_path) -> None:
    import mlflow
    from wiring_support import copy_of

    settings = copy_of(second.settings, tmp_path / "copy")
    promoted = second.done["promote_model"].first
    client = mlflow.MlflowClient(settings.mlflow_url)
    try:
        client.set_registered_model_alias("toy", "champion", str(promoted["previous_version"]))
        told = wiring.step("maintain")(settings, "toy")["registry"]
        assert any("moved by hand" in line for line in told), told
        assert client.get_model_version_by_alias("toy", "champion").version == str(promoted["version"])
    finally:
        client.set_registered_model_alias("toy", "champion", str(promoted["version"]))
    told = wiring.step("maintain")(replace(settings, mlflow_url="http://127.0.0.1:9"), "toy")
    assert "not reconciled" in told["registry"][0] and "127.0.0.1:9" in told["registry"][0]


def test_upkeep_waits_for_attempts_that_may_still_commit(installation: Settings) -> None:
    edit(
        installation.pipelines_dir / "toy" / "pipeline.yaml",
        {"max_days_per_run: 4": "max_days_per_run: 4, shard_timeout_s: 90000"},
    )
    assert wiring.step("maintain")(installation, "toy")["data_files"] == 0


def test_a_planned_run_is_resumed_to_its_end_and_a_second_resume_changes_nothing(
    installation: Settings,
) -> None:
    snapshot = wiring.step("snapshot_scoring")(installation, "toy")
    clean = wiring.step("validate_snapshot")(installation, "toy", snapshot_id=snapshot["snapshot_id"])
    run_id = wiring.step("plan_scoring")(installation, "toy", snapshot_id=clean["snapshot_id"])["run_id"]
    (planned,) = wiring.step("list_runs")(installation, "toy", status="planned")["runs"]
    assert (planned["run_id"], planned["rows"]) == (run_id, clean["rows"])
    first = wiring.step("resume_run")(installation, "toy", run_id=run_id, local=True)
    assert wiring.step("list_runs")(installation, "toy", status="planned")["runs"] == []
    newest = wiring.step("list_runs")(installation, "toy", limit=1)["runs"]
    assert [(run["run_id"], run["status"]) for run in newest] == [(run_id, "verified")]
    assert (first["ok"], first["already_published"], first["shards_skipped"]) == (True, False, 0)
    before = contents(installation)
    second = wiring.step("resume_run")(installation, "toy", run_id=run_id, local=True)
    assert (second["already_published"], second["shards_skipped"]) == (True, first["shards"])
    replayed = wiring.step("replay_run")(installation, "toy", run_id=run_id, local=True)
    assert (replayed["replay_run_id"], replayed["dead_letters"]) == (None, 0)
    assert contents(installation) == before
    progress = wiring.step("run_status")(installation, "toy", run_id=run_id)["progress"]
    assert "100 %  published" in progress

"""The exposure ramp through the real steps: from the first share to the promotion, or to the withdrawal."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from wiring_support import LATER, Chain, edit, ids_by_version, pipeline_file, score, step

from tasks.core import Settings, load_pipeline
from tasks.core.errors import ConfigError, NotFound, TerminalError
from tasks.metadata import MetadataStore
from tasks.registry import version as registered


@pytest.fixture
def ramped(after_second: Settings, second: Chain) -> tuple[Settings, int, int]:
    """(settings, challenger, champion): the first version, which is good, stands beside the second one."""
    edit(
        pipeline_file(after_second),
        {
            "canary: {margin_brier: 0.2, days: 5}": (
                "canary: {margin_brier: 0.2, days: 2, ramp: [0.1, 0.5], max_latency_ratio: 50}"
            ),
            "max_days_per_run: 4": "max_days_per_run: 2",
        },
    )
    promoted = second.done["promote_model"].first
    return after_second, promoted["previous_version"], promoted["version"]


def begin(settings: Settings, challenger: int) -> dict[str, Any]:
    return step(settings, "begin_ramp", version=challenger, actor="ada", reason="passed its canary")


def actions(settings: Settings) -> list[str]:
    return [item["action"] for item in reversed(step(settings, "ramp_status")["steps"])]


def test_a_good_challenger_is_exposed_step_by_step_and_promoted_after_the_last(
    ramped: tuple[Settings, int, int],
) -> None:
    settings, challenger, champion = ramped
    begun = begin(settings, challenger)
    assert (begun["outcome"], begun["share"], begun["champion_version"]) == ("exposed", 0.1, champion)
    again = begin(settings, challenger)
    assert (again["outcome"], again["share"]) == ("exposed", 0.1), "a retry changes nothing"
    with pytest.raises(NotFound, match="toy version 99: is not registered"):
        begin(settings, 99)
    early = step(settings, "advance_ramp", as_of=LATER)
    assert early["outcome"] == "hold" and "0 of 1 days are published at 10 %" in early["reasons"][0]

    before = {key: len(ids) for key, ids in ids_by_version(settings).items()}
    run = score(settings)
    shown = {key: len(ids) - before.get(key, 0) for key, ids in ids_by_version(settings).items()}
    assert shown[challenger] + shown[champion] == run["rows"] and 0 < shown[challenger] < 0.3 * run["rows"]
    unlabelled = step(settings, "advance_ramp", as_of=run["first_day"])
    assert unlabelled["outcome"] == "hold" and "exposed days have labels" in unlabelled["reasons"][0]
    first = step(settings, "advance_ramp", as_of=LATER)
    assert (first["outcome"], first["next_share"], first["rows"]) == ("advance", 0.5, shown[challenger])
    held = step(settings, "advance_ramp", as_of=LATER)
    assert held["outcome"] == "hold", "nothing is published at 50 % yet"

    score(settings)
    last = step(settings, "advance_ramp", as_of=LATER)
    assert (last["outcome"], last["judged_days"], last["errors"]) == ("pass", 4, 0)
    assert (last["version"], last["champion_version"]) == (challenger, champion)
    moved = step(
        settings,
        "promote_model",
        version=last["version"],
        expected=last["champion_version"],
        actor="canary ramp",
        reason="came through",
    )
    assert moved["version"] == challenger
    done = step(settings, "ramp_status")
    assert done["exposed"] is None
    assert actions(settings) == ["hold", "hold", "advance", "hold", "promote"]
    assert done["steps"][0]["evidence"]["verdict"] == "pass"
    nothing = step(settings, "advance_ramp", as_of=LATER)
    assert nothing == {"nothing_to_do": True, "reason": "no challenger is exposed"}


def test_a_challenger_that_cannot_be_loaded_in_production_is_withdrawn_and_barred_and_no_row_is_lost(
    ramped: tuple[Settings, int, int],
) -> None:
    settings, challenger, champion = ramped
    begin(settings, challenger)
    digest = registered(settings, load_pipeline(settings, "toy"), challenger).bundle_digest
    weights = next((settings.home / "store").rglob(f"bundles/{digest}/weights*"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    shutil.rmtree(settings.cache_dir, ignore_errors=True)
    before = step(settings, "blast_radius", version=challenger)["visible_rows"]
    run = score(settings)
    assert step(settings, "verify_run", run_id=run["run_id"])["ok"]
    ended = step(settings, "advance_ramp", as_of=LATER)
    assert ended["outcome"] == "withdrawn", ended
    assert "could be scored by the champion only" in ended["reasons"][0]
    assert (ended["affected_rows"], ended["rows"]) == (before, 0) and ended["errors"] > 0
    assert challenger in MetadataStore.open(settings).head(load_pipeline(settings, "toy")).barred
    assert step(settings, "live_model")["version"] == champion
    assert actions(settings) == ["withdraw"]


def test_what_a_withdrawn_challenger_published_is_counted_and_rescored_by_the_champion(
    ramped: tuple[Settings, int, int],
) -> None:
    settings, challenger, champion = ramped
    begin(settings, challenger)
    before = ids_by_version(settings)
    run = score(settings)
    planned = step(
        settings,
        "plan_scoring",
        snapshot_id=step(
            settings,
            "validate_snapshot",
            snapshot_id=step(settings, "snapshot_scoring")["snapshot_id"],
        )["snapshot_id"],
    )
    assert (planned["exposed_version"], planned["exposed_share"]) == (challenger, 0.1)
    shown = ids_by_version(settings)
    theirs = len(shown[challenger]) - len(before[challenger])
    ended = step(settings, "withdraw_model", actor="ada", reason="complaints", bar=True)
    assert (ended["version"], ended["barred"], ended["unfinished_runs"]) == (
        challenger,
        True,
        [planned["run_id"]],
    )
    radius = step(settings, "blast_radius", version=challenger)
    (mixed,) = [item for item in radius["runs"] if item["run_id"] == run["run_id"]]
    assert (mixed["rows"], radius["visible_rows"]) == (theirs, len(shown[challenger]))
    own = step(settings, "blast_radius", version=champion)
    assert own["visible_rows"] == len(shown[champion])
    with pytest.raises(TerminalError, match=f"version {challenger}, which has been barred since"):
        step(settings, "score_run", run_id=planned["run_id"], local=True)
        step(settings, "publish_run", run_id=planned["run_id"])

    done = step(settings, "rescore_version", version=challenger, local=True)
    assert done["visible_rows_left"] == 0
    after = ids_by_version(settings)
    assert set(after) == {champion}
    assert sorted(after[champion]) == sorted(shown[champion] + shown[challenger]), "the same rows, each once"


def test_predictions_of_both_models_of_a_run_are_reproduced_and_survive_merging(
    ramped: tuple[Settings, int, int],
) -> None:
    settings, challenger, champion = ramped
    before = ids_by_version(settings)
    begin(settings, challenger)
    run = score(settings)
    step(settings, "maintain")  # merges the run's small files
    assert step(settings, "verify_run", run_id=run["run_id"])["ok"]
    shown = ids_by_version(settings)
    for version in (challenger, champion):
        (chosen, *_) = set(shown[version]) - set(before.get(version, ()))
        found = step(settings, "reproduce_prediction", prediction_id=chosen)
        assert (found["reproduced"], found["model_version"]) == (True, version), found["differences"]


def test_a_monitored_day_of_an_exposure_is_judged_by_the_champions_rows_alone(
    ramped: tuple[Settings, int, int],
) -> None:
    settings, challenger, champion = ramped
    begin(settings, challenger)
    step(settings, "expose_model", version=challenger, actor="ada", reason="quicker")  # the next share: 50 %
    run = score(settings)
    days = {"first_day": run["first_day"], "last_day": run["last_day"]}
    measured = step(settings, "measure_window", **days)
    labelled = step(settings, "join_labels", **days, as_of=LATER)
    assert (measured["days"], measured["days_with_data_fault"]) == (2, 0), (
        "the volume is that of the whole day"
    )
    spec = load_pipeline(settings, "toy")
    points = MetadataStore.open(settings).series(spec, "auc", model_version=champion, source="monitor")
    exposed = MetadataStore.open(settings).run(spec, run["run_id"]).record["exposed"]["days"]  # type: ignore[union-attr]
    found = {point.day.isoformat(): point.rows for point in points if point.day.isoformat() in exposed}
    for day, rows in found.items():
        assert rows is not None and rows <= 120 - exposed[day]
    assert labelled["rows_labelled"] == sum(rows or 0 for rows in found.values()) and len(found) == 2


def test_without_a_ramp_nothing_is_exposed_and_the_promotion_is_not_put_off(
    after_second: Settings, second: Chain
) -> None:
    challenger = second.done["promote_model"].first["previous_version"]
    champion = second.done["promote_model"].first["version"]
    skipped = begin(after_second, challenger)
    assert (skipped["outcome"], skipped["reasons"]) == ("skipped", ["canary.ramp is empty"])
    live = begin(after_second, champion)
    assert (live["outcome"], live["reasons"]) == ("skipped", [f"version {champion} is live already"])
    with pytest.raises(ConfigError, match=r"toy: canary\.ramp: is empty"):
        step(after_second, "expose_model", version=challenger, actor="ada", reason="try")
    assert step(after_second, "ramp_status") == {"exposed": None, "ramp": [], "steps": []}

"""Folding by hand and by upkeep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hot_support import everywhere, online_row, warm_rows

from tasks import wiring
from tasks.audit.hot import HotLimits, HotLog
from tasks.audit.hot.locks import locked
from tasks.core import PipelineSpec, Settings


def test_a_person_sees_what_is_hot_and_folds_it(settings: Settings, toy: PipelineSpec) -> None:
    hot, fold = wiring.step("hot_online"), wiring.step("fold_online")
    assert hot(settings, "toy") == {
        "segments": [],
        "rows": 0,
        "size_bytes": 0,
        "oldest_s": None,
        "damaged": [],
    }
    assert fold(settings, "toy")["segments"] == 0
    with HotLog(settings, toy, node="a", limits=HotLimits(seal_rows=2)) as log:
        for number in range(3):
            log.append([online_row(number)])
        told = hot(settings, "toy")
        assert [one["state"] for one in told["segments"]] == ["sealed", "open"]
        assert (told["rows"], told["segments"][0]["node"]) == (3, "a")
        assert told["oldest_s"] >= 0
        done = fold(settings, "toy")
        assert (done["rows"], done["open_segments"]) == (2, 1)
        assert fold(settings, "toy", seal=True)["rows"] == 1
    assert set(everywhere(settings, toy).values()) == {1}


def test_upkeep_folds_and_then_merges_what_earlier_folds_made(settings: Settings, toy: PipelineSpec) -> None:
    there = replace(settings, mlflow_url="http://127.0.0.1:9")
    for number, step in enumerate(("fold_online", "fold_online", "maintain")):
        with HotLog(there, toy, node="a") as log:
            log.append([online_row(number)])
        told = wiring.step(step)(there, "toy")
    assert (told["folded_rows"], told["damaged_segments"]) == (1, [])
    assert (told["merged_files"], told["written_files"]) == (3, 1)
    assert sorted(row["source_key"] for row in warm_rows(there, toy)) == [f"request-{n}" for n in range(3)]
    assert wiring.step("maintain")(there, "toy")["data_files"] == 0


def test_upkeep_goes_on_while_another_fold_is_at_it_and_tells_of_damage(
    settings: Settings, toy: PipelineSpec
) -> None:
    there = replace(settings, mlflow_url="http://127.0.0.1:9")
    with HotLog(there, toy, node="a") as log:
        log.append([online_row(1)])
        folder: Path = log.folder
    with locked(folder / "fold.lock"):
        assert "another fold" in wiring.step("maintain")(there, "toy")["fold"]
    segment = next(folder.glob("*.db"))
    segment.write_bytes(b"x" * 4096)
    told = wiring.step("maintain")(there, "toy")
    assert told["damaged_segments"] == [str(segment.with_suffix(".damaged"))]

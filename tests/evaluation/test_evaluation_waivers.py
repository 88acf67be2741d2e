"""Waivers: a person lets a named finding pass for a while, and everything that shows the verdict says so."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from toy_support import VALIDATION_DAY, Toy

from tasks import wiring
from tasks.core import Finding, ObjectStore, Settings, Verdict, open_store, utc_now
from tasks.core.errors import ConfigError, DataError, GateFailed, NotFound
from tasks.core.waivers import Waiver, is_waivable, place_waiver, release_waiver, waivers, with_waivers
from tasks.metadata import MetadataStore
from tasks.registry.cards import version_card, version_tags

NOW = datetime(2024, 3, 1, 12, tzinfo=UTC)
TODAY = NOW.date()
CANDIDATE, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return open_store(settings, prefix="default/toy")


def placed(store: ObjectStore, **changes: Any) -> Waiver:
    asked = {
        "finding": "calibration",
        "until": TODAY + timedelta(days=7),
        "reason": "known, mended on Monday",
    }
    return place_waiver(store, **{**asked, "actor": "ada", "max_days": 30, "clock": lambda: NOW, **changes})


def verdict_of(*findings: tuple[str, str]) -> Verdict:
    items = tuple(Finding(name, status, f"{name} as it was found") for name, status in findings)
    statuses = {item.status for item in items}
    outcome = "fail" if "fail" in statuses else "inconclusive" if "warn" in statuses else "pass"
    return Verdict("evaluation", "toy", CANDIDATE, outcome, items, "2024-03-01T00:00:00.000Z")


def judged(store: ObjectStore, verdict: Verdict, today: date = TODAY) -> Verdict:
    return with_waivers(verdict, waivers(store), today)


@pytest.mark.parametrize("status", ["fail", "warn"])
def test_a_waived_finding_keeps_its_status_and_no_longer_decides(store: ObjectStore, status: str) -> None:
    verdict = verdict_of(("data", "pass"), ("calibration", status))
    waiver = placed(store)
    found = judged(store, verdict)
    assert found.passed
    assert found.findings[1].status == status
    assert found.reasons() == [
        f"[{status}] calibration: calibration as it was found "
        f"(waived by ada until {waiver.until}: known, mended on Monday)"
    ]
    assert Verdict.from_json(found.to_json()) == found


def test_a_finding_that_is_not_waived_still_decides(store: ObjectStore) -> None:
    placed(store)
    assert judged(store, verdict_of(("calibration", "fail"), ("min_auc", "warn"))).outcome == "inconclusive"
    assert judged(store, verdict_of(("calibration", "warn"), ("min_auc", "fail"))).outcome == "fail"


def test_a_waiver_holds_on_its_last_day_and_not_after_it(store: ObjectStore) -> None:
    waiver, verdict = placed(store), verdict_of(("calibration", "fail"))
    assert judged(store, verdict, waiver.until).passed
    after = judged(store, verdict, waiver.until + timedelta(days=1))
    assert (after.outcome, after.waived) == ("fail", ())
    assert after.decided_at_utc == "2024-03-09T00:00:00.000Z"
    assert judged(store, verdict, waiver.until + timedelta(days=9)) == after


def test_a_released_waiver_counts_no_more_and_its_record_stays(store: ObjectStore) -> None:
    waiver, verdict = placed(store), verdict_of(("calibration", "fail"))
    release_waiver(store, waiver.waiver_id, reason="too early", actor="bob", clock=lambda: NOW)
    release_waiver(store, waiver.waiver_id, reason="again", actor="eve", clock=lambda: NOW)
    assert (judged(store, verdict).outcome, judged(store, verdict).waived) == ("fail", ())
    (kept,) = waivers(store)
    assert (kept.actor, kept.released_by, kept.release_reason) == ("ada", "bob", "too early")


def test_a_waiver_for_one_candidate_is_none_for_another(store: ObjectStore) -> None:
    placed(store, candidate_digest=OTHER)
    assert not judged(store, verdict_of(("calibration", "fail"))).passed
    placed(store, candidate_digest=CANDIDATE)
    assert judged(store, verdict_of(("calibration", "fail"))).passed


@pytest.mark.parametrize(
    "finding",
    ["data", "data gate", "behaviour", "behaviour: not constant", "known in time: price", "content digest",
     "leakage", "distribution", "model checks", "footprint", "tests", "test test_monotone", "signature", " "],
)  # fmt: skip
def test_what_cannot_be_trusted_cannot_be_waived_even_by_a_record_written_by_hand(
    store: ObjectStore, finding: str
) -> None:
    with pytest.raises(ConfigError):
        placed(store, finding=finding)
    by_hand = Waiver("0" * 8, finding, TODAY, "please", "eve", "2024-03-01T00:00:00.000Z")
    verdict = verdict_of((finding, "fail"))
    assert with_waivers(verdict, [by_hand], TODAY) == verdict


def test_what_a_person_can_judge_can_be_waived() -> None:
    for finding in ("min_auc", "slice month=2024-02", "leakage: price", "distribution: level", "staleness"):
        assert is_waivable(finding)


@pytest.mark.parametrize(
    "change",
    [{"until": TODAY - timedelta(days=1)}, {"until": TODAY + timedelta(days=31)}, {"reason": " "},
     {"actor": ""}, {"candidate_digest": "abc"}],
)  # fmt: skip
def test_a_waiver_needs_a_person_a_reason_a_near_end_and_a_whole_digest(
    store: ObjectStore, change: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        placed(store, **change)
    assert waivers(store) == []


def test_a_damaged_waiver_stops_the_gate_and_an_unknown_one_is_named(store: ObjectStore) -> None:
    with pytest.raises(NotFound, match="0123abcd"):
        release_waiver(store, "0123abcd", reason="why", actor="ada")
    store.put("waivers/0123abcd/placed.json", b"{")
    with pytest.raises(DataError, match="0123abcd"):
        waivers(store)


def test_the_model_card_and_its_tag_say_that_only_a_waiver_let_it_pass(
    store: ObjectStore, toy_store: Toy
) -> None:
    trained = dict.fromkeys(("snapshot_id", "feature_version", "training_id", "bundle_digest"), "0" * 16)
    verdict = verdict_of(("data", "pass"), ("calibration", "fail"))
    placed(store)
    card = version_card(trained, judged(store, verdict), {})
    assert "Passed by waiver only" in card and "waived by ada" in card
    assert version_tags(toy_store.spec, trained, judged(store, verdict), {})["penstock.gate"] == (
        "evaluation: pass by waiver"
    )
    assert "waive" not in version_card(trained, verdict, {})


def test_the_gate_run_again_after_a_waiver_gives_a_new_verdict_and_after_its_release_the_old_one(
    toy_store: Toy, tmp_path: Path
) -> None:
    settings, spec, snapshot = toy_store.settings, toy_store.spec, toy_store.snapshot()
    demanding = settings.pipelines_dir / "toy" / "pipeline.yaml"
    demanding.write_text(re.sub(r"max_ece: [0-9.]+", "max_ece: 0.001", demanding.read_text()))
    metadata = MetadataStore.open(settings)
    seen = Verdict(
        "data", spec.name, snapshot.snapshot_id, "pass", (Finding("x", "pass", ""),), "2024-02-05T00:00:00Z"
    )
    metadata.record_verdict(spec, seen)
    evaluated = wiring.step("evaluate_model")(
        settings, "toy", snapshot_id=snapshot.snapshot_id, bundle_digest=toy_store.bundle(tmp_path / "b", intercept=0.9),
        validation_first_day=VALIDATION_DAY.isoformat(),
    )  # fmt: skip

    def gate() -> dict[str, Any]:
        return wiring.step("gate_model")(
            settings, "toy", evaluation_key=evaluated["evaluation_key"], dag_run="toy.train/manual"
        )

    def verdicts() -> list[str]:
        return [item["outcome"] for item in wiring.step("list_verdicts")(settings, "toy", gate="evaluation")["verdicts"]]  # fmt: skip

    with pytest.raises(GateFailed, match="calibration"):
        gate()
    refused = metadata.verdicts(spec, gate="evaluation", limit=1)[0].verdict
    names = [item.name for item in refused.findings if item.status != "pass"]
    assert "calibration" in names
    with pytest.raises(NotFound, match="calibration"):
        wiring.step("waive_finding")(
            settings,
            "toy",
            finding="calibraton",
            until=utc_now().date().isoformat(),
            actor="ada",
            reason="misspelt",
        )
    ids = [
        wiring.step("waive_finding")(
            settings, "toy", finding=name, until=utc_now().date().isoformat(), actor="ada", reason="a <trial>"
        )["waiver_id"]
        for name in names
    ]
    passed = gate()
    assert passed["outcome"] == "pass" and len(passed["reasons"]) == len(names)
    assert gate() == passed
    report = toy_store.store.get(passed["report_key"]).decode()
    assert "Passed by waiver only" in report and "a &lt;trial&gt;" in report and "a <trial>" not in report
    assert "Passed by waiver only" not in toy_store.store.get(evaluated["report_key"]).decode()
    assert verdicts() == ["pass by waiver", "fail"]
    (entry,) = [
        item
        for item in wiring.dag_run_evidence(settings, "toy.train", "manual")
        if item["title"] == "Evaluation gate"
    ]
    assert any("waived by ada" in reason for reason in entry["reasons"])
    assert [item["standing"] for item in wiring.step("list_waivers")(settings, "toy")["waivers"]] == (
        [True] * len(ids)
    )
    for waiver_id in ids:
        wiring.step("release_waived")(settings, "toy", waiver_id=waiver_id, actor="bob", reason="over")
    with pytest.raises(GateFailed, match="calibration"):
        gate()
    assert verdicts() == ["fail", "pass by waiver", "fail"]

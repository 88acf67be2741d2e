"""Causes through the real steps: what really changed shows up in the decision's record and in the report."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

from wiring_support import BROKEN, LABEL, LATER, PRICE, Chain, edit, pipeline_file, score, source, step

from tasks.core import Settings, load_pipeline, open_store
from tasks.metadata import MetadataStore
from tasks.monitoring.causes import Cause
from tasks.wiring.causes import explain
from tasks.wiring.changes import changes_of
from tasks.wiring.context import Context, open_context
from tasks.wiring.deciding import decision_of
from tasks.wiring.measured import LabelledHistory, labelled_history

_FLIPPED = LABEL + "    bought = np.where((day >= date(2024, 2, 5)) & {where}, 1 - bought, bought)\n"


def monitored(settings: Settings, days: dict[str, Any]) -> tuple[dict[str, Any], list[Cause], str]:
    """(the decision step's result, the causes in its record, the report's HTML) of a window."""
    window = {"first_day": days["first_day"], "last_day": days["last_day"]}
    step(settings, "measure_window", **window)
    step(settings, "join_labels", **window, as_of=LATER)
    decided = step(settings, "decide_window", **window)
    store = open_store(settings, prefix=load_pipeline(settings, "toy").prefix)
    record = json.loads(store.get(decided["decision_key"]))
    report = store.get(step(settings, "report_window", **window)["report_key"]).decode()
    return decided, [Cause.from_json(item) for item in record["causes"]], report


def asked(settings: Settings, days: dict[str, Any]) -> tuple[Context, Any, LabelledHistory]:
    context = open_context(settings, "toy")
    first, last = (date.fromisoformat(days[name]) for name in ("first_day", "last_day"))
    history = labelled_history(context, first, last)
    return context, decision_of(context, first, last, history), history


def test_a_champion_trained_on_wrong_labels_is_suspected_with_its_event(installation: Settings) -> None:
    wrong = LABEL + "    bought = 1 - bought\n"
    source(installation, LABEL, wrong)
    challenger = Chain(installation).train(
        train_last_day="2024-02-02", validation_first_day="2024-02-03", validation_last_day="2024-02-08"
    )
    promoted = step(
        installation, "promote_model", version=challenger["version"], actor="ada", reason="passed its gate"
    )
    source(installation, wrong, LABEL)
    run = score(installation)
    decided, causes, report = monitored(installation, run)
    assert causes[0].kind == "model" and causes[0].since.isoformat() == run["first_day"]
    event = f"event {promoted['event_id']}"
    assert event in causes[0].changes
    assert decided["causes"][0].startswith("Most likely the model")
    assert "Most likely cause" in report and "passed its gate" in report and event in report
    assert report.index("Most likely cause") < report.index("<svg")

    context, decision, history = asked(installation, run)
    assert list(explain(context, decision, history).causes) == causes, "asked again it is the same"
    kinds = {change.kind: change for change in changes_of(context, decision.first_day, decision.last_day)}
    assert kinds["deployment"].day.isoformat() == run["first_day"]
    assert f"version {challenger['version']} was trained" in kinds["training"].words


def test_labels_that_turn_in_one_slice_name_that_slice(installation: Settings) -> None:
    source(installation, LABEL, _FLIPPED.format(where="(device == 'phone')"))
    step(installation, "join_labels", first_day="2024-02-05", last_day="2024-02-08", as_of=LATER)
    run = score(installation)
    _, causes, report = monitored(installation, run)
    assert causes[0].slices == ("device = phone",) and causes[0].kind == "labels", causes
    assert causes[0].since.isoformat() == "2024-02-05", "days before the window count"
    assert "device = phone" in report and "ranks worse" in report

    context, decision, history = asked(installation, run)
    before = sorted(info.key for info in context.store.list(prefix="monitoring/slices"))
    slices = explain(context, decision, history).slices
    assert slices is not None and len(slices.days) > 4
    assert {item.name for item in slices.slices} == {"device = phone", "device = desktop"}
    assert before == sorted(info.key for info in context.store.list(prefix="monitoring/slices")), "kept once"


def test_labels_that_turn_everywhere_are_labels_by_the_categorical_features_when_no_slices_are_declared(
    installation: Settings,
) -> None:
    edit(pipeline_file(installation), {"slices: [device], ": ""})
    source(installation, LABEL, _FLIPPED.format(where="True"))
    run = score(installation)
    _, causes, report = monitored(installation, run)
    assert causes[0].kind == "labels" and causes[0].slices == (), causes
    assert "city = Basel" in report and "device = phone" in report


def test_a_broken_column_is_the_feed_and_the_decisions_are_listed(installation: Settings) -> None:
    source(installation, PRICE, BROKEN)
    run = score(installation)
    _, causes, report = monitored(installation, run)
    assert (causes[0].kind, causes[0].channels, f"{causes[0].since}") == ("feed", ("price",), "2024-02-10")
    step(installation, "mitigate_window", first_day=run["first_day"], last_day=run["last_day"], as_of=LATER)
    _, _, report = monitored(installation, run)
    assert report.count(">scoring held<") == 1, "one row for the finding and what was done about it"
    spec = load_pipeline(installation, "toy")
    stored = MetadataStore.open(installation).decisions(spec, limit=3)
    assert any(item.record.get("causes") for item in stored)


def test_days_that_are_scored_again_are_a_change(installation: Settings) -> None:
    run = score(installation)
    source(installation, PRICE, BROKEN)
    score(installation, first_day="2024-02-10", last_day="2024-02-10")
    context = open_context(installation, "toy")
    found = changes_of(context, date.fromisoformat(run["first_day"]), date.fromisoformat(run["last_day"]))
    (again,) = [change for change in found if change.kind == "run_replaced"]
    assert again.day == date(2024, 2, 10) and "2024-02-10 was scored again" in again.words


def test_days_that_another_model_scored_again_changed_their_model(after_second: Settings) -> None:
    run = score(after_second)
    live = step(after_second, "live_model")
    other = live["previous_version"]
    step(after_second, "promote_model", version=other, actor="eve", reason="it has the better AUC")
    score(after_second, first_day=run["first_day"], last_day=run["last_day"])
    context = open_context(after_second, "toy")
    first = date.fromisoformat(run["first_day"])
    found = changes_of(context, first, date.fromisoformat(run["last_day"]))
    assert not [change for change in found if change.kind == "run_replaced"]
    again = [change for change in found if change.kind == "deployment"][-1]
    assert again.day == first and again.words.endswith(
        f"scored again, by version {other}, version {live['version']} before"
    )
    assert "by eve: it has the better AUC" in again.detail


def test_a_column_that_the_source_gains_is_a_change(installation: Settings) -> None:
    source(installation, '"device": device,', '"device": device, "shop": ["x"] * n,')
    run = score(installation)
    context = open_context(installation, "toy")
    first, last = date.fromisoformat(run["first_day"]), date.fromisoformat(run["last_day"])
    (schema,) = [item for item in changes_of(context, first, last) if item.kind == "snapshot_schema"]
    assert schema.day == first and "with new shop" in schema.words


def test_slices_whose_snapshot_is_gone_are_stated_and_the_decision_is_made(installation: Settings) -> None:
    source(installation, LABEL, _FLIPPED.format(where="True"))
    run = score(installation)
    context = open_context(installation, "toy")
    stored = context.metadata.run(context.spec, run["run_id"])
    assert stored is not None and stored.snapshot_id is not None
    window = {"first_day": run["first_day"], "last_day": run["last_day"]}
    step(installation, "measure_window", **window)
    step(installation, "join_labels", **window, as_of=LATER)
    context.store.delete(f"snapshots/{stored.snapshot_id}.json")
    decided = step(installation, "decide_window", **window)
    assert decided["verdict"] == "performance damage" and decided["causes"]
    report = context.store.get(step(installation, "report_window", **window)["report_key"]).decode()
    assert "Slices were not compared" in report


def test_a_record_that_cannot_be_read_leaves_the_decision_without_causes(installation: Settings) -> None:
    source(installation, PRICE, BROKEN)
    run = score(installation)
    open_context(installation, "toy").store.put("waivers/x/placed.json", b"{")
    decided, causes, _ = monitored(installation, run)
    assert decided["verdict"] == "data fault" and causes == []


def test_a_quiet_window_has_no_cause_and_says_what_changed(after_second: Settings) -> None:
    run = score(after_second)
    decided, causes, report = monitored(after_second, run)
    assert causes == [] and decided["causes"] == []
    assert "Most likely cause" not in report and "What changed" in report
    assert "promoted on" in report, "the second model scores from this window on"

"""Labels as they really come: late, never, changed, all at once; each is said, and nothing is lost or measured twice."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from wiring_support import LABEL, days_of, score, source, step

from tasks import wiring
from tasks.core import Settings, load_pipeline, open_store
from tasks.inference.records import shard_key
from tasks.metadata import MetadataStore
from tasks.model.profile import PROFILE_VERSION

_GIVEN = "np.where(rng.random(n) < 0.01, None, bought)"
_STOPPED = "np.where(rng.random(n) < (2 if day >= date(2024, 2, 9) else 0.01), None, bought)"


def monitored(settings: Settings, days: dict[str, str], as_of: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the join said, what was decided)."""
    step(settings, "measure_window", **days)
    joined = step(settings, "join_labels", **days, as_of=as_of)
    return joined, step(settings, "decide_window", **days)


def realised(settings: Settings) -> dict[str, float]:
    points = step(settings, "metric_series", metric="auc", source="monitor")["points"]
    return {point["day"]: point["value"] for point in points}


def newest_record(settings: Settings) -> dict[str, Any]:
    spec = load_pipeline(settings, "toy")
    return MetadataStore.open(settings).decisions(spec, limit=1)[0].record


def kinds(settings: Settings) -> dict[str, str]:
    wiring.send_alerts(settings)
    return {item["kind"]: item["status"] for item in wiring.list_alerts(settings, "toy")["alerts"]}


def test_labels_that_come_after_their_window_was_closed_are_taken_in_by_the_next_one(
    installation: Settings,
) -> None:
    first, second = score(installation), score(installation)
    before, _ = monitored(installation, days_of(first), as_of="2024-02-09")
    assert before["states"] == {"immature": 4} and before["late_days"] == {}
    known = realised(installation)

    after, decided = monitored(installation, days_of(second), as_of="2024-02-14")
    assert after["late_days"] == {f"2024-02-{day:02}": "immature -> measured" for day in (9, 10, 11, 12)}
    assert after["states"] == {"measured": 1, "immature": 3} and after["days_labelled"] == 1
    assert set(realised(installation)) - set(known) == {f"2024-02-{day:02}" for day in range(9, 14)}
    assert decided["verdict"] in ("healthy", "noise")

    again = step(installation, "join_labels", **days_of(second), as_of="2024-02-14")
    assert again["late_days"] == {} and again["states"] == after["states"]


def test_a_settled_day_is_not_read_again_and_labels_that_changed_are_measured_when_asked_for(
    installation: Settings, monkeypatch
) -> None:
    import tasks.wiring.monitor as monitor

    first, second = score(installation), score(installation)
    monitored(installation, days_of(first), as_of="2024-03-01")
    read: list[str] = []
    kept = monitor.scored_rows
    monkeypatch.setattr(
        monitor, "scored_rows", lambda context, day, run: read.append(str(day)) or kept(context, day, run)
    )
    step(installation, "join_labels", **days_of(second), as_of="2024-03-10")
    assert read == [f"2024-02-{day}" for day in (13, 14, 15, 16)]

    known = realised(installation)
    source(installation, LABEL, LABEL + "    bought = 1 - bought\n")
    step(installation, "join_labels", **days_of(first), as_of="2024-03-10")
    changed = realised(installation)
    assert all(changed[day] < known[day] for day in ("2024-02-09", "2024-02-12"))
    assert changed["2024-02-13"] == known["2024-02-13"]


def test_a_feed_of_labels_that_stops_is_an_alert_of_its_own_until_they_come(installation: Settings) -> None:
    (installation.pipelines_dir / "alerts.yaml").write_text("{}\n")
    source(installation, _GIVEN, _STOPPED)
    first = score(installation)
    joined, decided = monitored(installation, days_of(first), as_of="2024-02-13")
    assert joined["states"] == {"missing": 4}
    assert decided["action"] == "alert" and decided["verdict"] in ("healthy", "noise")
    assert "of the last 4 due days (2024-02-09 to 2024-02-12) none has come" in decided["headline"]
    assert kinds(installation)["labels late"] == "open"
    assert kinds(installation).get("drift, no damage seen") != "open"
    assert not step(installation, "training_due", trigger="drift")["due"]
    report = step(installation, "report_window", **days_of(first))
    html = open_store(installation, prefix="default/toy").get(report["report_key"]).decode()
    assert "Labels are late" in html

    source(installation, _STOPPED, _GIVEN)
    second = score(installation)
    joined, decided = monitored(installation, days_of(second), as_of="2024-02-17")
    assert joined["late_days"] == {f"2024-02-{day:02}": "missing -> measured" for day in (9, 10, 11, 12)}
    assert not any("Labels" in said for said in decided["operations"])
    assert kinds(installation)["labels late"] == "resolved"


def test_damage_that_late_labels_show_is_asked_about_though_the_window_has_none(
    installation: Settings,
) -> None:
    source(installation, LABEL, LABEL + "    bought = 1 - bought if day >= date(2024, 2, 9) else bought\n")
    first, second = score(installation), score(installation)
    _, early = monitored(installation, days_of(first), as_of="2024-02-09")
    assert early["action"] != "ask_person"

    _, late = monitored(installation, days_of(second), as_of="2024-02-13")
    assert (late["verdict"], late["action"]) == ("performance damage", "ask_person")
    assert "2024-02-12" in late["headline"]
    assert any("changed the verdict on earlier days: 2024-02-09" in said for said in late["operations"])
    record = newest_record(installation)
    assert {line["verdict"] for line in record["corrected"]} == {"performance damage"}
    assert [line["day"] for line in record["corrected"]][-1] == "2024-02-12"
    assert step(installation, "mitigate_window", **days_of(second), as_of="2024-02-13")["outcome"] == "asked"

    again = step(installation, "decide_window", **days_of(second))
    assert again["operations"] == late["operations"], "a repeat says the same"
    html = wiring.trend_page(installation, "toy")
    assert "2024-02-12: performance damage" in html


def test_records_of_an_earlier_release_are_taken_as_they_are(installation: Settings) -> None:
    spec = load_pipeline(installation, "toy")
    store = open_store(installation, prefix=spec.prefix)
    keys = [info.key for info in store.list("monitoring/") if "/performance-" in info.key]
    assert keys
    for key in keys:
        raw = json.loads(store.get(key))
        for name in ("as_of", "first_asked", "labelled_on", "taken_in_later"):
            del raw[name]
        store.put(key, json.dumps(raw).encode())
    joined, decided = monitored(installation, days_of(score(installation)), as_of="2024-02-20")
    assert joined["days_labelled"] == 4 and decided["operations"] == []


def test_the_age_of_the_newest_day_alerts_only_where_the_pipeline_promised_one(
    installation: Settings,
) -> None:
    rules = installation.pipelines_dir / "alerts.yaml"
    rules.write_text("{}\n")
    assert "freshness" not in kinds(installation)
    rules.write_text("pipelines: {toy: {freshness_hours: 36}}\n")
    assert kinds(installation)["freshness"] == "open"
    window = days_of(score(installation))
    _, decided = monitored(installation, window, as_of="2024-03-01")
    assert any(said.startswith("The newest published day, 2024-02-12") for said in decided["operations"])
    rules.write_text("pipelines: [")
    assert step(installation, "decide_window", **window)["operations"] == []
    rules.write_text("pipelines: {toy: {freshness_hours: 1000000}}\n")
    assert kinds(installation)["freshness"] == "resolved"


def test_days_of_the_future_are_stated_and_raise_no_alarm(installation: Settings, monkeypatch) -> None:
    import tasks.wiring.deciding as deciding

    earlier = deciding.utc_now() - timedelta(days=366 * 10)
    window = days_of(score(installation))
    step(installation, "measure_window", **window)
    step(installation, "join_labels", **window, as_of="2024-02-08")
    with monkeypatch.context() as patch:
        patch.setattr(deciding, "utc_now", lambda: earlier)
        decided = step(installation, "decide_window", **window)
    assert decided["action"] in ("note", "nothing") and decided["verdict"] in ("healthy", "noise")
    assert any("future of this clock" in said for said in decided["operations"])


def _twice(and_again: str) -> str:
    return f"    return pa.concat_tables([again for day in days for again in (_day(day), {and_again})])\n"


_ONCE = "    return pa.concat_tables([_day(day) for day in days])\n"


def test_labels_that_come_twice_count_once_and_contradicting_ones_not_at_all(installation: Settings) -> None:
    run = score(installation)
    monitored(installation, days_of(run), as_of="2024-02-20")
    known = realised(installation)
    source(installation, _ONCE, _twice("_day(day)"))
    joined, decided = monitored(installation, days_of(run), as_of="2024-02-20")
    assert joined["states"] == {"measured": 4} and joined["problem"] is None
    assert realised(installation) == known

    turned = "_day(day).set_column(7, 'bought', pa.array([None if v is None else 1 - v for v in _day(day)['bought'].to_pylist()], pa.int8()))"
    source(installation, _twice("_day(day)"), _twice(turned))
    joined, decided = monitored(installation, days_of(run), as_of="2024-02-20")
    assert joined["states"] == {"missing": 4} and decided["action"] == "alert"
    assert any("Only 0 of" in reason for reason in decided["reasons"])


def test_labels_that_cannot_be_read_are_an_alert_and_the_data_is_judged_all_the_same(
    installation: Settings,
) -> None:
    first, second = score(installation), score(installation)
    source(installation, _GIVEN, "np.where(rng.random(n) < 0.01, None, bought + 1)")
    joined, decided = monitored(installation, days_of(first), as_of="2024-02-20")
    assert "bought" in joined["problem"] and joined["states"] == {"missing": 4}
    assert decided["action"] == "alert" and "Labels could not be read on 2024-02-20" in decided["headline"]

    source(installation, "None, bought + 1)", "None, bought)")
    joined, decided = monitored(installation, days_of(second), as_of="2024-02-20")
    assert joined["problem"] is None and len(joined["late_days"]) == 4 and decided["operations"] == []
    known = realised(installation)
    source(installation, _GIVEN, "np.where(rng.random(n) < 0.01, None, bought + 1)")
    joined, _ = monitored(installation, days_of(second), as_of="2024-02-20")
    assert joined["problem"] and joined["states"] == {"measured": 4}, "what was known stays known"
    assert realised(installation) == known


def test_a_profile_that_this_release_cannot_read_leaves_its_day_unjudged_with_the_fix(
    installation: Settings,
) -> None:
    run = score(installation)
    store = open_store(installation, prefix="default/toy")
    key = shard_key(run["run_id"], 7)
    record = json.loads(store.get(key))
    assert record["profile"]["attributions"]["rows"] > 0
    record["profile"]["version"] = PROFILE_VERSION + 1
    store.put(key, json.dumps(record).encode())
    measured = step(installation, "measure_window", **days_of(run))
    assert measured["days"] == 4
    decided = step(installation, "decide_window", **days_of(run))
    assert decided["verdict"] in ("healthy", "noise") and decided["action"] == "note"
    assert any(record["day"] in reason and "upgrade" in reason for reason in decided["reasons"])
    assert step(installation, "report_window", **days_of(run))["report_url"]


def test_a_column_that_is_new_in_the_source_is_stated_and_nothing_else(installation: Settings) -> None:
    source(
        installation,
        '            "city": city,\n',
        '            "city": city,\n            "coupon": city,\n',
    )
    run = score(installation)
    _, decided = monitored(installation, days_of(run), as_of="2024-02-20")
    assert any("new: coupon" in said for said in decided["operations"])
    assert decided["verdict"] in ("healthy", "noise") and decided["action"] != "alert"

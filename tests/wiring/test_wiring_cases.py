"""Cases through the real steps: opened once, answered by a person, and what the answer teaches the monitor."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest
from wiring_support import BROKEN, LABEL, LATER, PRICE, Chain, days_of, monitored, score, source, step

from tasks import wiring
from tasks.core import Settings
from tasks.core.errors import ConfigError, NotFound, TerminalError
from tasks.monitoring.cases import read_case, see_again
from tasks.monitoring.mitigation import hold_scoring, release_scoring
from tasks.wiring.context import open_context

_FLIPPED = LABEL + "    bought = 1 - bought if day >= date(2024, 2, 9) else bought\n"
_STAYS = "np.where(rng.random(n) < (0.3 if day >= date(2024, 2, 10) else 0.03), np.nan, price)"


def cases(settings: Settings) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = step(settings, "list_cases")["cases"]
    return found


def answer(settings: Settings, case_id: str, said: str, **more: Any) -> dict[str, Any]:
    return step(
        settings, "answer_case", case_id=case_id, answer=said, actor="ada", reason="looked at it", **more
    )


def test_a_fault_opens_one_case_with_its_evidence_and_the_cured_days_close_it(
    after_second: Settings, second: Chain
) -> None:
    source(after_second, PRICE, BROKEN)
    run = score(after_second)
    held = monitored(after_second, days_of(run))
    assert held["case_id"] == "fault-2024-02-10"
    again = step(after_second, "mitigate_window", **days_of(run), as_of=LATER)
    assert again["case_id"] == held["case_id"] and len(cases(after_second)) == 1, "the same window asks once"

    case = step(after_second, "show_case", case_id=held["case_id"])
    assert (case["kind"], case["status"], case["days"]) == ("data fault", "open", ["2024-02-10"])
    assert case["signals"] == ["nulls:price"] and case["holds"] == [held["hold_id"]]
    assert any("price is null" in reason for reason in case["reasons"])
    assert case["suggestion"] == "incident" and case["next_steps"]
    assert [option["answer"] for option in case["options"]] == ["incident", "accept", "new_normal", "mute"]
    assert case["log"][0]["kind"] == "opened" and len(case["log"]) == 1
    assert case["report_url"].endswith("/report.html"), "the report is drawn beside the case"
    step(after_second, "report_window", **days_of(run))

    source(after_second, BROKEN, PRICE)
    cured = monitored(
        after_second, days_of(score(after_second, first_day="2024-02-10", last_day="2024-02-10"))
    )
    assert cured["case_id"] == ""
    (closed,) = cases(after_second)
    assert (closed["status"], closed["over"]) == ("over", "the hold of its days was released")
    newest = step(after_second, "report_window", **days_of(run))["report_key"]
    url: str = step(after_second, "show_case", case_id=closed["case_id"])["report_url"]
    verdicts = [
        wiring.read_report(after_second, "toy", key)
        .partition(b'<div class="verdict ')[2]
        .partition(b"</div>")[0]
        for key in (url.partition("/report/toy/")[2], newest)
    ]
    assert [b"breaks the training contract" in verdict for verdict in verdicts] == [True, False]
    with pytest.raises(TerminalError, match="is over"):
        answer(after_second, closed["case_id"], "accept")


def test_accepting_a_fault_lets_scoring_go_on_and_the_next_faulty_day_asks_anew(
    after_second: Settings, second: Chain
) -> None:
    source(after_second, PRICE, _STAYS)
    run = score(after_second)
    held = monitored(after_second, days_of(run))
    said = answer(after_second, held["case_id"], "accept")
    assert said["released"] == [held["hold_id"]] and said["then"] == ""
    assert answer(after_second, held["case_id"], "accept")["released"] == said["released"], "safe to repeat"
    assert not step(after_second, "scoring_status")["held"]
    shown = step(after_second, "show_case", case_id=held["case_id"])
    span = " to ".join(dict.fromkeys((held["days"][0], held["days"][-1])))
    assert shown["done"] == [f"the hold of {span} was released ({held['hold_id']})"]
    assert "still open" not in shown["headline"]
    assert [line["kind"] for line in shown["log"]] == ["opened", "answered", "done"]
    quiet = step(after_second, "mitigate_window", **days_of(run), as_of=LATER)
    assert (quiet["outcome"], quiet["case_id"]) == ("nothing", "")
    decided = step(after_second, "decide_window", **days_of(run))
    assert (decided["verdict"], decided["action"]) == ("data fault", "note")
    assert any("ada answered accept: looked at it" in reason for reason in decided["reasons"])
    trend = wiring.trend_page(after_second, "toy", days=30)
    assert f"Case {held['case_id']}: looked at it" in trend and "by ada" in trend
    assert "hold released" not in trend, "the answer says so itself"
    report = open_context(after_second, "toy").store.get(
        step(after_second, "report_window", **days_of(run))["report_key"]
    )
    assert f"Case {held['case_id']}: looked at it".encode() in report

    more = monitored(after_second, days_of(score(after_second)))
    assert more["outcome"] == "held" and more["case_id"] not in ("", held["case_id"])
    assert [item["status"] for item in cases(after_second)] == ["open", "answered"]


def test_a_case_that_was_an_incident_says_when_each_of_its_holds_is_over(
    after_second: Settings, second: Chain
) -> None:
    def over(hold: str) -> str:
        return f"the hold of 2024-02-10 was released ({hold})"

    def measured(old: str, new: str) -> dict[str, Any]:
        source(after_second, old, new)
        run = score(after_second, first_day="2024-02-10", last_day="2024-02-10")
        return monitored(after_second, days_of(run))

    source(after_second, PRICE, BROKEN)
    window = days_of(score(after_second))
    held = monitored(after_second, window)
    case_id = held["case_id"]
    assert answer(after_second, case_id, "incident")["released"] == []
    shown = step(after_second, "show_case", case_id=case_id)
    assert shown["done"] == [] and "toy.score for exactly these days" in shown["next_steps"][1]
    assert measured(BROKEN, PRICE)["released"] == [held["hold_id"]]
    shown = step(after_second, "show_case", case_id=case_id)
    assert (shown["done"], shown["next_steps"]) == ([over(held["hold_id"])], [])
    assert "hold released" in wiring.trend_page(after_second, "toy", days=30)

    again = measured(PRICE, BROKEN)
    assert again["outcome"] == "held" and again["hold_id"] != held["hold_id"]
    assert again["case_id"] == f"{case_id}-2", "what is broken anew is asked about anew"
    assert step(after_second, "mitigate_window", **window, as_of=LATER)["case_id"] == again["case_id"]
    assert measured(BROKEN, PRICE)["released"] == [again["hold_id"]]
    closed = step(after_second, "show_case", case_id=again["case_id"])
    assert (closed["status"], closed["over"]) == ("over", "the hold of its days was released")
    third = measured(PRICE, BROKEN)
    assert (third["outcome"], third["case_id"]) == ("held", f"{case_id}-3"), (
        "also after one that closed itself"
    )
    assert step(after_second, "show_case", case_id=case_id)["done"] == [over(held["hold_id"])]


def test_each_hold_that_an_answer_left_is_noted_when_it_is_over_also_after_a_crash(
    after_second: Settings, second: Chain
) -> None:
    source(after_second, PRICE, BROKEN)
    window = days_of(score(after_second))
    held = monitored(after_second, window)
    context = open_context(after_second, "toy")
    other = hold_scoring(
        context.store, [date(2024, 2, 9), date(2024, 2, 10)], reason="seen in a later window"
    )
    assert other is not None
    file = read_case(context.store, held["case_id"])
    see_again(context.store, file, replace(file.case, holds=(other.hold_id,)))
    answer(after_second, held["case_id"], "incident")
    for hold_id in (held["hold_id"], other.hold_id):
        release_scoring(context.store, hold_id, actor="monitor", reason="by a process that died here")
        assert hold_id not in " ".join(step(after_second, "show_case", case_id=held["case_id"])["done"])
        step(after_second, "mitigate_window", **window, as_of=LATER)
        assert hold_id in step(after_second, "show_case", case_id=held["case_id"])["done"][-1]


def test_a_hold_that_a_person_releases_is_noted_in_its_case_at_once(
    after_second: Settings, second: Chain
) -> None:
    source(after_second, PRICE, BROKEN)
    held = monitored(after_second, days_of(score(after_second)))
    answer(after_second, held["case_id"], "incident")
    step(after_second, "release_held_scoring", hold_id=held["hold_id"], actor="bob", reason="it was a sale")
    shown = step(after_second, "show_case", case_id=held["case_id"])
    assert shown["done"] == [f"the hold of 2024-02-10 was released ({held['hold_id']})"]
    assert shown["answer"] == "ada answered incident: looked at it"


def test_a_confirmed_shift_is_the_new_normal_of_its_channel_alone(
    after_second: Settings, second: Chain
) -> None:
    source(after_second, PRICE, _STAYS)
    held = monitored(after_second, days_of(score(after_second)))
    answer(after_second, held["case_id"], "new-normal")
    after = monitored(after_second, days_of(score(after_second)))
    assert after["outcome"] == "nothing", after
    assert not step(after_second, "scoring_status")["held"] and len(cases(after_second)) == 1


def test_a_mute_keeps_its_signal_out_of_the_verdict_up_to_its_day_and_says_so(
    after_second: Settings, second: Chain
) -> None:
    source(after_second, PRICE, _STAYS)
    run = score(after_second)
    held = monitored(after_second, days_of(run))
    with pytest.raises(ConfigError, match="is not after 2024-02-1"):
        answer(after_second, held["case_id"], "mute", until="2024-02-01")
    with pytest.raises(ConfigError, match="at most 30 days later"):
        answer(after_second, held["case_id"], "mute", until="2025-02-01")
    said = answer(after_second, held["case_id"], "mute", until="2024-02-14")
    assert said["until"] == "2024-02-14" and said["released"] == [held["hold_id"]]
    again = step(after_second, "decide_window", **days_of(run))
    assert again["action"] == "note" and any("mute until 2024-02-14" in reason for reason in again["reasons"])
    later = score(after_second)
    assert later["last_day"] > "2024-02-14", "the window goes past the mute"
    held_again = monitored(after_second, days_of(later))
    assert held_again["outcome"] == "held" and min(held_again["days"]) == "2024-02-15"


def test_a_hold_that_is_released_by_hand_answers_its_case(after_second: Settings, second: Chain) -> None:
    source(after_second, PRICE, BROKEN)
    held = monitored(after_second, days_of(score(after_second)))
    step(after_second, "release_held_scoring", hold_id=held["hold_id"], actor="ada", reason="a sale")
    (case,) = cases(after_second)
    assert (case["status"], case["answer"]) == ("answered", "ada answered accept: a sale")


def test_damage_holds_automatic_promotions_until_somebody_answers_and_is_asked_about_once(
    after_second: Settings, second: Chain
) -> None:
    live = step(after_second, "live_model")
    source(after_second, LABEL, _FLIPPED)
    first = score(after_second)
    asked = monitored(after_second, days_of(first))
    assert asked["outcome"] == "asked" and asked["case_id"].startswith("damage-2024-02-")
    case = step(after_second, "show_case", case_id=asked["case_id"])
    assert case["suggestion"] == "retrain" and "no skill" in case["because"]
    does = {option["answer"]: option["does"] for option in case["options"]}
    assert "name newer ones first" in does["retrain"], "the toy's windows are fixed"
    latest = date.fromisoformat(case["days"][-1]) + timedelta(days=30)
    assert does["mute"].endswith(f"The day may be {latest} at the latest")
    assert "A person must decide." in case["headline"]
    assert case["model_version"] == live["version"]
    promotion = {"version": live["previous_version"], "actor": "ada", "reason": "try the other"}
    with pytest.raises(TerminalError, match=f"nobody has answered case {asked['case_id']}"):
        step(after_second, "promote_model", **promotion)

    next_run = score(after_second)
    second_window = monitored(after_second, days_of(next_run))
    assert (second_window["outcome"], second_window["case_id"]) == ("asked", asked["case_id"])
    assert len(step(after_second, "show_case", case_id=asked["case_id"])["days"]) > len(case["days"])

    said = answer(after_second, asked["case_id"], "retrain")
    assert said["then"] == "retrain"
    trend = wiring.trend_page(after_second, "toy", days=30)
    assert (
        "ada answered retrain: looked at it." in trend
        and "A person must decide." not in trend.split("What was decided")[0]
    )
    shown = step(after_second, "show_case", case_id=asked["case_id"])
    assert "A person must decide." not in shown["headline"]
    with pytest.raises(TerminalError, match="was answered already: ada answered retrain"):
        step(
            after_second,
            "answer_case",
            case_id=asked["case_id"],
            answer="roll_back",
            actor="bob",
            reason="quicker",
        )
    quiet = monitored(after_second, days_of(next_run))
    assert (quiet["outcome"], quiet["case_id"]) == ("nothing", "")
    begun = step(after_second, "begin_retraining", case_id=asked["case_id"], training_run="toy.train/case-x")
    assert begun["actor"] == "ada" and asked["case_id"] in begun["reason"]
    assert (
        step(after_second, "show_case", case_id=asked["case_id"])["log"][-1]["words"]
        == "started toy.train/case-x"
    )
    assert step(after_second, "roll_back_case", case_id=asked["case_id"])["nothing_to_do"]
    step(after_second, "promote_model", **promotion)


def test_a_rollback_as_the_answer_happens_once_in_the_name_of_who_answered(
    after_second: Settings, second: Chain
) -> None:
    live = step(after_second, "live_model")
    source(after_second, LABEL, _FLIPPED)
    asked = monitored(after_second, days_of(score(after_second)))
    answer(after_second, asked["case_id"], "roll-back")
    done = step(after_second, "roll_back_case", case_id=asked["case_id"])
    assert (done["version"], done["previous_version"]) == (live["previous_version"], live["version"])
    now = step(after_second, "live_model")
    assert now["actor"] == "ada" and asked["case_id"] in now["reason"]
    assert step(after_second, "roll_back_case", case_id=asked["case_id"]) == done
    assert step(after_second, "live_model") == now


def test_an_answer_that_was_taken_back_in_time_moves_nothing(after_second: Settings, second: Chain) -> None:
    live = step(after_second, "live_model")
    source(after_second, LABEL, _FLIPPED)
    window = days_of(score(after_second))
    asked = monitored(after_second, window)
    answer(after_second, asked["case_id"], "roll-back")
    taken = step(
        after_second, "revoke_case_answer", case_id=asked["case_id"], actor="ada", reason="the wrong case"
    )
    assert taken["status"] == "revoked"
    assert step(after_second, "roll_back_case", case_id=asked["case_id"])["nothing_to_do"]
    assert step(after_second, "live_model") == live
    again = monitored(after_second, window)
    assert again["case_id"] == f"{asked['case_id']}-2", "it is asked about anew"


def test_what_is_no_case_or_no_answer_to_it_is_refused_with_what_there_is(
    after_second: Settings, second: Chain
) -> None:
    source(after_second, PRICE, BROKEN)
    held = monitored(after_second, days_of(score(after_second)))
    with pytest.raises(NotFound, match="is no case of this pipeline"):
        step(after_second, "show_case", case_id="fault-1999-01-01")
    with pytest.raises(NotFound, match="is no case"):
        step(after_second, "show_case", case_id="../holds")
    with pytest.raises(ConfigError, match="is no answer to a case of data fault"):
        answer(after_second, held["case_id"], "roll-back")
    with pytest.raises(ConfigError, match="is no answer"):
        answer(after_second, held["case_id"], "shrug")
    with pytest.raises(ConfigError, match="is empty"):
        step(after_second, "answer_case", case_id=held["case_id"], answer="accept", actor="ada", reason=" ")
    assert cases(after_second)[0]["status"] == "open"

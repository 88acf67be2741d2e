"""The monitor acts through the real steps: a bad champion is rolled back, a flipped world asks, a broken feed is held."""

from __future__ import annotations

from datetime import date

import pytest
from wiring_support import BROKEN, LABEL, LATER, PRICE, Chain, days_of, monitored, score, source, step

from tasks import wiring
from tasks.core import Settings, load_pipeline
from tasks.core.errors import TerminalError
from tasks.metadata import MetadataStore
from tasks.monitoring.mitigation import ACTOR
from tasks.wiring.context import open_context
from tasks.wiring.decided import decided_on


def decisions(settings: Settings) -> list[str]:
    spec = load_pipeline(settings, "toy")
    return [item.action for item in MetadataStore.open(settings).decisions(spec, limit=2)]


def test_a_champion_that_was_trained_on_wrong_labels_is_rolled_back_once_with_its_evidence(
    installation: Settings,
) -> None:
    wrong = LABEL + "    bought = 1 - bought\n"
    source(installation, LABEL, wrong)
    chain = Chain(installation)
    challenger = chain.train(
        train_last_day="2024-02-02", validation_first_day="2024-02-03", validation_last_day="2024-02-08"
    )
    before = step(installation, "live_model")["version"]
    step(installation, "promote_model", version=challenger["version"], actor="ada", reason="passed its gate")
    source(installation, wrong, LABEL)

    run = score(installation)
    assert run["model_version"] == challenger["version"]
    done = monitored(installation, days_of(run))
    assert (done["outcome"], done["version"]) == ("rolled_back", before), done
    assert done["comparison"]["gain"] > 0.003 and done["comparison"]["days"] >= 3
    assert done["affected_rows"] == run["rows"]
    live = step(installation, "live_model")
    assert (live["version"], live["actor"]) == (before, ACTOR)
    assert "Brier loss +" in live["reason"]
    trend = wiring.trend_page(installation, "toy", days=30)
    assert f"It is over: the monitor went back to version {before} by itself." in trend
    assert "A person must decide." not in trend + live["reason"]
    spec = load_pipeline(installation, "toy")
    assert challenger["version"] in MetadataStore.open(installation).head(spec).barred
    assert decisions(installation)[0] == "roll_back"

    again = step(installation, "mitigate_window", **days_of(run), as_of=LATER)
    assert again["outcome"] == "nothing" and "was rolled back" in again["reasons"][-1]
    assert step(installation, "live_model")["event_id"] == live["event_id"]
    assert decisions(installation).count("roll_back") == 1


def test_a_rollback_whose_attempt_died_before_it_could_say_so_is_told_by_the_next(
    installation: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = LABEL + "    bought = 1 - bought\n"
    source(installation, LABEL, wrong)
    challenger = Chain(installation).train(
        train_last_day="2024-02-02", validation_first_day="2024-02-03", validation_last_day="2024-02-08"
    )
    step(installation, "promote_model", version=challenger["version"], actor="ada", reason="passed its gate")
    source(installation, wrong, LABEL)
    run = score(installation)
    with monkeypatch.context() as patch:
        patch.setattr("tasks.wiring.mitigation._rolled_back", _dies)
        with pytest.raises(KeyboardInterrupt):
            monitored(installation, days_of(run))
    told = step(installation, "mitigate_window", **days_of(run), as_of=LATER)
    assert told["outcome"] == "rolled_back" and "Brier loss +" in told["reasons"][0]
    assert decisions(installation)[0] == "roll_back"


def _dies(*_: object) -> None:
    raise KeyboardInterrupt


def test_when_labels_change_their_meaning_no_version_helps_and_a_person_is_asked(
    after_second: Settings, second: Chain
) -> None:
    live = step(after_second, "live_model")
    source(after_second, LABEL, LABEL + "    bought = 1 - bought if day >= date(2024, 2, 9) else bought\n")
    run = score(after_second)
    asked = monitored(after_second, days_of(run))
    assert asked["outcome"] == "asked", asked
    assert any("no version helps" in reason for reason in asked["reasons"]), (
        "though one loses less than the other"
    )
    assert asked["report_url"] and asked["comparison"]["target"] == live["previous_version"]
    assert step(after_second, "live_model") == live
    assert decisions(after_second)[0] == "ask_person"


def test_a_broken_feed_holds_scoring_and_promotions_until_its_days_are_whole_again(
    after_second: Settings, second: Chain
) -> None:
    former = second.done["promote_model"].first["previous_version"]
    source(after_second, PRICE, BROKEN)
    run = score(after_second)
    held = monitored(after_second, days_of(run))
    assert (held["outcome"], held["days"]) == ("held", ["2024-02-10"]), held
    status = step(after_second, "scoring_status")
    assert status["held"] and status["holds"][0]["hold_id"] == held["hold_id"]
    with pytest.raises(
        TerminalError, match=r"scoring is held since .* for a data fault of 2024-02-10"
    ) as refused:
        score(after_second)
    context = open_context(after_second, "toy")
    told = decided_on(context, date(2024, 2, 10), date(2024, 2, 10))
    assert [item.action for item in told] == ["hold_scoring"], (
        "of what was found and what was done the second"
    )
    assert held["case_id"] and f"answer case {held['case_id']} " in refused.value.fix
    with pytest.raises(TerminalError, match="promotion is held"):
        step(after_second, "promote_model", version=former, actor="ada", reason="try the other")

    source(after_second, BROKEN, PRICE)
    again = score(after_second, first_day="2024-02-10", last_day="2024-02-10")
    assert again["superseded_runs"] == [run["run_id"]]
    cured = monitored(after_second, days_of(again))
    assert cured["released"] == [held["hold_id"]], cured
    (released, *_) = [
        item for item in decided_on(context, date(2024, 2, 10), date(2024, 2, 10)) if item.actor == ACTOR
    ]
    assert (released.action, released.days) == (
        "released",
        "2024-02-10",
    ) and "without a fault" in released.reasons[0]
    assert not step(after_second, "scoring_status")["held"]
    assert score(after_second)["first_day"] == "2024-02-13"


def test_a_person_may_release_a_hold_and_the_same_days_do_not_hold_again(after_second: Settings) -> None:
    source(after_second, PRICE, BROKEN)
    run = score(after_second)
    held = monitored(after_second, days_of(run))
    over = step(
        after_second,
        "release_held_scoring",
        hold_id=held["hold_id"],
        actor="ada",
        reason="a sale; it is right",
    )
    assert over["released_by"] == "ada"
    assert step(after_second, "mitigate_window", **days_of(run), as_of=LATER)["outcome"] == "nothing"
    assert score(after_second)["first_day"] == "2024-02-13"


def test_a_quiet_window_leads_to_nothing(after_second: Settings) -> None:
    live = step(after_second, "live_model")
    assert monitored(after_second, days_of(score(after_second)))["outcome"] == "nothing"
    assert step(after_second, "live_model") == live and not step(after_second, "scoring_status")["holds"]

"""From training to the monitor: nulls that `drift.null_when` lets expect hold nothing, nulls beside them hold scoring."""

from __future__ import annotations

from wiring_support import LABEL, PRICE, Chain, days_of, edit, monitored, pipeline_file, score, source, step

from tasks.core import Settings

CLOSED = LABEL + "    closed = np.arange(n) < (45 if day == date(2024, 2, 10) else 2)\n"
"""The shop was closed for a third of 10 February, and for a moment on every day."""
STOCK = "np.where(closed | (rng.random(n) < 0.03), np.nan, price)"
STOCK_BROKEN = STOCK.replace("0.03", "(0.3 if day == date(2024, 2, 11) else 0.03)")


def test_a_third_of_a_column_null_for_a_reason_holds_nothing_and_the_same_without_one_does(
    installation: Settings,
) -> None:
    source(installation, LABEL, CLOSED)
    source(installation, PRICE, STOCK_BROKEN)
    source(
        installation, '"visits": visits,', '"visits": visits,\n            "stock": np.where(closed, 0, 9),'
    )
    edit(pipeline_file(installation), {"drift: {": "drift: {null_when: {price: {stock: 0}}, "})
    challenger = Chain(installation).train(
        train_last_day="2024-02-02", validation_first_day="2024-02-03", validation_last_day="2024-02-08"
    )
    step(installation, "promote_model", version=challenger["version"], actor="ada", reason="knows its nulls")
    run = score(installation, first_day="2024-02-09", last_day="2024-02-11")
    assert run["model_version"] == challenger["version"]
    held = monitored(installation, days_of(run))
    assert (held["outcome"], held["days"]) == ("held", ["2024-02-11"]), held
    assert any("price is null, rows aside where stock is 0" in reason for reason in held["reasons"]), held

    source(installation, STOCK_BROKEN, STOCK)
    again = score(installation, first_day="2024-02-11", last_day="2024-02-11")
    cured = monitored(installation, days_of(again))
    assert cured["released"] == [held["hold_id"]] and not step(installation, "scoring_status")["held"]

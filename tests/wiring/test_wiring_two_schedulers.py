"""A task attempt that was taken for dead and its retry run the real steps at the same time."""

from __future__ import annotations

from typing import Any

from children import at_once
from wiring_support import Chain

from tasks import wiring
from tasks.core import Settings, load_pipeline
from tasks.metadata import MetadataStore


def two_attempts(settings: Settings, steps: list[tuple[str, dict[str, Any]]]) -> None:
    """Run the steps from two processes that start at the same moment; both must succeed."""

    def attempt() -> str:
        for name, given in steps:
            wiring.step(name)(settings, "toy", **given)
        return "done"

    assert at_once(attempt, attempt) == ["done", "done"]


def test_canary_promotion_and_rollback_run_twice_at_once_are_recorded_once(
    after_second: Settings, second: Chain
) -> None:
    promoted = second.done["promote_model"].first
    first, new = promoted["previous_version"], promoted["version"]
    by = {"actor": "ada", "reason": "worse"}
    wiring.step("rollback_model")(after_second, "toy", expected=new, **by)
    wiring.step("unbar_model")(after_second, "toy", version=new, **by)
    spec, store = load_pipeline(after_second, "toy"), MetadataStore.open(after_second)
    before = store.head(spec).event_id
    run = {"dag_run": "manual__zombie"}
    two_attempts(
        after_second,
        [
            ("canary_model", {"version": new, "validation_last_day": "2024-02-11", **run}),
            ("promote_model", {"version": new, "expected": first, **by, **run}),
        ],
    )
    verdicts = store.verdicts(spec, dag_run="manual__zombie", gate="canary")
    assert [item.verdict.outcome for item in verdicts] == ["pass"]
    two_attempts(after_second, [("rollback_model", {"expected": new, **by, **run})])
    events = [event.kind for event in store.history(spec) if event.event_id > before]
    assert events == ["bar", "rollback", "promote"]

"""A task attempt that was taken for dead and its retry run the real steps at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from wiring_support import Chain

from tasks import wiring
from tasks.core import Settings, load_pipeline
from tasks.metadata import MetadataStore

_ATTEMPT = """
import json, sys
from tasks import wiring
from tasks.core import Settings
settings = Settings.from_environment()
print("ready", flush=True)
sys.stdin.readline()
for name, given in json.loads(sys.argv[1]):
    wiring.step(name)(settings, "toy", **given)
"""


def two_attempts(settings: Settings, steps: list[tuple[str, dict[str, object]]]) -> None:
    """Run the steps from two processes that start at the same moment; both must succeed."""
    command = [sys.executable, "-c", _ATTEMPT, json.dumps(steps)]
    env = {**os.environ, **settings.as_environment()}
    pipe = subprocess.PIPE
    attempts = [
        subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)
    ]
    for attempt in attempts:
        assert attempt.stdout is not None
        assert attempt.stdout.readline() == "ready\n"
    for attempt in attempts:
        assert attempt.stdin is not None
        attempt.stdin.write("go\n")
        attempt.stdin.flush()
    for attempt in attempts:
        _, said = attempt.communicate(timeout=120)
        assert attempt.returncode == 0, said[-2000:]


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

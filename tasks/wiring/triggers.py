"""What starts a training by itself: new data, drift, a change of the code. Each asks once for each change.

A training run notes what it began with under `triggers/` of the pipeline's store, one object for each state, written once. A
trigger is due while there is no note of the present state, so a lost run is asked for again and a failed one is not.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from tasks.core import Settings, iso_utc, utc_now
from tasks.core.errors import ConfigError, NotFound
from tasks.core.ids import canonical_json, digest_bytes, digest_json
from tasks.core.object_store import AlreadyExists
from tasks.core.spec import TRIGGERS, pipeline_folder
from tasks.wiring.context import Context, open_context, parse_day
from tasks.wiring.train import split_windows

_RETRAIN = frozenset({"drift, no damage seen", "performance damage"})
"""Verdicts of the monitor that a new training may answer; after a data fault it would learn the fault."""
_ACTIONS = frozenset({"alert", "ask_person"})
"""An incident alerts once, on its first day; the days after it are only noted."""


def training_due(
    settings: Settings,
    pipeline: str,
    *,
    trigger: str,
    first_day: str | None = None,
    last_day: str | None = None,
    dag_run: str | None = None,
) -> dict[str, Any]:
    """Whether `trigger` (`new_data`, `drift` or `code`) asks for a training, and why; `nothing_to_do` when not.

    `drift` looks at the monitor's decision on `first_day` to `last_day`; default: at the newest one.
    """
    context = open_context(settings, pipeline)
    if trigger not in TRIGGERS:
        raise ConfigError(f"is {trigger!r}", which="trigger", fix=f"use one of: {', '.join(TRIGGERS)}")
    due, reason, state = (
        _drift(context, first_day, last_day) if trigger == "drift" else _changed(context, trigger)
    )
    result = {
        "trigger": trigger, "due": due, "reason": reason, "reasons": [reason], "state": state,
        "nothing_to_do": not due,
    }  # fmt: skip
    context.evidence(dag_run, f"trigger {trigger}", {key: result[key] for key in ("due", "reason", "state")})
    return result


def note_start(context: Context, *, dag_run: str | None, own_days: bool) -> None:
    """Note that a training run begins with the present code and, unless it has days of its own, data."""
    if not dag_run:
        return
    for trigger in set(context.spec.training.triggers) - {"drift"} - ({"new_data"} if own_days else set()):
        state = _state(context, trigger)
        note = {"state": state, "dag_run": dag_run, "at_utc": iso_utc(utc_now())}
        with suppress(AlreadyExists):
            context.store.put_exclusive(_key(trigger, state), canonical_json(note))


def _changed(context: Context, trigger: str) -> tuple[bool, str, str]:
    state = _state(context, trigger)
    try:
        note = json.loads(context.store.get(_key(trigger, state)))
    except NotFound:
        what = "these windows" if trigger == "new_data" else "this code"
        return True, f"no training has begun with {what} yet: {state}", state
    return False, f"{note['dag_run']} began with the same on {note['at_utc']}: {state}", state


def _state(context: Context, trigger: str) -> str:
    if trigger == "code":
        return f"code {code_digest(context)}"
    train_first, train_last, first, last = split_windows(context)
    return f"trains on {train_first}..{train_last}, judged on {first}..{last}"


def code_digest(context: Context) -> str:
    """16 hex digits over what decides a training besides rows: pipeline.yaml, the folder's code and its suite."""
    folder = pipeline_folder(context.settings, context.spec.name)
    files = [folder / "pipeline.yaml", *folder.rglob("*.py")]
    own = {
        str(path.relative_to(folder)): digest_bytes(path.read_bytes())
        for path in files
        if path.relative_to(folder).parts[0] != "tests"
    }
    suite = context.settings.expectations_dir / f"{context.spec.validation.suite}.json"
    return digest_json([own, digest_bytes(suite.read_bytes()) if suite.is_file() else None])[:16]


def _drift(context: Context, first_day: str | None, last_day: str | None) -> tuple[bool, str, str]:
    if first_day and last_day:
        first, last = parse_day(first_day, "first_day"), parse_day(last_day, "last_day")
        decision = json.loads(context.store.get(f"monitoring/{first}_{last}/decision.json"))
        verdict, action = decision["verdict"], decision.get("data_action") or decision["action"]
    else:
        newest = context.metadata.decisions(context.spec, limit=1)
        if not newest:
            return False, "the monitor has decided on nothing yet", ""
        (found,) = newest
        first, last, verdict = found.first_day, found.last_day, found.verdict
        action = found.record.get("data_action") or found.action  # labels that are late ask for no training
    shown = f"the monitor says {verdict!r} of {first} to {last}, action {action}"
    return verdict in _RETRAIN and action in _ACTIONS, shown, f"{first}..{last} {verdict}"


def _key(trigger: str, state: str) -> str:
    return f"triggers/{trigger}/{digest_json(state)[:16]}.json"

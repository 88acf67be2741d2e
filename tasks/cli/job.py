"""`penstock job`: one step of the wiring in a process of its own, with its result left in the store.

The Ray job operator runs it on the cluster. The result object is the contract between the two:
`{"ok": true, "result": {...}}`, or `{"ok": false, "error": {...}, "kind": "terminal" | "transient" | "unknown"}`.
"""

from __future__ import annotations

import inspect
import json
import logging
import traceback
from typing import Any

from tasks import wiring
from tasks.cli.logs import log_to_stderr
from tasks.core import Settings, open_store
from tasks.core.errors import PenstockError, TerminalError, TransientError, error_kind
from tasks.core.ids import canonical_json


def run_job(settings: Settings, step: str, pipeline: str, arguments: str, result_key: str) -> int:
    """Run `wiring.<step>` and write its outcome to `result_key`; returns the process's exit code."""
    log_to_stderr(logging.INFO)
    store = open_store(settings)
    try:
        outcome = canonical_json({"ok": True, "result": _call(settings, step, pipeline, arguments)})
    except PenstockError as error:
        logging.getLogger(__name__).error("%s: %s", type(error).__name__, error)
        store.put(
            result_key, canonical_json({"ok": False, "error": error.as_record(), "kind": error_kind(error)})
        )
        return error.exit_code
    except Exception as error:
        logging.getLogger(__name__).error("unexpected error\n%s", traceback.format_exc())
        wrapped = TransientError(
            f"unexpected {type(error).__name__}: {error}",
            which=f"step {step} of {pipeline}",
            fix="the traceback is in the Ray job's log; retrying is safe",
        )
        store.put(
            result_key, canonical_json({"ok": False, "error": wrapped.as_record(), "kind": "transient"})
        )
        return wrapped.exit_code
    store.put(result_key, outcome)
    return 0


def _call(settings: Settings, step: str, pipeline: str, arguments: str) -> dict[str, Any]:
    function = wiring.step(step)
    parsed = _parsed(arguments)
    try:
        inspect.signature(function).bind(settings, pipeline, **parsed)
    except TypeError as error:
        raise TerminalError(
            f"does not take these arguments: {error}",
            which=f"step {step}",
            fix=f"it is {step}{inspect.signature(function)}",
        ) from error
    return function(settings, pipeline, **parsed)


def _parsed(arguments: str) -> dict[str, Any]:
    try:
        parsed = json.loads(arguments)
    except json.JSONDecodeError as error:
        raise TerminalError(
            "is not JSON", which=f"--arguments {arguments!r}", fix="pass a JSON object"
        ) from error
    if not isinstance(parsed, dict):
        raise TerminalError(
            "is not a JSON object", which=f"--arguments {arguments!r}", fix="pass a JSON object"
        )
    return parsed

"""Explanations at request time, in a process of their own.

The recorded model is a user's code. It never runs in Airflow's API server: the command `penstock audit show --explain`
runs it, for a limited time, and at most a few at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable

from tasks.audit import AuditRecord
from tasks.core.errors import (
    DataError,
    PenstockError,
    ServiceUnavailable,
    TerminalError,
    TransientError,
    error_from_record,
    error_kind,
)
from tasks.core.settings import Settings

Explain = Callable[[Settings, str, str, str | None], AuditRecord]
"""(settings, pipeline, prediction id, run id or None) -> the record with its explanation."""

_PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
)


class ExplainOnDemand:
    """Runs the command, at most `at_once` at a time, each for `timeout_s` seconds.

    Args:
        at_once: A torch process takes about half a gigabyte and a second of a core.
        timeout_s: After this the process is killed.
        command: What is run before `PIPELINE ID --explain --json`. `-P`: the API server's folder is not searched for code.
    """

    def __init__(
        self,
        *,
        at_once: int = 2,
        timeout_s: float = 60.0,
        command: tuple[str, ...] = (sys.executable, "-P", "-m", "tasks.cli", "audit", "show"),
    ) -> None:
        self._slots = threading.BoundedSemaphore(at_once)
        self._timeout_s = timeout_s
        self._command = command

    def __call__(
        self, settings: Settings, pipeline: str, prediction_id: str, run_id: str | None = None
    ) -> AuditRecord:
        """The record with its explanation.

        Raises:
            ServiceUnavailable: All slots are taken, or the process took too long.
            PenstockError: What the command said, as the class that it named.
        """
        if not self._slots.acquire(blocking=False):
            raise ServiceUnavailable(
                "others are being computed",
                which=f"explanation of {prediction_id}",
                fix="ask again in seconds",
            )
        try:
            return self._run(settings, pipeline, prediction_id, run_id)
        finally:
            self._slots.release()

    def _run(self, settings: Settings, pipeline: str, prediction_id: str, run_id: str | None) -> AuditRecord:
        arguments = [pipeline, prediction_id, "--explain", "--json", *(("--run", run_id) if run_id else ())]
        try:
            done = subprocess.run(
                [*self._command, *arguments],
                env=_environment(settings),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=self._timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ServiceUnavailable(
                f"was not done after {self._timeout_s:.0f} s",
                which=f"explanation of {prediction_id}",
                fix=f"run penstock audit show {pipeline} {prediction_id} --explain where there is time",
            ) from error
        if done.returncode != 0:
            raise _said(done.returncode, done.stderr, prediction_id)
        try:
            return AuditRecord.from_json(json.loads(done.stdout))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"is no audit record: {error}",
                which=f"answer of the explaining process for {prediction_id}",
                fix="see whether the API server and the command are of one release",
            ) from error


def _environment(settings: Settings) -> dict[str, str]:
    """Only what the command needs: none of the API server's secrets are handed to the model's code."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return {**kept, **aws, **settings.as_environment()}


def _said(code: int, stderr: str, prediction_id: str) -> PenstockError:
    """The error that the command printed: `Class which: what`, then `Fix: ...`.

    A class that this process does not know keeps its kind: the exit code tells whether asking again may help.
    """
    lines = [line.rstrip() for line in stderr.splitlines() if any(map(str.isalnum, line))]
    fix = lines.pop().strip().removeprefix("Fix: ") if lines and lines[-1].startswith("  Fix: ") else ""
    kind, _, what = (lines[-1] if lines else "").partition(" ")
    if not (kind.isidentifier() and kind[:1].isupper()):
        kind, what = "", lines[-1] if lines else f"ended with exit code {code}"
    which, fix = f"explanation of {prediction_id}", fix or "see the API server's log"
    error = error_from_record({"type": kind, "what": what, "which": which, "fix": fix})
    if error_kind(error) == "transient" and code != TransientError.exit_code:
        return TerminalError(what, which=which, fix=fix)
    return error

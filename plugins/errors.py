"""`PenstockError` to Airflow's own exceptions: what is terminal is not retried, what may pass is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from tasks.core.errors import PenstockError, error_from_record, error_kind


@contextmanager
def as_airflow_errors(operator: Any, context: Any) -> Iterator[None]:
    """Log what Penstock raises within as `airflow_error` says it, and raise that."""
    try:
        yield
    except PenstockError as error:
        failure = airflow_error(error, context)
        operator.log.error("%s", failure)
        raise failure from None


def airflow_error(error: PenstockError, context: Any) -> AirflowException:
    """The exception a task raises for `error`; its text keeps what happened, to which thing, and the fix.

    Terminal errors become `AirflowFailException` (no retry). Transient ones and unknown outcomes become
    `AirflowException`: every step looks up what is already committed before it acts (I4), so a retry is safe. Their
    text says whether there is one, which only the task knows.
    """
    return _raised(error, error_kind(error), context)


def airflow_error_of_record(record: dict[str, str], kind: str, context: Any) -> AirflowException:
    """As `airflow_error`, for the error that a Ray job wrote; `kind` is the job's own classification."""
    return _raised(error_from_record(record), kind, context)


def _raised(error: PenstockError, kind: str, context: Any) -> AirflowException:
    if kind == "terminal":
        return AirflowFailException(str(error))
    fix = "; ".join(text for text in (error.fix, _what_comes(context["ti"])) if text)
    return AirflowException(str(PenstockError(error.what, which=error.which, fix=fix)))


def _what_comes(ti: Any) -> str:
    """Whether Airflow tries the task again by itself; empty for a task that never is, its next run comes anyway."""
    if not ti.max_tries:
        return ""
    if ti.try_number <= ti.max_tries:
        return f"the task tries again by itself: this was try {ti.try_number} of {ti.max_tries + 1}"
    return f"no try is left, this was the last of {ti.max_tries + 1}: clear the task when the cause is gone"

"""`PenstockError` to Airflow's own exceptions: what is terminal is not retried, what may pass is."""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from tasks.core.errors import PenstockError, error_from_record, error_kind


def airflow_error(error: PenstockError) -> AirflowException:
    """The exception a task raises for `error`; its text keeps what happened, to which thing, and the fix.

    Terminal errors become `AirflowFailException` (no retry). Transient ones and unknown outcomes become
    `AirflowException`: every step looks up what is already committed before it acts (I4), so a retry is safe.
    """
    if error_kind(error) == "terminal":
        return AirflowFailException(str(error))
    return AirflowException(str(error))


def airflow_error_of_record(record: dict[str, str], kind: str) -> AirflowException:
    """As `airflow_error`, for the error that a Ray job wrote; `kind` is the job's own classification."""
    text = str(error_from_record(record))
    return AirflowFailException(text) if kind == "terminal" else AirflowException(text)

"""What a fault of S3 means, and how long the store waits for one to pass.

All waiting is done here: the libraries below send each request once. So a retry is written to the log, every call
ends in a known time, and a create knows whether any of its sends may have taken effect (I4).
"""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tasks.core.errors import (
    AccessDenied,
    CommitOutcomeUnknown,
    NotFound,
    PenstockError,
    StoreUnavailable,
    TerminalError,
)

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Patience:
    """How long S3 is waited for; seconds."""

    connect_s: float = 5.0
    answer_s: float = 30.0
    """Without a byte of an answer. The time that an upload itself takes does not count."""
    sends: int = 5
    """Of one request."""
    first_pause_s: float = 0.4
    """At most; each later pause is twice as long."""
    give_up_s: float = 60.0
    """After this time nothing is sent again, so a call ends after at most `give_up_s + connect_s + answer_s`,
    unless bytes keep coming."""

    def client_options(self) -> dict[str, Any]:
        """Options of the S3 client under which it sends a request once."""
        return {
            "connect_timeout": self.connect_s,
            "read_timeout": self.answer_s,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
        }

    def delta_options(self) -> dict[str, str]:
        """Options of `deltalake`, which waits and sends again by itself."""
        return {
            "connect_timeout": f"{self.connect_s:g}s",
            "timeout": f"{self.answer_s:g}s",
            "max_retries": str(self.sends - 1),
            "retry_timeout": f"{self.give_up_s:g}s",
        }


PATIENCE = Patience()

_CONFLICT = ("ConditionalRequestConflict", "OperationAborted", "409")
_THROTTLED = ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests")
_DENIED = (
    "AccessDenied",
    "403",
    "401",
    "Forbidden",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
)
_PASSING_ANSWERS = ("RequestTimeout", "InternalError", "ServiceUnavailable", "IncompleteBody", "BadDigest")


def is_precondition_failed(error: Exception) -> bool:
    """Whether the store answered that the key of a conditional create is taken (412), and nothing else."""
    code, status = _answered(error)
    # Not by errno: s3fs gives EINVAL to this answer and to every kind of invalid request alike.
    return status == 412 or code in ("PreconditionFailed", "412")


def is_beyond_end(error: Exception) -> bool:
    """Whether the store answered that the object ends before the range that was asked for (416)."""
    code, status = _answered(error)
    return status == 416 or code == "InvalidRange"


def surely_had_no_effect(error: Exception) -> bool:
    """Whether the store said that it refused the request; after a lost answer or a failure inside nobody knows."""
    code, status = _answered(error)
    if code in _CONFLICT or code in _THROTTLED:
        return True
    return (status is not None and 400 <= status < 500) or _lacks_credentials(error)


def typed(error: Exception, which: str) -> TerminalError | StoreUnavailable | None:
    """`error` as one of ours; None when it is no fault of the store, but of this machine's disk or the program."""
    if isinstance(error, TerminalError | StoreUnavailable):
        return error
    code, status = _answered(error)
    if code is None and isinstance(error, OSError) and _is_of_this_machine(error):
        return None
    if isinstance(error, FileNotFoundError) or status == 404:
        return NotFound("does not exist", which=which, fix="check the bucket and prefix in PENSTOCK_STORE")
    if code == "RequestTimeTooSkewed":
        return TerminalError(
            f"this machine's clock is wrong, the store says: {error}",
            which=which,
            fix="set the clock by NTP, then run it again",
        )
    if isinstance(error, PermissionError) or code in _DENIED or _lacks_credentials(error):
        return AccessDenied(
            f"access was denied: {error}",
            which=which,
            fix="check the credentials and the bucket policy: list, get, put and delete are needed",
        )
    if (
        status is not None
        and 400 <= status < 500
        and code not in (*_CONFLICT, *_THROTTLED, *_PASSING_ANSWERS)
    ):
        return TerminalError(
            f"the store refuses the request ({code}): {error}",
            which=which,
            fix="check PENSTOCK_S3_ENDPOINT, the region and the bucket",
        )
    if not isinstance(error, OSError) and not _is_of_the_client(error):
        return None
    return StoreUnavailable(
        f"S3 failed: {error or type(error).__name__}",
        which=which,
        fix="retry; if it persists, check the endpoint",
    )


def patiently(which: str, call: Callable[[], _Answer], *, patience: Patience) -> _Answer:
    """The answer of `call`, which may be sent again: twice must be as good as once.

    Raises:
        StoreUnavailable: It kept failing in a way that may pass.
        TerminalError: It failed in a way that does not.
    """
    waiting = Waiting(which, patience)
    while True:
        try:
            return call()
        except Exception as error:
            found = typed(error, which)
            if found is None:
                raise
            if not isinstance(found, StoreUnavailable) or not waiting.again(found):
                raise found from error


def create_patiently(
    which: str, call: Callable[[], object], *, is_ours: Callable[[], bool], patience: Patience
) -> bool:
    """Send an exclusive create until its outcome is known; whether the object is ours.

    Args:
        which: The object's URL.
        call: Sends the create once.
        is_ours: Whether the object that is there now was made by `call`.
        patience: How long to wait.

    Raises:
        CommitOutcomeUnknown: An answer was lost, and no later one tells.
        StoreUnavailable: The store refused every send in a way that may pass: nothing was created.
        TerminalError: The store refused: nothing was created.
    """
    waiting = Waiting(which, patience)
    doubt: Exception | None = None
    while True:
        try:
            call()
            return True
        except Exception as error:
            if isinstance(error, FileExistsError) or is_precondition_failed(error):
                return _asked(which, is_ours)
            found = typed(error, which)
            if found is None:
                raise
            if isinstance(found, StoreUnavailable) and not surely_had_no_effect(error):
                doubt = error
            if isinstance(found, StoreUnavailable) and waiting.again(found):
                continue
            if doubt is None:
                raise found from error
            try:
                return is_ours()  # the answers were lost, but maybe not what they were to say
            except (StoreUnavailable, TerminalError):
                raise _in_doubt(which, found) from error


def _asked(which: str, is_ours: Callable[[], bool]) -> bool:
    try:
        return is_ours()
    except (StoreUnavailable, TerminalError) as error:
        raise _in_doubt(which, error) from error


def _in_doubt(which: str, error: PenstockError) -> CommitOutcomeUnknown:
    return CommitOutcomeUnknown(
        f"the store failed while the object was being created: {error.what}",
        which=which,
        fix="read the key: if it holds your bytes the create took effect, else retry",
    )


class Waiting:
    """Pauses between the sends of one request, and their end."""

    def __init__(self, which: str, patience: Patience) -> None:
        self._which = which
        self._patience = patience
        self._started = time.monotonic()
        self._sent = 1

    def again(self, error: PenstockError) -> bool:
        """Wait and say True, or say False when it was tried often or long enough."""
        pause_s = random.uniform(0.5, 1.0) * self._patience.first_pause_s * 2 ** (self._sent - 1)
        waited_s = time.monotonic() - self._started
        if self._sent >= self._patience.sends or waited_s + pause_s > self._patience.give_up_s:
            return False
        self._sent += 1
        log.warning(
            "%s: %s; send %d of %d follows in %.1f s.",
            self._which,
            error.what,
            self._sent,
            self._patience.sends,
            pause_s,
        )
        time.sleep(pause_s)
        return True


def _answered(error: Exception) -> tuple[str | None, int | None]:
    """(S3's error code, HTTP status) of an answer; s3fs keeps it as the cause of what it raises."""
    for candidate in (error, error.__cause__):
        answer = getattr(candidate, "response", None)
        if isinstance(answer, dict) and "Error" in answer:
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = answer["Error"].get("Code")
            return (str(code) if code is not None else None), (int(status) if status is not None else None)
    return None, None


def _is_of_this_machine(error: OSError) -> bool:
    """A full or read-only local disk, while an object was being copied to or from it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def _is_of_the_client(error: Exception) -> bool:
    """No connection, no answer, half an answer: errors of the libraries below that are no OSError."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError, HTTPClientError
    from fsspec.exceptions import FSTimeoutError

    return isinstance(error, BotoCoreError | HTTPClientError | ClientError | FSTimeoutError)


def _lacks_credentials(error: Exception) -> bool:
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    return isinstance(error, NoCredentialsError | PartialCredentialsError)

"""What a fault of Delta's library means: it says everything in text, in colours and over many lines.

The library reaches the store by itself, so its faults are those of a disk or of S3, told in its own words. Here they
become the same classes as those of `tasks.core.object_store`.
"""

from __future__ import annotations

import os
import re

from tasks.core import s3_faults
from tasks.core.errors import DiskFull, StoreUnavailable, TerminalError, disk_error

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ARROW = re.compile(r"\s*\n\s*↳\s*")
_BACKTRACE = re.compile(r"\n\s+0: .*", re.DOTALL)
_OS_ERROR = re.compile(r"\(os error (\d+)\)|\bOs \{ code: (\d+)")
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_OF_A_REQUEST = "Error performing"
_SENT_AGAIN = re.compile(r"after \d+ retries")
_LONGEST = 500


class _Answered(OSError):
    """An answer of S3 in the form in which its own client raises one."""

    def __init__(self, said: str, status: int | None, code: str | None) -> None:
        super().__init__(said)
        if status is not None:
            self.response = {
                "Error": {"Code": code or str(status)},
                "ResponseMetadata": {"HTTPStatusCode": status},
            }


def said(error: BaseException) -> str:
    """The library's message in one line, without colours and the library's own stack."""
    line = _line(error)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def _line(error: BaseException) -> str:
    text = _BACKTRACE.sub("", _COLOUR.sub("", str(error)))
    return " ".join(_ARROW.sub(": ", text).split()) or type(error).__name__


def typed(error: Exception, which: str) -> TerminalError | StoreUnavailable:
    """The fault as one of ours. Of a commit it says what happened to the request, and not that nothing was committed.

    Args:
        error: Raised by the library.
        which: URL of the table.
    """
    text = _line(error)
    number = _OS_ERROR.search(text)
    if which.startswith("s3://"):
        if _OF_A_REQUEST in text:
            status, name = _STATUS.search(text), _CODE.search(text)
            answer = _Answered(said(error), int(status[1]) if status else None, name[1] if name else None)
            if found := s3_faults.typed(answer, which):
                return found
    elif number is not None:
        code = int(number[1] or number[2])
        return disk_error(OSError(code, os.strerror(code), which), which)
    return StoreUnavailable(
        f"the table's log cannot be used: {said(error)}",
        which=which,
        fix="retry; if it persists, check the store, and the log for damage",
    )


def surely_had_no_effect(error: Exception, found: TerminalError | StoreUnavailable) -> bool:
    """Whether the request that failed so, if it was the commit, left the log as it was.

    A commit that the library sent more than once may have landed the first time, whatever the last answer was.
    """
    certain = isinstance(found, DiskFull | TerminalError)
    return certain and _SENT_AGAIN.search(_line(error)) is None

"""Every error a user can meet, sorted by what may be done about it.

An error is one of three kinds, by class:

- `TerminalError`: the same call will fail again. Fix the input first; a scheduler must not retry it.
- `TransientError`: the same call may succeed later. A scheduler retries it with backoff.
- `OutcomeUnknown`: the call may have taken effect. Look the outcome up by its id before anything is
  retried or deleted (invariant I4).

An error says what happened (`what`), to which thing (`which`) and what to do next (`fix`). It survives
pickling, so it crosses a Ray or process boundary whole.
"""

from __future__ import annotations

import errno
from typing import Any


class PenstockError(Exception):
    """Base of all errors that Penstock raises on purpose.

    Args:
        what: What happened, one sentence.
        which: The thing it happened to: a file, a field, a run id.
        fix: What the reader should do next, one sentence.
    """

    exit_code = 1

    def __init__(self, what: str, *, which: str = "", fix: str = "") -> None:
        super().__init__(what, which, fix)
        self.what = what
        self.which = which
        self.fix = fix

    def __str__(self) -> str:
        head = f"{self.which}: {self.what}" if self.which else self.what
        return f"{head}\n  Fix: {self.fix}" if self.fix else head

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.what, self.which, self.fix)

    def as_record(self) -> dict[str, str]:
        """The error as JSON-ready fields; `error_from_record` is the inverse."""
        return {"type": type(self).__name__, "what": self.what, "which": self.which, "fix": self.fix}


def _rebuild(cls: type[PenstockError], what: str, which: str, fix: str) -> PenstockError:
    return cls(what, which=which, fix=fix)


class TerminalError(PenstockError):
    """The same call fails again until its input changes."""

    exit_code = 2


class TransientError(PenstockError):
    """The same call may succeed later."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class OutcomeUnknown(PenstockError):
    """The call may or may not have taken effect: look it up before anything else (I4)."""

    exit_code = 76


class ConfigError(TerminalError):
    """A setting or a pipeline file is wrong; `which` names the file and the field."""


class LoginRefused(ConfigError):
    """A service does not take this program's user or password."""


class PipelineCodeError(TerminalError):
    """The user's own features.py, model.py or source.py raised or broke its contract."""


class DataError(TerminalError):
    """Input data cannot be used: a missing column, an empty or truncated partition, one-class labels."""


class NoRows(DataError):
    """The source has no row of the days that were asked for."""


class DataGateFailed(TerminalError):
    """A critical expectation failed, or validation could not be trusted: nothing downstream may run."""


class OutOfMemory(TransientError):
    """A process needed more memory than it may have, or than its machine has."""


class LabelsNotMature(TransientError):
    """Labels of the day asked for are not available yet."""


class GateFailed(TerminalError):
    """The evaluation gate refused the model; the champion stays."""


class NotFound(TerminalError):
    """A key, version, run or prediction does not exist."""


class Expired(NotFound):
    """It was there, and retention has deleted it as it was told to."""


class FeaturesErased(NotFound):
    """A prediction's data subject was erased: nothing can be computed from its features any more."""


class FeaturesNotKept(NotFound):
    """A prediction's tier keeps no feature values: nothing can be computed from them."""


class DigestMismatch(TerminalError):
    """Content differs from the digest recorded for it: it was damaged or tampered with (I9)."""


class FingerprintMismatch(TerminalError):
    """A retry's inputs differ from those its run was planned with (I1); both are named."""


class StaleAttempt(TerminalError):
    """An attempt with an old fencing token tried to commit (I2)."""


class AccessDenied(TerminalError):
    """The store or a disk refuses this user: no credentials, no permission, or a read-only place."""


class PromotionConflict(TerminalError):
    """Another promotion moved the pointer first (I6)."""


class ServiceUnavailable(TransientError):
    """A service that a step needs does not answer."""


class StoreUnavailable(TransientError):
    """The object store failed in a way that may pass."""


class DiskFull(StoreUnavailable):
    """No space is left. What was being written is not there; everything before it is."""


class CommitOutcomeUnknown(OutcomeUnknown):
    """A commit was sent and its answer was lost."""


def disk_error(error: OSError, which: str) -> TerminalError | StoreUnavailable:
    """What the operating system said of a local file, as one of ours."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            "the disk is full", which=which, fix="free space, then retry: what was written before stays"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessDenied(
            f"cannot be read or written: {error.strerror}",
            which=which,
            fix="give this user read and write access to the store",
        )
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY):
        return TerminalError(
            f"a file or folder of another kind is in the way: {error.filename2 or error.filename}",
            which=which,
            fix="move it away, or use another store folder",
        )
    return StoreUnavailable(
        f"the disk failed: {error.strerror or error}",
        which=which,
        fix="retry; if it persists, check the disk",
    )


def error_kind(error: BaseException) -> str:
    """`terminal`, `transient` or `unknown`; an error that is not ours counts as transient."""
    if isinstance(error, TerminalError):
        return "terminal"
    if isinstance(error, OutcomeUnknown):
        return "unknown"
    return "transient"


def error_from_record(record: dict[str, str]) -> PenstockError:
    """Rebuild an error from `PenstockError.as_record`; an unknown type comes back as `TransientError`."""

    def walk(cls: type[PenstockError]) -> dict[str, type[PenstockError]]:
        found = {cls.__name__: cls}
        for child in cls.__subclasses__():
            found.update(walk(child))
        return found

    cls = walk(PenstockError).get(record.get("type", ""), TransientError)
    return cls(record.get("what", ""), which=record.get("which", ""), fix=record.get("fix", ""))

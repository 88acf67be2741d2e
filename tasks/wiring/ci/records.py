"""One check of the pre-merge path and the runner that times it, catches its errors and skips what cannot follow."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tasks.core.errors import PenstockError, TerminalError, error_kind
from tasks.core.records import JsonRecord

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"
INFORM = "inform"
"""Shown, and never a reason to stop: a sample is too small to decide it."""
UNEXPECTED = "unexpected"
"""Kind of an error that is not one of ours: a bug of Penstock or of a library."""


class CheckFailed(TerminalError):
    """A check of the pre-merge path refuses the change."""


@dataclass(frozen=True)
class Note(JsonRecord):
    """One line below a check."""

    status: str
    """`pass`, `fail` or `inform`."""
    text: str


@dataclass(frozen=True)
class CheckResult(JsonRecord):
    """How one check ended."""

    name: str
    status: str
    """`pass`, `fail` or `skipped`."""
    wall_s: float
    detail: str
    notes: tuple[Note, ...] = ()
    error: dict[str, str] | None = None
    """Type, what, which and fix of what stopped it."""
    kind: str = ""
    """Of the error: `terminal`, `transient`, `unknown` or `unexpected`."""


class Skip(Exception):
    """Raised by a check that cannot be made here; the text says what is missing."""


@dataclass
class Checks:
    """Runs checks in order and keeps what came out."""

    say: Callable[[str], None] = lambda _: None
    results: list[CheckResult] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    """Of the check that runs now; kept also when it fails."""

    def check(self, name: str, function: Callable[[], str], *, needs: Sequence[str] = ()) -> None:
        """Run `function`, which returns one line about what it found; skipped unless all of `needs` passed."""
        self.notes = []
        begun = time.monotonic()
        status, detail, error, kind = PASS, "", None, ""
        lacking = [need for need in needs if self._status(need) != PASS]
        try:
            if lacking:
                raise Skip(f"not run, because this did not pass: {', '.join(lacking)}")
            detail = function()
        except Skip as reason:
            status, detail = SKIPPED, str(reason)
        except PenstockError as caught:
            status, detail, error, kind = FAIL, caught.what, caught.as_record(), error_kind(caught)
        except Exception as caught:
            status, detail, kind = FAIL, f"{type(caught).__name__}: {caught}", UNEXPECTED
            error = {
                "type": type(caught).__name__,
                "what": "".join(traceback.format_exception(caught)),
                "which": name,
                "fix": "this is not an expected error: report it with the lines above",
            }
        wall_s = round(time.monotonic() - begun, 3)
        result = CheckResult(name, status, wall_s, detail, tuple(self.notes), error, kind)
        self.results.append(result)
        self.say(f"{status:7}  {name}  {wall_s:.1f} s  {detail.splitlines()[0] if detail else ''}")

    def note(self, status: str, text: str) -> None:
        """Put a line below the check that runs now."""
        self.notes.append(Note(status, text))

    def _status(self, name: str) -> str:
        return next(result.status for result in self.results if result.name == name)


def exit_code(results: Sequence[CheckResult]) -> int:
    """0 nothing failed; 2 something has to be fixed; 75 it may work later; 1 an error that nobody expected."""
    kinds = {result.kind for result in results if result.status == FAIL}
    if not kinds:
        return 0
    if "terminal" in kinds:
        return 2
    return 1 if UNEXPECTED in kinds else 75

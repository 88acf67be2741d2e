"""The matrix of a torture."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tasks.core.records import JsonRecord


@dataclass(frozen=True)
class FaultLine(JsonRecord):
    """What one kind of fault did in all of its rounds. Rows are counted in both tables, after the resume."""

    fault: str
    rounds: int = 0
    times: int = 0
    """How often it struck a driver at work. A fault of the store counts once a driver, however long it lasts."""
    looks: int = 0
    """How often the table was read before the run was resumed to its end."""
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    """Rows with another score than the model gives, or of no source row."""
    partial_seen: int = 0
    """Looks that showed a part of the run, a mix with the run before, or predictions without audit rows."""
    orphans_swept: int = 0
    orphans_left: int = 0
    problems: int = 0
    """Drivers that ended as they must not, resumes that failed, and what `verify` found."""

    def plus(self, other: FaultLine) -> FaultLine:
        """Both together."""
        names = [name for name in self.to_json() if name != "fault"]
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        bad = (self.lost, self.doubled, self.changed, self.partial_seen, self.orphans_left, self.problems)
        return not any(bad)


@dataclass(frozen=True)
class TortureReport(JsonRecord):
    """What a torture found."""

    ok: bool
    seed: int
    kills: int
    rounds: int
    seconds: float
    rows: int
    """Rows of each run."""
    faults: tuple[FaultLine, ...]
    failures: tuple[str, ...]
    """What went wrong in which round."""
    kept: str | None
    """Where the stores and logs of the rounds that failed are."""

    @property
    def total(self) -> FaultLine:
        """All lines together."""
        total = FaultLine("all")
        for line in self.faults:
            total = total.plus(line)
        return total

"""How a torture's report is printed."""

from __future__ import annotations

from tasks.cli.output import console, show
from tasks.inference.torture import TortureReport


def show_torture(report: TortureReport, *, as_json: bool) -> None:
    """The matrix, one line a fault, then what failed and where it is kept."""
    if as_json:
        show(report.to_json(), as_json=True)
        return
    title = (
        f"{report.kills} faults in {report.rounds} rounds of {report.rows} rows, "
        f"{report.seconds:.0f} s, seed {report.seed}"
    )
    show([line.to_json() for line in (*report.faults, report.total)], as_json=False, title=title)
    for failure in report.failures:
        console.print(failure, soft_wrap=True, markup=False)
    if report.kept:
        console.print(f"Kept: {report.kept}", soft_wrap=True, markup=False)
    console.print("Nothing lost, nothing doubled, nothing seen in part." if report.ok else "FAILED")

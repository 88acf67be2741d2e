"""Disturb drivers of a run again and again, and count what is lost, doubled or seen in part.

    faults.py      which fault strikes when: pure choices from a seed
    workload.py    the small run that is tortured, and what its tables must hold
    child.py       a driver: a process that works on the run
    disk_faults.py a disk that fails below the store, inside a driver
    s3_faults.py   a proxy before an S3 endpoint that fails
    processes.py   start, pause and kill drivers
    watching.py    a plain reader of the tables, while drivers work and after
    strikes.py     carry out the fault of a round
    judging.py     resume, sweep, verify and compare after it
    rounds.py      one round after the other, each in a store of its own
    report.py      the matrix

docs/inference.md describes the faults and the columns.
"""

from tasks.inference.torture.report import FaultLine, TortureReport
from tasks.inference.torture.rounds import torture

__all__ = ["FaultLine", "TortureReport", "torture"]

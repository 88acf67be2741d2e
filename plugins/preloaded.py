"""`python -m plugins.preloaded PART`: a part of Airflow that has imported already what the processes need that it forks.

A task has a process of its own, forked from the scheduler, and the reading of a DAG file one that is forked from the DAG processor.
What only some steps use is left to them, above all Great Expectations and torch, which are large. Pipelines' code is not
imported here: a step reads it anew each time.
"""

from __future__ import annotations

import sys
from importlib import import_module

_BUILDS_DAGS = "plugins.pipeline_dags"
PARTS = {
    "scheduler": (
        "airflow.dag_processing.dagbag",
        _BUILDS_DAGS,
        "tasks.wiring.train",
        "tasks.wiring.release",
        "tasks.wiring.approval",
        "tasks.wiring.ramp",
        "tasks.wiring.triggers",
        "tasks.wiring.score",
        "tasks.wiring.rollback",
        "tasks.wiring.monitor",
        "tasks.wiring.mitigation",
        "tasks.wiring.cases",
        "tasks.wiring.audit_upkeep",
    ),
    "dag-processor": (_BUILDS_DAGS,),
}
"""Part of Airflow -> what its children have in common."""


def main(part: str) -> None:
    """Import the modules of a part and be that part, until it ends."""
    from airflow.__main__ import main as airflow  # first: it settles Airflow's configuration

    for module in PARTS[part]:
        import_module(module)
    sys.argv = ["airflow", part]
    airflow()


if __name__ == "__main__":
    main(*sys.argv[1:])

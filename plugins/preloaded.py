"""`python -m plugins.preloaded PART`: a part of Airflow that has imported already what the processes need that it forks.

A task has a process of its own, forked from the scheduler, and the reading of a DAG file one that is forked from the DAG processor.
The libraries that steps compute with are in memory once then, and not once in each task that runs; a data gate would import Great
Expectations for longer than it judges. Pipelines' code is not imported here: a step reads it anew each time.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module

_BUILDS_DAGS = "plugins.pipeline_dags"
LIBRARIES = (
    "pandas",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "deltalake",
    "scipy.stats",
    "sklearn.linear_model",
    "torch",
    "tasks.validation.engine",  # Great Expectations
)
"""What the steps compute with that run in task processes. None of them starts a thread or opens a connection when it is imported."""
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
        *LIBRARIES,
    ),
    "dag-processor": (_BUILDS_DAGS,),
}
"""Part of Airflow -> what its children have in common."""


def main(part: str) -> None:
    """Import the modules of a part and be that part, until it ends."""
    gc.disable()  # all of it stays: to go through it while it grows finds nothing, and costs a tenth of the imports
    from airflow.__main__ import main as airflow  # first: it settles Airflow's configuration

    for module in PARTS[part]:
        import_module(module)
    gc.freeze()  # a child that went through it would copy it
    gc.enable()
    sys.argv = ["airflow", part]
    airflow()


if __name__ == "__main__":
    main(*sys.argv[1:])

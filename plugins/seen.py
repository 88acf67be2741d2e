"""What a task hands over so that others see its step as part of it: ids, and its run in OpenLineage."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from tasks.core.settings import Settings

log = logging.getLogger(__name__)


def task_ids(ti: Any) -> dict[str, Any]:
    """Attributes of a task's spans."""
    return {
        "dag_id": ti.dag_id,
        "dag_run_id": ti.run_id,
        "task_id": ti.task_id,
        "map_index": ti.map_index,
        "try_number": ti.try_number,
    }


def with_lineage_parent(settings: Settings, ti: Any) -> Settings:
    """`settings` with the runs that Airflow's OpenLineage provider gives this task and its DAG run, when lineage is told at all."""
    if settings.lineage is None:
        return settings
    try:
        from airflow.providers.openlineage.plugins.macros import lineage_parent_id, lineage_root_parent_id

        return replace(
            settings, lineage_parent=lineage_parent_id(ti), lineage_root=lineage_root_parent_id(ti)
        )
    except Exception as error:  # lineage never fails a task
        log.warning("The lineage run of this task is not known: %s", error)
        return settings

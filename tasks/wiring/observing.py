"""What others see of a step: ids on its log lines, a span, and OpenLineage events. None of it can fail the step."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tasks.core import Settings
from tasks.core.log_lines import bound
from tasks.core.spec import load_pipeline
from tasks.core.traces import span

log = logging.getLogger(__name__)


def observed(name: str, function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The same step, seen by others where the settings name them."""

    @functools.wraps(function)
    def step(settings: Settings, pipeline: str, **arguments: Any) -> dict[str, Any]:
        ids = {
            "tenant": _tenant(settings, pipeline),
            "pipeline": pipeline,
            "step": name,
            "run_id": arguments.get("run_id"),
            "dag_run": arguments.get("dag_run"),
        }
        with bound(**ids), span(settings, f"step {name}", **ids) as around:
            inside = settings
            if settings.trace_parent != around.parent_of_others:
                inside = replace(settings, trace_parent=around.parent_of_others)
            if settings.lineage is None:
                return function(inside, pipeline, **arguments)
            from tasks.wiring.lineage import reported

            return reported(name, function, inside, pipeline, arguments)

    return step


def _tenant(settings: Settings, pipeline: str) -> str | None:
    """None when the pipeline cannot be loaded: the step says why."""
    if settings.otlp_url is None and settings.log_format == "text":
        return None  # nobody would see it
    try:
        return load_pipeline(settings, pipeline).tenant
    except Exception:
        return None

"""`PenstockStepOperator`: one step of a pipeline in the task process; and what it shares with the Ray job operator.

The step is a function of `tasks.wiring`; this module only brings its arguments together, calls it, turns its
errors into Airflow's, and logs what came out.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from plugins.errors import as_airflow_errors
from plugins.links import links_of, operator_links
from plugins.refusals import reasons_of, refusal
from plugins.run_context import check_names, refuse_unknown_params, values
from plugins.seen import task_ids, with_lineage_parent
from tasks.core.settings import Settings
from tasks.core.traces import span

PROCEED = frozenset({"pass", "skipped"})
"""Canary outcomes after which a challenger may be promoted; `skipped` means there is no champion to compare."""


class WiredOperator(BaseOperator):
    """A task that stands for one step of one pipeline, wherever the step runs.

    Args:
        step: Name of the function in `tasks.wiring`.
        pipeline: Name of the pipeline.
        arguments: Keyword arguments of the step (templated; XComArgs allowed). Ids and URLs, never tables.
        from_params: DAG params passed on under their own name; an empty one is left out.
        from_run: Names of `plugins.run_context` values passed on.
    """

    template_fields: Sequence[str] = ("arguments",)
    template_fields_renderers = {"arguments": "json"}  # noqa: RUF012  (Airflow's own attribute)

    def __init__(
        self,
        *,
        step: str,
        pipeline: str,
        arguments: Mapping[str, Any] | None = None,
        from_params: Sequence[str] = (),
        from_run: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(**kwargs)
        check_names(tuple(from_run))
        self.step = step
        self.pipeline = pipeline
        self.arguments = dict(arguments or {})
        self.from_params = tuple(from_params)
        self.from_run = tuple(from_run)
        self.operator_extra_links = operator_links(step)
        self.links: dict[str, str] = {}

    def get_openlineage_facets_on_start(self) -> Any:
        """What Airflow's OpenLineage provider asks for: no datasets, since the step's own run tells of them."""
        from airflow.providers.openlineage.extractors import OperatorLineage

        return OperatorLineage()


class PenstockStepOperator(WiredOperator):
    """Run `tasks.wiring.<step>(settings, pipeline, **arguments)` and return its JSON-ready result.

    Args, next to those of `WiredOperator`:
        canary: The canary's result (templated). When its outcome does not allow a promotion, this task is skipped
            with the canary's reasons.
        model_name: The registered model's name in MLflow, for links; the pipeline's name when left out.

    Terminal errors fail the task at once, without retry; transient ones are retried.
    """

    template_fields: Sequence[str] = ("arguments", "canary")
    template_fields_renderers = {"arguments": "json", "canary": "json"}  # noqa: RUF012  (Airflow's own attribute)
    ui_color = "#e3f0f4"

    def __init__(self, *, canary: Any = None, model_name: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.canary = canary
        self.model_name = model_name

    def execute(self, context: Any) -> dict[str, Any]:
        require_promotable(self.canary, self.log)
        with as_airflow_errors(self, context):
            settings = with_lineage_parent(Settings.from_environment(), context["ti"])
            arguments = step_arguments(self, context, settings)
            self.links = self._links(settings, arguments, {})
            self.log.info("%s of %s with %s", self.step, self.pipeline, in_words(arguments) or "no arguments")
            function = getattr(importlib.import_module("tasks.wiring"), self.step)
            with span(settings, f"task {self.task_id}", step=self.step, **task_ids(context["ti"])):
                result: dict[str, Any] = function(settings, self.pipeline, **arguments)
        self.links |= self._links(settings, arguments, result)
        return conclude(self, context, result)

    def _links(self, settings: Settings, arguments: dict[str, Any], result: dict[str, Any]) -> dict[str, str]:
        return links_of(settings, self.pipeline, self.step, arguments, result, model_name=self.model_name)


def step_arguments(operator: WiredOperator, context: Any, settings: Settings) -> dict[str, Any]:
    """The keyword arguments of an operator's step: its own, the form's and the run's.

    Raises:
        ConfigError: The run was triggered with a parameter that its DAG does not have.
    """
    refuse_unknown_params(context)
    params = context["params"]
    chosen = {name: params[name] for name in operator.from_params if params.get(name) not in (None, "")}
    return {**operator.arguments, **chosen, **values(operator.from_run, context, settings)}


def conclude(operator: WiredOperator, context: Any, result: dict[str, Any]) -> dict[str, Any]:
    """Log the result, attach it to asset events, and end the task as the result says.

    Raises:
        AirflowSkipException: There was nothing to do; everything downstream is skipped too.
        AirflowFailException: Somebody has to know of it, as `refusal` says.
    """
    operator.log.info("Done: %s", in_words(result) or "nothing to report")
    for name, url in operator.links.items():
        operator.log.info("%s: %s", name.replace("_", " "), url)
    if result.get("nothing_to_do"):
        for key, value in result.items():
            context["ti"].xcom_push(key=key, value=value)
        why = _reasons(result) or "there is no day left to work on"
        operator.log.warning("Nothing to do: %s", why)
        raise AirflowSkipException(f"Nothing to do: {why}")
    if refused := refusal(operator.pipeline, operator.step, result):
        for key, value in result.items():
            context["ti"].xcom_push(key=key, value=value)
        with as_airflow_errors(operator, context):
            raise refused
    if operator.step == "canary_model" and result.get("outcome") not in PROCEED:
        operator.log.warning("The canary did not decide; the champion stays. %s", _reasons(result))
    for asset in operator.outlets or ():
        context["outlet_events"][asset].extra = {
            key: value for key, value in result.items() if isinstance(value, str | int | float | bool)
        }
    return result


def require_promotable(canary: Mapping[str, Any] | None, log: Any) -> None:
    """Raise `AirflowSkipException` with the canary's reasons, logged, when it does not allow a promotion."""
    if canary and canary.get("outcome") not in PROCEED:
        why = f"Not promoted: the outcome is {canary.get('outcome')}; the champion stays. {_reasons(canary)}".strip()
        log.warning("%s", why)
        raise AirflowSkipException(why)


def _reasons(result: Mapping[str, Any]) -> str:
    return "; ".join(reasons_of(result))


def in_words(values: Mapping[str, Any]) -> str:
    """`a=1, b=x`: scalars whole, digests as their first 16 digits, short lists whole, anything longer as a count."""

    def shown(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.6g}"
        if isinstance(value, Mapping):
            short = ", ".join(f"{k}={shown(v)}" for k, v in value.items()) if len(value) <= 8 else ""
            return f"{{{short}}}" if short and len(short) <= 200 else f"{{{len(value)} entries}}"
        if isinstance(value, list | tuple):
            return ", ".join(map(str, value)) if len(value) <= 4 else f"{len(value)} entries"
        return re.sub(r"\b([0-9a-f]{16})[0-9a-f]{48}\b", r"\1", str(value))

    return ", ".join(f"{key}={shown(value)}" for key, value in values.items() if value is not None)

"""A case of the monitor as a question in Airflow: buttons under *Required Actions*, and what an answer starts.

The monitor's run goes on; every case has one run of `<pipeline>.case`, whose id is the case's, so that a case is asked about
once. Whoever answers on the command line instead ends the question in Airflow too.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NoReturn

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.providers.standard.triggers.hitl import HITLTrigger
from airflow.sdk import BaseOperator, Param
from airflow.sdk.exceptions import AirflowSkipException, DagRunTriggerException
from airflow.sdk.execution_time.hitl import update_hitl_detail_response
from airflow.sdk.timezone import utcnow
from airflow.triggers.base import TriggerEvent
from asgiref.sync import sync_to_async

from plugins.case_answers import LABELS
from plugins.errors import as_airflow_errors
from plugins.links import StartedRunLink, dag_run_url
from plugins.questions import actor_of, assigned_users, cell
from plugins.run_context import dag_run_name
from tasks.core.errors import ConfigError, PenstockError
from tasks.core.settings import Settings

_LOOK_S = 10.0
_CAUSES = 3
_REASONS = 8


class CaseTrigger(HITLTrigger):
    """Waits for an answer in Airflow, and looks whether the case was answered elsewhere or is over.

    The event of the latter has `elsewhere: true`; Airflow's question is then closed with the same answer.
    """

    def __init__(self, *, pipeline: str, case_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pipeline = pipeline
        self.case_id = case_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        _, arguments = super().serialize()
        return "plugins.case_question.CaseTrigger", {
            **arguments,
            "pipeline": self.pipeline,
            "case_id": self.case_id,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        next_look = 0.0
        loop = asyncio.get_running_loop()
        while True:
            if self.timeout_datetime and self.timeout_datetime < utcnow():
                yield await self._handle_timeout()
                return
            event = await self._handle_response()
            if event is None and loop.time() >= next_look:
                next_look = loop.time() + _LOOK_S
                event = await self._answered_elsewhere()
            if event is not None:
                yield event
                return
            await asyncio.sleep(self.poke_interval)

    async def _answered_elsewhere(self) -> TriggerEvent | None:
        try:
            found = await sync_to_async(_step)(self, "case_status")
        except PenstockError as error:  # the next look may fare better; the question stays
            self.log.warning("Cannot look at case %s: %s", self.case_id, error)
            return None
        if found["status"] == "open":
            return None
        label = LABELS[found["answer"] or "accept"]
        given = {"reason": found["reason"][:400], "mute_until": found["until"] or ""}
        await sync_to_async(update_hitl_detail_response)(
            ti_id=self.ti_id,
            chosen_options=[label if label in self.options else self.options[0]],
            params_input=given,
        )
        self.log.info("Case %s was answered elsewhere or is over: %s", self.case_id, found["reason"])
        return TriggerEvent({"elsewhere": True})


class CaseQuestion(HITLOperator):
    """Ask what is to be done about a case, with its evidence in the question.

    Returns `answer`, `actor`, `reason` and `until`. Skipped, and everything after it, when the case was over before anybody answered.
    A case about drift that nobody answers in time is closed; the others wait.

    Args:
        pipeline: Name of the pipeline.
        case_id: The case (templated).
        responders: Ids of the Airflow users of whom any may answer; empty: everybody who may answer at all.
        drift_timeout: Time to answer a case about drift.
    """

    template_fields: Sequence[str] = (*HITLOperator.template_fields, "case_id")
    ui_color = "#fcf2d9"

    def __init__(
        self,
        *,
        pipeline: str,
        case_id: str,
        responders: Sequence[str] = (),
        drift_timeout: timedelta,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("multiple_outputs", True)
        kwargs.setdefault("options", list(LABELS.values()))
        # Airflow hands the DAG's own fields down as `params`, so a default would never be used.
        kwargs["params"] = {
            "reason": Param(
                "",
                type="string",
                maxLength=400,
                title="Reason",
                description="Goes into the log of the case with your name.",
            ),
            # Airflow's form cannot show a field whose value is null, wants one that may not be null, and "" is no date.
            "mute_until": Param(
                "",
                type=["null", "string"],
                pattern=r"^(\d{4}-\d{2}-\d{2})?$",
                title="Mute until",
                description="Of Mute: last day of data that it covers, YYYY-MM-DD. Empty: a week.",
            ),
        }
        super().__init__(assigned_users=assigned_users(responders), **kwargs)
        self.pipeline = pipeline
        self.case_id = case_id
        self.drift_timeout = drift_timeout

    def execute(self, context: Any) -> Any:
        case = _call(self, context, "show_case")
        if case["status"] != "open":
            return self._elsewhere(context)
        self.options = [LABELS[option["answer"]] for option in case["options"]]
        self.subject = f"{case['kind'].capitalize()} in {self.pipeline}: what is to be done?"
        self.body = case_body(case)
        self.defaults = None
        if case["kind"].startswith("drift"):
            self.defaults, self.response_timeout = [LABELS["accept"]], self.drift_timeout
        return super().execute(context)

    def defer(self, *, trigger: Any, method_name: str, **kwargs: Any) -> None:
        """Airflow's own wait for an answer, with a look at the case."""
        _, arguments = trigger.serialize()
        watching = CaseTrigger(**arguments, pipeline=self.pipeline, case_id=self.case_id)
        super().defer(trigger=watching, method_name=method_name, **kwargs)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        if event.get("elsewhere"):
            return self._elsewhere(context)
        if event.get("error_type") == "validation":
            return self._ask_again(context, str(event["error"]).partition("\n")[0])
        answered = super().execute_complete(context, event)
        who = answered["responded_by_user"]
        if not who:
            days = self.drift_timeout / timedelta(days=1)
            words = f"nobody answered in {days:g} days"
            _call(self, context, "close_unanswered", words=words, dag_run=dag_run_name(context))
            raise AirflowSkipException(f"Closed: {words}")
        given = answered["params_input"] or {}
        (label,) = answered["chosen_options"]
        said = {
            "answer": next(name for name, shown in LABELS.items() if shown == label),
            "actor": actor_of(who),
            "reason": str(given.get("reason") or "").strip() or "no reason was given",
            "until": given.get("mute_until") or None,
        }
        try:
            _step(self, "check_case_answer", **said)
        except ConfigError as error:
            return self._ask_again(context, str(error))
        return said

    def _ask_again(self, context: Any, why: str) -> Any:
        """Open the question anew: an answer that cannot be kept has used it up."""
        self.log.error("The answer was not kept; the question is open again. %s", why)
        return self.execute(context)

    def _elsewhere(self, context: Any) -> dict[str, Any]:
        found = _call(self, context, "case_status")
        if not found["answer"]:
            raise AirflowSkipException(f"The case is over: {found['over']}")
        return {name: found[name] for name in ("answer", "actor", "reason", "until")}


class _StartRun(BaseOperator):
    """Start a DAG run under an id of its own, once; skipped when there is one. What runs is not waited for.

    Airflow's own TriggerDagRunOperator does the same, but a DAG file that imports it imports a database driver.
    """

    template_fields: Sequence[str] = ("case_id",)

    def __init__(self, *, pipeline: str, case_id: str, started_dag: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pipeline = pipeline
        self.case_id = case_id
        self.started_dag = started_dag
        self.operator_extra_links = (StartedRunLink(),)
        self.links: dict[str, str] = {}

    def start(self, run_id: str, conf: dict[str, Any]) -> NoReturn:
        self.links = {"started_run": dag_run_url(Settings.from_environment(), self.started_dag, run_id)}
        raise DagRunTriggerException(
            trigger_dag_id=self.started_dag,
            dag_run_id=run_id,
            conf=conf,
            reset_dag_run=False,
            skip_when_already_exists=True,
            wait_for_completion=False,
            allowed_states=[],
            failed_states=[],
            poke_interval=60,
            deferrable=False,
        )


class StartCase(_StartRun):
    """Start the run of `<pipeline>.case` that asks about a case; skipped without a case, and when it has been started."""

    ui_color = "#fcf2d9"

    def execute(self, context: Any) -> Any:  # noqa: ARG002  (Airflow's signature)
        if not self.case_id:
            raise AirflowSkipException("Nobody needs to be asked")
        self.start(self.case_id, {"case_id": self.case_id})


class RetrainForCase(_StartRun):
    """Start `<pipeline>.train` because a case was answered so; skipped when it was not, or when it has been started."""

    ui_color = "#e3f0f4"

    def execute(self, context: Any) -> Any:
        run_id = f"case-{self.case_id}"
        begun = _call(
            self,
            context,
            "begin_retraining",
            training_run=f"{self.started_dag}/{run_id}",
            dag_run=dag_run_name(context),
        )
        if begun.get("nothing_to_do"):
            raise AirflowSkipException(begun["reason"])
        self.start(run_id, {"actor": begun["actor"], "reason": begun["reason"][:400]})


def _call(operator: Any, context: Any, step: str, **arguments: Any) -> dict[str, Any]:
    """A step about the operator's case; its errors as Airflow's."""
    with as_airflow_errors(operator, context):
        return _step(operator, step, **arguments)


def _step(of: Any, step: str, **arguments: Any) -> dict[str, Any]:
    """A step about the case of an operator or a trigger."""
    found: dict[str, Any] = getattr(importlib.import_module("tasks.wiring"), step)(
        Settings.from_environment(), of.pipeline, case_id=of.case_id, **arguments
    )
    return found


def case_body(case: Mapping[str, Any]) -> str:
    """The question's text in Markdown: the verdict in words, the likely cause, what speaks for which answer, and what each does."""
    lines = [f"**{cell(case['headline'])}**", ""]
    if case["causes"]:
        lines += ["**Most likely cause**", ""]
        lines += [f"- {cell(cause.get('what', ''))}" for cause in case["causes"][:_CAUSES]]
        lines.append("")
    lines += ["**Why**", "", *(f"- {cell(reason)}" for reason in case["reasons"][:_REASONS])]
    if len(case["reasons"]) > _REASONS:
        lines.append(f"- and {len(case['reasons']) - _REASONS} more, in the report")
    suggested = LABELS.get(case["suggestion"])
    lines += ["", f"**Suggested: {suggested or 'wait'}**: {cell(case['because'])}.", ""]
    lines += ["| answer | what it does |", "|---|---|"]
    lines += [f"| **{LABELS[item['answer']]}** | {cell(item['does'])} |" for item in case["options"]]
    lines += [
        "",
        "**Playbook**",
        "",
        *(f"{n}. {cell(step)}" for n, step in enumerate(case["next_steps"], 1)),
    ]
    lines += ["", f"[The case with its log]({case['page_url']}), [report]({case['report_url']})"]
    # Airflow keeps the text of a question that is asked again.
    lines += ["", "An answer that cannot be kept opens this question again; the log of this task says why."]
    return "\n".join(lines)

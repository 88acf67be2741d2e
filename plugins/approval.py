"""`PromotionApproval`: a person reads the evidence and lets the challenger become champion, or not."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowSkipException

from plugins.errors import as_airflow_errors
from plugins.links import run_page_url
from plugins.questions import actor_of, assigned_users, cell
from plugins.run_context import dag_run_name
from plugins.steps import require_promotable
from tasks.core.settings import Settings

NOBODY = "nobody"
"""Actor of a refusal because the time to answer had passed."""


class PromotionApproval(ApprovalOperator):
    """Ask for approval in the Airflow UI, with the evidence in the question.

    Skipped without asking when the canary already decided against a promotion, or when the version is live already, as after a
    training that found its model trained. No answer within the time given
    counts as "Reject": the champion stays. Whoever answers is the promotion's actor, with the reason of the form; a
    refusal is an event of the deployment log too.

    Args:
        pipeline: Name of the pipeline.
        version: The challenger's version (templated).
        evaluation_key: Its evaluation (templated).
        gate: The gate's verdict (templated).
        canary: The canary's result (templated).
        approvers: Ids of the Airflow users of whom any may answer; empty: everybody who may answer at all.
    """

    template_fields: Sequence[str] = (
        *ApprovalOperator.template_fields,
        "version",
        "evaluation_key",
        "gate",
        "canary",
    )
    ui_color = "#fcf2d9"

    def __init__(
        self,
        *,
        pipeline: str,
        version: Any,
        evaluation_key: Any,
        gate: Any = None,
        canary: Any = None,
        approvers: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("defaults", ApprovalOperator.REJECT)
        kwargs.setdefault("multiple_outputs", True)
        # Airflow hands the DAG's own fields down as `params`, so a default would never be used.
        kwargs["params"] = _fields()
        super().__init__(assigned_users=assigned_users(approvers), **kwargs)
        self.pipeline = pipeline
        self.version = version
        self.evaluation_key = evaluation_key
        self.gate = gate
        self.canary = canary

    def execute(self, context: Any) -> Any:
        require_promotable(self.canary, self.log)
        settings, ti = Settings.from_environment(), context["ti"]
        with as_airflow_errors(self, context):
            evidence = importlib.import_module("tasks.wiring").approval_evidence(
                settings, self.pipeline, version=int(self.version), evaluation_key=self.evaluation_key
            )
        live = evidence["champion"]
        if live and live["version"] == int(self.version):
            why = f"Nobody is asked: version {live['version']} is live already, since {live['since']}."
            self.log.info("%s", why)
            raise AirflowSkipException(why)
        url = run_page_url(settings, ti.dag_id, ti.run_id)
        self.body = approval_body(evidence, self.gate, self.canary, url)
        # Airflow has written the run's own reason into the field of that name: the answer's is not known yet.
        self.params = ParamsDict(_fields())
        return super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        """Airflow's answer with `actor` and `reason` added; a refusal is recorded before the promotion is skipped."""
        answered = event.get("responded_by_user") or {}
        actor = actor_of(answered) if answered else NOBODY
        reason = str((event.get("params_input") or {}).get("reason") or "").strip()
        approved = event.get("chosen_options") == [self.APPROVE]
        if answered:
            reason = f"{'approved' if approved else 'rejected'}: {reason or 'no reason was given'}"
        else:
            reason = "nobody answered in time"
        if "error" not in event and not approved:
            with as_airflow_errors(self, context):
                importlib.import_module("tasks.wiring").reject_model(
                    Settings.from_environment(),
                    self.pipeline,
                    version=int(self.version),
                    actor=actor,
                    reason=reason,
                    dag_run=dag_run_name(context),
                )
        answer = super().execute_complete(context, event)
        return {**answer, "actor": actor, "reason": reason}


def _fields() -> dict[str, Param]:
    """What whoever answers may fill in."""
    return {
        "reason": Param(
            "",
            type=["null", "string"],
            maxLength=400,
            title="Reason",
            description="Goes into the deployment log with your name.",
        )
    }


def approval_body(
    evidence: Mapping[str, Any],
    gate: Mapping[str, Any] | None,
    canary: Mapping[str, Any] | None,
    url: str,
) -> str:
    """The question's text in Markdown: what is live, metrics with intervals, slices, gate, canary, drift of late."""
    live = evidence.get("champion")
    lines = [f"**Version {evidence.get('version')}** asks to become champion.", ""]
    if live:
        lines += [
            f"Live now: version {live['version']}, since {live['since']} ({cell(live['reason'])}).",
            "",
        ]
    else:
        lines += ["Nothing is live yet.", ""]
    lines += [f"Measured on {evidence['validation']}; in brackets, intervals over days.", ""]
    lines += _table(
        ("metric", "challenger", "champion", "difference"),
        ("name", "candidate", "champion", "difference"),
        evidence["metrics"],
    )
    if evidence["slices"]:
        lines += ["**Weakest slices, by AUC**", ""]
        lines += _table(
            ("slice", "rows", "challenger", "champion"),
            ("name", "rows", "candidate", "champion"),
            evidence["slices"],
        )
    for title, verdict in (("Evaluation gate", gate), ("Canary", canary)):
        if not isinstance(verdict, Mapping):
            continue
        findings = verdict.get("findings") or ()
        by_waiver = " by waiver" if any(item.get("waived") for item in findings) else ""
        lines.append(f"**{title}: {verdict.get('outcome', 'unknown')}{by_waiver}**")
        lines.append("")
        details = [f"{item.get('name')}: {item.get('detail')}" for item in findings]
        lines += [f"- {reason}" for reason in (verdict.get("reasons") or details)]
        lines.append("")
    if evidence["monitor"]:
        lines += ["**What the monitor said of late**", ""]
        lines += _table(
            ("days", "verdict", "decision", "because"),
            ("days", "verdict", "action", "reasons"),
            evidence["monitor"],
        )
    lines.append(f"[Evaluation report]({evidence['report_url']}), [all evidence of this run]({url})")
    return "\n".join(lines)


def _table(titles: Sequence[str], fields: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return [
        *head,
        *("| " + " | ".join(cell(row.get(name, "")) for name in fields) + " |" for row in rows),
        "",
    ]

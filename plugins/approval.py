"""`PromotionApproval`: a person reads the evidence and lets the challenger become champion, or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator

from plugins.links import run_page_url
from plugins.steps import require_promotable
from tasks.core.settings import Settings


class PromotionApproval(ApprovalOperator):
    """Ask for approval in the Airflow UI, with the evidence in the question.

    Skipped without asking when the canary already decided against a promotion. No answer within the time given
    counts as "Reject": the champion stays.
    """

    template_fields: Sequence[str] = (*ApprovalOperator.template_fields, "evidence", "canary")
    ui_color = "#fcf2d9"

    def __init__(self, *, evidence: Mapping[str, Any], canary: Any = None, **kwargs: Any) -> None:
        kwargs.setdefault("defaults", ApprovalOperator.REJECT)
        super().__init__(**kwargs)
        self.evidence = dict(evidence)
        self.canary = canary

    def execute(self, context: Any) -> Any:
        require_promotable(self.canary, self.log)
        ti = context["ti"]
        url = run_page_url(Settings.from_environment(), ti.dag_id, ti.run_id)
        self.body = approval_body(self.evidence, self.canary, url)
        return super().execute(context)


def approval_body(evidence: Mapping[str, Any], canary: Mapping[str, Any] | None, url: str) -> str:
    """The question's text in Markdown: version, metrics, gate and canary with their reasons, and the full evidence."""
    lines = [f"**Version {evidence.get('version')}** asks to become champion.", ""]
    metrics = evidence.get("metrics") or {}
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    if numbers:
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in numbers.items()]
        lines.append("")
    for title, verdict in (("Evaluation gate", evidence.get("gate")), ("Canary", canary)):
        if not isinstance(verdict, Mapping):
            continue
        lines.append(f"**{title}: {verdict.get('outcome', 'unknown')}**")
        findings = [f"{item.get('name')}: {item.get('detail')}" for item in verdict.get("findings") or ()]
        lines += [f"- {reason}" for reason in (verdict.get("reasons") or findings)]
        lines.append("")
    lines.append(f"[All evidence of this run]({url})")
    return "\n".join(lines)

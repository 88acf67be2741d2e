"""Waivers of the evaluation gate, and the verdicts that all gates have given."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from tasks.core import Settings, Verdict, utc_now
from tasks.core.errors import NotFound
from tasks.core.ids import digest_json
from tasks.core.waivers import place_waiver, release_waiver, waivers, with_waivers
from tasks.wiring.context import Context, open_context, parse_day


def waive_finding(
    settings: Settings,
    pipeline: str,
    *,
    finding: str,
    until: str,
    actor: str,
    reason: str,
    candidate: str | None = None,
) -> dict[str, Any]:
    """Let a finding of the evaluation gate pass up to a day (UTC), included; then run the gate again.

    `candidate` limits it to one bundle digest.

    Raises:
        NotFound: No kept verdict has such a finding that is not a pass: nothing is waived in advance, or by a misspelt name.
        ConfigError: It cannot be waived, or not for so long.
    """
    context = open_context(settings, pipeline)
    last = parse_day(until, "until")
    assert last is not None
    known = context.metadata.verdicts(context.spec, gate="evaluation", subject=candidate)
    opened = dict.fromkeys(
        item.name for one in known for item in one.verdict.findings if item.status != "pass"
    )
    if finding not in opened:
        raise NotFound(
            "is no finding that kept a model of this pipeline from passing",
            which=f"{pipeline} finding {finding!r}",
            fix=f"choose one of: {', '.join(opened)}"
            if opened
            else "judge a model first: nothing was refused",
        )
    waiver = place_waiver(
        context.store,
        finding=finding,
        until=last,
        actor=actor,
        reason=reason,
        max_days=context.spec.gates.max_waiver_days,
        candidate_digest=candidate,
    )
    return waiver.to_json()


def release_waived(
    settings: Settings, pipeline: str, *, waiver_id: str, actor: str, reason: str
) -> dict[str, Any]:
    """Take a waiver back; the finding counts again from the next judgement on. A second release changes nothing."""
    context = open_context(settings, pipeline)
    return release_waiver(context.store, waiver_id, actor=actor, reason=reason).to_json()


def list_waivers(settings: Settings, pipeline: str) -> dict[str, Any]:
    """Every waiver of a pipeline, oldest first, and whether it stands today."""
    today = utc_now().date()
    found = waivers(open_context(settings, pipeline).store)
    return {
        "waivers": [
            {
                **item.to_json(),
                "standing": item.released_at_utc is None and today <= item.until,
            }
            for item in found
        ]
    }


def list_verdicts(
    settings: Settings, pipeline: str, *, gate: str | None = None, limit: int = 100
) -> dict[str, Any]:
    """Verdicts of the gates, newest first, with their reasons, and how many of each outcome by gate and month."""
    context = open_context(settings, pipeline)
    found = context.metadata.verdicts(context.spec, gate=gate, limit=limit)
    counts = Counter(
        (item.verdict.gate, item.recorded_at_utc.strftime("%Y-%m"), _outcome(item.verdict)) for item in found
    )
    return {
        "counts": [
            {"gate": name, "month": month, "outcome": outcome, "verdicts": number}
            for (name, month, outcome), number in sorted(counts.items())
        ],
        "verdicts": [
            {
                "gate": item.verdict.gate,
                "recorded_at_utc": item.recorded_at_utc.isoformat(),
                "outcome": _outcome(item.verdict),
                "subject": item.verdict.subject,
                "reasons": item.verdict.reasons() if _has_reasons(item.verdict) else [],
                "dag_run": item.dag_run,
            }
            for item in found
        ],
    }


def waived_verdict(context: Context, verdict: Verdict) -> Verdict:
    """The verdict with the waivers that stand now; one that they touch has a report of its own, which says so."""
    from tasks.evaluation.report import render_waived

    judged = with_waivers(verdict, waivers(context.store), utc_now().date())
    if not judged.waived or judged.report_key is None:
        return judged
    marks = digest_json([[item.name, item.waived] for item in judged.waived])[:12]
    key = f"{judged.report_key.removesuffix('.html')}-waived-{marks}.html"
    if not context.store.exists(key):
        report = context.store.get(judged.report_key).decode()
        context.store.put(key, render_waived(report, judged).encode())
    return replace(judged, report_key=key)


def _outcome(verdict: Verdict) -> str:
    return "pass by waiver" if verdict.passed and verdict.waived else verdict.outcome


def _has_reasons(verdict: Verdict) -> bool:
    return any(finding.status != "pass" for finding in verdict.findings)

"""What a person reads about a model in the MLflow UI: Markdown descriptions and tags. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tasks.core.records import Verdict
from tasks.core.spec import PipelineSpec

_MARKS = {"pass": "✅", "warn": "⚠️", "fail": "❌"}
_ORDER = {"fail": 0, "warn": 1, "pass": 2}


def model_card(spec: PipelineSpec) -> str:
    """The registered model's description."""
    return "\n".join(
        [
            f"**{_text(spec.description)}**",
            "",
            f"Predicts `{spec.label.column}` · owner **{_text(spec.owner)}** · tenant `{spec.tenant}` · "
            f"pipeline `{spec.name}`",
            "",
            "| alias | meaning |",
            "|---|---|",
            "| `champion` | scores production; moved only by Penstock's deployment log |",
            "| `challenger` | passed its gate, waits for the canary or for approval |",
            "",
            "An alias moved by hand is put back: promote with "
            f"`penstock registry promote {spec.name} VERSION`, undo with `penstock registry rollback {spec.name}`.",
        ]
    )


def model_tags(spec: PipelineSpec) -> dict[str, str]:
    """Tags of the registered model."""
    own = {"penstock.pipeline": spec.name, "penstock.tenant": spec.tenant, "penstock.owner": spec.owner}
    return {**own, **{f"penstock.tag.{tag}": "yes" for tag in spec.tags}}


def version_card(trained: Mapping[str, Any], verdict: Verdict, links: Mapping[str, str]) -> str:
    """A version's description: what it was made of, how good it is, why the gate let it pass, where to look."""
    lines = [
        f"**Gate `{verdict.gate}`: {verdict.outcome.upper()}** on {_text(verdict.decided_at_utc)}",
        "",
        "| | |",
        "|---|---|",
        f"| snapshot | `{trained['snapshot_id']}` |",
        f"| feature version | `{trained['feature_version']}` |",
        f"| training | `{trained['training_id']}` |",
        f"| bundle digest | `{trained['bundle_digest']}` |",
    ]
    if trained.get("epochs") is not None:
        lines.append(f"| epochs | {trained['epochs']} |")
    metrics = trained.get("metrics") or {}
    if metrics:
        lines += ["", "### Metrics", "", "| metric | value |", "|---|---:|"]
        lines += [f"| {_text(name)} | {_number(value)} |" for name, value in sorted(metrics.items())]
    if verdict.findings:
        lines += ["", "### Why", "", "| | check | value | limit | detail |", "|---|---|---:|---:|---|"]
        for item in sorted(verdict.findings, key=lambda finding: _ORDER.get(finding.status, 3)):
            mark = _MARKS.get(item.status, item.status)
            lines.append(
                f"| {mark} | {_text(item.name)} | {_number(item.value)} | {_number(item.limit)} "
                f"| {_text(item.detail)} |"
            )
    if links:
        lines += ["", "### Links", ""]
        lines += [f"- [{_text(label)}]({_address(url)})" for label, url in links.items()]
    return "\n".join(lines)


def version_tags(
    spec: PipelineSpec, trained: Mapping[str, Any], verdict: Verdict, links: Mapping[str, str]
) -> dict[str, str]:
    """Tags of a version; each link is one too, so that a program finds it."""
    return {
        "penstock.bundle_digest": trained["bundle_digest"],
        "penstock.snapshot_id": trained["snapshot_id"],
        "penstock.feature_version": trained["feature_version"],
        "penstock.training_id": trained["training_id"],
        "penstock.pipeline": spec.name,
        "penstock.tenant": spec.tenant,
        "penstock.gate": f"{verdict.gate}: {verdict.outcome}",
        **{f"penstock.link.{_slug(label)}": url for label, url in links.items() if url},
    }


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_") or "link"


def _text(value: object) -> str:
    """Text that cannot break out of a Markdown table cell or become HTML."""
    return re.sub(r"([\\|`*_\[\]<>])", r"\\\1", " ".join(str(value).split()))


def _address(url: str) -> str:
    return url.replace(" ", "%20").replace("(", "%28").replace(")", "%29")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.4g}"

"""What a person reads about a model in the MLflow UI: Markdown descriptions and tags. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tasks.core.records import Verdict
from tasks.core.spec import PipelineSpec

_MARKS = {"pass": "✓", "warn": "⚠", "fail": "✗"}
_ORDER = {"fail": 0, "warn": 1, "pass": 2}


def model_card(spec: PipelineSpec) -> str:
    """The registered model's description. Lists, no tables: MLflow draws tables without any spacing."""
    return "\n".join(
        [
            f"**{_text(spec.description)}**",
            "",
            f"Predicts `{spec.label.column}` · owner **{_text(spec.owner)}** · tenant `{spec.tenant}` · "
            f"pipeline `{spec.name}`",
            "",
            "- `champion` scores production; only Penstock's deployment log moves it",
            "- `challenger` passed its gate and waits for the canary or for approval",
            "- a version with the tag `penstock.barred` was rolled back or refused, whatever its gate said; the tag says when and why",
            "",
            "An alias moved by hand is put back. Promote with "
            f"`penstock registry promote {spec.name} VERSION`, undo with `penstock registry rollback {spec.name} --leaving VERSION`.",
        ]
    )


def model_tags(spec: PipelineSpec) -> dict[str, str]:
    """Tags of the registered model."""
    own = {"penstock.pipeline": spec.name, "penstock.tenant": spec.tenant, "penstock.owner": spec.owner}
    return {**own, **{f"penstock.tag.{tag}": "yes" for tag in spec.tags}}


def version_card(trained: Mapping[str, Any], verdict: Verdict, links: Mapping[str, str]) -> str:
    """A version's description: how good it is, where to look, why the gate let it pass, what it was made of.

    Lists, no tables: MLflow draws tables without any spacing.
    """
    lines = [
        f"**Gate `{verdict.gate}`: {verdict.outcome.upper()}** on {_text(_when(verdict.decided_at_utc))}",
    ]
    if verdict.waived:
        lines += [
            "",
            f"⚠ **Passed by waiver only**: {len(verdict.waived)} of its findings were let pass by a person, see below.",
        ]
    metrics = dict(trained.get("metrics") or {})
    if metrics:
        lines += ["", *_metric_lines(metrics)]
    if links:
        lines += ["", " · ".join(f"[{_text(label)}]({_address(url)})" for label, url in links.items())]
    if verdict.findings:
        passed = sum(item.status == "pass" for item in verdict.findings)
        lines += ["", f"#### Why: {passed} of {len(verdict.findings)} checks passed", ""]
        for item in sorted(verdict.findings, key=lambda finding: _ORDER.get(finding.status, 3)):
            mark = _MARKS.get(item.status, item.status)
            lines.append(f"- {mark} **{_text(item.name.replace('_', ' '))}**: {_text(item.shown)}")
    lines += [
        "",
        "#### Made of",
        "",
        f"- snapshot `{trained['snapshot_id']}`",
        f"- feature version `{trained['feature_version']}`",
        f"- training `{trained['training_id']}`" + _epochs(trained),
        f"- bundle `{trained['bundle_digest']}`",
    ]
    return "\n".join(lines)


def _metric_lines(metrics: dict[str, Any]) -> list[str]:
    """One line for each set of rows (`validation_auc` is `auc` of `validation`), the gate's rows first."""
    groups: dict[str, list[tuple[str, float]]] = {}
    for name, value in metrics.items():
        rows, _, measure = name.partition("_")
        known = rows in ("validation", "tuning", "fit") and measure
        groups.setdefault(rows if known else "", []).append((measure if known else name, value))
    lines = []
    for rows in sorted(groups, key=lambda name: ["", "validation", "tuning", "fit"].index(name)):
        shown = " · ".join(
            f"{_MEASURES.get(name, _text(name.replace('_', ' ')))} {'**' if name == 'auc' else ''}{_number(value)}"
            f"{'**' if name == 'auc' else ''}"
            for name, value in sorted(groups[rows], key=lambda item: _rank(item[0]))
        )
        lines.append(f"- {rows}: {shown}" if rows else f"- {shown}")
    return lines


_MEASURES = {
    "auc": "AUC",
    "pr_auc": "PR-AUC",
    "log_loss": "log loss",
    "brier": "Brier",
    "ece": "ECE",
    "label_rate": "label rate",
    "rows": "rows",
}


def _rank(measure: str) -> tuple[int, str]:
    return (list(_MEASURES).index(measure) if measure in _MEASURES else len(_MEASURES)), measure


def _epochs(trained: Mapping[str, Any]) -> str:
    epochs = trained.get("epochs")
    return "" if epochs is None else f", {epochs} epoch{'' if epochs == 1 else 's'}"


def _when(stamp: str) -> str:
    """`2024-02-06T12:00:01.123Z` as `2024-02-06 12:00 UTC`."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(?:\.\d+)?(?:Z|\+00:00)", stamp)
    return f"{found.group(1)} {found.group(2)} UTC" if found else stamp


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
        "penstock.gate": f"{verdict.gate}: {verdict.outcome}" + (" by waiver" if verdict.waived else ""),
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

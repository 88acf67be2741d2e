"""What a person reads about a model in the MLflow UI: Markdown descriptions and tags. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tasks.core.records import Verdict
from tasks.core.spec import PipelineSpec
from tasks.metadata.records import DeploymentEvent

_MARKS = {"pass": "✓", "warn": "⚠", "fail": "✗"}
_ORDER = {"fail": 0, "warn": 1, "pass": 2}
_MOST = 5_000
"""Characters of a description or of a tag's value, of which MLflow on PostgreSQL takes no more."""
_MOST_WORDS = 300
"""Characters of a finding's detail, or of when and why a version was barred."""
_BARRED = "**BARRED**"
_MORE = "- and {} more, in the report"


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
            "- a version whose description begins with **BARRED** was rolled back or refused, whatever its gate said",
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

    Lists, no tables: MLflow draws tables without any spacing. Of more findings than MLflow has room for, those that passed last
    are counted only.
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
    made_of = [
        "",
        "#### Made of",
        "",
        f"- snapshot `{trained['snapshot_id']}`",
        f"- feature version `{trained['feature_version']}`",
        f"- training `{trained['training_id']}`" + _epochs(trained),
        f"- bundle `{trained['bundle_digest']}`",
    ]
    # Room is left for a line at the top, should the version be barred one day.
    room = _MOST - _MOST_WORDS - len("\n".join([*lines, "", *made_of])) - len(_BARRED)
    return "\n".join([*lines, *_findings(verdict, room), *made_of])


def _findings(verdict: Verdict, room: int) -> list[str]:
    """A line for each, the worst first, and one that counts those for which there is no room."""
    found = sorted(verdict.findings, key=lambda finding: _ORDER.get(finding.status, 3))
    lines: list[str] = []
    for item in found:
        mark = _MARKS.get(item.status, item.status)
        line = f"- {mark} **{_text(item.name.replace('_', ' '))}**: {_text(replace(item, detail=_cut(item.detail)).shown)}"
        room -= len(line) + 1
        if room < len(_MORE):
            return [*lines, _MORE.format(len(found) - len(lines))]
        lines.append(line)
    return lines


def barred_card(description: str, said: str | None) -> str:
    """A version's description that begins with when, by whom and why it was barred; None: without such a beginning."""
    if description.startswith(_BARRED):
        description = description.partition("\n\n")[2]
    room = _MOST - len(f"{_BARRED} \n\n{description}")
    if said is None or room < 0:  # written by hand, to the brim: the tag says it
        return description
    return f"{_BARRED} {_text(_cut(said))[:room]}\n\n{description}"


def barred_tag(event: DeploymentEvent) -> str:
    """When, by whom and why a version was barred."""
    return f"{event.at_utc:%Y-%m-%d %H:%M} UTC by {event.actor}: {event.reason}"[:_MOST]


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_WORDS else text[: _MOST_WORDS - 1] + "…"


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

"""How the evidence pages show recorded values: what a person asks first, in units, with short digests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_DIGEST = re.compile(r"[0-9a-f]{32,}")
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|\+00:00)")
_NAMES = {
    "at utc": "at",
    "published at utc": "published at",
    "cpu seconds": "CPU time",
    "gpu seconds": "GPU time",
    "gpus per worker": "GPUs per worker",
    "wall s": "wall time",
    "train s": "fitting time",
    "mlflow run id": "MLflow run",
    "mlflow model uri": "MLflow model",
    "bundle digest": "bundle",
    "distinct prediction ids": "distinct predictions",
    "snapshot id": "snapshot",
    "run id": "scoring run",
    "training id": "training",
    "event id": "deployment event",
    "validation first day": "validation from",
    "version": "model version",
}
_SECONDS = frozenset({"cpu seconds", "gpu seconds", "wall s", "train s"})
_LABELS_NOT_WORTH_SHOWING = frozenset(
    {
        "pipeline",
        "token",
        "kind",
        "ok",
        "nothing to do",
        "mlflow experiment id",
        "mlflow model uri",
        "dag run",
        "findings",
    }
)
"""Said elsewhere on the page, or of use to programs only; the report and the XComs have everything."""
_MEASURES = {"auc": "AUC", "ece": "Calibration error (ECE)", "brier": "Brier score"}
_OF_TRAINING = {"ece": "Calibration error, 15 bins"}
"""Measures that a training takes in another way than the evaluation, by which the gate judges."""
_NONE_AT_ZERO = frozenset({"gpu seconds", "gpus per worker", "champion version"})
"""Values of which 0 says that there are none, or no champion."""
_GENERIC_LINKS = frozenset({"report", "url", "open"})
_REPORTS = {
    "validation": "Validation report",
    "evaluation": "Evaluation report",
    "canary": "Canary report",
    "monitoring": "Drift report",
}


@dataclass(frozen=True)
class Fact:
    """One recorded value, ready to be shown."""

    label: str
    text: str
    whole: str = ""
    """The value in full when `text` is shortened."""
    wide: bool = False
    """Too long for a tile."""
    code: bool = False


def facts(summary: Mapping[str, Any]) -> list[Fact]:
    """The values of a record worth showing: no empty ones, no storage keys, no flags that are off."""
    values = dict(summary)
    found: list[Fact] = []
    first, last = values.get("first day"), values.get("last day")
    for label, value in values.items():
        if label == "first day" and last:
            found.append(
                Fact("Day" if first == last else "Window", f"{first}" + f" to {last}" * (first != last))
            )
        elif label == "metrics" and isinstance(value, Mapping):
            found += _metrics(value)
        elif (label == "last day" and first) or _hidden(label, value):
            continue
        else:
            found.append(_fact(label, value))
    return sorted(found, key=lambda fact: fact.wide)


def link_label(label: str, url: str) -> str:
    """What a link opens, in words, when the record only says `report` or `url`."""
    if label and label.lower() not in _GENERIC_LINKS:
        return label
    parts = urlsplit(url)
    if "/penstock/report/" in parts.path:
        key = parts.path.split("/penstock/report/", 1)[1].split("/")[1:]
        kind = "canary" if key and key[-1].startswith("canary-") else key[0] if key else ""
        return _REPORTS.get(kind, "Report")
    if parts.fragment.startswith("/models/"):
        return "Model version in MLflow"
    if "/runs/" in parts.fragment:
        return "Run in MLflow"
    return label.capitalize() or url


def reason_groups(reasons: Any) -> tuple[list[tuple[str, str]], list[str]]:
    """(what did not pass, as badge class and words; what passed), from lines that may begin with `[pass]`."""
    open_, passed = [], []
    for line in map(str, reasons or ()):
        mark = re.match(r"\[(pass|warn|fail)\]\s+", line)
        words = line[mark.end() :] if mark else line
        if mark and mark.group(1) == "pass":
            passed.append(words)
        else:
            open_.append((mark.group(1) if mark else "", words))
    return open_, passed


def _metrics(values: Mapping[str, Any]) -> list[Fact]:
    """The few figures of `metrics` that a gate looks at first, of the validation rows."""
    found = []
    for key, name in _MEASURES.items():
        if isinstance(value := values.get(key), float):
            found.append(Fact(name, f"{value:.4f}"))
        elif isinstance(value := values.get(f"validation_{key}"), float):
            found.append(Fact(_OF_TRAINING.get(key, name), f"{value:.4f}"))
    return found


def _hidden(label: str, value: Any) -> bool:
    empty = value is None or value is False or value in ("", (), [], {}) or isinstance(value, Mapping)
    empty = empty or (label in _NONE_AT_ZERO and value == 0)
    return empty or label in _LABELS_NOT_WORTH_SHOWING or label.endswith(" key")


def _fact(label: str, value: Any) -> Fact:
    name = _NAMES.get(label, label.removesuffix(" utc"))
    name = name[:1].upper() + name[1:]
    if value is True:
        return Fact(name, "yes")
    if isinstance(value, int | float):
        return Fact(name, _number(label, value))
    if isinstance(value, list | tuple):
        between = (
            " " if any(str(item).endswith(".") for item in value) else ", "
        )  # sentences are not enumerated
        text = between.join(map(str, value))
    else:
        text = str(value)
    if stamp := _STAMP.fullmatch(text):
        return Fact(name, f"{stamp.group(1)} {stamp.group(2)} UTC", whole=text)
    if _DIGEST.fullmatch(text):
        return Fact(name, f"{text[:16]}…", whole=text, code=True)
    code = label.endswith((" id", " uri", "version")) and not label.startswith("model")
    return Fact(name, text, wide=len(text) > 40, code=code)


def _number(label: str, value: float) -> str:
    if label in _SECONDS:
        return f"{value:,.1f} s"
    if "bytes" in label:
        return f"{value / 1e6:,.1f} MB" if value >= 1e6 else f"{value / 1e3:,.0f} kB"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"

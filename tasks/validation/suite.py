"""A suite file, read strictly.

Great Expectations drops what it does not understand and goes on with the rest. Here every entry that cannot
be taken exactly as written is a problem, and a suite with a problem is never run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.core.errors import ConfigError
from tasks.core.ids import digest_json
from tasks.core.near_names import did_you_mean
from tasks.core.settings import Settings
from tasks.core.spec import PipelineSpec, pipeline_folder

SEVERITIES = ("critical", "warning", "info")
_SUITE_KEYS = {"name", "notes", "meta", "expectations"}
_ENTRY_KEYS = {"type", "kwargs", "severity", "meta", "notes"}
_COLUMN_KWARGS = ("column", "column_A", "column_B", "column_list")
_NOT_EMPTY = ("value_set", "column_set", "column_list", "regex", "regex_list", "type_list", "value_pairs_set")


@dataclass(frozen=True)
class Check:
    """One expectation as its file declares it."""

    index: int
    """Position in the file; how results find their way back."""
    type: str
    kwargs: dict[str, Any]
    severity: str
    """`critical`, `warning` or `info`."""
    row_level: bool
    """True: rows that fail go to quarantine, instead of failing the table."""
    notes: str
    repeat: int = 1
    """1 for the first check of its type on its columns, 2 for the second."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns whose values the expectation reads."""
        found: list[str] = []
        for name in _COLUMN_KWARGS:
            value = self.kwargs.get(name)
            found += [value] if isinstance(value, str) else list(value or ())
        return tuple(dict.fromkeys(found))

    @property
    def mostly(self) -> float:
        """Share of rows that must meet a row-wise expectation."""
        return float(self.kwargs.get("mostly", 1.0))

    @property
    def name(self) -> str:
        """Short, and unique in its suite: `distance: values to be between`."""
        what = self.type.removeprefix("expect_").removeprefix("column_").replace("_", " ")
        name = f"{', '.join(self.columns)}: {what}" if self.columns else what
        return f"{name} ({self.repeat})" if self.repeat > 1 else name

    def config(self) -> dict[str, Any]:
        """The entry as Great Expectations takes it; `meta.check` carries `index` through the engine."""
        return {
            "type": self.type,
            "kwargs": dict(self.kwargs),
            "severity": self.severity,
            "meta": {"check": self.index},
        }


@dataclass(frozen=True)
class Suite:
    """A suite file. It may be run only when `problems` is empty."""

    name: str
    notes: str
    checks: tuple[Check, ...]
    declared: int
    """Entries in the file, whether or not they could be read."""
    digest: str
    """SHA-256 of the suite's content; layout and key order do not change it."""
    problems: tuple[str, ...]


def require_suite(settings: Settings, spec: PipelineSpec) -> None:
    """Raise `ConfigError` unless the suite that `pipeline.yaml` names is there; what it holds is the gate's to judge."""
    name, folder = spec.validation.suite, settings.expectations_dir
    if (folder / f"{name}.json").is_file():
        return
    known = sorted(path.stem for path in folder.glob("*.json"))
    raise ConfigError(
        f"names suite {name!r}, and {folder.parent.name}/{folder.name} has no {name}.json{did_you_mean(name, known)}",
        which=f"{pipeline_folder(settings, spec.name) / 'pipeline.yaml'}: validation.suite",
        fix=f"name one of: {', '.join(known) or 'none yet'}; or write the file",
    )


def read_suite(folder: Path, name: str) -> Suite:
    """Read `<folder>/<name>.json`; whatever is wrong with it is listed in `problems`, nothing is raised."""
    path = folder / f"{name}.json"
    where = f"{folder.name}/{path.name}"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json"))) or "none"
        return _unreadable(name, "", f"suite file {where} does not exist (suites there: {known})")
    try:
        raw = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        return _unreadable(name, text, f"suite file {where} is not valid JSON: {error}")
    if not isinstance(raw, dict) or not isinstance(raw.get("expectations"), list):
        return _unreadable(name, text, f"suite file {where} has no list of expectations")

    problems = [f"{where}: {text}" for text in _unknown_keys(raw, _SUITE_KEYS)]
    if raw.get("name") != name:
        problems.append(f"{where}: its name is {raw.get('name')!r}, not {name!r}")
    entries = raw["expectations"]
    if not entries:
        problems.append(f"{where} declares no expectation: an empty suite proves nothing")
    checks: list[Check] = []
    seen: Counter[str] = Counter()
    for index, entry in enumerate(entries):
        found = _entry_problems(entry)
        kind = entry.get("type") if isinstance(entry, dict) else None
        problems += [f"{where}: expectation {index + 1} ({kind}): {text}" for text in found]
        if not found:
            check = _check(index, entry)
            seen[check.name] += 1
            checks.append(replace(check, repeat=seen[check.name]))
    return Suite(
        name, _text(raw.get("notes")), tuple(checks), len(entries), digest_json(raw), tuple(problems)
    )


def not_applicable(check: Check, *, outcomes: Collection[str]) -> bool:
    """True when `check` reads a column that a scoring snapshot never has: a label or an outcome."""
    return any(column in outcomes for column in check.columns)


def for_scoring(check: Check, *, outcomes: Collection[str]) -> Check:
    """`check` without label and outcome columns in a `column_set`: a scoring snapshot must have the others."""
    columns = check.kwargs.get("column_set")
    if not isinstance(columns, list):
        return check
    kept = [column for column in columns if column not in outcomes]
    return replace(check, kwargs={**check.kwargs, "column_set": kept})


def _check(index: int, entry: dict[str, Any]) -> Check:
    return Check(
        index=index,
        type=entry["type"],
        kwargs=dict(entry["kwargs"]),
        severity=entry.get("severity", "critical"),
        row_level=(entry.get("meta") or {}).get("row_level", False),
        notes=_text(entry.get("notes")),
    )


def _entry_problems(entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return ["is not an object"]
    problems = _unknown_keys(entry, _ENTRY_KEYS)
    if not isinstance(entry.get("type"), str):
        problems.append("has no type")
    kwargs = entry.get("kwargs")
    if not isinstance(kwargs, dict):
        problems.append("has no kwargs object")
    severity = entry.get("severity", "critical")
    if severity not in SEVERITIES:
        problems.append(f"unknown severity {severity!r}, use one of {', '.join(SEVERITIES)}")
    meta = entry.get("meta") or {}
    if not isinstance(meta, dict) or not isinstance(meta.get("row_level", False), bool):
        problems.append("meta.row_level must be true or false")
    return problems + (_vacuous(str(entry.get("type")), kwargs) if isinstance(kwargs, dict) else [])


def _vacuous(kind: str, kwargs: dict[str, Any]) -> list[str]:
    """Arguments under which an expectation can never fail."""
    problems = [f"{name} is empty" for name in _NOT_EMPTY if name in kwargs and not kwargs[name]]
    mostly = kwargs.get("mostly", 1.0)
    if isinstance(mostly, bool) or not isinstance(mostly, int | float) or not 0 < mostly <= 1:
        problems.append(f"mostly must be above 0 and at most 1 (got {mostly!r})")
    bounds = (kwargs.get("min_value"), kwargs.get("max_value"))
    if kind.endswith("_to_be_between") and "quantile" not in kind and bounds == (None, None):
        problems.append("has neither min_value nor max_value")
    ranges = kwargs.get("quantile_ranges")
    if "quantile" in kind and not (isinstance(ranges, dict) and _all_bounded(ranges.get("value_ranges"))):
        problems.append("quantile_ranges needs value_ranges with a bound for every quantile")
    return problems


def _all_bounded(ranges: Any) -> bool:
    return (
        isinstance(ranges, list)
        and bool(ranges)
        and all(isinstance(pair, list) and any(bound is not None for bound in pair) for pair in ranges)
    )


def _unknown_keys(raw: dict[str, Any], known: set[str]) -> list[str]:
    problems = []
    for key in sorted(set(raw) - known):
        hint = did_you_mean(key, known) or f", known are {', '.join(sorted(known))}"
        problems.append(f"unknown key {key!r}{hint}")
    return problems


def _unreadable(name: str, text: str, problem: str) -> Suite:
    return Suite(name, "", (), 0, digest_json(["unreadable", text]), (problem,))


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value or "")

"""`penstock new`: a working pipeline folder and suite, from a look at a user's Parquet or CSV file."""

from __future__ import annotations

import json
import keyword
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from tasks.core.clock import Clock, utc_now
from tasks.core.errors import ConfigError, DataError
from tasks.core.rows import local_days
from tasks.core.settings import Settings
from tasks.core.spec import ExplanationSpec, PipelineSpec, parse_pipeline
from tasks.data.checks import refuse_one_class, require_columns
from tasks.data.snapshot import prepare_rows
from tasks.data.sources import open_files
from tasks.model.ranking import auc

log = logging.getLogger(__name__)

MAX_CATEGORIES = 200
NUMBERS_AS_TEXT = 0.9
"""Share of a text column's values that are decimal numbers, from which on it is taken for a column of numbers."""
MAX_NEW_SHARE = 0.5
"""Share of the rows after the training days whose text was never seen before, above which it is no category."""
_DECIMAL = r"^\s*[-+]?\d*\.\d+([eE][-+]?\d+)?\s*$"
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\d*\.\d+)([eE][-+]?\d+)?\s*$"
LEAK = 0.98
"""A column that alone orders the labels this well (AUC), or follows them (correlation), is not a feature."""
_TRAIN_SHARE, _VALIDATION_SHARE = 0.70, 0.15
_MIN_DAYS = 3
_NAME = re.compile(r"^[a-z][a-z0-9_]{0,47}$")


@dataclass
class _Columns:
    """What was decided about the columns that are neither key, time nor label."""

    numeric: list[str] = field(default_factory=list)
    categorical: dict[str, int] = field(default_factory=dict)
    """Name to number of distinct values."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Name to reason."""


def scaffold(
    settings: Settings,
    name: str,
    *,
    source: str,
    label: str,
    time: str,
    keys: Sequence[str],
    time_zone: str = "UTC",
    owner: str = "me",
    clock: Clock = utc_now,
) -> Path:
    """Write `pipelines/<name>/` and its expectation suite, ready to run.

    Args:
        settings: Where the project is, and the S3 endpoint.
        name: Lower-case name of the new pipeline.
        source: A Parquet or CSV file, a folder of such files, or an `s3://` URL of either.
        label: The column to predict, 0 / 1 or boolean, null where there is no outcome.
        time: The event time: the moment a prediction is about.
        keys: Columns that, with the time, identify a row.
        time_zone: IANA zone whose midnight divides days, and in which times without an offset are read.
        owner: Shown in Airflow.
        clock: What time it is, to tell old data from fresh.

    Returns:
        The new folder.

    Raises:
        ConfigError: The name is not usable or taken, or nothing is at `source`.
        DataError: The rows cannot be used: no such column, no binary label, repeated keys, too few days.
    """
    folder = settings.pipelines_dir / name
    suite_path = settings.project / "great_expectations" / "expectations" / f"{name}.json"
    _refuse_name(name, folder, suite_path)
    kind = _kind_of(settings, source)
    files = open_files(settings, source, kind=kind, base=Path.cwd())
    raw = files.read()
    uri = source if source.startswith("s3://") else str(Path(source).expanduser().resolve())
    probe = _probe_spec(name, kind, uri, label, time, keys, time_zone)
    _require_options(raw.column_names, probe)
    rows = prepare_rows(_with_binary_label(raw, label, uri), probe, with_labels=True)
    refuse_one_class(rows, probe)
    days = sorted(set(local_days(rows, probe).to_pylist()))
    windows = _windows(days, uri, time)
    columns = _choose(rows, probe, last_training_day=windows[1])
    if not columns.numeric and not columns.categorical:
        raise DataError(
            "has no column that could be a feature: "
            + "; ".join(f"{column} {why}" for column, why in columns.left_out.items()),
            which=uri,
            fix="add columns that are known before the label is",
        )
    text = _pipeline_yaml(probe, columns, windows, rows, days, owner, clock().date())
    parse_pipeline(text, origin=f"{name}/pipeline.yaml")
    suite = _suite(name, probe, rows, columns)
    folder.mkdir(parents=True)
    (folder / "pipeline.yaml").write_text(text, encoding="utf-8")
    (folder / "features.py").write_text(_features_py(columns), encoding="utf-8")
    (folder / "model.py").write_text(_MODEL_PY, encoding="utf-8")
    suite_path.parent.mkdir(parents=True, exist_ok=True)
    suite_path.write_text(json.dumps(suite, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    log.info(
        "wrote %s: %d features, %s rows looked at",
        folder,
        len(columns.numeric) + len(columns.categorical),
        f"{rows.num_rows:,}",
    )
    return folder


def _refuse_name(name: str, folder: Path, suite_path: Path) -> None:
    if not _NAME.match(name) or keyword.iskeyword(name):
        raise ConfigError(
            "is not a pipeline name",
            which=repr(name),
            fix="use lower-case letters, digits and _, starting with a letter, at most 48 characters",
        )
    for path in (folder, suite_path):
        if path.exists():
            raise ConfigError(
                "exists already; nothing was written",
                which=str(path),
                fix="choose another name, or remove it first",
            )


def _kind_of(settings: Settings, source: str) -> str:
    """`parquet` or `csv`, by the file's name or by what lies in the folder."""
    if not source.startswith("s3://") and not Path(source).expanduser().exists():
        raise ConfigError(
            "does not exist",
            which=source,
            fix=f"give --from a file, a folder or an s3:// prefix; a relative path starts at {Path.cwd()}",
        )
    lowered = source.lower().rstrip("/")
    if lowered.endswith((".csv", ".csv.gz")):
        return "csv"
    if lowered.endswith((".parquet", ".pq")):
        return "parquet"
    found = []
    for kind in ("parquet", "csv"):
        try:
            open_files(settings, source, kind=kind, base=Path.cwd())
        except ConfigError:
            continue
        found.append(kind)
    if len(found) == 1:
        return found[0]
    raise ConfigError(
        "holds both Parquet and CSV files" if found else "holds neither Parquet nor CSV files",
        which=source,
        fix="give --from a file, or a folder or s3:// prefix with files of one kind (.parquet or .csv)",
    )


def _probe_spec(
    name: str, kind: str, uri: str, label: str, time: str, keys: Sequence[str], time_zone: str
) -> PipelineSpec:
    """Enough of a pipeline for the checks that every pipeline's rows go through."""
    return parse_pipeline(
        json.dumps(
            {
                "name": name,
                "description": "",
                "owner": "",
                "source": {"kind": kind, "uri": uri, "time_zone": time_zone},
                "entity_key": list(keys),
                "event_time": time,
                "label": {"column": label},
                "features": {"numeric": ["none_yet"]},
                "split": {"train_days": 1, "validation_days": 1},
                "validation": {"suite": name},
            }
        ),
        origin=f"penstock new {name}",
    )


def _require_options(present: Sequence[str], probe: PipelineSpec) -> None:
    """`require_columns`, with a fix for somebody who has typed options and has no pipeline.yaml yet."""
    try:
        require_columns(present, [*probe.entity_key, probe.event_time, probe.label.column], probe)
    except DataError as error:
        raise DataError(
            error.what,
            which=probe.source.uri,
            fix=f"name columns of the source with --key, --time and --label; it has: {', '.join(present)}",
        ) from error


def _with_binary_label(raw: pa.Table, label: str, uri: str) -> pa.Table:
    """Refuse what has no two classes, saying what was found instead."""
    column = raw.column(label)
    values = [value for value in pc.unique(column).to_pylist() if value is not None and value == value]
    if pa.types.is_boolean(column.type) or set(values) <= {0, 1}:
        return raw
    shown = ", ".join(repr(value) for value in sorted(values, key=str)[:6])
    more = ", ..." if len(values) > 6 else ""
    raise DataError(
        f"is not a binary label: it is {column.type} with {len(values):,} distinct values ({shown}{more})",
        which=f"{uri}, column {label}",
        fix="add a column that is 0 / 1 or true / false, for example `amount > 100`, and name it as --label",
    )


def _windows(days: list[date], uri: str, time: str) -> tuple[date, date, date, date]:
    """Train and validation windows: the first 70 % of the days, then 15 %; the rest is to be scored."""
    if len(days) < _MIN_DAYS:
        raise DataError(
            f"spans {len(days)} day{'s' * (len(days) != 1)}; training, validation and scoring need at least {_MIN_DAYS}",
            which=f"{uri}, column {time}",
            fix="give more days of data, or name another column as --time",
        )
    train = min(max(round(len(days) * _TRAIN_SHARE), 1), len(days) - 2)
    validation = min(max(round(len(days) * _VALIDATION_SHARE), 1), len(days) - train - 1)
    return days[0], days[train - 1], days[train], days[train + validation - 1]


# -- choosing features


def _choose(rows: pa.Table, spec: PipelineSpec, *, last_training_day: date) -> _Columns:
    chosen = _Columns()
    days = local_days(rows, spec)
    later = pc.greater(days, pa.scalar(last_training_day, days.type))
    labelled = rows.filter(rows[spec.label.column].is_valid())
    target = labelled[spec.label.column].to_numpy().astype(np.float64)
    for name in rows.column_names:
        if name in (*spec.entity_key, spec.event_time, spec.label.column):
            continue
        column = _plain(rows[name])
        known = _plain(labelled[name])
        distinct = pc.count_distinct(column, mode="only_valid").as_py() if _hashable(column.type) else 0
        why = _reason_against(name, column, distinct) or _goes_with_time(column, days, later)
        if why is None:
            leak = _strength(known, target)
            if leak > LEAK:
                why = f"predicts the label almost alone ({leak:.3f}): is it known before the outcome is?"
        elif _null_strength(known, target) > LEAK:
            why += "; and whether it is null tells the label: if only the outcome sets it, list it in outcome_columns"
        if why is not None:
            chosen.left_out[name] = why
        elif _is_number(column.type):
            chosen.numeric.append(name)
        else:
            chosen.categorical[name] = distinct
    return chosen


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_category(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind))


def _hashable(kind: pa.DataType) -> bool:
    return _is_number(kind) or _is_category(kind) or pa.types.is_temporal(kind)


def _reason_against(name: str, column: pa.ChunkedArray, distinct: int) -> str | None:
    kind, rows = column.type, len(column) - column.null_count
    if pa.types.is_temporal(kind):
        return "is a time: derive numbers from it in features.py, such as an hour or an age"
    if not (_is_number(kind) or _is_category(kind)):
        return f"is {kind}, which is neither a number nor a text"
    if not rows:
        return "is always null"
    if distinct == 1:
        return "is constant"
    if pa.types.is_integer(kind) and distinct == rows and rows > 20:
        return "is different in every row, like an id"
    if re.search(r"(^|_)(id|uuid|guid)$", name.lower()) and distinct > MAX_CATEGORIES:
        return "looks like an id"
    if _is_category(kind) and not pa.types.is_boolean(kind) and (why := _is_number_as_text(column)):
        return why
    if _is_category(kind) and distinct > max(MAX_CATEGORIES, 2) and distinct > rows / 2:
        return "is a text that hardly repeats"
    if _is_category(kind) and distinct == rows:
        return "is a text that never repeats"
    if _is_category(kind) and distinct > 5000:
        return f"has {distinct:,} categories: group them in features.py first"
    return None


def _is_number_as_text(column: pa.ChunkedArray) -> str | None:
    """Why a text column is one of numbers: most values are, half of them with a decimal point, as no code has."""
    texts = column.drop_null()
    number = pc.match_substring_regex(texts, _NUMBER)
    decimal = pc.match_substring_regex(texts, _DECIMAL)
    share = pc.mean(number).as_py()
    if share < NUMBERS_AS_TEXT or pc.mean(decimal).as_py() < 0.5:
        return None
    others = pc.unique(texts.filter(pc.invert(number))).to_pylist()
    but = f", but for {', '.join(map(repr, others[:3]))}{', ...' * (len(others) > 3)}" if others else ""
    return f"is a text that holds numbers{but}: deliver it as a number, or make one of it in features.py"


def _goes_with_time(column: pa.ChunkedArray, days: pa.Array, later: pa.Array) -> str | None:
    """Why a column says when, and not what: what it holds in training does not come again when rows are scored."""
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        return None
    if _is_category(column.type):
        new = column.filter(later).drop_null()
        seen = column.filter(pc.invert(later))
        share = 1 - pc.mean(pc.is_in(new, pc.unique(seen))).as_py() if len(new) else 0.0
        if share > MAX_NEW_SHARE:
            return f"is new in {share:.0%} of the rows after the training days, like a date"
        return None
    by_day = (
        pa.table({"day": days, "value": column})
        .group_by("day")
        .aggregate([("value", "min"), ("value", "max")])
    )
    by_day = by_day.sort_by("day")
    low, high = by_day["value_min"].to_numpy(), by_day["value_max"].to_numpy()
    if len(low) > 2 and (low == high).all() and (np.diff(low) >= 0).all():
        return "is one number a day that rises with the calendar, like a date"
    return None


def _strength(column: pa.ChunkedArray, target: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """How well the column alone tells the label: the larger of AUC (either direction) and |correlation|.

    For a text, categories are ordered by their label rate, leaving each row's own label out.
    """
    strengths = [_null_strength(column, target)]
    if _is_number(column.type):
        values = pc.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy()
        known = np.isfinite(values)
        if known.sum() > 1 and len(np.unique(target[known])) == 2:
            auc = _auc(values[known], target[known])
            strengths += [auc, 1 - auc, abs(_correlation(values[known], target[known]))]
    else:
        encoded = column.combine_chunks().cast(pa.string()).dictionary_encode(null_encoding="encode")
        codes = encoded.indices.to_numpy()
        count, ones = np.bincount(codes), np.bincount(codes, weights=target)
        rate = (ones[codes] - target + target.mean()) / count[codes]
        strengths.append(_auc(rate, target))
    return float(max(strengths))


def _null_strength(column: pa.ChunkedArray, target: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """How well "is null" alone tells the label, as AUC: a column that only the outcome fills leaks it."""
    by_null = _auc(pc.is_null(column).to_numpy(zero_copy_only=False).astype(np.float64), target)
    return max(by_null, 1 - by_null)


def _auc(
    values: np.ndarray[Any, np.dtype[np.float64]], target: np.ndarray[Any, np.dtype[np.float64]]
) -> float:
    """Area under the ROC curve; a label of one class says nothing: 0.5."""
    found = auc(target, values)
    return 0.5 if np.isnan(found) else found


def _correlation(
    values: np.ndarray[Any, np.dtype[np.float64]], target: np.ndarray[Any, np.dtype[np.float64]]
) -> float:
    if values.std() == 0 or target.std() == 0:
        return 0.0
    return float(np.corrcoef(values, target)[0, 1])


# -- the files


def _pipeline_yaml(
    spec: PipelineSpec,
    columns: _Columns,
    windows: tuple[date, date, date, date],
    rows: pa.Table,
    days: list[date],
    owner: str,
    today: date,
) -> str:
    first, train_end, validation_start, validation_end = windows
    labels = rows[spec.label.column]
    rate = pc.mean(labels).as_py()
    per_day = np.unique(local_days(rows, spec).to_numpy(zero_copy_only=False), return_counts=True)[1]
    validation_rows = int(rows.num_rows * _VALIDATION_SHARE)
    lines = [
        "# Written by `penstock new`. It runs as it is; docs/pipeline.md lists every field with its default.",
        "",
        f"name: {spec.name} # must equal the folder's name",
        f"description: Predicts {_q(spec.label.column, inline=True)} from {len(columns.numeric) + len(columns.categorical)} columns.",
        f"owner: {_q(owner)}",
        "",
        "source:",
        f"  kind: {spec.source.kind}",
        f"  uri: {_q(spec.source.uri)}",
        f"  time_zone: {spec.source.time_zone} # whose midnight divides days; times without an offset are read in it",
        "",
        "# Together these name a row, and so its prediction.",
        f"entity_key: {_q(list(spec.entity_key))}",
        f"event_time: {_q(spec.event_time)}",
        "",
        "label:",
        f"  column: {_q(spec.label.column)} # {rate:.1%} of {rows.num_rows - labels.null_count:,} labelled rows are 1",
        "  delay_days: 1 # days until the labels of a day are known",
        "  # Name columns here that are known only afterwards; they are kept away from features and scoring.",
        "  outcome_columns: []",
        "",
        "features: # the columns that features.py returns",
        "  numeric:" if columns.numeric else "  numeric: []",
        *[f"    - {_q(name)}" for name in columns.numeric],
        "  categorical:" if columns.categorical else "  categorical: {}",
        *[
            f"    {_q(name)}: {{ embedding_dim: {_embedding(count)} }} # {count} distinct values"
            for name, count in columns.categorical.items()
        ],
    ]
    if columns.left_out:
        lines += ["  # Left out:"]
        lines += [f"  #   {_q(name, inline=True)} {why}" for name, why in columns.left_out.items()]
    lines += [
        "",
        f"split: # {len(days)} days are present; those after validation are there to be scored",
        f"  train: {{ first_day: {first}, last_day: {train_end} }}",
        f"  validation: {{ first_day: {validation_start}, last_day: {validation_end} }}",
        "",
        "validation:",
        f"  suite: {spec.validation.suite} # great_expectations/expectations/{spec.validation.suite}.json",
        f"  min_rows: {max(1, int(per_day.min()) // 2)} # half of the smallest day seen",
        "",
        "training:",
        f"  batch_rows: {_batch(rows.num_rows)}",
        "",
        "gates: # raise min_auc once you know what is possible",
        "  min_auc: 0.55",
        "  max_ece: 0.1",
        "  auc_margin_baseline: -0.05 # at most this much below logistic regression",
        f"  slice_min_rows: {max(10, min(200, validation_rows // 4))}",
        "",
        "drift:",
        f"  min_rows: {max(1, min(200, int(np.median(per_day)) // 2))}",
        "",
        *_explanations(days, today),
    ]
    return "\n".join(lines)


def _explanations(days: list[date], today: date) -> list[str]:
    """Keep explanations of old data: with the default their first archiving would delete them."""
    default = ExplanationSpec().expire_days
    age = (today - days[0]).days
    if age <= default:
        return []
    return [
        "explanations:",
        f"  expire_days: {age + default} # the default of {default} would delete those of these old days at once",
        "",
    ]


def _q(value: Any, *, inline: bool = False) -> str:
    """`value` as YAML on one line; `inline` is for text inside a comment or a sentence."""
    if inline:
        return str(value).replace("\n", " ").replace(": ", " ").replace("#", "")
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.strip().removesuffix("...").strip()


def _embedding(distinct: int) -> int:
    return int(min(16, max(2, round(distinct**0.5))))


def _batch(rows: int) -> int:
    """A power of two that gives some fifty steps an epoch."""
    return int(2 ** np.clip(round(np.log2(max(rows, 2) / 50)), 4, 12))


def _features_py(columns: _Columns) -> str:
    names = [*columns.numeric, *columns.categorical]
    listed = "\n".join(f"    {json.dumps(name, ensure_ascii=False)}," for name in names)
    return f'''"""What the network sees of a row: for a start, columns as they are.

Derive better ones here, and list them in pipeline.yaml under `features`. A feature may use only what is
known when the prediction is made. A null stays null: the encoder handles it.
"""

import pyarrow as pa

# Raise this when the meaning of a feature changes. A digest of this file is part of the version as well.
FEATURE_VERSION = "1"

COLUMNS = [
{listed}
]


def features(rows: pa.Table) -> pa.Table:
    """The columns that pipeline.yaml lists, one row for each row of `rows`, in its order."""
    return rows.select(COLUMNS)
'''


_MODEL_PY = '''"""The network: an embedding for each category, then a small MLP. Any torch.nn.Module of the same shape will do."""

from torch import nn

from tasks.model import NetworkSpec, TabularMLP


def build(spec: NetworkSpec) -> nn.Module:
    return TabularMLP(spec)
'''


def _suite(name: str, spec: PipelineSpec, rows: pa.Table, columns: _Columns) -> dict[str, Any]:
    """An expectation suite with generous bounds around what was seen."""
    label = spec.label.column
    used = [*spec.entity_key, spec.event_time, *columns.numeric, *columns.categorical]
    checks: list[dict[str, Any]] = [
        _expect(
            "expect_table_columns_to_match_set",
            {"column_set": used, "exact_match": False},
            "critical",
            "The columns that keys and features need.",
        ),
        *[
            _expect(
                "expect_column_values_to_not_be_null",
                {"column": column},
                "critical",
                "Part of the name of a row.",
            )
            for column in (*spec.entity_key, spec.event_time)
        ],
        _expect(
            "expect_column_values_to_be_in_set",
            {"column": label, "value_set": [0, 1]},
            "critical",
            "The label is 0, 1 or missing. Not applicable to a scoring snapshot, which has no label.",
        ),
    ]
    for column in columns.numeric:
        checks += _numeric_checks(column, rows[column])
    for column in columns.categorical:
        checks += _category_checks(column, _plain(rows[column]))
    return {
        "name": name,
        "notes": "Written by `penstock new` from the rows it saw: tighten what you know better.",
        "meta": {"written_by": "penstock new", "rows_seen": rows.num_rows},
        "expectations": checks,
    }


def _numeric_checks(column: str, values: pa.ChunkedArray) -> list[dict[str, Any]]:
    numbers = values.cast(pa.float64(), safe=False)
    bounds = pc.min_max(numbers.filter(pc.fill_null(pc.is_finite(numbers), False))).as_py()
    if bounds["min"] is None:
        return [_nulls(column, values)]
    room = (bounds["max"] - bounds["min"]) or abs(bounds["max"]) or 1.0
    low = 0.0 if bounds["min"] >= 0 else bounds["min"] - room
    return [
        _nulls(column, values),
        _expect(
            "expect_column_values_to_be_between",
            {"column": column, "min_value": _nice(low), "max_value": _nice(bounds["max"] + room)},
            "critical",
            f"Seen: {bounds['min']:g} to {bounds['max']:g}. Far outside, a row is quarantined.",
            row_level=True,
        ),
    ]


def _category_checks(column: str, values: pa.ChunkedArray) -> list[dict[str, Any]]:
    seen = sorted(value for value in pc.unique(values).to_pylist() if value is not None)
    checks = [_nulls(column, values)]
    if len(seen) <= MAX_CATEGORIES:
        checks.append(
            _expect(
                "expect_column_distinct_values_to_be_in_set",
                {"column": column, "value_set": seen},
                "warning",
                "A new category scores as unseen: worth knowing, no reason to stop.",
            )
        )
    return checks


def _nulls(column: str, values: pa.ChunkedArray) -> dict[str, Any]:
    share = values.null_count / max(1, len(values))
    mostly = max(0.0, round(1.0 - min(1.0, 2 * share + 0.05), 3))
    return _expect(
        "expect_column_values_to_not_be_null",
        {"column": column, "mostly": mostly},
        "warning",
        f"{share:.1%} were null when the suite was written.",
    )


def _expect(
    kind: str, kwargs: dict[str, Any], severity: str, notes: str, *, row_level: bool = False
) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": kind, "kwargs": kwargs, "severity": severity}
    if row_level:
        entry["meta"] = {"row_level": True}
    return {**entry, "notes": notes}


def _nice(value: float) -> float | int:
    """Three significant digits, rounded away from zero, so that the bound stays generous."""
    if value == 0:
        return 0
    scale = 10.0 ** (int(np.floor(np.log10(abs(value)))) - 2)
    rounded = float(np.sign(value) * np.ceil(abs(value) / scale) * scale)
    return int(rounded) if rounded.is_integer() else round(rounded, 12)

"""Nulls that are facts of the world: where a pipeline says that a feature may be null (`drift.null_when`).

No flight has arrived yet, so there is no delay of recent arrivals to know: such a null is no fault of a feed, however many there are of
them. A condition is asked of each row while it is scored, so that the nulls to expect are told from others exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.errors import ConfigError
from tasks.core.near_names import or_near
from tasks.core.sampling import Mask
from tasks.core.spec import PipelineSpec, Values


@dataclass(frozen=True)
class NullCondition:
    """A feature may be null in rows where each of some columns has one of its values."""

    feature: str
    when: tuple[tuple[str, Values], ...]
    """Columns, of the source or features, in order of their names, each with its values; None for null. Never empty."""

    @property
    def in_words(self) -> str:
        """`origin_recent_deps is 0 and gate is A or null`."""
        said = (
            f"{column} is {' or '.join(_as_written(value) for value in values)}"
            for column, values in self.when
        )
        return " and ".join(said)

    def to_json(self) -> dict[str, Any]:
        return {"feature": self.feature, "when": {name: list(values) for name, values in self.when}}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> NullCondition:
        return cls.of(str(raw["feature"]), raw["when"])

    @classmethod
    def of(cls, feature: str, when: Mapping[str, Sequence[Any]]) -> NullCondition:
        """As `drift.null_when` has it."""
        return cls(feature, tuple((name, tuple(when[name])) for name in sorted(when)))


def expected_nulls(
    conditions: Iterable[NullCondition], features: pa.Table, rows: pa.Table | None
) -> dict[str, int]:
    """By feature with a condition: how many of its nulls lie in rows where that holds.

    A column that is not there, or of a type without the values, makes no null expected: what cannot be shown is not taken for granted.

    Args:
        conditions: Of some of the features.
        features: Shape (n, F).
        rows: The source's rows, shape (n, ...), in the same order; without them only features can be asked.
    """
    answers: dict[str, Mask | None] = {}  # conditions often ask the same
    found = {}
    for condition in conditions:
        nulls = _nulls(features[condition.feature])
        expected = int(np.count_nonzero(nulls))
        for column, values in condition.when if expected else ():
            question = repr((column, values))  # True is equal to 1, but another question
            if question not in answers:
                answers[question] = _held(_column(column, rows, features), values)
            held = answers[question]
            nulls = nulls & held if held is not None else np.zeros_like(nulls)
            expected = int(np.count_nonzero(nulls))
        found[condition.feature] = expected
    return found


def null_conditions(spec: PipelineSpec) -> tuple[NullCondition, ...]:
    """The conditions of a pipeline, in the order of its features."""
    said = spec.drift.null_when
    return tuple(NullCondition.of(name, said[name]) for name in spec.features.names if name in said)


def check_null_conditions(spec: PipelineSpec, rows: pa.Table) -> None:
    """Whether the conditions of a pipeline can be asked of these rows.

    Args:
        rows: Some rows of the source, without label and outcome columns.

    Raises:
        ConfigError: A condition names what is neither a source column nor a feature, or a value that the column cannot hold.
    """
    numeric = {name: pa.nulls(0, pa.float64()) for name in spec.features.numeric}
    features = pa.table(numeric | {name: pa.nulls(0, pa.string()) for name in spec.features.categorical})
    for condition in null_conditions(spec):
        for column, values in condition.when:
            where = f"pipelines/{spec.name}/pipeline.yaml: drift.null_when.{condition.feature}.{column}"
            held = _column(column, rows, features)
            if held is None:
                known = sorted({*rows.column_names, *features.column_names})
                raise ConfigError(
                    f"is neither a source column nor a feature: {or_near(column, known)}",
                    which=where,
                    fix=f"use one of: {', '.join(known)}",
                )
            try:
                _is_one_of(held, values)
            except pa.ArrowException as error:
                raise ConfigError(
                    f"{list(values)} cannot be compared with the column, which is {held.type}: {error}",
                    which=where,
                    fix="write values of the column's type",
                ) from error


def _as_written(value: object) -> str:
    """As YAML has it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _column(name: str, rows: pa.Table | None, features: pa.Table) -> pa.ChunkedArray | None:
    tables = (features,) if rows is None else (rows, features)
    return next((table[name] for table in tables if name in table.column_names), None)


def _held(column: pa.ChunkedArray | None, values: Sequence[Any]) -> Mask | None:
    """Where the column has one of the values; None when that cannot be asked of it."""
    if column is None:
        return None
    if _compares_in_numpy(column, values):
        numbers = column.to_numpy()
        held: list[Mask] = [np.isnan(numbers) if value is None else numbers == value for value in values]
        return reduce(np.logical_or, held)
    try:
        return _mask(_is_one_of(column, values))
    except pa.ArrowException:
        return None


def _compares_in_numpy(column: pa.ChunkedArray, values: Sequence[Any]) -> bool:
    """Whether that gives what Arrow gives, of which each of many calls takes as long as counting thousands of values."""
    if pa.types.is_float64(column.type):
        return all(value is None or type(value) in (int, float) for value in values)
    return (
        pa.types.is_integer(column.type)
        and not column.null_count
        and all(type(value) is int for value in values)
    )


def _nulls(column: pa.ChunkedArray) -> Mask:
    if pa.types.is_float64(column.type):
        nulls: Mask = np.isnan(column.to_numpy())
        return nulls
    return _mask(_is_null(column))


def _mask(found: pa.ChunkedArray) -> Mask:
    """False for null."""
    mask: Mask = (found.fill_null(False) if found.null_count else found).to_numpy()
    return mask


def _is_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """NaN counts as null, as in profiles."""
    return pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))


def _is_one_of(column: pa.ChunkedArray, values: Sequence[Any]) -> pa.ChunkedArray:
    """True where it is; false or null where it is not."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_decimal(column.type):  # a whole number is cast to it only where it leaves room for any
        column = column.cast(pa.float64())
    held = [
        _is_null(column) if value is None else pc.equal(column, pa.scalar(value).cast(column.type))
        for value in values
    ]
    return reduce(pc.or_kleene, held)

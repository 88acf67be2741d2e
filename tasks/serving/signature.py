"""What a request's rows must look like: the source columns that the model was trained on, with their types.

A row comes as the source has it, because features are computed here by the code that batch scoring runs. What that code
cannot compute from one row alone, such as how late flights were in the last hour, is a column of the source
(`tasks.model.feature_code`), and so a field of the request: whoever asks brings it, or sends null.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from tasks.core.ids import entity_id
from tasks.core.near_names import did_you_mean
from tasks.core.spec import PipelineSpec
from tasks.serving.refusals import Refused

Check = Callable[[Any], Any]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FLOAT32_MAX = 3.4028234663852886e38
_NANOSECOND_YEARS = range(1678, 2262)
_SHOWN = 60
_COMPARED = 16
"""Unknown fields of a row that are compared with a missing one: a request may name any number."""


@dataclass(frozen=True)
class Row:
    """A row that was checked."""

    values: list[Any]
    """In the order of the signature."""
    entity: str


@dataclass(frozen=True)
class _Field:
    name: str
    kind: pa.DataType
    required: bool
    """Null is refused: the row would have no identity."""
    check: Check
    schema: dict[str, Any]


class Signature:
    """The fields of a row.

    Args:
        schema: Source columns that the model knows, without outcomes.
        spec: Names the entity key and the event time.
    """

    def __init__(self, schema: pa.Schema, spec: PipelineSpec) -> None:
        identity = {spec.event_time, *spec.entity_key}
        self.schema = schema
        self._fields = tuple(_field(field, field.name in identity, spec.event_time) for field in schema)
        self._names = frozenset(schema.names)
        self._checks = tuple((field.name, field.check) for field in self._fields)
        self._key = tuple(schema.get_field_index(name) for name in spec.entity_key)
        self._event_time = spec.event_time
        self._afterwards = spec.label.known_afterwards

    def read(self, raw: Any, where: str) -> Row:
        """Check one row.

        Args:
            raw: What JSON gave.
            where: Path of the row in the request, for messages.

        Raises:
            Refused: 422, naming the field.
        """
        if type(raw) is not dict:
            raise _invalid(
                where, f"is {_name_of(raw)}, not an object", "send one object of fields for each row"
            )
        if raw.keys() != self._names:
            raise self._wrong_names(raw, where)
        try:
            values = [check(raw[name]) for name, check in self._checks]
        except ValueError:
            raise self._wrong_value(raw, where) from None
        return Row(values, entity_id([values[index] for index in self._key]))

    def read_among(self, raw: dict[str, Any], where: str) -> Row:
        """Check one row that may have other fields beside those of this signature.

        Raises:
            Refused: 422, naming the field that is missing or wrong.
        """
        return self.read({name: raw[name] for name in self.schema.names if name in raw}, where)

    def read_key(self, raw: Any, where: str) -> tuple[str, datetime | None]:
        """Check an entity key, and the event time if it is there; the entity and that time.

        Raises:
            Refused: 422, naming the field.
        """
        if type(raw) is not dict:
            raise _invalid(where, f"is {_name_of(raw)}, not an object", "send one object for each entity")
        known = {field.name: field for field in self._fields}
        names = [self.schema.names[index] for index in self._key]
        for name in raw:
            if name not in names and name != self._event_time:
                raise _invalid(
                    f"{where}.{name[:_SHOWN]}",
                    "does not belong to the entity key",
                    f"send {', '.join(names)} and if wanted {self._event_time}; whole rows go into `rows`",
                )
        for name in names:
            if name not in raw:
                raise _invalid(f"{where}.{name}", "is missing", f"send all of: {', '.join(names)}")
        values = {}
        for name, value in raw.items():
            try:
                values[name] = known[name].check(value)
            except ValueError as error:
                raise _invalid(f"{where}.{name}", str(error), _how(known[name])) from None
        as_of = values.get(self._event_time)
        if as_of is not None and as_of.tzinfo is None:
            as_of = as_of.replace(tzinfo=UTC)
        return entity_id([values[name] for name in names]), as_of

    def of_source(self, values: dict[str, Any], entity: str, where: str) -> Row:
        """A row that the source had.

        Raises:
            Refused: 422; the model knows a column that the source did not have then.
        """
        missing = [name for name in self.schema.names if name not in values]
        if missing:
            raise _invalid(
                where, f"has a published row without {missing[0]}", "send the whole row, in `rows`"
            )
        return Row([values[name] for name in self.schema.names], entity)

    def table(self, rows: Sequence[Row]) -> pa.Table:
        """The rows as batch scoring reads them from the source."""
        columns = zip(*(row.values for row in rows), strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self.schema, strict=True)]
        return pa.table(arrays, schema=self.schema)

    def json_schema(self) -> dict[str, Any]:
        """A row, for the OpenAPI document."""
        return {
            "type": "object",
            "properties": {field.name: field.schema for field in self._fields},
            "required": [field.name for field in self._fields],
            "additionalProperties": False,
        }

    def key_schema(self) -> dict[str, Any]:
        """An entity key, for the OpenAPI document."""
        names = [self.schema.names[index] for index in self._key]
        known = {field.name: field.schema for field in self._fields}
        return {
            "type": "object",
            "properties": {name: known[name] for name in dict.fromkeys([*names, self._event_time])},
            "required": names,
            "additionalProperties": False,
        }

    def _wrong_names(self, raw: dict[str, Any], where: str) -> Refused:
        missing = [field.name for field in self._fields if field.name not in raw]
        if missing:
            unknown = [str(name)[:_SHOWN] for name in sorted(set(raw) - self._names)[:_COMPARED]]
            meant = ((name, difflib.get_close_matches(name, unknown, n=1)) for name in missing)
            first, close = next((pair for pair in meant if pair[1]), (missing[0], []))
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            return _invalid(
                f"{where}.{first}",
                f"is missing{others}{f'; was it meant by {close[0]!r}?' if close else ''}",
                "send every source column, null where it is not known; columns that come from history or other "
                "rows are the source's, and cannot be computed from one row here",
            )
        extra = sorted(set(raw) - self._names)[0]
        if extra in self._afterwards:
            return _invalid(f"{where}.{extra[:_SHOWN]}", "is known only afterwards", "leave it out")
        hint = did_you_mean(extra[:_SHOWN], self._names, before="; ")
        return _invalid(
            f"{where}.{extra[:_SHOWN]}",
            "is not a field of this model",
            f"leave it out{hint}; see openapi.json",
        )

    def _wrong_value(self, raw: dict[str, Any], where: str) -> Refused:
        for field in self._fields:
            try:
                field.check(raw[field.name])
            except ValueError as error:
                return _invalid(f"{where}.{field.name}", str(error), _how(field))
        raise AssertionError("a value was refused once and not twice")


def _invalid(which: str, what: str, fix: str) -> Refused:
    return Refused(422, "invalid_field", what, which=which, fix=fix)


def _how(field: _Field) -> str:
    kind = field.kind
    if pa.types.is_timestamp(kind):
        zone = ", with its zone, as in 2024-03-01T12:00:00Z" if kind.tz else ", without a zone"
        return f"send an ISO 8601 text{zone}"
    if pa.types.is_date(kind):
        return "send YYYY-MM-DD"
    return f"send what fits {kind}" + ("" if field.required else "; null where it is not known")


def _field(field: pa.Field, required: bool, event_time: str) -> _Field:
    check, schema = _check_of(field.type)
    if field.name == event_time:
        check = _since_1970(check)
    if required:
        check = _not_null(check)
    elif "type" in schema:
        schema = {**schema, "type": [schema["type"], "null"]}
    return _Field(field.name, field.type, required, check, schema)


def _check_of(kind: pa.DataType) -> tuple[Check, dict[str, Any]]:
    if pa.types.is_dictionary(kind):
        return _check_of(kind.value_type)
    if pa.types.is_boolean(kind):
        return _truth, {"type": "boolean"}
    if pa.types.is_integer(kind):
        bits = kind.bit_width
        low, high = (
            (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            if pa.types.is_signed_integer(kind)
            else (0, 2**bits - 1)
        )
        return _integer(low, high), {"type": "integer", "minimum": low, "maximum": high}
    if pa.types.is_floating(kind):
        narrow = kind.bit_width < 64
        return (_narrow_number if narrow else _number), {"type": "number"}
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _text, {"type": "string"}
    if pa.types.is_timestamp(kind):
        return _moment(kind), {"type": "string", "format": "date-time"}
    if pa.types.is_date(kind):
        return _day, {"type": "string", "format": "date"}
    return _other(kind), {}


def _not_null(check: Check) -> Check:
    def checked(value: Any) -> Any:
        if value is None:
            raise ValueError("is null, and a row has no identity without it")
        return check(value)

    return checked


def _since_1970(check: Check) -> Check:
    def checked(value: Any) -> Any:
        moment = check(value)
        if moment is not None and moment.tzinfo is not None and moment < _EPOCH:
            raise ValueError("is before 1970, which no prediction id can hold")
        return moment

    return checked


def _number(value: Any) -> Any:
    if type(value) is float:
        if math.isfinite(value):
            return value
        raise ValueError(f"is {value}, not a finite number")
    if value is None:
        return None
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ValueError("is too large for a number") from None
    raise ValueError(f"is {_name_of(value)}, not a number")


def _narrow_number(value: Any) -> Any:
    number = _number(value)
    if number is not None and abs(number) > _FLOAT32_MAX:
        raise ValueError("is too large for a number of 32 bits")
    return number


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> Any:
        if type(value) is int:
            if low <= value <= high:
                return value
            raise ValueError(f"is not between {low} and {high}")
        if value is None:
            return None
        if type(value) is float and value.is_integer() and abs(value) <= 2**53 and low <= value <= high:
            return int(value)
        raise ValueError(f"is {_name_of(value)}, not an integer")

    return check


def _text(value: Any) -> Any:
    if type(value) is str:
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("is not valid Unicode: it has half of a surrogate pair") from None
        return value
    if value is None:
        return None
    raise ValueError(f"is {_name_of(value)}, not a text")


def _truth(value: Any) -> Any:
    if value is None or type(value) is bool:
        return value
    raise ValueError(f"is {_name_of(value)}, not true or false")


def _moment(kind: pa.DataType) -> Check:
    zoned, nanoseconds = kind.tz is not None, kind.unit == "ns"

    def check(value: Any) -> Any:
        if value is None:
            return None
        if type(value) is not str:
            raise ValueError(f"is {_name_of(value)}, not a time")
        try:
            moment = datetime.fromisoformat(value)
            if zoned and moment.tzinfo is not None:
                moment = moment.astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValueError(f"is not a time: {value[:_SHOWN]!r}") from None
        if zoned is not (moment.tzinfo is not None):
            raise ValueError("has no time zone" if zoned else "has a time zone, and this column has none")
        if nanoseconds and moment.year not in _NANOSECOND_YEARS:
            raise ValueError(f"is out of range: {value[:_SHOWN]!r}")
        return moment

    return check


def _day(value: Any) -> Any:
    if value is None:
        return None
    if type(value) is not str:
        raise ValueError(f"is {_name_of(value)}, not a day")
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"is not a day: {value[:_SHOWN]!r}") from None


def _other(kind: pa.DataType) -> Check:
    def check(value: Any) -> Any:
        try:
            pa.scalar(value, kind)
        except (pa.ArrowException, TypeError, OverflowError, ValueError):
            raise ValueError(f"is {_name_of(value)}, which is no {kind}") from None
        return value

    return check


def _name_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number"}
    return (
        "null"
        if value is None
        else names.get(type(value), f"a number ({value})" if type(value) is float else "")
    )

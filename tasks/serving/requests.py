"""From a request's bytes to checked rows: the native form and the four that MLflow's scoring server reads."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from tasks.serving.limits import ServingLimits
from tasks.serving.refusals import Refused

MAX_REQUEST_ID = 200
_MLFLOW_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


@dataclass(frozen=True)
class RawRequest:
    """A decoded request; its rows are not checked yet."""

    rows: list[Any]
    where: Callable[[int], str]
    """Path of a row in the request, for messages."""
    timeout_s: float | None = None
    request_id: str | None = None
    by_key: bool = False
    """Its rows are entity keys, and the server has the rest."""


def decode_json(body: bytes) -> Any:
    """JSON as its standard has it: NaN and Infinity are refused, and what is too deep to read.

    Raises:
        Refused: 400.
    """
    try:
        return _decoder.decode(body.decode())
    except UnicodeDecodeError as error:
        raise _bad("body", f"is not UTF-8: byte {error.start}", "send JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise _bad(
            f"body, line {error.lineno}, column {error.colno}", f"is not JSON: {error.msg}", "correct it"
        ) from None
    except (RecursionError, ValueError) as error:
        raise _bad("body", f"cannot be read: {str(error)[:100] or 'too deep'}", "send plain JSON") from None


def native(raw: Any, limits: ServingLimits) -> RawRequest:
    """`{"rows": [...], "timeout_ms": ..., "request_id": ...}`, or `entities` instead of `rows`.

    Raises:
        Refused: 400 or 422, naming the field.
    """
    if not isinstance(raw, dict):
        raise _bad("body", "is not an object", 'send {"rows": [{...}]}')
    unknown = sorted(raw.keys() - {"rows", "entities", "timeout_ms", "request_id"})
    if unknown:
        raise _bad(
            unknown[0][:60], "is not known", "send rows or entities, and if wanted timeout_ms and request_id"
        )
    if "rows" in raw and "entities" in raw:
        raise _bad("entities", "stands beside rows", "send one of them in a request")
    name = "entities" if "entities" in raw else "rows"
    rows = raw.get(name)
    if not isinstance(rows, list):
        raise _bad(name, "is not a list" if name in raw else "is missing", f'send {{"{name}": [{{...}}]}}')
    timeout_s = None
    if raw.get("timeout_ms") is not None:
        timeout_s = timeout_of(raw["timeout_ms"], "timeout_ms", limits)
    identifier = raw.get("request_id")
    if identifier is not None:
        identifier = request_id_of(identifier, "request_id")
    return RawRequest(
        rows, lambda index: f"{name}[{index}]", timeout_s, identifier, by_key=name == "entities"
    )


def invocations(raw: Any) -> RawRequest:
    """What MLflow's scoring server reads: `dataframe_split`, `dataframe_records`, `instances` or `inputs`.

    Raises:
        Refused: 400, naming the field.
    """
    if not isinstance(raw, dict):
        raise _bad("body", "is not an object", f"send one of {', '.join(_MLFLOW_FORMS)}")
    if raw.get("params"):
        raise _bad("params", "is not supported", "leave it out: this model takes no parameters")
    forms = sorted(raw.keys() - {"params"})
    if len(forms) != 1 or forms[0] not in _MLFLOW_FORMS:
        found = ", ".join(name[:30] for name in forms[:5]) or "nothing"
        raise _bad("body", f"has {found}", f"send exactly one of {', '.join(_MLFLOW_FORMS)}")
    form = forms[0]
    content = raw[form]
    if form == "dataframe_split":
        return RawRequest(_split(content), lambda index: f"{form}.data[{index}]")
    if isinstance(content, dict) and form in ("instances", "inputs"):
        return RawRequest(_columns(content, form), lambda index: f"{form}, row {index}")
    if not isinstance(content, list):
        raise _bad(form, "is not a list of rows", "send one object for each row")
    return RawRequest(content, lambda index: f"{form}[{index}]")


def timeout_of(value: Any, which: str, limits: ServingLimits) -> float:
    """Seconds of a deadline in milliseconds, a number or its text.

    Raises:
        Refused: 400; it is not above 0 and at most `limits.max_timeout_s`.
    """
    try:
        timeout_s = math.nan if isinstance(value, bool) else float(value) / 1000
    except (TypeError, ValueError, OverflowError):
        timeout_s = math.nan
    if not 0 < timeout_s <= limits.max_timeout_s:
        raise _bad(
            which,
            "is not a time that can be waited",
            f"send milliseconds, above 0 and at most {limits.max_timeout_s * 1000:g}",
        )
    return timeout_s


def request_id_of(value: Any, which: str) -> str:
    """A client's request id.

    Raises:
        Refused: 400; it is empty, too long or not printable.
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_REQUEST_ID or not value.isprintable():
        raise _bad(which, "is not a request id", f"send 1 to {MAX_REQUEST_ID} printable characters")
    return value


def _split(content: Any) -> list[Any]:
    if not isinstance(content, dict):
        raise _bad("dataframe_split", "is not an object", "send columns and data")
    names, data = content.get("columns"), content.get("data")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _bad("dataframe_split.columns", "is not a list of names", "name each column once")
    if len(set(names)) != len(names):
        raise _bad("dataframe_split.columns", "names a column twice", "name each column once")
    if not isinstance(data, list):
        raise _bad("dataframe_split.data", "is not a list of rows", "send a list of values for each row")
    for index, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(names):
            raise _bad(
                f"dataframe_split.data[{index}]",
                f"is not a list of {len(names)} values",
                "send one for each column",
            )
    return [dict(zip(names, row, strict=True)) for row in data]


def _columns(content: dict[str, Any], form: str) -> list[Any]:
    lengths = set()
    for name, values in content.items():
        if not isinstance(values, list):
            raise _bad(f"{form}.{name[:60]}", "is not a list", "send a list of values for each column")
        lengths.add(len(values))
    if len(lengths) > 1:
        raise _bad(form, "has columns of different lengths", "send as many values in each column")
    return [dict(zip(content, row, strict=True)) for row in zip(*content.values(), strict=True)]


def _refuse_constant(name: str) -> NoReturn:
    raise Refused(
        400,
        "invalid_request",
        f"holds {name}, which is not JSON",
        which="body",
        fix="send null for a value that is not known",
    )


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def _bad(which: str, what: str, fix: str) -> Refused:
    return Refused(400, "invalid_request", what, which=which, fix=fix)

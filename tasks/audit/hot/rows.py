"""Online predictions: what the server hands in, how a row lies in a segment, and how it becomes an audit row."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.audit.rows import AUDIT_SCHEMA, audit_table
from tasks.core.errors import DataError
from tasks.core.ids import event_millis, prediction_id
from tasks.core.object_store import ObjectStore
from tasks.core.prediction_ids import PredictionIds
from tasks.core.records import JsonRecord
from tasks.core.scored import ScoredRows

MAX_REQUEST_ID = 200
"""Characters of a request id."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DAY_US = 86_400_000_000
_NONE = -(2**63)
"""Stands for "no time" in a packed row."""
_UTC = pa.timestamp("us", tz="UTC")
_CHECK = struct.Struct("<I")
_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_NAN = float("nan")


class RowDamaged(DataError):
    """A packed row does not hold what was written: its check sum differs."""


@dataclass(frozen=True)
class OnlineModel(JsonRecord):
    """What all online predictions of one loaded model share. A segment holds it once, not with every row."""

    pipeline: str
    model_version: int
    bundle_digest: str
    feature_computation_version: str
    """As the bundle says: declared version and digest of `features.py`."""
    names: tuple[str, ...]
    """All features, in the order of `OnlineRow.attributions`."""
    numeric: tuple[str, ...]
    """Those that are numbers; the others are text."""
    explainer: str
    explainer_version: str
    background_id: str
    base_value: float | None = None
    """Logit of the baseline; None when the server explains nothing."""

    def __post_init__(self) -> None:
        if self.base_value is not None and not math.isfinite(self.base_value):
            raise DataError(
                f"has the base value {self.base_value}",
                which=f"model version {self.model_version} of pipeline {self.pipeline}",
                fix="give the logit of the baseline, or None when nothing is explained",
            )

    @cached_property
    def textual(self) -> tuple[str, ...]:
        numbers = set(self.numeric)
        return tuple(name for name in self.names if name not in numbers)

    @cached_property
    def _in_order(self) -> tuple[str, ...]:
        numbers = set(self.numeric)
        return tuple(name for name in self.names if name in numbers)

    @cached_property
    def _plain(self) -> struct.Struct:
        return struct.Struct(f"<qqqff{len(self.numeric)}f")

    @cached_property
    def _explained(self) -> struct.Struct:
        return struct.Struct(f"<qqqff{len(self.numeric)}f{len(self.names)}f")

    def layout(self, explained: bool) -> npt.DTypeLike:
        """Numbers of a packed row, after its check sum and before its texts."""
        fields: list[Any] = [
            ("event_us", "<i8"),
            ("scored_us", "<i8"),
            ("asof_us", "<i8"),
            ("prediction", "<f4"),
            ("residual", "<f4"),
            ("values", "<f4", (len(self.numeric),)),
        ]
        return np.dtype([*fields, ("attributions", "<f4", (len(self.names),))] if explained else fields)


@dataclass(frozen=True)
class OnlineRow:
    """One prediction that was made online.

    `(prediction_id, request_id)` is its identity: handed in again, it is not added again.
    """

    model: OnlineModel
    request_id: str
    """The client's; a retry has the same."""
    entity_id: str
    """`tasks.core.ids.entity_id` of the entity key."""
    event_time: datetime
    prediction: float
    features: Mapping[str, float | str | None]
    """Value by name, as the model saw it; every name of the model."""
    scored_at: datetime
    attributions: Sequence[float] | None = None
    """Shifts on the logit scale, in the order of `model.names`; None when it was not explained."""
    residual: float | None = None
    """Logit - base value - sum of attributions."""
    feature_asof: datetime | None = None
    """The moment that the features are about; None: the event time."""

    @cached_property
    def prediction_id(self) -> str:
        """The same as in batch (I5)."""
        return prediction_id(self.model.pipeline, self.entity_id, event_millis(self.event_time))


@dataclass(frozen=True)
class PackedRow:
    """A row as it lies in a segment."""

    prediction_id: str
    request_id: str
    explained: bool
    body: bytes

    @property
    def key(self) -> bytes:
        """16 bytes for its identity."""
        return row_key(self.prediction_id, self.request_id)


def row_key(identifier: str, request_id: str) -> bytes:
    """16 bytes for the identity of a row."""
    return hashlib.blake2b(f"{identifier}{request_id}".encode(), digest_size=16).digest()


def pack(row: OnlineRow) -> PackedRow:
    """The row in bytes: check sum, numbers as float32, then entity and texts as JSON.

    Raises:
        DataError: It is incomplete or of wrong types: nothing of it may be stored.
    """
    model, explained = row.model, row.attributions is not None
    if not row.request_id or len(row.request_id) > MAX_REQUEST_ID:
        raise _unfit(row, f"the request id has {len(row.request_id)} characters")
    try:
        if not math.isfinite(row.prediction):
            raise _unfit(row, f"the prediction is {row.prediction}")
        if row.attributions is not None and len(row.attributions) != len(model.names):
            raise _unfit(row, f"{len(row.attributions)} attributions for {len(model.names)} features")
        if explained and model.base_value is None:
            raise _unfit(row, "it has attributions, its model has no base value")
        features = row.features
        numbers = [_NAN if (value := features[name]) is None else value for name in model._in_order]
        asof = _NONE if row.feature_asof is None else (row.feature_asof - _EPOCH) // _MICROSECOND
        head = (
            (row.event_time - _EPOCH) // _MICROSECOND,
            (row.scored_at - _EPOCH) // _MICROSECOND,
            asof,
            row.prediction,
            _NAN if row.residual is None else row.residual,
        )
        shape = model._plain if row.attributions is None else model._explained
        try:
            fixed = shape.pack(*head, *numbers, *(row.attributions if row.attributions is not None else ()))
        except OverflowError:  # beyond float32: infinite, as in batch
            with np.errstate(over="ignore"):
                numbers = np.asarray(numbers, np.float64).astype(np.float32).tolist()
            fixed = shape.pack(*head, *numbers, *(row.attributions if row.attributions is not None else ()))
        texts = [row.entity_id, *(features[name] for name in model.textual)]
        for value in texts:
            if value is not None and not isinstance(value, str):
                raise _unfit(row, f"{value!r} is not text")
        identifier = row.prediction_id
        payload = fixed + _compact(texts).encode()
        check = _check_sum(identifier, row.request_id, payload)
    except KeyError as error:
        raise _unfit(row, f"feature {error} is missing") from error
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise _unfit(row, str(error)) from error
    return PackedRow(identifier, row.request_id, explained, _CHECK.pack(check) + payload)


def _check_sum(identifier: str, request_id: str, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(f"{identifier}{request_id}".encode()))


def _unfit(row: OnlineRow, what: str) -> DataError:
    return DataError(
        f"cannot be kept: {what}",
        which=f"request {row.request_id!r} of pipeline {row.model.pipeline}",
        fix="hand in every feature of the model with its type, times with a zone, and a finite prediction",
    )


Stored = tuple[str, str, bool, bytes]
"""Prediction id, request id, whether it was explained, body."""


def table_of(
    store: ObjectStore,
    rows: Sequence[tuple[OnlineModel, Sequence[Stored]]],
    run_id: Callable[[date], str],
) -> pa.Table:
    """Audit rows of packed rows, in order of prediction id; stores feature sets that are new.

    Args:
        store: The pipeline's store.
        rows: Packed rows by model.
        run_id: The run of a UTC day of scoring.

    Returns:
        `AUDIT_SCHEMA`, with the attributions rounded as a shard rounds them.

    Raises:
        RowDamaged: A row does not hold what was written.
    """
    parts = [
        _part(store, model, explained, list(some), run_id)
        for model, stored in rows
        for explained, some in groupby(sorted(stored, key=lambda row: row[2]), key=lambda row: row[2])
    ]
    if len(parts) == 1 and parts[0].num_rows == 1:  # a look-up
        return parts[0]
    table = pa.concat_tables([AUDIT_SCHEMA.empty_table(), *parts])
    return table.sort_by([("prediction_id", "ascending"), ("source_key", "ascending")])


def store_feature_set(store: ObjectStore, model: OnlineModel) -> None:
    """Store what the model's positions mean, when it is not stored yet."""
    audit_table(store, _scored(model, False, np.zeros(0, model.layout(False)), [], []))


def _part(
    store: ObjectStore,
    model: OnlineModel,
    explained: bool,
    rows: list[Stored],
    run_id: Callable[[date], str],
) -> pa.Table:
    """Rows of one model, all of them explained or none."""
    layout = np.dtype(model.layout(explained))
    end = _CHECK.size + layout.itemsize
    for identifier, request_id, _, body in rows:
        if len(body) <= end or _CHECK.unpack_from(body)[0] != _check_sum(identifier, request_id, body[4:]):
            raise RowDamaged(
                "a row does not hold what was written",
                which=f"prediction {identifier}, request {request_id}",
                fix="restore the segment from a backup",
            )
    numbers = np.frombuffer(b"".join([body[_CHECK.size : end] for *_, body in rows]), layout)
    texts = json.loads(b"[" + b",".join([body[end:] for *_, body in rows]) + b"]")
    table = audit_table(store, _scored(model, explained, numbers, [row[0] for row in rows], texts))
    days = numbers["scored_us"] // _DAY_US
    names = {day: run_id(date(1970, 1, 1) + timedelta(days=int(day))) for day in np.unique(days)}
    asof = numbers["asof_us"]
    own = {
        "run_id": pa.array([names[day] for day in days], pa.string()),
        "source_key": pa.array([row[1] for row in rows], pa.string()),
        "source_row": pa.nulls(len(rows), pa.int64()),
        "scored_at": pa.array(numbers["scored_us"]).cast(_UTC),
        "feature_asof": pa.array(asof, mask=asof == _NONE).cast(_UTC),
    }
    return pa.table({name: own.get(name, table[name]) for name in AUDIT_SCHEMA.names}).cast(AUDIT_SCHEMA)


def _scored(
    model: OnlineModel,
    explained: bool,
    numbers: npt.NDArray[np.void],
    ids: list[str],
    texts: list[list[str | None]],
) -> ScoredRows:
    """The rows as a shard hands them in; what differs from row to row online is put right by the caller."""
    n, width = len(ids), len(model.names)
    columns: dict[str, pa.Array] = {}
    for at, name in enumerate(model._in_order):
        columns[name] = pa.array(numbers["values"][:, at].astype(np.float64), pa.float64(), from_pandas=True)
    for at, name in enumerate(model.textual, 1):
        columns[name] = pa.array([row[at] for row in texts], pa.string())
    halves = np.frombuffer(bytes.fromhex("".join(ids).replace("-", "")), ">u8").reshape(n, 2)
    none = np.zeros((0, width), np.float32)
    return ScoredRows(
        pipeline=model.pipeline,
        run_id="",
        shard=0,
        day=_EPOCH.date(),
        model_version=model.model_version,
        bundle_digest=model.bundle_digest,
        feature_version=model.feature_computation_version,
        source_snapshot=None,  # the row was in a request
        source_key="",
        scored_at=_EPOCH,
        prediction_ids=PredictionIds(halves.astype(np.uint64)),
        event_times=pa.array(np.ascontiguousarray(numbers["event_us"])).cast(_UTC),
        entity_ids=pa.array([row[0] for row in texts], pa.string()),
        source_rows=np.zeros(n, np.int64),
        scores=np.ascontiguousarray(numbers["prediction"]),
        output_names=(),
        outputs=np.zeros((n, 0), np.float32),
        features=pa.table({name: columns[name] for name in model.names}),
        explained=np.full(n, explained),
        attributions=np.ascontiguousarray(numbers["attributions"]) if explained else none,
        base_value=_NAN if model.base_value is None else model.base_value,
        residual=np.ascontiguousarray(numbers["residual"]),
        explainer=model.explainer,
        explainer_version=model.explainer_version,
        background_id=model.background_id,
    )
